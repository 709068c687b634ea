"""Meshes: devices along the three axes data, fsdp, tensor.

What lies along which is in `sharding`. XLA's partitioner inserts the communication; no mesh changes a result beyond
rounding.
"""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh

from jax_rl.config.schema import MeshConfig, RolloutMeshConfig
from jax_rl.errors import UserError
from jax_rl.models.registry import Model
from jax_rl.parallel.sharding import tensor_counts

AXES = ("data", "fsdp", "tensor")


class MeshError(UserError):
    """A mesh that does not fit its devices or its model."""


def make_mesh(devices: Sequence[jax.Device], sizes: MeshConfig, key: str = "model.mesh") -> Mesh:
    """The mesh of a model that is trained or frozen. On TPUs neighbours in the mesh are neighbours in the machine.

    Raises:
        MeshError: the sizes do not make the number of devices.
    """
    shape = fill_in((sizes.data, sizes.fsdp, sizes.tensor), len(devices), key)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES)


def make_rollout_mesh(policy: Mesh, sizes: RolloutMeshConfig, model: Model) -> Mesh:
    """The policy's devices, in the policy's order, shaped for decoding.

    `tensor: 0`: the largest count that divides the heads and the devices of a host; so no token waits for a network
    between hosts. Then the weights are whole along data and fsdp: nothing is gathered for each token.

    Raises:
        MeshError: see `make_mesh`.
    """
    devices = policy.devices.reshape(-1)
    local = sum(d.process_index == devices[0].process_index for d in devices)
    fixed = math.prod(n for n in (sizes.data, sizes.fsdp) if n > 0)
    room = math.gcd(local, max(devices.size // fixed, 1))
    tensor = sizes.tensor or max(n for n in tensor_counts(model) if room % n == 0)
    shape = fill_in((sizes.data, sizes.fsdp, tensor), devices.size, "model.rollout_mesh")
    return Mesh(devices.reshape(shape), AXES)


def fill_in(sizes: tuple[int, ...], devices: int, key: str) -> tuple[int, ...]:
    """The sizes with the -1 replaced by what is left.

    Raises:
        MeshError: two -1, or a product that is not the number of devices.
    """
    shown = ", ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
    rest = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1:
        raise MeshError(f"{key} ({shown}) leaves more than one size open; give all but one -1 a number")
    if -1 in sizes and devices % rest == 0:
        return tuple(devices // rest if size == -1 else size for size in sizes)
    if rest != devices or -1 in sizes:
        wanted = "divide" if -1 in sizes else "be"
        raise MeshError(f"{key} ({shown}) makes {rest} of {devices} devices; its product must {wanted} {devices}")
    return sizes


def describe_devices(mesh: Mesh) -> str:
    """`cuda 0-5 (data 1, fsdp 6, tensor 1)`; ids are JAX's."""
    ids = [int(d.id) for d in mesh.devices.flat]
    whole = ids == list(range(ids[0], ids[0] + len(ids))) and len(ids) > 2
    numbers = f"{ids[0]}-{ids[-1]}" if whole else " ".join(map(str, ids))
    return f"{mesh.devices.flat[0].platform} {numbers}"


def describe_shape(mesh: Mesh | AbstractMesh) -> str:
    return ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
