"""How good is a metric checkpoint on held-out synthetic errors? Prints tables; `--json` also writes the figures.

    .venv-metricx/bin/python -m reward_workers.toy.evaluate metricx configs/toy/metricx --data .cache/toy
    .venv-xcomet/bin/python -m reward_workers.toy.evaluate xcomet configs/toy/xcomet --data .cache/toy

Scores come from the workers' own code, in quality-estimation mode (no reference is shown).
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reward_workers.toy.damage import Sample, Span, held_out, most_common_reference
from reward_workers.toy.measure import Judged, character_f1, hack_samples, preference, spearman
from reward_workers.toy.pairs import read_pairs

Judge = Callable[[Sequence[Sample]], list[Judged]]


def load_metricx(folder: str) -> Judge:
    """Badness = the score, 0 to 25."""
    import torch

    from reward_workers.metricx.model import load_model
    from reward_workers.metricx.tokenizer import MetricXTokenizer

    torch.set_num_threads(1)
    model, tokenizer = load_model(folder, torch.float32, "cpu"), MetricXTokenizer(folder)

    def judge(samples: Sequence[Sample]) -> list[Judged]:
        ids = [tokenizer.encode(s.src, s.mt, None) for s in samples]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        scores = np.zeros(len(ids))
        for batch in np.array_split(order, len(order) // 64 + 1):
            scores[batch] = model.score_ids([ids[i] for i in batch])
        return [Judged(s, score) for s, score in zip(samples, scores.tolist(), strict=True)]

    return judge


def load_xcomet(folder: str) -> Judge:
    """Badness = 1 - the score, 0 to 1."""
    import torch

    from reward_workers.xcomet.model import find_encoder, load_model

    torch.set_num_threads(1)
    model = load_model(folder, find_encoder(folder, None), "cpu")

    def judge(samples: Sequence[Sample]) -> list[Judged]:
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].mt) + len(samples[i].src))
        judged: dict[int, Judged] = {}
        for batch in np.array_split(order, len(order) // 64 + 1):
            scores, spans = model.score_batch([{"mt": samples[i].mt, "src": samples[i].src} for i in batch])
            for i, score, row in zip(batch, scores, spans, strict=True):
                found = tuple(Span(s["start"], s["end"], s["severity"]) for s in row)
                judged[i] = Judged(samples[i], 1 - score, found)
        return [judged[i] for i in range(len(samples))]

    return judge


LOADERS = {"metricx": load_metricx, "xcomet": load_xcomet}


def figures(judge: Judge, data: Path, split: str, only: Sequence[str] = ()) -> dict[str, Any]:
    """Spearman and span F1 on the mix; per kind of error and per hack the mean badness and how often clean is better.

    `only` these kinds and hacks, besides `clean` and `mix`; all where it is empty.
    """
    train, pairs = read_pairs(data / "train.jsonl"), read_pairs(data / f"{split}.jsonl")
    sets = held_out(pairs, train) | hack_samples(pairs, most_common_reference(train))
    if only:
        sets = {name: sets[name] for name in ("clean", *only, "mix")}
    names = [name for name, samples in sets.items() for _ in samples]
    everything = judge([s for samples in sets.values() for s in samples])
    judged: dict[str, list[Judged]] = {name: [] for name in sets}
    for name, one in zip(names, everything, strict=True):
        judged[name].append(one)
    clean = {j.sample.src: j.badness for j in judged["clean"]}
    precision, recall, f1 = character_f1(judged["mix"])
    found: dict[str, Any] = {
        "spearman": spearman([j.badness for j in judged["mix"]], [j.sample.penalty for j in judged["mix"]]),
        "span_precision": precision, "span_recall": recall, "span_f1": f1,
        "clean_marked": float(np.mean([bool(j.spans) for j in judged["clean"]])),
    }  # fmt: skip
    for name, group in judged.items():
        badness = [j.badness for j in group]
        found[name] = {
            "samples": len(group), "penalty": float(np.mean([j.sample.penalty for j in group])),
            "mean": float(np.mean(badness)), "median": float(np.median(badness)),
            "clean_better": preference(group, clean), "span_f1": character_f1(group)[2],
        }  # fmt: skip
    return found


def table(found: dict[str, Any]) -> str:
    """The figures as lines of text."""
    spans = (
        f"span precision {found['span_precision']:.3f}, recall {found['span_recall']:.3f}, F1 {found['span_f1']:.3f}; "
        f"clean sentences with a span {found['clean_marked']:.0%}"
    )
    lines = [
        f"mix: Spearman with the penalty {found['spearman']:.3f}; {spans if found['span_f1'] else 'marks no spans'}",
        f"{'kind':30s} {'n':>4s} {'penalty':>8s} {'badness':>8s} {'median':>8s} {'P(clean better)':>16s} span F1",
    ]
    for name, f in found.items():
        if isinstance(f, dict):
            lines.append(
                f"{name:30s} {f['samples']:4d} {f['penalty']:8.1f} {f['mean']:8.3f} {f['median']:8.3f} "
                f"{f['clean_better']:16.2f} {f['span_f1']:7.2f}"
            )
            lines += ["hacks:"] if name == "mix" else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("metric", choices=sorted(LOADERS))
    parser.add_argument("folder", help="the checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and the split's JSONL")
    parser.add_argument("--split", default="test", choices=("test", "eval"))
    parser.add_argument("--only", nargs="*", default=(), help="kinds of error or hacks, besides clean and mix")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    found = figures(LOADERS[args.metric](args.folder), args.data, args.split, args.only)
    print(table(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
