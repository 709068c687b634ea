"""The optimizer step from added-up gradients, or nothing at all where they are not finite."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jax_rl.learning.gradients import Totals
from jax_rl.learning.losses import Sums
from jax_rl.learning.optimizer import Optimizer, OptimizerState, Params, TrainState
from jax_rl.parallel.sharding import Layout

Counters = tuple[Array, Array, Array]  # step, skipped_in_row, skipped_total


@dataclass(frozen=True)
class OptimizerStep:
    """step(state, totals) -> (state, stats): one optimizer step; the state is donated.

    A non-finite loss or gradient leaves params, moments and step as they are, bit for bit, and is counted. Stats: the
    sums of `policy_loss`, `grad_norm` before the clip, `skipped` (0 or 1).

    The halves of `Optimizer`, jitted; what they change is donated:
    weights((params, low_bits), moments, totals) -> ((params, low_bits), whether the gradient was finite).
    moments((moments, counters), totals, finite) -> ((moments, counters), stats).
    """

    weights: Any
    moments: Any

    def __call__(self, state: TrainState, totals: Totals) -> tuple[TrainState, Sums]:
        held, moments, counters = split_state(state)
        (params, low_bits), finite = self.weights(held, moments, totals)
        (moments, counters), stats = self.moments((moments, counters), totals, finite)
        return TrainState(params, OptimizerState(moments, low_bits), *counters), stats


def split_state(state: TrainState) -> tuple[tuple[Params, Params], optax.OptState, Counters]:
    """(params, low bits), moments and counters, as the two programs take them."""
    counters = (state.step, state.skipped_in_row, state.skipped_total)
    return (state.params, state.opt_state.low_bits), state.opt_state.optax, counters


def make_step(optimizer: Optimizer, layout: Layout | None = None, shardings: TrainState | None = None) -> OptimizerStep:
    """layout, shardings: as for `make_programs`."""
    weights_at, moments_at = None, None
    if layout is not None:
        assert shardings is not None
        held, moments, counters = split_state(shardings)
        weights_at, moments_at = (held, layout.replicated), ((moments, counters), layout.replicated)

    @partial(jax.jit, donate_argnums=0, out_shardings=weights_at)
    @jax.named_scope("optimizer_step")
    def step_weights(held: tuple[Params, Params], moments: optax.OptState, totals: Totals) -> Any:
        finite = jnp.isfinite(totals.sums["loss"]) & jnp.isfinite(optax.tree.norm(totals.gradients))
        new = optimizer.new_params(totals.gradients, moments, *held)
        return _choose(finite, new, held), finite

    @partial(jax.jit, donate_argnums=0, out_shardings=moments_at)
    @jax.named_scope("optimizer_step")
    def step_moments(held: tuple[optax.OptState, Counters], totals: Totals, finite: Array) -> Any:
        moments, (step, in_row, total) = held
        skipped = jnp.logical_not(finite).astype(jnp.int32)
        moments = _choose(finite, optimizer.new_moments(totals.gradients, moments), moments)
        counters = (step + 1 - skipped, jnp.where(finite, 0, in_row + 1), total + skipped)
        stats = totals.sums | {"grad_norm": optax.tree.norm(totals.gradients), "skipped": skipped}
        return (moments, counters), stats

    return OptimizerStep(step_weights, step_moments)


def _choose(condition: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
