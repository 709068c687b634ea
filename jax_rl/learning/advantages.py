"""From sequence and token rewards to one advantage per completion token."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

# A spread below this share of the values' size is f32 rounding: divided by itself it would pass for a signal of size 1.
ROUNDING = 1e-6


class Advantages(NamedTuple):
    """Everything is 0 (False) outside `valid`. The stats are scalars under the names of the training log."""

    raw: Float32[Array, "B T"]  # sequence reward + token reward
    advantages: Float32[Array, "B T"]
    valid: Bool[Array, "B T"]  # the tokens that enter the loss
    stats: dict[str, Float32[Array, ""]]


class _Standardized(NamedTuple):
    values: Array  # z-scores, 0 where not counted
    mean: Array
    std: Array  # population
    flat: Array  # bool: nothing counted, or all counted values equal up to rounding


@partial(
    jax.jit,
    static_argnames=("group_size", "group_normalize", "group_advantage_coef", "normalize_advantage", "eps"),
)
def compute_advantages(
    sequence_rewards: Float[Array, " B"],
    token_rewards: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    scored: Bool[Array, " B"],
    *,
    group_size: int,
    group_normalize: bool,
    group_advantage_coef: float,
    normalize_advantage: bool,
    eps: float,
) -> Advantages:
    """A_raw = R + token reward; plus coef * z of the completion in its group; standardized over all valid tokens.

    Rows `g * group_size ... (g + 1) * group_size - 1` are group g. z is the z-score (population std + eps) of the mean
    over tokens of A_raw among the group's scored completions. The rewards of an unscored row are never read (they may
    be NaN): it leaves statistics and loss, as does a row without tokens. A group with fewer than two scored completions
    is dropped. Groups of one by design (group_size 1) have no group statistics: z is 0 there and the row stays.

    All statistics are two-pass in f32 over whole arrays, so they are global when the arrays are sharded.
    Raises ValueError if B is no multiple of group_size.
    """
    batch = mask.shape[0]
    if batch % group_size:
        raise ValueError(f"{batch} completions do not divide into groups of {group_size}: pass whole groups")
    counted = scored & jnp.any(mask, axis=1)
    tokens = mask & counted[:, None]
    rewards = jnp.where(counted, sequence_rewards.astype(jnp.float32), 0.0)
    token_rewards = jnp.where(tokens, token_rewards.astype(jnp.float32), 0.0)

    completion_means = rewards + jnp.sum(token_rewards, axis=1) / jnp.maximum(jnp.sum(tokens, axis=1), 1)
    by_group = counted.reshape(-1, group_size)
    kept_groups = jnp.sum(by_group, axis=1) >= min(group_size, 2)
    groups = _standardize(completion_means.reshape(-1, group_size), by_group, eps, axis=1)

    valid = tokens & jnp.repeat(kept_groups, group_size)[:, None]
    raw = jnp.where(valid, rewards[:, None] + token_rewards, 0.0)
    advantages = raw
    if group_normalize:
        advantages = jnp.where(valid, raw + group_advantage_coef * groups.values.reshape(-1, 1), 0.0)
    if normalize_advantage:
        advantages = _standardize(advantages, valid, eps).values

    raw_spread, final_spread = _standardize(raw, valid, eps), _standardize(advantages, valid, eps)
    stats = {
        "adv_raw_mean": raw_spread.mean,
        "adv_raw_std": raw_spread.std,
        "adv_norm_mean": final_spread.mean,
        "adv_norm_std": final_spread.std,
        "zero_variance_group_fraction": _fraction(kept_groups & groups.flat & (group_size > 1), kept_groups),
        "dropped_group_fraction": _fraction(~kept_groups, jnp.ones_like(kept_groups)),
        "unscored_fraction": _fraction(~scored, jnp.ones_like(scored)),
    }
    return Advantages(raw, advantages, valid, stats)


def _standardize(values: Array, counted: Array, eps: float, axis: int | None = None) -> _Standardized:
    """(values - mean) / (population std + eps) over the counted values along the axis (None: all)."""
    count = jnp.maximum(jnp.sum(counted, axis=axis, keepdims=True), 1)

    def mean_of(x: Array) -> Array:
        return jnp.sum(jnp.where(counted, x, 0.0), axis=axis, keepdims=True) / count

    mean = mean_of(values)
    mean += mean_of(values - mean)  # a second pass takes out what the first rounded away
    centred = jnp.where(counted, values - mean, 0.0)
    std = jnp.sqrt(mean_of(centred**2))
    size = jnp.max(jnp.abs(jnp.where(counted, values, 0.0)), axis=axis, keepdims=True)
    flat = std <= ROUNDING * size
    z = jnp.where(flat, 0.0, centred / (std + eps))
    return _Standardized(z, jnp.squeeze(mean, axis), jnp.squeeze(std, axis), jnp.squeeze(flat, axis))


def _fraction(part: Bool[Array, " N"], whole: Bool[Array, " N"]) -> Float32[Array, ""]:
    return jnp.sum(part) / jnp.maximum(jnp.sum(whole), 1).astype(jnp.float32)
