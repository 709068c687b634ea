"""From the seats that were assigned to JAX's devices: the policy's and the reference's, on every host alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jax_rl.config.schema import Config
from jax_rl.parallel.seats import DeviceError, Seats


@dataclass(frozen=True)
class Placement:
    """Devices of the policy and of the frozen reference, of all processes; the same ones when they share."""

    policy: tuple[jax.Device, ...]
    reference: tuple[jax.Device, ...]


def place_models(cfg: Config, seats: Seats) -> Placement:
    """Resolves `misc.device`, the two lists of local device ids, and `model.reference_device`.

    Without ids: on GPUs what `seats` assigned; on CPUs and TPUs, which no metric takes, all that the reference leaves
    free. The reference shares the policy's.

    Raises:
        DeviceError: the backend or an id is not there; the message lists what is.
    """
    model = cfg.model
    here = local_devices(cfg.misc.device)
    policy_ids, reference_ids = seats.policy or model.policy_gpu_ids, seats.reference or model.reference_gpu_ids
    named = model.reference_device
    if named is not None and not seats.reference:
        reference = local_devices(named, "model.reference_device")[:1]
    else:
        reference = _pick(here, reference_ids, seats, "model.reference_gpu_ids")
    if policy_ids:
        policy = _pick(here, policy_ids, seats, "model.policy_gpu_ids")
    else:
        policy = tuple(d for d in here if d not in reference) or here
    return Placement(_on_all_hosts(policy), _on_all_hosts(reference) or _on_all_hosts(policy))


def local_devices(device: str, key: str = "misc.device") -> tuple[jax.Device, ...]:
    """Local devices of the backend that a key names: auto, cpu, cuda, cuda:N or tpu.

    `cuda:N` as `misc.device` says which GPU this process takes (`seats.assign`); all that it sees are meant here.
    """
    match = re.fullmatch(r"(auto|cpu|cuda|gpu|tpu)(?::(\d+))?", device)
    if match is None:
        raise DeviceError(f"{key} is {device!r}; it must be auto, cpu, cuda, cuda:N or tpu")
    name, index = match.group(1), match.group(2)
    try:
        devices = tuple(jax.local_devices() if name == "auto" else jax.local_devices(backend=name))
    except RuntimeError as error:
        raise DeviceError(f"{key} is {device!r}, but JAX finds only {_what_is_there()}") from error
    if index is None or name in ("cuda", "gpu"):
        return devices
    if int(index) >= len(devices):
        raise DeviceError(f"{key} is {device!r}, but JAX finds only {_what_is_there()}")
    return (devices[int(index)],)


def _pick(devices: tuple[jax.Device, ...], ids: Sequence[int], seats: Seats, key: str) -> tuple[jax.Device, ...]:
    hidden = seats.trainer and len(devices) == len(seats.trainer)  # JAX sees the trainer's GPUs alone, in this order
    places = {i: seats.trainer.index(i) if hidden else i for i in ids}
    missing = [i for i, place in places.items() if place >= len(devices)]
    if missing:
        raise DeviceError(f"{key} names {missing}, but there are {len(devices)} devices: {_what_is_there()}")
    return tuple(devices[place] for place in places.values())


def _on_all_hosts(picked: tuple[jax.Device, ...]) -> tuple[jax.Device, ...]:
    """The devices at the same places of every process, process by process."""
    if not picked or jax.process_count() == 1:
        return picked
    backend = picked[0].platform
    local, everywhere = jax.local_devices(backend=backend), jax.devices(backend)
    places = [local.index(device) for device in picked]
    by_process = [[d for d in everywhere if d.process_index == p] for p in range(jax.process_count())]
    return tuple(devices[place] for devices in by_process for place in places)


def _what_is_there() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
