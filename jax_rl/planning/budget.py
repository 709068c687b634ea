"""What lives on a device at the same time, whether that fits, what would make it fit, and how fast it could be."""

import math
from dataclasses import dataclass

from jax_rl.config import Config
from jax_rl.planning.compiled import Program
from jax_rl.planning.programs import Work
from jax_rl.planning.targets import DEFAULT_POOL, POOL_VARIABLE, Chip

GIB = 2**30
GENERATION = ("prefill", "grow", "decode")
LARGEST_POOL = 0.92  # leaves a GPU room for CUDA's context and NCCL's buffers


@dataclass(frozen=True)
class Residents:
    """Bytes on each device between the programs."""

    state: int  # what is trained and its optimizer
    frozen: int  # the weights that adapters adapt, and their copy on the rollout's mesh if there is one
    reference: int  # of its own, on the policy's devices
    rollout_copy: int  # of what is trained, while the policy generates

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
    for name in GENERATION:
        if name in programs:
            fixed = residents.always + residents.rollout_copy
            found.append(Phase(name, "policy", fixed, _beyond(programs[name], "parameters")))
    if "reference" in programs:
        beyond = _beyond(programs["reference"], "parameters")
        if shared_reference:
            found.append(Phase("reference", "policy", residents.always + residents.rollout_copy, beyond))
        else:
            own = programs["reference"].bytes_per_device["parameters"]
            found.append(Phase("reference", "reference", own, beyond))
    train = programs["train"]
    gradients = train.bytes_per_device["gradients"]
    beyond = max(_beyond(train, "parameters", "optimizer") - gradients, 0)
    return [*found, Phase("train", "policy", residents.always + gradients, beyond)]


def _beyond(program: Program, *parts: str) -> int:
    sizes = program.bytes_per_device
    peak = program.peak_bytes if program.peak_bytes is not None else sum(sizes.values())
    return max(peak - sum(sizes[part] for part in parts), 0)


def advise(
    cfg: Config, chip: Chip, found: list[Phase], residents: Residents, work: Work, rows: dict[str, int]
) -> list[str]:
    """A line for each thing that would make what does not fit fit, nearest first.

    rows: "policy" and "reference": the parts that their rows are cut into.
    """
    usable, lines = chip.usable_bytes, []
    over = [phase for phase in found if phase.total > usable]
    largest = max((phase.total for phase in over), default=0)
    if over and chip.platform == "cuda" and largest <= LARGEST_POOL * chip.memory_bytes:
        lines.append(
            f"set {POOL_VARIABLE}={LARGEST_POOL} in the environment: {_gib(largest)} are needed, and JAX takes "
            f"{usable / chip.memory_bytes:.0%} of {_gib(chip.memory_bytes)} (default {DEFAULT_POOL:.0%})"
        )
    named: dict[str, list[str]] = {}
    for phase in over:
        for line in _knobs(cfg, usable, phase, residents, work, rows):
            named.setdefault(line, []).append(phase.name)
    return lines + [f"{', '.join(names)}: {line}" for line, names in named.items()]


def _knobs(cfg: Config, usable: int, phase: Phase, residents: Residents, work: Work, rows: dict[str, int]) -> list[str]:
    lines = []
    room = usable - phase.fixed
    if phase.name in GENERATION:
        fitting = _largest(room, phase.varying, work.prompts)
        if fitting:
            lines.append(f"generation.prompts_per_batch: {fitting} (now {work.prompts}) would fit, by proportion")
        if residents.rollout_copy and phase.total - residents.rollout_copy <= usable:
            lines.append(
                f"model.rollout_mesh like model.mesh saves a second copy of the weights ({_gib(residents.rollout_copy)}"
                "), but gathers them for every token"
            )
        elif residents.rollout_copy and room <= 0:
            lines.append("more devices along tensor in model.rollout_mesh make the second copy of the weights smaller")
    elif phase.name == "reference":
        now = cfg.rl.micro_batch_size or cfg.rl.grad_accum or work.prompts * work.group
        fitting = _largest(room, phase.varying, now, rows[phase.devices])
        if fitting:
            lines.append(f"rl.micro_batch_size: {fitting} (now {now}) would fit, by proportion")
        if phase.devices == "policy":
            lines.append("model.reference_gpu_ids: devices of its own take the reference off the policy's")
    else:
        fitting = _largest(room, phase.varying, work.micro_rows, rows["policy"])
        if fitting:
            lines.append(f"rl.micro_batch_size: {fitting} (now {work.micro_rows}) would fit, by proportion")
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
    cache; an optimizer's state is read and written.
    """
    if chip.peak_flops is None or chip.bandwidth is None:
        return None
    sizes = program.bytes_per_device
    moved: float = sizes["parameters"] + sizes.get("kv_cache", 0) + 2 * sizes.get("optimizer", 0)
    if program.name == "decode":
        filled = (work.prompt_len + work.new_tokens / 2) / work.length
        moved = work.new_tokens * (sizes["parameters"] + filled * sizes["kv_cache"])
    return max(program.flops / program.devices / chip.peak_flops, program.calls * moved / chip.bandwidth)


def least_update_seconds(seconds: dict[str, float | None], shared_reference: bool) -> float | None:
    """Of one update; a reference on devices of its own works while the policy generates. Rewards are not counted."""
    if any(value is None for value in seconds.values()):
        return None
    generate = sum(seconds.get(name) or 0.0 for name in GENERATION)
    reference = seconds.get("reference") or 0.0
    both = generate + reference if shared_reference else max(generate, reference)
    return both + (seconds["train"] or 0.0)
