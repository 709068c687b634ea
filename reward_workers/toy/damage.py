"""Damaged translations with a known penalty and known character spans: single kinds of `errors`, and mixes of them.

The penalty is the sum of its errors' weights, never more than 25. Omissions have no span (there is nothing to mark in
the translation), as in MQM. Standard library only.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reward_workers.toy.errors import LOCAL, WHOLE, WORST, Noise, Pair, Word, right_words


@dataclass(frozen=True)
class Span:
    """Characters `start..end` (end exclusive) of the translation."""

    start: int
    end: int
    severity: str


@dataclass(frozen=True)
class Sample:
    """A translation with what is wrong with it. `penalty` is 0 (faultless) to 25."""

    src: str
    ref: str
    mt: str
    spans: tuple[Span, ...]
    penalty: float
    kind: str


KINDS = ("clean", *LOCAL, *WHOLE)


@dataclass(frozen=True)
class Mix:
    """How often which error is made: shares of faultless and of locally damaged samples; the rest are damaged whole."""

    clean: float
    local: float
    local_weights: Mapping[str, float]
    whole_weights: Mapping[str, float]


# what the held-out figures are measured on
EVALUATION_MIX = Mix(
    clean=0.22,
    local=0.48,
    local_weights=dict.fromkeys(LOCAL, 1.0),
    whole_weights=dict.fromkeys(("truncate", "splice", "loop", "mash", "other", "copy", "english"), 1.0),
)


def render(src: str, ref: str, words: Sequence[Word], penalty: float, kind: str) -> Sample:
    """Join the words; neighbours of one error become one span. A damage that changed nothing is no damage."""
    spans: list[Span] = []
    mt, previous = "", Word("")
    for word in words:
        mt += " " if mt else ""
        start, mt = len(mt), mt + word.text
        if word.severity is not None:
            if (word.severity, word.error) == (previous.severity, previous.error):
                spans[-1] = replace(spans[-1], end=len(mt))
            else:
                spans.append(Span(start, len(mt), word.severity))
        previous = word
    if mt == ref:
        return Sample(src, ref, mt, (), 0, "clean")
    return Sample(src, ref, mt, tuple(spans), min(WORST, penalty), kind)


def damage(src: str, ref: str, noise: Noise, kind: str) -> Sample | None:
    """One sample of one kind (six tries; None where this translation is too short for it)."""
    if kind == "clean":
        return Sample(src, ref, ref, (), 0, "clean")
    for _ in range(6):
        made = (
            LOCAL[kind](right_words(ref.split()), noise, 1) if kind in LOCAL else WHOLE[kind](src, ref.split(), noise)
        )
        sample = render(src, ref, *made, kind) if made else None
        if sample is not None and sample.kind != "clean":
            return sample
    return None


def draw(src: str, ref: str, noise: Noise, mix: Mix) -> Sample:
    """A random sample of the mix; local errors come one to three at a time."""
    u = noise.rng.random()
    if u >= mix.clean + mix.local:
        kind = noise.rng.choices(list(mix.whole_weights), list(mix.whole_weights.values()))[0]
        return damage(src, ref, noise, kind) or Sample(src, ref, ref, (), 0, "clean")
    words, penalty, kinds = right_words(ref.split()), 0.0, []
    for error in range(noise.rng.choice([1, 1, 1, 2, 2, 3]) if u >= mix.clean else 0):
        kind = noise.rng.choices(list(mix.local_weights), list(mix.local_weights.values()))[0]
        made = LOCAL[kind](words, noise, error + 1)
        if made:
            words, penalty = made[0], penalty + made[1]
            kinds.append(kind)
    return render(src, ref, words, penalty, "+".join(kinds) or "clean")


def held_out(pairs: Sequence[Pair], train: Sequence[Pair], seed: int = 1) -> dict[str, list[Sample]]:
    """The fixed test set: per kind, one sample of every pair that it fits, and `mix`, one draw per pair.

    Wrong words come from the training text, wrong sentences from the held-out text: neither tells a metric anything.
    """
    noise = Noise(train, random.Random(seed))
    noise.pairs = pairs
    sets: dict[str, list[Sample]] = {kind: [] for kind in (*KINDS, "mix")}
    for src, ref in pairs:
        for kind in KINDS:
            if sample := damage(src, ref, noise, kind):
                sets[kind].append(sample)
        sets["mix"].append(draw(src, ref, noise, EVALUATION_MIX))
    return sets


def most_common_reference(pairs: Sequence[Pair]) -> str:
    """The safest phrase to say whatever the source is."""
    return Counter(ref for _, ref in pairs if " " in ref).most_common(1)[0][0]
