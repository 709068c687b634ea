"""What a plan is made for: chips by their names, and their devices as XLA's compilers see them, present or not."""

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies

from jax_rl.errors import UserError

POOL_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # the share of a GPU that JAX takes
DEFAULT_POOL = 0.75
FORMS = "h100:8, h100:2x8 (hosts x GPUs), v5e:4x4, v5p:4x4x4, v6e:4x4 or cpu:64"


class PlanError(UserError):
    """A target that is not known, or whose compiler is not installed."""


@dataclass(frozen=True)
class Chip:
    """Numbers per device, from the vendors' data sheets; None: not known, so no seconds are given.

    peak_flops: dense bf16 products, a second. bandwidth: of the device's memory, bytes a second.
    """

    platform: str
    memory_bytes: int
    peak_flops: float | None = None
    bandwidth: float | None = None

    @property
    def usable_bytes(self) -> int:
        """What JAX may take of it."""
        if self.platform != "cuda":
            return self.memory_bytes
        return int(self.memory_bytes * _pool_share())


def _pool_share() -> float:
    """Of a GPU's memory, what JAX takes."""
    return float(os.environ.get(POOL_VARIABLE, DEFAULT_POOL))


CHIPS = {
    "h100": Chip("cuda", 84_942_979_072, 989.4e12, 3.35e12),
    "v5e": Chip("tpu", int(15.75 * 2**30), 197e12, 819e9),  # 16 GiB, of which the compiler gives 15.75
    "v5p": Chip("tpu", 95 * 2**30, 459e12, 2765e9),
    "v6e": Chip("tpu", 31 * 2**30, 918e12, 1638e9),  # of 32 GiB
}


@dataclass(frozen=True)
class Target:
    """Devices to plan for, host by host."""

    name: str
    chip: Chip
    hosts: tuple[tuple[jax.Device, ...], ...]

    @property
    def device_count(self) -> int:
        return sum(map(len, self.hosts))


def open_target(text: str | None) -> Target:
    """The devices of a target such as `h100:2x8`; None: those of this machine. To be called before JAX is used.

    Raises:
        PlanError: the target is not known, or its compiler is not installed.
    """
    if text is None:
        return _this_machine()
    match = re.fullmatch(r"([a-z0-9]+):([1-9]\d*(?:x[1-9]\d*){0,2})", text)
    name, sizes = (match[1], tuple(map(int, match[2].split("x")))) if match else ("", ())
    platform = "cpu" if name == "cpu" else CHIPS[name].platform if name in CHIPS else None
    if platform is None or len(sizes) > {"cpu": 1, "cuda": 2, "tpu": 3}[platform]:
        raise PlanError(f"--target {text} is not known; it must be like {FORMS}")
    jax.config.update("jax_platforms", "cpu")  # the target is compiled for, never run on
    if platform == "cpu":
        jax.config.update("jax_num_cpu_devices", sizes[0])
        devices = jax.devices("cpu")
        return Target(text, Chip("cpu", _host_memory() // len(devices)), (tuple(devices),))
    devices = _cuda_devices(name, sizes) if platform == "cuda" else _tpu_devices(text)
    return Target(text, CHIPS[name], _by_host(devices))


def _cuda_devices(name: str, sizes: tuple[int, ...]) -> list[jax.Device]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise PlanError(f"--target {name} needs XLA's CUDA compiler (no GPU): pip install 'jax_rl[plan-gpu]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no word about the missing driver
    hosts, gpus = sizes if len(sizes) == 2 else (1, sizes[0])
    config = Path(__file__).with_name(f"{name}.txtpb").read_text(encoding="utf-8")
    topology = topologies.get_topology_desc(
        name, platform="cuda", target_config=config, topology=f"1x{hosts}x{gpus}"
    )  # slices x hosts x GPUs of a host
    return list(topology.devices)


def _tpu_devices(text: str) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(f"--target {text} needs XLA's TPU compiler (no TPU): pip install 'jax_rl[plan-tpu]'")
    quiet = {"TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}
    no_search = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5p-8"}
    for name, value in {**quiet, **no_search, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(text, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PlanError(f"--target {text}: the TPU compiler knows no such slice: {reason}") from error


def _this_machine() -> Target:
    devices = jax.local_devices()
    kind = devices[0].device_kind
    known = next((chip for name, chip in CHIPS.items() if name in kind.lower().replace(" ", "")), None)
    if known is None:
        known = _chip_by_its_memory(devices[0], _host_memory() // len(devices))
    return Target(f"{len(devices)} x {kind}", known, (tuple(devices),))


def _chip_by_its_memory(device: jax.Device, otherwise: int) -> Chip:
    """One that no table names; JAX says how much of a GPU it takes."""
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if device.platform != "gpu":
        return Chip(device.platform, limit or otherwise)
    return Chip("cuda", otherwise if limit is None else round(limit / _pool_share()))  # gpu is JAX's name of it


def _by_host(devices: list[jax.Device]) -> tuple[tuple[jax.Device, ...], ...]:
    hosts: dict[int, list[jax.Device]] = {}
    for device in devices:
        hosts.setdefault(device.process_index, []).append(device)
    return tuple(tuple(members) for _, members in sorted(hosts.items()))


def _host_memory() -> int:
    return math.prod(os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE"))
