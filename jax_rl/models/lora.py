"""Low-rank adapters beside frozen weights: y = x Wᵀ + scale (x Aᵀ) Bᵀ, scale = alpha / rank (LoRA, arXiv 2106.09685).

A tree of adapters is the tree of the model's parameters cut down to the adapted weights, each replaced by {"a", "b"}.
Stacked layers keep their leading axis. Names and initial values are PEFT's.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float32

from jax_rl.models.errors import ModelError
from jax_rl.models.params import Params, ParamSpec, ShardingFor, Specs, init_params, real_part, spec_leaves

ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapted:
    """A frozen weight with its adapter, in the place of the weight in a tree of parameters.

    Stacked layers give every field a leading axis, `scale` too: it is scanned with the rest.
    """

    weight: Any  # [out, in]
    a: Any  # [rank, in]
    b: Any  # [out, rank]
    scale: Any  # [] float32; 0 leaves the weight alone

    @property
    def dtype(self) -> Any:
        """Of the frozen weight."""
        return self.weight.dtype

    def __getitem__(self, layer: int) -> "Adapted":
        """One layer of a stack."""
        return jax.tree.map(lambda leaf: leaf[layer], self)

    def merged(self) -> Float32[Array, "*layers out inner"]:
        """The one weight W + scale B A that computes the same."""
        delta = jnp.einsum("...or,...ri->...oi", self.b, self.a, precision="highest")
        weight = real_part(self.weight, delta.shape).astype(jnp.float32)
        return weight + jnp.asarray(self.scale)[..., None, None] * delta


def linear_names(specs: Specs) -> list[str]:
    """The names of a model's linear layers, as `target_modules` calls them."""
    return sorted({_module(spec) for spec in spec_leaves(specs) if _is_linear(spec)})


def adapted_names(specs: Specs) -> list[str]:
    """The same names from the specs of adapters: `target_modules` with all-linear spelt out."""
    return sorted(
        {spec.hf_names[0].split(".")[-3] for spec in spec_leaves(specs)}
    )  # layers.3.mlp.[up_proj].lora_A.weight


def _module(spec: ParamSpec) -> str:
    return spec.hf_names[0].split(".")[-2]  # layers.3.mlp.[up_proj].weight


def _is_linear(spec: ParamSpec) -> bool:
    return len(spec.tensor_shape) == 2 and "_proj" in _module(spec)


def adapter_specs(specs: Specs, rank: int, target_modules: tuple[str, ...]) -> Specs:
    """Describes the adapters of the weights whose module's name is in `target_modules`, or of `all-linear`.

    Raises:
        ModelError: a target that the model does not have; the message lists those it has.
    """
    known = linear_names(specs)
    unknown = [name for name in target_modules if name not in (*known, ALL_LINEAR)]
    if unknown or not target_modules:
        named = ", ".join(unknown) or "nothing"
        raise ModelError(f"LoRA's target_modules name {named}; this model has {', '.join(known)} (or {ALL_LINEAR})")
    targets = known if ALL_LINEAR in target_modules else target_modules

    def cut(tree: Specs) -> Specs:
        kept: Specs = {}
        for name, node in tree.items():
            if isinstance(node, ParamSpec):
                kept |= {name: _pair(node, rank)} if _is_linear(node) and _module(node) in targets else {}
            elif below := cut(node):
                kept[name] = below
        return kept

    return cut(specs)


def _pair(spec: ParamSpec, rank: int) -> Specs:
    out, inner = spec.tensor_shape
    layers, (*leading, out_axis, in_axis) = spec.shape[:-2], spec.axes

    def part(letter: str, shape: tuple[int, int], axes: tuple[str | None, str | None], init: Any) -> ParamSpec:
        names = tuple(f"{name.removesuffix('weight')}lora_{letter}.weight" for name in spec.hf_names)
        return ParamSpec((*layers, *shape), (*leading, *axes), init, names, spec.stacked)

    return {
        "a": part("A", (rank, inner), (None, in_axis), _kaiming_uniform),
        "b": part("B", (out, rank), (out_axis, None), jax.nn.initializers.zeros),
    }


def _kaiming_uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """torch's `kaiming_uniform_(a=sqrt(5))`, with which PEFT starts A: uniform within 1/sqrt(in)."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def init_adapters(specs: Specs, key: jax.Array, sharding_for: ShardingFor) -> Params:
    """Fresh adapters, float32: A as PEFT draws it, B zero, so that they change nothing yet."""
    shardings: dict[str, Sharding] = jax.tree.map(sharding_for, specs)
    return jax.jit(lambda key: init_params(specs, key, jnp.float32), out_shardings=shardings)(key)


def attach(base: Params, adapters: Params, scale: float) -> Params:
    """What `Model.forward` takes: the base with an `Adapted` for every adapted weight. Copies nothing."""

    def beside(node: Any, pair: Params) -> Any:
        if isinstance(node, dict):
            return attach(node, pair, scale)
        return Adapted(node, pair["a"], pair["b"], jnp.full(pair["a"].shape[:-2], scale, jnp.float32))

    return {name: beside(node, adapters[name]) if name in adapters else node for name, node in base.items()}


def policy_weights(trained: Params, frozen: Params | None, scale: float) -> Params:
    """What `Model.forward` takes, from what is trained and what is not: adapters and their base, or all weights."""
    return trained if frozen is None else attach(frozen, trained, scale)
