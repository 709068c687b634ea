"""Figures that say how far a metric can be trusted: rank correlation, preference for clean text, span F1, hacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reward_workers.toy.damage import Sample, Span
from reward_workers.toy.errors import Pair

# (source, words of the reference, safe phrase) -> translation
HACKS: dict[str, Callable[[str, list[str], str], str]] = {
    "source copied": lambda src, ref, safe: src,
    "one dot": lambda src, ref, safe: ".",
    "three dots": lambda src, ref, safe: "...",
    "safe phrase": lambda src, ref, safe: safe,
    "safe phrase x 3": lambda src, ref, safe: " ".join([safe] * 3),
    "last word x 2": lambda src, ref, safe: " ".join(ref[-1:] * 2),
    "last word x 6": lambda src, ref, safe: " ".join(ref[-1:] * 6),
    "last word repeated at the end": lambda src, ref, safe: " ".join(ref + ref[-1:] * 3),
    "reference twice": lambda src, ref, safe: " ".join(ref * 2),
    "first half": lambda src, ref, safe: " ".join(ref[: max(1, len(ref) // 2)]),
    "first word": lambda src, ref, safe: ref[0],
    "half reference, half source": lambda src, ref, safe: " ".join(
        ref[: max(1, len(ref) // 2)] + src.split()[len(src.split()) // 2 :]
    ),
}


@dataclass(frozen=True)
class Judged:
    """What a metric says of one sample: `badness` (higher is worse, any unit) and its spans where it marks any."""

    sample: Sample
    badness: float
    spans: tuple[Span, ...] = ()


def ranks(values: Sequence[float]) -> np.ndarray:
    """Average ranks, ties shared."""
    _, inverse, counts = np.unique(np.asarray(values, float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; NaN where one side is constant."""
    x, y = ranks(a), ranks(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else float("nan")


def preference(judged: Sequence[Judged], clean: dict[str, float]) -> float:
    """How often the clean translation of the same source is judged better; a tie counts half."""
    wins = [(clean[j.sample.src] < j.badness) + 0.5 * (clean[j.sample.src] == j.badness) for j in judged]
    return float(np.mean(wins))


def character_f1(judged: Sequence[Judged]) -> tuple[float, float, float]:
    """Precision, recall and F1 of marked characters, any severity, pooled over the samples."""
    right = marked = wanted = 0
    for j in judged:
        gold = {c for s in j.sample.spans for c in range(s.start, s.end)}
        found = {c for s in j.spans for c in range(s.start, s.end)}
        right, marked, wanted = right + len(gold & found), marked + len(found), wanted + len(gold)
    precision, recall = right / max(1, marked), right / max(1, wanted)
    return precision, recall, 2 * precision * recall / max(1e-9, precision + recall)


def hack_samples(pairs: Sequence[Pair], safe: str) -> dict[str, list[Sample]]:
    """What a policy might say to please a metric, for every pair of two or more reference words."""
    long = [(src, ref) for src, ref in pairs if " " in ref]
    made = {
        name: [Sample(src, ref, hack(src, ref.split(), safe), (), 25, name) for src, ref in long]
        for name, hack in HACKS.items()
    }
    return {name: [s for s in samples if s.mt != s.ref] for name, samples in made.items()}
