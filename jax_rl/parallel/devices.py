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


def place_models(device: str, policy_ids: Sequence[int], reference_ids: Sequence[int]) -> Placement:
    """Resolves `misc.device` and the two lists of local device ids.

    Without ids the policy takes the first device and the reference shares it. `cuda:2` means: count only that one.

    Raises:
        DeviceError: the backend or an id is not there; the message lists what is.
    """
    devices = local_devices(device)
    policy = _pick(devices, policy_ids, "model.policy_gpu_ids") or devices[:1]
    reference = _pick(devices, reference_ids, "model.reference_gpu_ids") or policy
    return Placement(policy, reference)


def local_devices(device: str) -> tuple[jax.Device, ...]:
    """Local devices of the backend that `misc.device` names: auto, cpu, cuda, cuda:N or tpu."""
    match = re.fullmatch(r"(auto|cpu|cuda|gpu|tpu)(?::(\d+))?", device)
    if match is None:
        raise DeviceError(f"misc.device is {device!r}; it must be auto, cpu, cuda, cuda:N or tpu")
    name, index = match.group(1), match.group(2)
    try:
        devices = tuple(jax.local_devices() if name == "auto" else jax.local_devices(backend=name))
    except RuntimeError as error:
        raise DeviceError(f"misc.device is {device!r}, but JAX finds only {_what_is_there()}") from error
    if index is None:
        return devices
    if int(index) >= len(devices):
        raise DeviceError(f"misc.device is {device!r}, but JAX finds only {_what_is_there()}")
    return (devices[int(index)],)


def _pick(devices: tuple[jax.Device, ...], ids: Sequence[int], key: str) -> tuple[jax.Device, ...]:
    missing = [i for i in ids if i >= len(devices)]
    if missing:
        raise DeviceError(f"{key} names {missing}, but there are {len(devices)} devices: {_what_is_there()}")
    return tuple(devices[i] for i in ids)


def _what_is_there() -> str:
    devices = jax.local_devices()
    return f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})"
