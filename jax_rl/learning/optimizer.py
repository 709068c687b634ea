"""AdamW whose arithmetic is f32 whatever the weights' dtype, and the state that a step changes.

With a learning rate of 1e-6 an update is a hundredth of the distance between two bf16 neighbours and would round to
nothing. So each bf16 weight keeps beside it the 16 bits that rounding took from its f32 value: weight and rest together
are an exact f32 master copy, at 2 bytes a weight instead of 4.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Sharding
from jaxtyping import Array, BFloat16, Float32, Int16

from jax_rl.config.schema import RLConfig

Params = Any  # a pytree of f32 or bf16 arrays

UNDECAYED = ("norm", "bias", "a_log")  # parts of names: layers are stacked, so a norm's scale need not be 1-D


class OptimizerState(NamedTuple):
    optax: optax.OptState  # moments, f32
    low_bits: Params  # int16 for each bf16 weight, None for each f32 weight


@dataclass(frozen=True)
class Optimizer:
    """AdamW behind a clip of the gradient's global norm.

    A step is made in two halves, each a program of its own: new weights from the old moments, then new moments. Made
    at once, the moments would be written while the weights' half may still read them, and XLA on CPU copies them first.
    """

    transform: optax.GradientTransformation

    def init(self, params: Params) -> OptimizerState:
        """Zero moments in f32 (optax would take the weights' dtype), placed like the weights."""
        zeros = jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)
        return OptimizerState(self.transform.init(zeros), jax.tree.map(_no_low_bits, params))

    def new_params(
        self, gradients: Params, moments: optax.OptState, params: Params, low_bits: Params
    ) -> tuple[Params, Params]:
        """The weights after an update from f32 gradients, in their own dtypes, and their low bits."""
        master = jax.tree.map(_to_master, params, low_bits)
        updates, _ = self.transform.update(gradients, moments, master)
        master = optax.apply_updates(master, updates)
        leaves, structure = jax.tree.flatten(master)
        pairs = [_from_master(new, old.dtype) for new, old in zip(leaves, jax.tree.leaves(params), strict=True)]
        new_params, low_bits = (jax.tree.unflatten(structure, part) for part in zip(*pairs, strict=True))
        return new_params, low_bits

    def new_moments(self, gradients: Params, moments: optax.OptState) -> optax.OptState:
        """The moments after the same update."""
        return self.transform.update(gradients, moments, gradients)[1]  # weights would only move the weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training changes. A plain pytree: `step` counts optimizer steps that were applied."""

    params: Params
    opt_state: OptimizerState
    step: Any  # Int32[Array, ""]; any leaf, as this is a pytree: shapes before there are values, shardings
    skipped_in_row: Any  # Int32[Array, ""], non-finite steps since the last good one
    skipped_total: Any  # Int32[Array, ""]


def make_optimizer(rl: RLConfig) -> Optimizer:
    """A clip of the global norm at max_grad_norm, then optax's adamw(lr, weight_decay) with its default betas and eps.

    Weight decay leaves out vectors and everything with norm, bias or A_log in its name.
    """
    clip = optax.stateless(lambda gradients, _: _clipped(gradients, rl.max_grad_norm))
    return Optimizer(optax.chain(clip, optax.adamw(rl.lr, weight_decay=rl.weight_decay, mask=_decay_mask)))


def init_train_state(params: Params, optimizer: Optimizer, shardings: TrainState | None = None) -> TrainState:
    """A state at step 0. It takes the weights over: the update step donates them, so nobody else may hold them.

    shardings: of the state, from `abstract_train_state`; None: all on the weights' one device.
    """
    unknown = {str(p.dtype) for p in jax.tree.leaves(params)} - {"float32", "bfloat16"}
    if unknown:
        raise TypeError(f"weights are {', '.join(sorted(unknown))}: only float32 and bfloat16 can be trained")

    def rest(params: Params) -> tuple[Any, ...]:
        return optimizer.init(params), *(jnp.zeros((), jnp.int32) for _ in range(3))

    places = None if shardings is None else (shardings.opt_state, *[shardings.step] * 3)
    opt_state, *counters = jax.jit(rest, out_shardings=places)(params)
    return TrainState(params, opt_state, *counters)


def abstract_train_state(params: Params, optimizer: Optimizer, elsewhere: Sharding) -> TrainState:
    """The state of step 0 as shapes with shardings, for `restore` and for compiling: nothing is allocated.

    params: `jax.ShapeDtypeStruct`s with shardings, which moments and low bits share. elsewhere: of the counters.
    """

    def like(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.eval_shape(optimizer.init, params)
    moments = optax.tree.map_params(
        optimizer.transform,
        lambda leaf, param: like(leaf, param.sharding),
        state.optax,
        params,
        transform_non_params=lambda leaf: like(leaf, elsewhere),
    )
    low_bits = jax.tree.map(
        lambda param, leaf: None if leaf is None else like(leaf, param.sharding), params, state.low_bits
    )
    counters: list[Any] = [jax.ShapeDtypeStruct((), jnp.int32, sharding=elsewhere) for _ in range(3)]
    return TrainState(params, OptimizerState(moments, low_bits), *counters)


def _clipped(gradients: Params, limit: float) -> Params:
    """optax.clip_by_global_norm, as a product with one number: XLA keeps a copy of what a division makes."""
    factor = jnp.minimum(1.0, limit / optax.tree.norm(gradients))
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


def _decay_mask(params: Params) -> Params:
    def decays(path: tuple[Any, ...], leaf: Array) -> bool:
        name = jax.tree_util.keystr(path).lower()
        return leaf.ndim >= 2 and not any(part in name for part in UNDECAYED)

    return jax.tree_util.tree_map_with_path(decays, params)


def _no_low_bits(weight: Array) -> Array | None:
    return None if weight.dtype == jnp.float32 else jnp.zeros_like(weight, dtype=jnp.int16)


def _to_master(weight: Array, low_bits: Array | None) -> Array:
    return weight if low_bits is None else join_bits(weight, low_bits)


def _from_master(master: Array, dtype: jnp.dtype) -> tuple[Array, Array | None]:
    return (master, None) if dtype == jnp.float32 else split_bits(master)


def split_bits(master: Float32[Array, "*s"]) -> tuple[BFloat16[Array, "*s"], Int16[Array, "*s"]]:
    """The nearest bf16 (ties away from zero) and the rest of the f32's bit pattern, -2^15 ... 2^15 - 1."""
    bits = jax.lax.bitcast_convert_type(master, jnp.uint32)
    high = (bits + 0x8000) >> 16
    low = jax.lax.bitcast_convert_type(bits - (high << 16), jnp.int32)
    return jax.lax.bitcast_convert_type(high.astype(jnp.uint16), jnp.bfloat16), low.astype(jnp.int16)


def join_bits(weight: BFloat16[Array, "*s"], low_bits: Int16[Array, "*s"]) -> Float32[Array, "*s"]:
    """The exact f32 that `split_bits` took apart."""
    high = jax.lax.bitcast_convert_type(weight, jnp.uint16).astype(jnp.uint32) << 16
    low = jax.lax.bitcast_convert_type(low_bits.astype(jnp.int32), jnp.uint32)
    return jax.lax.bitcast_convert_type(high + low, jnp.float32)
