"""Which accelerators are whose: the policy's, the reference's, and what the user may have meant."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from jax_rl.errors import UserError


class DeviceError(UserError):
    """A device that is not there."""


@dataclass(frozen=True)
class Placement:
    """Devices of the policy and of the frozen reference; the same ones when they share."""

    policy: tuple[jax.Device, ...]
    reference: tuple[jax.Device, ...]


def place_models(
    device: str, policy_ids: Sequence[int], reference_ids: Sequence[int], reference_device: str | None = None
) -> Placement:
    """Resolves `misc.device`, the two lists of local device ids, and `model.reference_device`.

    Without ids the policy takes the first device that the reference leaves free, or the first; the reference shares the
    policy's. `cuda:2` as `misc.device` means: count only that one.

    Raises:
        DeviceError: the backend or an id is not there; the message lists what is.
    """
    devices = local_devices(device)
    if reference_device is not None:
        reference = local_devices(reference_device, "model.reference_device")[:1]
    else:
        reference = _pick(devices, reference_ids, "model.reference_gpu_ids")
    free = tuple(d for d in devices if d not in reference)
    policy = _pick(devices, policy_ids, "model.policy_gpu_ids") or (free or devices)[:1]
    return Placement(policy, reference or policy)


def local_devices(device: str, key: str = "misc.device") -> tuple[jax.Device, ...]:
    """Local devices of the backend that a key names: auto, cpu, cuda, cuda:N or tpu."""
    match = re.fullmatch(r"(auto|cpu|cuda|gpu|tpu)(?::(\d+))?", device)
    if match is None:
        raise DeviceError(f"{key} is {device!r}; it must be auto, cpu, cuda, cuda:N or tpu")
    name, index = match.group(1), match.group(2)
    try:
        devices = tuple(jax.local_devices() if name == "auto" else jax.local_devices(backend=name))
    except RuntimeError as error:
        raise DeviceError(f"{key} is {device!r}, but JAX finds only {_what_is_there()}") from error
    if index is None:
        return devices
    if int(index) >= len(devices):
        raise DeviceError(f"{key} is {device!r}, but JAX finds only {_what_is_there()}")
    return (devices[int(index)],)


def _pick(devices: tuple[jax.Device, ...], ids: Sequence[int], key: str) -> tuple[jax.Device, ...]:
    missing = [i for i in ids if i >= len(devices)]
    if missing:
        raise DeviceError(f"{key} names {missing}, but there are {len(devices)} devices: {_what_is_there()}")
    return tuple(devices[i] for i in ids)


def _what_is_there() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
