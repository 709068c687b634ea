"""What lives on a device at the same time, whether that fits, what would make it fit, and how fast it could be."""

import math
from dataclasses import dataclass

from jax_rl.config import Config
from jax_rl.learning.packing import bucket as columns
from jax_rl.planning.compiled import Program
from jax_rl.planning.targets import DEFAULT_POOL, POOL_VARIABLE, Chip
from jax_rl.planning.work import EVALUATION, Work

GIB = 2**30
GENERATION = ("prefill", "grow", "decode")
UPDATE = {  # the programs of an optimizer step, and what they are given of what lives anyway
    "accumulate": ("parameters", "gradients"),
    "step_weights": ("parameters", "optimizer", "gradients"),
    "step_moments": ("optimizer", "gradients"),
}
WRITTEN = {"step_weights": "parameters", "step_moments": "optimizer"}  # the part that a program writes back whole
LARGEST_POOL = 0.92  # leaves a GPU room for CUDA's context and NCCL's buffers


@dataclass(frozen=True)
class Residents:
    """Bytes on each device between the programs."""

    state: int  # what is trained and its optimizer
    frozen: int  # the weights that adapters adapt, and their copy on the rollout's mesh if there is one
    reference: int  # of its own, on the policy's devices
    rollout_copy: int  # of what is trained, while the policy generates
    gradient: int  # of one micro-batch, in the dtype of what is trained, beside the f32 sums

    @property
    def always(self) -> int:
        return self.state + self.frozen + self.reference


@dataclass(frozen=True)
class Phase:
    """A part of an update on one group of devices.

    Attributes:
        fixed: bytes that are there whatever the batch.
        varying: bytes that grow with the rows of a batch.
    """

    name: str
    devices: str  # policy or reference
    fixed: int
    varying: int

    @property
    def total(self) -> int:
        return self.fixed + self.varying


def phases(programs: dict[str, Program], residents: Residents, shared_reference: bool) -> list[Phase]:
    """The largest moments of an update, a program each.

    The weights that generate are a copy where the rollout's mesh holds them otherwise than training's; they live until
    the update's completions are complete, reference logprobs included. Of a program that was refused without a number
    only what it is given is known.
    """
    found = []
    for name, program in programs.items():
        if _generates(name):
            fixed = residents.always + residents.rollout_copy
            found.append(Phase(name, "policy", fixed, _beyond(program, "parameters")))
    if "reference" in programs:
        beyond = _beyond(programs["reference"], "parameters")
        if shared_reference:
            found.append(Phase("reference", "policy", residents.always + residents.rollout_copy, beyond))
        else:
            own = programs["reference"].bytes_per_device["parameters"]
            found.append(Phase("reference", "reference", own, beyond))
    for name, held in UPDATE.items():
        beyond = _beyond(programs[name], *held)
        gradient = min(residents.gradient, beyond) if name == "accumulate" else 0
        fixed = residents.always + programs[name].bytes_per_device["gradients"] + gradient
        found.append(Phase(name, "policy", fixed, beyond - gradient))
    return found


def _generates(name: str) -> bool:
    return name.removeprefix(EVALUATION) in GENERATION


def _beyond(program: Program, *parts: str) -> int:
    sizes = program.bytes_per_device
    peak = program.peak_bytes if program.peak_bytes is not None else sum(sizes.values())
    return max(peak - sum(sizes[part] for part in parts), 0)


def advise(
    cfg: Config, chip: Chip, found: list[Phase], residents: Residents, work: Work, rows: dict[str, int]
) -> list[str]:
    """A line for each thing that would make what does not fit fit; a larger share of the GPU alone, where it is enough.

    rows: "policy" and "reference": the parts that their rows are cut into.
    """
    usable = chip.usable_bytes
    over = [phase for phase in found if phase.total > usable]
    largest = max((phase.total for phase in over), default=0)
    if over and chip.platform == "cuda" and largest <= LARGEST_POOL * chip.memory_bytes:
        return [
            f"set {POOL_VARIABLE}={LARGEST_POOL} in the environment: {_gib(largest)} are needed, and JAX takes "
            f"{usable / chip.memory_bytes:.0%} of {_gib(chip.memory_bytes)} (default {DEFAULT_POOL:.0%})"
        ]
    named: dict[str, list[str]] = {}
    for phase in over:
        for line in _knobs(cfg, usable, phase, residents, work, rows):
            named.setdefault(line, []).append(phase.name)
    return [f"{', '.join(names)}: {line}" for line, names in named.items()]


