"""A plan as a page of text."""

from collections.abc import Sequence

from jax_rl.planning.budget import GIB
from jax_rl.planning.build import Plan

PARTS = ("parameters", "optimizer", "gradients", "kv_cache", "inputs", "temporaries")


def describe(plan: Plan) -> str:
    """Tables of the programs and of what lives together, then the verdict."""
    chip = plan.target.chip
    head = ("program", "devices", *PARTS, "peak", "PFLOP", "least s", "compile CPU s")
    rows = []
    for program in plan.programs:
        sizes = [_gib(program.bytes_per_device.get(part, 0)) for part in PARTS]
        peak = "refused" if program.peak_bytes is None else _gib(program.peak_bytes)
        counts = (f"{program.flops / 1e15:.4g}", _seconds(plan.seconds[program.name]))
        rows.append((program.name, str(program.devices), *sizes, peak, *counts, f"{program.compile_cpu_seconds:.1f}"))
    lines = [f"{plan.target.name}: {plan.target.device_count} devices, {_gib(chip.memory_bytes)} GiB each, of which "
             f"{_gib(chip.usable_bytes)} may be used"]  # fmt: skip
    lines += [f"  {name}: {shape}" for name, shape in plan.meshes.items()]
    lines += ["", "GiB on each device; FLOPs and seconds of all calls of an update, at the least", *_table(head, rows)]
    for program in plan.programs:
        listed = ", ".join(f"{count} {name}" for name, count in program.collectives.items()) or "none"
        lines.append(f"  {program.name}: {program.calls} an update; collectives (a loop's counted once): {listed}")
    lines += ["", "what lives at the same time, GiB on each device"]
    held = [
        (phase.name, phase.devices, _gib(phase.fixed), _gib(phase.varying), _gib(phase.total),
         "fits" if phase.total <= chip.usable_bytes else "DOES NOT FIT")
        for phase in plan.phases
    ]  # fmt: skip
    lines += _table(("phase", "on", "always there", "of the batch", "total", ""), held)
    flops = sum(program.flops for program in plan.programs)
    lines += [
        "",
        f"an update: {flops / 1e15:.4g} PFLOP, at least {_seconds(plan.seconds_per_update)} s, no rewards",
    ]
    lines += [f"note: {note}" for note in plan.notes]
    lines += ["fits" if plan.fits else "DOES NOT FIT", *(f"  {line}" for line in plan.advice)]
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  " + "  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]


def _gib(n: float) -> str:
    return f"{n / GIB:.3g}"


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g}"
