"""Which GPUs are whose, decided before JAX starts: the policy's, the reference's, and each metric worker's.

GPUs are numbered as this process was given them: by `CUDA_VISIBLE_DEVICES` where it is set, else as the driver lists
them. `claim` then hides from this process the GPUs that are not the trainer's: JAX would reserve memory on all it sees.
This file must not import jax.
"""

import importlib.util
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from jax_rl.config.schema import Config, MetricXConfig, XCometConfig
from jax_rl.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"

_narrowed: dict[str, str | None] = {}  # VISIBLE as it was given, once `claim` has changed it


class DeviceError(UserError):
    """A device that is not there."""


@dataclass(frozen=True)
class Seats:
    """Numbers of GPUs. `policy` is empty where policy and reference do not run on GPUs."""

    policy: tuple[int, ...]
    reference: tuple[int, ...]  # empty: on the policy's devices, or on the CPU
    metrics: dict[str, str]  # metric -> cpu, cuda:N, or cuda where no GPU was found
    notes: tuple[str, ...] = ()  # what the user should know

    @property
    def trainer(self) -> tuple[int, ...]:
        """The GPUs that the training process sees, in this order."""
        return tuple(sorted({*self.policy, *self.reference}))


def given_gpus() -> str | None:
    """`CUDA_VISIBLE_DEVICES` as this process was started with."""
    return _narrowed.get(VISIBLE, os.environ.get(VISIBLE))


def visible_gpus() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs that this process was given, found without starting a CUDA context."""
    given = given_gpus()
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        end = next((i for i, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]  # as CUDA reads it: up to the first that is none
    return [str(i) for i in range(_count_gpus())]


def _count_gpus() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        if listed.returncode == 0:
            return len(re.findall(r"^GPU \d+:", listed.stdout, re.MULTILINE))
    except (OSError, subprocess.TimeoutExpired):
        pass  # no such program: a container may have the devices alone
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in Path("/dev").iterdir())


def claim(cfg: Config) -> Seats:
    """Decides (`assign`) and hides the other GPUs from this process. To be called before JAX starts a backend.

    Raises:
        DeviceError: an id is not there.
    """
    names = visible_gpus()
    seats = assign(cfg, len(names), _trains_on_gpus(cfg))
    if seats.trainer and names:
        _narrowed.setdefault(VISIBLE, os.environ.get(VISIBLE))
        os.environ[VISIBLE] = ",".join(names[i] for i in seats.trainer)
        if any(device == f"cuda:{i}" for device in seats.metrics.values() for i in seats.trainer):
            os.environ.setdefault(PREALLOCATE, "false")
    return seats


def _trains_on_gpus(cfg: Config) -> bool:
    if cfg.misc.device != "auto":
        return cfg.misc.device.startswith("cuda")
    platforms = os.environ.get("JAX_PLATFORMS") or "cuda"
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return plugin and bool({"cuda", "gpu"} & set(platforms.split(",")))


def assign(cfg: Config, gpus: int, trains_on_gpus: bool) -> Seats:
    """Explicit ids as they are; the rest in order: policy, reference (where it is to have its own), MetricX, XCOMET.

    Each takes the first GPU that is free. When none is left, a metric shares: with the other metric, else with the
    policy, and a note says so.

    Raises:
        DeviceError: a number is not below `gpus` (not checked where `gpus` is 0: nothing could be counted).
    """
    model = cfg.model
    devices = {name: metric.device for name, metric in _metrics(cfg).items()}
    numbered = {name: int(device[5:]) for name, device in devices.items() if device.startswith("cuda:")}
    policy, reference = model.policy_gpu_ids, model.reference_gpu_ids
    if cfg.misc.device.startswith("cuda:"):
        policy = policy or (int(cfg.misc.device[5:]),)
    if model.reference_device and model.reference_device.startswith("cuda"):
        reference = (int(model.reference_device.partition(":")[2] or 0),)
    if not trains_on_gpus:
        policy, reference = (), ()
    _check_numbers({"model.policy_gpu_ids": policy, "model.reference_gpu_ids": reference}, gpus)
    _check_numbers({f"reward.{name}.device": (i,) for name, i in numbered.items()}, gpus)

    free = [i for i in range(gpus) if i not in {*policy, *reference, *numbered.values()}]
    if trains_on_gpus and not policy:
        policy = (free.pop(0) if free else 0,)
    notes = []
    for name in devices:
        if devices[name] != "cuda" or not gpus:
            continue
        index = free.pop(0) if free else _least_bad(gpus, policy, reference, numbered)
        sharing = [other for other, i in numbered.items() if i == index]
        sharing += ["the policy"] if index in policy else []
        sharing += ["the reference"] if index in reference else []
        if sharing:
            notes.append(
                f"reward.{name}.device: no GPU is left, so {name} shares cuda:{index} with {' and '.join(sharing)}; "
                "if memory runs out, give it a GPU of its own or device: cpu"
            )
        numbered[name] = index
        devices[name] = f"cuda:{index}"
    return Seats(policy, reference, devices, tuple(notes))


def _metrics(cfg: Config) -> dict[str, MetricXConfig | XCometConfig]:
    """Those that run on this machine's devices, in the order in which they are served."""
    metrics: dict[str, MetricXConfig | XCometConfig] = {"metricx": cfg.reward.metricx, "xcomet": cfg.reward.xcomet}
    return {name: metric for name, metric in metrics.items() if metric.enabled and not metric.command_prefix}


def _least_bad(gpus: int, policy: tuple[int, ...], reference: tuple[int, ...], metrics: dict[str, int]) -> int:
    """The GPU to share: without a trained model rather than with one, the reference's rather than the policy's."""

    def cost(i: int) -> tuple[bool, bool, int, int]:
        return i in policy, i in reference, list(metrics.values()).count(i), -i

    return min(range(gpus), key=cost)


def _check_numbers(wanted: dict[str, tuple[int, ...]], gpus: int) -> None:
    for key, numbers in wanted.items():
        missing = [i for i in numbers if i >= gpus]
        if missing and gpus:
            names = ", ".join(map(str, missing))
            raise DeviceError(f"{key} names {names}, but there are {gpus} GPUs, numbered 0 to {gpus - 1}")