def _knobs(cfg: Config, usable: int, phase: Phase, residents: Residents, work: Work, rows: dict[str, int]) -> list[str]:
    lines = []
    room = usable - phase.fixed
    if _generates(phase.name):
        batch = work.batch if phase.name in GENERATION or work.evaluation is None else work.evaluation
        fitting = _largest(room, phase.varying, batch.prompts)
        if fitting:
            lines.append(f"generation.prompts_per_batch: {fitting} (now {batch.prompts}) would fit, by proportion")
        if residents.rollout_copy and phase.total - residents.rollout_copy <= usable:
            lines.append(
                f"model.rollout_mesh like model.mesh saves a second copy of the weights ({_gib(residents.rollout_copy)}"
                "), but gathers them for every token"
            )
        if residents.rollout_copy and room <= 0:
            lines.append("more devices along tensor in model.rollout_mesh make the second copy of the weights smaller")
    elif phase.name in ("reference", "accumulate"):
        now, multiple = work.micro_rows, rows[phase.devices]
        if cfg.rl.micro_batch_tokens:
            now, multiple = cfg.rl.micro_batch_tokens, multiple * columns(work.length)
        fitting = _largest(room, phase.varying, now, multiple)
        if fitting:
            key = "micro_batch_tokens" if cfg.rl.micro_batch_tokens else "micro_batch_size"
            lines.append(f"rl.{key}: {fitting} (now {now}) would fit, by proportion")
        if phase.name == "accumulate" and cfg.rl.remat == "minimal":
            lines.append("rl.remat: full keeps less for the backward pass, and computes it again")
        if phase.name == "reference" and phase.devices == "policy":
            lines.append("model.reference_gpu_ids: devices of its own take the reference off the policy's")
    if not lines or room <= 0:
        lines += _smaller_residents(cfg, usable, phase, residents)
    return lines


def _smaller_residents(cfg: Config, usable: int, phase: Phase, residents: Residents) -> list[str]:
    lines = [f"{_gib(phase.fixed)} are there whatever the batch, {_gib(usable)} may be used: take more devices"]
    if residents.reference and phase.devices == "policy":
        lines.append(
            f"model.reference_gpu_ids: a device of its own for the reference frees {_gib(residents.reference)}"
        )
    if not cfg.model.lora.enabled and phase.devices == "policy":
        lines.append("model.lora.enabled: true needs no gradients and moments of the weights, and no second reference")
    if cfg.misc.dtype == "float32":
        lines.append("misc.dtype: bfloat16 halves weights and cache")
    return lines


def _largest(room: int, varying: int, now: int, multiple: int = 1) -> int:
    """How many of `now` rows fit if memory is in proportion to them; 0: none."""
    fitting = math.floor(now * room / varying) if varying and room > 0 else 0
    return min(fitting // multiple * multiple, now)


def _gib(n: float) -> str:
    return f"{n / GIB:.1f} GiB"


def least_seconds(program: Program, chip: Chip, work: Work) -> float | None:
    """No update can spend less on the program: all its products at the chip's peak, or its bytes at the memory's.

    Bytes are what must be read: weights once a call, for each token of decoding again, with the filled part of the
    cache; sums of gradients; an optimizer's state. The halves of the optimizer step write as much as they change.
    """
    if chip.peak_flops is None or chip.bandwidth is None:
        return None
    sizes = program.bytes_per_device
    moved: float = sum(sizes.get(part, 0) for part in ("parameters", "kv_cache", "gradients", "optimizer"))
    moved += sizes.get(WRITTEN.get(program.name, ""), 0)
    if program.name == "decode":
        new_tokens = work.group * work.new_tokens  # to one prompt
        filled = (work.prompt_len + new_tokens / 2) / (work.prompt_len + new_tokens)
        moved = work.new_tokens * (sizes["parameters"] + filled * sizes["kv_cache"])
    return max(program.flops / program.devices / chip.peak_flops, program.calls * moved / chip.bandwidth)


def least_update_seconds(seconds: dict[str, float | None], shared_reference: bool) -> float | None:
    """Of one update; a reference on devices of its own works while the policy generates. Rewards are not counted."""
    if any(value is None for value in seconds.values()):
        return None
    generate = sum(seconds.get(name) or 0.0 for name in GENERATION)
    reference = seconds.get("reference") or 0.0
    both = generate + reference if shared_reference else max(generate, reference)
    return both + sum(seconds[name] or 0.0 for name in UPDATE)
