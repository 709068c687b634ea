"""The policy loss per token and how tokens add up to one number. Pure functions of arrays."""

from typing import Literal, assert_never

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

Algorithm = Literal["grpo", "reinforce"]
KLEstimator = Literal["k3", "k2", "k1"]
Aggregation = Literal["sequence_mean", "token_mean", "constant"]

Sums = dict[str, Float32[Array, ""]]  # add over micro-batches; all but the losses divide by token_count


def loss_weights(
    mask: Bool[np.ndarray, "B T"], aggregation: Aggregation, max_new_tokens: int
) -> Float32[np.ndarray, "B T"]:
    """The share of each token in the loss of one optimizer step, whose completions are all B rows; on the host.

    sequence_mean: mean over completions of the mean over their tokens. token_mean: mean over tokens.
    constant: sum over tokens / (completions * max_new_tokens), without length bias (Dr. GRPO, arXiv:2503.20783).
    Completions are the rows with a token in the mask. The weights of a part of the rows are a part of the weights, so
    the losses and gradients of micro-batches simply add up.
    """
    in_mask = np.asarray(mask, np.float32)
    lengths = in_mask.sum(axis=1, keepdims=True)
    completions = np.float32(max((lengths > 0).sum(), 1))
    if aggregation == "sequence_mean":
        return in_mask / (np.maximum(lengths, 1) * completions)
    if aggregation == "token_mean":
        return in_mask / np.maximum(lengths.sum(), 1)
    if aggregation == "constant":
        return in_mask / (completions * np.float32(max_new_tokens))
    assert_never(aggregation)


@jax.named_scope("loss")
def policy_loss(
    logp: Float32[Array, "B T"],
    old_logp: Float32[Array, "B T"],
    ref_logp: Float32[Array, "B T"] | None,
    entropy: Float32[Array, "B T"],
    advantages: Float32[Array, "B T"],
    mask: Bool[Array, "B T"],
    weights: Float32[Array, "B T"],
    *,
    algorithm: Algorithm,
    clip_eps: float,
    kl_coef: float,
    kl_estimator: KLEstimator,
    entropy_coef: float,
) -> tuple[Float32[Array, ""], Sums]:
    """The loss to minimise, sum of weights * (surrogate + kl_coef * KL - entropy_coef * entropy), and what to log.

    grpo: the clipped ratio of PPO (arXiv:1707.06347, eq. 7); reinforce: -logp * A. old_logp is a constant: the policy
    that sampled, under the trainer's own arithmetic. ref_logp may be None when kl_coef is 0. Nothing outside the mask
    is used. Sums: loss and policy_loss (the surrogate alone) are weighted like the loss; approx_kl (of old to new, k3),
    clip_fraction (tokens whose gradient the clip took away), entropy and kl_to_reference (only with ref_logp) are sums
    over the mask, token_count its size.
    """
    log_ratio = jnp.where(mask, logp - old_logp, 0.0)
    ratio = jnp.exp(log_ratio)
    if algorithm == "grpo":
        unclipped = ratio * advantages
        clipped = jnp.clip(ratio, 1.0 - clip_eps, 1.0 + clip_eps) * advantages
        surrogate = -jnp.minimum(unclipped, clipped)
        is_clipped = clipped < unclipped
    elif algorithm == "reinforce":
        surrogate = -logp * advantages
        is_clipped = jnp.zeros_like(mask)
    else:
        assert_never(algorithm)
    per_token = surrogate - entropy_coef * entropy

    sums = {
        "approx_kl": _sum(jnp.expm1(log_ratio) - log_ratio, mask),
        "clip_fraction": _sum(is_clipped, mask),
        "entropy": _sum(entropy, mask),
        "token_count": _sum(jnp.ones_like(logp), mask),
    }
    if ref_logp is not None:
        log_to_ref = jnp.where(mask, logp - ref_logp, 0.0)
        per_token += kl_coef * _kl_penalty(log_to_ref, ratio, kl_estimator)
        sums["kl_to_reference"] = _sum(_kl_penalty(log_to_ref, ratio, "k3"), mask)
    elif kl_coef:
        raise ValueError(f"kl_coef is {kl_coef} but there are no reference logprobs: give them, or set kl_coef to 0")

    loss = jnp.sum(weights * jnp.where(mask, per_token, 0.0))
    sums |= {"loss": loss, "policy_loss": jnp.sum(weights * jnp.where(mask, surrogate, 0.0))}
    return loss, jax.lax.stop_gradient(sums)


def _kl_penalty(log_to_ref: Array, ratio: Array, estimator: KLEstimator) -> Array:
    """Per-token KL(policy || reference) for tokens drawn from the old policy; log_to_ref = logp - ref_logp.

    What trains is the gradient, and that of a Monte-Carlo estimate is not an estimate of the gradient by itself:
    k3 = exp(-d) - 1 + d times the differentiable ratio has the policy's own KL as its mean for every policy, so its
    gradient is right on and off the sampling policy; k2 = d^2 / 2 with a constant ratio has d * grad logp, the same
    mean. k1 = d has grad logp, whose mean is zero: it does nothing. (Estimators: Schulman 2020.)
    """
    if estimator == "k3":
        return ratio * (jnp.expm1(-log_to_ref) + log_to_ref)
    if estimator == "k2":
        return jax.lax.stop_gradient(ratio) * 0.5 * log_to_ref**2
    if estimator == "k1":
        return log_to_ref
    assert_never(estimator)


def _sum(values: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0), dtype=jnp.float32)
