"""The meshes of a run: where the policy is trained, where it generates, where the reference lies."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from jax_rl.config.schema import Config, MeshConfig
from jax_rl.models.params import Params, Specs, hold, spec_leaves
from jax_rl.models.registry import Model
from jax_rl.parallel.devices import Placement
from jax_rl.parallel.mesh import describe_devices, describe_shape, make_mesh, make_rollout_mesh
from jax_rl.parallel.sharding import Layout, bytes_per_device, check_tensor


@dataclass(frozen=True)
class Layouts:
    policy: Layout
    rollout: Layout  # the policy's devices, arranged for decoding
    reference: Layout  # the policy's, or one on devices of its own


def make_layouts(cfg: Config, placement: Placement, model: Model) -> Layouts:
    """A reference with devices of its own is cut along fsdp over all of them.

    Raises:
        MeshError: a mesh does not fit its devices.
        ShardingError: tensor does not divide the model's heads.
    """
    policy = make_mesh(placement.policy, cfg.model.mesh)
    check_tensor(model, policy, "model.mesh")
    rollout = make_rollout_mesh(policy, cfg.model.rollout_mesh, model)
    check_tensor(model, rollout, "model.rollout_mesh")
    reference = policy if placement.reference == placement.policy else make_mesh(placement.reference, MeshConfig())
    return Layouts(Layout(policy), Layout(rollout), Layout(reference))


def hold_alike(specs: Specs, one: Layout, other: Layout) -> bool:
    """Whether two meshes of the same devices hold parameters in the same places."""
    pairs = [(one.sharding_for(spec), other.sharding_for(spec), len(spec.shape)) for spec in spec_leaves(specs)]
    return all(a.is_equivalent_to(b, rank) for a, b, rank in pairs)


def make_transfer(specs: Specs, source: Layout, target: Layout) -> Callable[[Params], Params]:
    """Moves parameters to another mesh of the same devices; where nothing would move it hands them back."""
    if hold_alike(specs, source, target):
        return lambda params: params

    shardings = jax.tree.map(target.sharding_for, specs)
    turn = _turn if source.mesh.shape["fsdp"] == source.mesh.size else lambda array, to: array

    def move(params: Params) -> Params:
        return jax.tree.map(lambda spec, array, to: hold(turn(array, to), spec.shape, to), specs, params, shardings)

    return jax.jit(move, out_shardings=shardings)


def _turn(array: jax.Array, to: NamedSharding) -> jax.Array:
    """A stop half-way from fsdp alone to `to`: every device still holds its share alone, already cut along tensor.

    Without it XLA makes a whole copy on each device first ("involuntary full rematerialization").
    """
    cut = [*to.spec, *[None] * (array.ndim - len(to.spec))]
    rest = ("data", "fsdp")
    for d in reversed(range(array.ndim)):
        axes = (cut[d],) if isinstance(cut[d], str) else cut[d] or ()
        if not {*axes} & {*rest} and array.shape[d] % to.mesh.size == 0:
            half_way = NamedSharding(to.mesh, P(*cut[:d], (*axes, *rest), *cut[d + 1 :]))
            return jax.lax.with_sharding_constraint(array, half_way)
    return array


def placement_table(
    layouts: Layouts, specs: Specs, dtype: DTypeLike, has_reference: bool, metrics: dict[str, str]
) -> list[str]:
    """Who is where, a line each; bytes are those of the parameters on each device."""

    def line(name: str, layout: Layout) -> str:
        assert isinstance(layout.mesh, Mesh)
        gib = bytes_per_device(specs, layout, dtype) / 2**30
        where = f"{describe_devices(layout.mesh)}  ({describe_shape(layout.mesh)})"
        return f"{name:<10}{where}  {gib:.3g} GiB of parameters on each device"

    lines = [line("policy", layouts.policy), line("rollout", layouts.rollout)]
    if has_reference:
        lines.append(line("reference", layouts.reference))
    return lines + [f"{name:<10}{device}" for name, device in metrics.items()]
