"""One description per parameter, and what follows from it: random values, abstract trees, counts and bytes.

A family describes its parameters as a tree (nested dicts) of `ParamSpec`; the parameters themselves are arrays in a
tree of the same shape. Loading, export, sharding and the memory plan walk the same tree.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, Sharding
from jax.typing import DTypeLike

Params = dict[str, Any]  # nested dicts of arrays
Specs = dict[str, Any]  # nested dicts of ParamSpec, the same keys

# (key, shape, dtype) -> array, as in jax.nn.initializers
Initializer = Callable[[jax.Array, tuple[int, ...], DTypeLike], jax.Array]
ShardingFor = Callable[["ParamSpec"], Sharding]


@dataclass(frozen=True)
class ParamSpec:
    """One parameter.

    Attributes:
        shape: of the whole array; weights are [out, in], as Hugging Face stores them.
        axes: the logical name of each dimension, from which a mesh's rules make a sharding; None is never split.
        init: draws the values of a fresh model.
        hf_names: the tensors that hold it in a Hugging Face file, named without the text model's prefix
            (`layers.3.mlp.up_proj.weight`). `stacked`: one name per row of the leading axis; else exactly one.
        stacked: whether the leading axis counts layers.
        wide: held in float32 whatever the model's dtype (a decay rate, whose exponential is taken twice).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    hf_names: tuple[str, ...]
    stacked: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"{self.hf_names}: {len(self.axes)} axis names for shape {self.shape}")
        if len(self.hf_names) != (self.shape[0] if self.stacked else 1):
            raise ValueError(f"{self.hf_names}: {len(self.hf_names)} names for shape {self.shape}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """The shape of each of the tensors named in `hf_names`."""
        return self.shape[1:] if self.stacked else self.shape

    def stack(self, hf_names: tuple[str, ...]) -> "ParamSpec":
        """This parameter of one layer, stacked over the layers that `hf_names` come from."""
        return ParamSpec((len(hf_names), *self.shape), ("layers", *self.axes), self.init, hf_names, True, self.wide)

    def dtype(self, default: DTypeLike) -> np.dtype:
        """What the parameter is held in where the model is held in `default`."""
        return np.dtype(np.float32) if self.wide else np.dtype(jnp.dtype(default))


def spec_leaves(specs: Specs) -> list[ParamSpec]:
    """All specs, in the order of the tree's leaves."""
    return jax.tree.leaves(specs)


def init_params(specs: Specs, key: jax.Array, dtype: DTypeLike) -> Params:
    """Random parameters: each leaf draws from its own key, `fold_in(key, number of the leaf)`."""
    leaves, tree = jax.tree.flatten(specs)
    values = [spec.init(jax.random.fold_in(key, i), spec.shape, spec.dtype(dtype)) for i, spec in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


def abstract_params(specs: Specs, dtype: DTypeLike, sharding_for: ShardingFor | None = None) -> Params:
    """The parameters as `jax.ShapeDtypeStruct`s: for compiling without values and for restoring a checkpoint."""

    def leaf(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        sharding = sharding_for(spec) if sharding_for else None
        return jax.ShapeDtypeStruct(held_shape(spec.shape, sharding), spec.dtype(dtype), sharding=sharding)

    return jax.tree.map(leaf, specs)


def held_shape(shape: tuple[int, ...], sharding: Sharding | None) -> tuple[int, ...]:
    """The shape in which a parameter is held: each dimension as it is, or longer until its sharding divides it.

    The rest is zeros, which nothing reads (`real_part`), so their gradients and moments are zeros too.
    """
    if not isinstance(sharding, NamedSharding):
        return shape
    held = list(shape)
    for d, axes in enumerate(sharding.spec):
        names = (axes,) if isinstance(axes, str) else axes or ()
        parts = math.prod(sharding.mesh.shape[name] for name in names)
        held[d] = -(-shape[d] // parts) * parts
    return tuple(held)


def real_part(array: Any, shape: tuple[int, ...]) -> Any:
    """The parameter without the zeros that it is held with; the array itself where there are none."""
    return array if array.shape == shape else array[tuple(slice(n) for n in shape)]


def hold(array: Any, shape: tuple[int, ...], sharding: Sharding) -> Any:
    """A parameter of real shape `shape`, however it is held, in the shape in which `sharding` holds it."""
    target = held_shape(shape, sharding)
    if array.shape == target:
        return array
    return jnp.pad(real_part(array, shape), [(0, n - real) for n, real in zip(target, shape, strict=True)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Held:
    """A stacked parameter with zeros at its end, on its way through the scan; `shape` is one layer's real one."""

    array: Any
    shape: tuple[int, ...] = field(metadata={"static": True})


def read_held(spec: ParamSpec, array: Any) -> Any:
    """The real part of a parameter; of a stack, `Held`: cut at once, all its layers would be copied."""
    if array.shape == spec.shape:
        return array
    return Held(array, spec.tensor_shape) if spec.stacked else real_part(array, spec.shape)


def read_layer(params: Any) -> Any:
    """One layer's parameters, every `Held` replaced by its real part."""

    def read(leaf: Any) -> Any:
        return real_part(leaf.array, leaf.shape) if isinstance(leaf, Held) else leaf

    return jax.tree.map(read, params, is_leaf=lambda leaf: isinstance(leaf, Held))


def count_params(specs: Specs) -> int:
    """The number of trained values."""
    return sum(spec.size for spec in spec_leaves(specs))


def param_bytes(specs: Specs, dtype: DTypeLike) -> int:
    """What the parameters take in memory, unsharded."""
    return sum(spec.size * spec.dtype(dtype).itemsize for spec in spec_leaves(specs))
