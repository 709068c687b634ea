"""From a config and a target to a plan: places, meshes, programs, and what they add up to."""

from dataclasses import asdict, dataclass
from typing import Any

import jax

from jax_rl.config import Config, resolve_reference
from jax_rl.models.registry import Model
from jax_rl.parallel.devices import Placement
from jax_rl.parallel.layouts import Layouts, hold_alike, make_layouts
from jax_rl.parallel.mesh import describe_shape
from jax_rl.parallel.seats import assign
from jax_rl.parallel.sharding import bytes_per_device
from jax_rl.planning.budget import (
    Phase,
    Residents,
    advise,
    least_seconds,
    least_update_seconds,
    phases,
)
from jax_rl.planning.compiled import Program
from jax_rl.planning.programs import Builder
from jax_rl.planning.targets import PlanError, Target


@dataclass(frozen=True)
class Plan:
    """What an update takes on a target."""

    target: Target
    meshes: dict[str, str]
    programs: list[Program]
    phases: list[Phase]
    seconds: dict[str, float | None]
    seconds_per_update: float | None
    notes: tuple[str, ...]  # what the placement says
    advice: list[str]

    @property
    def fits(self) -> bool:
        refused = any(program.refused for program in self.programs)
        return not refused and all(phase.total <= self.target.chip.usable_bytes for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target.name,
            "devices": self.target.device_count,
            "device_memory_bytes": self.target.chip.memory_bytes,
            "usable_memory_bytes": self.target.chip.usable_bytes,
            "fits": self.fits,
            "advice": [*self.notes, *self.advice],
            "meshes": self.meshes,
            "programs": [asdict(p) | {"least_seconds": self.seconds[p.name]} for p in self.programs],
            "phases": [asdict(phase) | {"total_bytes": phase.total} for phase in self.phases],
            "flops_per_update": sum(program.flops for program in self.programs),
            "least_seconds_per_update": self.seconds_per_update,
        }


def make_plan(cfg: Config, model: Model, target: Target) -> Plan:
    """Compiles everything that an update runs. Nothing is allocated on any device.

    Raises:
        PlanError: a device id that the target does not have.
        MeshError, ShardingError: the meshes do not fit the devices or the model.
    """
    if cfg.misc.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # as in a run
    placement, notes = place_on(cfg, target)
    layouts = make_layouts(cfg, placement, model)
    builder = Builder(cfg, model, layouts)
    programs = [*builder.generation(), *builder.reference(), *builder.train()]
    by_name = {program.name: program for program in programs}
    shared = placement.reference == placement.policy
    residents = _residents(cfg, builder, layouts, by_name, shared)
    found = phases(by_name, residents, shared)
    seconds = {program.name: least_seconds(program, target.chip, builder.work) for program in programs}
    rows = {"policy": layouts.policy.row_count, "reference": layouts.reference.row_count}
    advice = advise(cfg, target.chip, found, residents, builder.work, rows)
    advice += [f"{program.name}: the compiler refused it: {program.refused}" for program in programs if program.refused]
    named = {"policy": layouts.policy, "rollout": layouts.rollout, "reference": layouts.reference}
    return Plan(
        target,
        {name: describe_shape(layout.mesh) for name, layout in named.items()},
        programs,
        found,
        seconds,
        least_update_seconds(seconds, shared),
        notes,
        advice,
    )


def place_on(cfg: Config, target: Target) -> tuple[Placement, tuple[str, ...]]:
    """The policy's and the reference's devices, at the same places of every host, and what the user should know.

    Raises:
        PlanError, DeviceError: an id is not there.
    """
    local, notes = len(target.hosts[0]), tuple[str, ...]()
    if target.chip.platform == "cuda":
        seats = assign(cfg, local, True)
        policy, reference, notes = seats.policy, seats.reference, seats.notes
    else:
        policy, reference = cfg.model.policy_gpu_ids, cfg.model.reference_gpu_ids
        policy = policy or tuple(i for i in range(local) if i not in reference)
    for key, ids in (("model.policy_gpu_ids", policy), ("model.reference_gpu_ids", reference)):
        missing = [i for i in ids if i >= local]
        if missing:
            raise PlanError(f"{key} names {missing}, but a host of {target.name} has devices 0 to {local - 1}")

    def everywhere(ids: tuple[int, ...]) -> tuple[jax.Device, ...]:
        return tuple(devices[i] for devices in target.hosts for i in ids)

    return Placement(everywhere(policy), everywhere(reference or policy)), notes


def _residents(
    cfg: Config, builder: Builder, layouts: Layouts, programs: dict[str, Program], shared: bool
) -> Residents:
    accumulate, step = programs["accumulate"].bytes_per_device, programs["step_weights"].bytes_per_device
    copied = not hold_alike(builder.trained_specs, layouts.policy, layouts.rollout)
    copy = bytes_per_device(builder.trained_specs, layouts.rollout, builder.trained_dtype) if copied else 0
    frozen, trained = 0, bytes_per_device(builder.trained_specs, layouts.policy, builder.trained_dtype)
    if builder.adapters is not None:
        frozen = accumulate["parameters"] - trained
        if not hold_alike(builder.model.specs, layouts.policy, layouts.rollout):
            frozen += bytes_per_device(builder.model.specs, layouts.rollout, builder.dtype)
    own = bool(cfg.rl.kl_coef) and resolve_reference(cfg) != "lora_base"
    reference = programs["reference"].bytes_per_device["parameters"] if own and shared else 0
    return Residents(trained + step["optimizer"], frozen, reference, copy, gradient=trained)
