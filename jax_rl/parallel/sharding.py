"""The rules: from the logical axes of parameters and activations to the axes of a mesh. Nowhere else are they known.

Parameters: a dimension in TENSOR_PARALLEL lies along tensor; another one (or the same one, cut further) along fsdp.
Vectors are whole everywhere. Activations: rows lie along data and fsdp, heads and MLP widths along tensor.
"""

import math
from dataclasses import dataclass

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array

from jax_rl.errors import UserError
from jax_rl.models.params import ParamSpec, Specs, held_shape, spec_leaves
from jax_rl.models.registry import Model
from jax_rl.parallel.row_counts import round_up

TENSOR_PARALLEL = ("heads", "kv_heads", "mlp", "vocab")
MAY_BE_WHOLE = "vocab"  # along tensor only where it divides
ROWS = ("data", "fsdp")  # mesh axes of a batch's rows
LAYERS = "layers"  # the scanned axis: every device needs every layer


class ShardingError(UserError):
    """A mesh that cannot hold a parameter."""


@dataclass(frozen=True)
class Layout:
    """What lies where on one mesh. Hashable; itself the `place` of a `Model`, which constrains activations."""

    mesh: Mesh | AbstractMesh  # abstract: to know shapes without devices

    @property
    def row_count(self) -> int:
        """How many parts the rows of a batch are cut into: a batch has a multiple of it."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def rows(self, axis: int = 0) -> NamedSharding:
        """Of arrays of any rank, their rows counted by dimension `axis`."""
        return NamedSharding(self.mesh, P(*[None] * axis, ROWS))

    def fill(self, rows: int) -> int:
        """The least number of rows that the devices divide."""
        return round_up(rows, self.row_count)

    def sharding_for(self, spec: ParamSpec) -> NamedSharding:
        """Of one parameter.

        Where fsdp divides no dimension of a matrix it cuts the longest one all the same: such a parameter is held with
        zeros at its end (`params.held_shape`). Dimensions without a name are not cut; of what has one (a convolution,
        an adapter) little is lost by holding it whole.

        Raises:
            ShardingError: tensor does not divide a dimension that lies along it.
        """
        fsdp, tensor = self.mesh.shape["fsdp"], self.mesh.shape["tensor"]
        inner = [d for d, axis in enumerate(spec.axes) if axis != LAYERS]
        names: list[str | tuple[str, ...] | None] = [None] * len(spec.axes)
        if len(inner) < 2:
            return self.replicated
        sizes = list(spec.shape)
        for d in inner:
            if tensor > 1 and spec.axes[d] in TENSOR_PARALLEL and "tensor" not in names:
                if sizes[d] % tensor == 0:
                    names[d], sizes[d] = "tensor", sizes[d] // tensor
                elif spec.axes[d] != MAY_BE_WHOLE:
                    raise ShardingError(
                        f"{spec.hf_names[0]}: {tensor} devices along tensor do not divide its dimension {d} "
                        f"({spec.axes[d]}, {sizes[d]}); counts that would work: {_divisors(sizes[d])}"
                    )
        dividing = [d for d in inner if sizes[d] % fsdp == 0 and spec.axes[d]]
        if fsdp > 1 and (dividing or all(spec.axes[d] for d in inner)):
            best = max(dividing or inner, key=lambda d: (names[d] is None, spec.axes[d] == "embed", sizes[d]))
            names[best] = "fsdp" if names[best] is None else ("tensor", "fsdp")
        return NamedSharding(self.mesh, P(*names))

    def __call__(self, array: Array, axes: tuple[str | None, ...]) -> Array:
        """Constrains an activation by the logical name of each dimension; what does not divide stays free of it."""
        names = []
        for size, axis in zip(array.shape, axes, strict=True):
            along = ROWS if axis == "batch" else "tensor" if axis in TENSOR_PARALLEL else None
            count = math.prod(self.mesh.shape[a] for a in ((along,) if isinstance(along, str) else along or ()))
            names.append(along if size % count == 0 else None)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, P(*names)))


def layout_of_sizes(sizes: dict[str, int]) -> Layout:
    """Of a mesh that is not here, as `meta.json` of a checkpoint names it: its shapes, no devices."""
    return Layout(AbstractMesh(tuple(sizes.values()), tuple(sizes)))


def check_tensor(model: Model, mesh: Mesh | AbstractMesh, key: str) -> None:
    """Whether whole heads lie on each device.

    Raises:
        ShardingError: names the parameter, its dimension and the counts that would work.
    """
    tensor = mesh.shape["tensor"]
    works = [n for n in tensor_counts(model) if n <= mesh.size]
    for spec in spec_leaves(model.specs):
        for d, axis in enumerate(spec.axes):
            count = _parts(model, axis, spec.shape[d])
            if count % tensor:
                what = f"{count} {axis}" if count != spec.shape[d] else axis
                raise ShardingError(
                    f"{key}: tensor {tensor} does not divide {what} of {spec.hf_names[0]} (dimension "
                    f"{d - spec.stacked}, {spec.shape[d]}); for this model tensor can be {', '.join(map(str, works))}"
                )


def tensor_counts(model: Model) -> list[int]:
    """The numbers of devices along tensor that leave heads and MLP columns whole."""
    counts = [_parts(model, axis, n) for spec in spec_leaves(model.specs) for axis, n in zip(spec.axes, spec.shape)]
    return _divisors(math.gcd(*counts))


def _parts(model: Model, axis: str | None, size: int) -> int:
    """Into how many parts a dimension may be cut along tensor; 0 (any) where it is not cut."""
    if axis == "heads":
        return model.cfg.num_attention_heads
    if axis == "kv_heads":
        return model.cfg.num_key_value_heads
    return size if axis in TENSOR_PARALLEL and axis != MAY_BE_WHOLE else 0


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def bytes_per_device(specs: Specs, layout: Layout, dtype: DTypeLike) -> int:
    """What the parameters take on each device, zeros included."""

    def bytes_of(spec: ParamSpec) -> int:
        sharding = layout.sharding_for(spec)
        return math.prod(sharding.shard_shape(held_shape(spec.shape, sharding))) * spec.dtype(dtype).itemsize

    return sum(map(bytes_of, spec_leaves(specs)))
