"""Results as tables in Markdown: medians over the rounds, ratios, and the fraction of what the machine can do.

python -m benchmarks.table results.json
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.workloads import MODELS, Draw, ModelSize, draw

NAMES = {"ours": "jax_rl", "hf": "transformers", "trl": "TRL", "tunix": "Tunix"}
PHASES = {"rollout": "rollout", "reference": "reference logprobs", "train": "train step", "update": "whole update"}


def write_tables(results: dict, path: Path) -> None:
    parts = [_header(results)]
    for model, workloads in results["runs"].items():
        parts += [_comparison(results, model, workload) for workload in workloads]
    path.write_text("\n\n".join([*parts, _aims(results)]) + "\n")


# --- what an update takes at least


def limit_seconds(limits: dict, model: str, work: Draw) -> dict[str, float]:
    """Seconds of each phase at the machine's best, attention left out.

    Every prompt is run once a group, the head only where a completion's token is predicted. A forward pass takes 2
    operations a weight and token, training 6, at the speed of large products. A decode step takes as long as the
    products of a batch of the rows that are still going.
    """
    size = MODELS[model]
    rate = max(library["gemm_gflops"] for library in limits.values()) * 1e9
    forward = _forward_flops(size, work)
    steps = [library["decode_step_seconds"][model] for library in limits.values()]
    rows = sorted(int(count) for count in steps[0])
    fastest = [min(library[str(count)] for library in steps) for count in rows]
    live = [(work.lengths > step).sum() for step in range(1, work.lengths.max())]
    prefill = 2 * (size.body_params * sum(map(len, work.prompts)) + size.head_params * len(work.prompts)) / rate
    seconds = {
        "rollout": prefill + float(np.interp(live, rows, fastest).sum()),
        "reference": forward / rate,
        "train": 3 * forward / rate,
    }
    return seconds | {"update": sum(seconds.values())}


def _forward_flops(size: ModelSize, work: Draw) -> float:
    completions = int(work.lengths.sum())
    return 2.0 * (size.body_params * (sum(map(len, work.prompts)) + completions) + size.head_params * completions)


# --- the tables


def _header(results: dict) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    versions = [f"{NAMES[s]}: " + ", ".join(f"{k} {v}" for k, v in vs.items()) for s, vs in results["versions"].items()]
    limits = [
        f"{library}: {values['gemm_gflops']:.0f} GFLOP/s in a float32 product of 2048 x 2048 x 2048, "
        f"{values['triad_gb']:.1f} GB/s in a + 3 b"
        for library, values in results["limits"].items()
    ]
    return "\n".join(
        ["# Side by side", "", f"Machine: {machine}.", "", *[f"- {line}" for line in [*versions, *limits]]]
    )


def _comparison(results: dict, model: str, workload: str) -> str:
    run, work, size = results["runs"][model][workload], draw(workload, MODELS[model]), MODELS[model]
    limits = limit_seconds(results["limits"], model, work)
    tokens, longest = int(work.lengths.sum()), int(work.lengths.max())
    trained = sum(map(len, work.rows)) + tokens
    busiest = max(r["other_cores"] for system in run.values() for r in system["rounds"])
    rounds = max(len(system["rounds"]) for system in run.values())
    peers = [name for name in run if name != "ours"]
    head = ["", *[NAMES[name] for name in run], "limit", *[f"jax_rl ÷ {NAMES[name]}" for name in peers]]
    lines = [
        f"## {model}, {workload}",
        "",
        f"{len(work.prompts)} prompts of {sum(map(len, work.prompts))} tokens, {len(work.lengths)} completions of "
        f"{tokens} (longest {longest}). Weights: {size.body_params / 1e6:.1f} M and a head of "
        f"{size.head_params / 1e6:.1f} M. Medians of {rounds} interleaved rounds; other processes took at most "
        f"{busiest:.1f} cores beside one. In brackets: the limit's share of the time.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]

    def row(title: str, value: Callable[[str], float], form: str, limit: float | None = None, share=None) -> None:
        values = {name: value(name) for name in run}
        cells = [f"{v:{form}}" + (f" ({share(v):.0%})" if share else "") for v in values.values()]
        ratios = [f"{values['ours'] / values[peer]:.2f}" if "ours" in values else "" for peer in peers]
        lines.append("| " + " | ".join([title, *cells, f"{limit:{form}}" if limit else "", *ratios]) + " |")

    row("rollout, tokens/s", lambda s: tokens / of(run, s, "rollout"), ".0f", tokens / limits["rollout"])
    for phase, title in PHASES.items():
        limit = limits[phase]
        row(f"{title}, s", lambda s: of(run, s, phase), ".2f", limit, lambda v: limit / v)  # noqa: B023
    for phase, title in PHASES.items():
        row(f"{title}, CPU s", lambda s: of(run, s, phase, "cpu_seconds"), ".2f")  # noqa: B023
    row("train step, CPU µs per token", lambda s: 1e6 * of(run, s, "train", "cpu_seconds") / trained, ".0f")
    row("peak memory, train, MiB", lambda s: of(run, s, "train", "peak_mb"), ".0f")
    row("peak memory, update, MiB", lambda s: of(run, s, "update", "peak_mb"), ".0f")
    row("start to first update, cold, s", lambda s: run[s]["cold_start"], ".1f")
    row("start to first update, warm, s", lambda s: run[s]["warm_start"], ".1f")
    return "\n".join(lines)


def of(run: dict, system: str, phase: str, unit: str = "seconds") -> float:
    return median(r[phase][unit] for r in run[system]["rounds"])


def _aims(results: dict) -> str:
    lines = ["## Aims", "", "| row | aim | measured |", "|---|---|---|"]

    def add(title: str, aim: str, values: list[str]) -> None:
        if values:
            lines.append(f"| {title} | {aim} | {'; '.join(values)} |")

    def ratios(kind: str, peers: tuple[str, ...], value: Callable[[dict, str], float]) -> list[str]:
        found = []
        for model, workload, run in _ours(results):
            if workload.startswith(kind):
                parts = [f"{NAMES[p]} {value(run, 'ours') / value(run, p):.2f}" for p in peers if p in run]
                found += [f"{model} {workload}: {', '.join(parts)}"] if parts else []
        return found

    def shares(phase: str) -> list[str]:
        found = []
        for model, workload, run in _ours(results):
            limit = limit_seconds(results["limits"], model, draw(workload, MODELS[model]))[phase]
            found.append(f"{model} {workload}: {limit / of(run, 'ours', phase):.0%}")
        return found

    def speed(run: dict, system: str) -> float:
        return 1 / of(run, system, "rollout")

    def update(run: dict, system: str) -> float:
        return of(run, system, "update")

    def train_cpu(run: dict, system: str) -> float:
        return of(run, system, "train", "cpu_seconds")

    everyone, trainers = ("hf", "trl", "tunix"), ("trl", "tunix")
    add("rollout tokens/s, translation, vs each", "≥ 2.5", ratios("translation", everyone, speed))
    add("rollout tokens/s, fixed, vs each", "≥ 1.3", ratios("fixed", everyone, speed))
    add("whole update, translation, vs TRL, Tunix", "≤ 0.4", ratios("translation", trainers, update))
    add("whole update, fixed, vs TRL, Tunix", "≤ 0.8", ratios("fixed", trainers, update))
    add("train step, CPU s per unpadded token, vs PyTorch", "≤ 1.0", ratios("", ("hf",), train_cpu))
    add("train step, share of the limit of large products", "≥ 70 %", shares("train"))
    add("rollout, share of the limit of products of its batch sizes", "≥ 70 %", shares("rollout"))
    add("start to first update, warm ÷ cold", "≤ 0.35", _starts(results))
    if "memory" in results["extras"]:
        small, large = (results["extras"]["memory"][name] for name in ("36m", "36m-v262k"))
        values = f"{large['rest_mb'] / small['rest_mb']:.2f} ({large['rest_mb']:.0f} and {small['rest_mb']:.0f} MiB)"
        add("train step's memory, V 262,144 ÷ 8,192, without the embedding's arrays", "≤ 1.1", [values])
    if "overlap" in results["extras"]:
        times = results["extras"]["overlap"]
        ratio = times["update_with_scoring"] / max(times["update_alone"], times["rollout_alone"])
        add("update with scoring as long as its rollout ÷ the longer of the two alone", "≤ 1.2", [f"{ratio:.2f}"])
    return "\n".join(lines)


def _starts(results: dict) -> list[str]:
    """A start ends with an update's own work, warm or cold: in brackets, the ratio of what comes on top of it."""
    found = []
    for model, workload, run in _ours(results):
        warm, cold = run["ours"]["warm_start"], run["ours"]["cold_start"]
        work = of(run, "ours", "update")
        above = (warm - work) / (cold - work)
        found.append(f"{model} {workload}: {warm / cold:.2f} ({above:.2f} without the update's {work:.1f} s)")
    return found


def _ours(results: dict) -> Iterator[tuple[str, str, dict]]:
    """(model, workload, run) of the runs that jax_rl took part in."""
    for model, workloads in results["runs"].items():
        for workload, run in workloads.items():
            if "ours" in run:
                yield model, workload, run


if __name__ == "__main__":
    source = Path(sys.argv[1])
    write_tables(json.loads(source.read_text()), source.with_name("table.md"))
    print(source.with_name("table.md").read_text())
