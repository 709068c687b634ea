"""Logprobs and entropies of completion tokens, without ever holding the [B, T, V] logits.

The walk goes over spans of T and takes all rows of a span together, so that rows sharded over devices stay where they
are. A span's logits are made, reduced and forgotten; the backward pass makes them again (a scan alone would keep them).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jax_rl.learning.packing import Rows, unpacked_rows

Params = Any  # a pytree of arrays
# (params, tokens, positions, segments=, remat=) -> (hidden, cache)
Forward = Callable[..., tuple[Float[Array, "B L D"], Any]]
Unembed = Callable[[Params], Float[Array, "V D"]]

TOKENS_PER_CHUNK = 512  # 512 rows of a 262,144 vocabulary are 0.5 GiB of f32 logits


def forward_logprobs(
    forward: Forward,
    unembed: Unembed,
    params: Params,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    mask: Bool[Array, "B T"],
    *,
    remat: bool,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Runs the model and returns (logp, entropy) [B, T] of the completion, the last T of the L = P + T columns.

    A token is predicted by the column before it, so the first completion token by the prompt's last one, P - 1.
    Both are 0 outside the mask. Positions count 0, 1, ... over a row's real tokens and are -1 on pads.
    """
    return row_logprobs(forward, unembed, params, unpacked_rows(tokens, positions, mask), remat=remat)


def row_logprobs(
    forward: Forward, unembed: Unembed, params: Params, rows: Rows, *, remat: bool
) -> tuple[Float32[Array, "R S"], Float32[Array, "R S"]]:
    """Runs the model over the rows of a micro-batch and returns (logp, entropy) [R, S] of their slots, 0 where none is.

    Hidden states are picked out before the logits are made: a prompt's columns get none.
    """
    hidden, _ = forward(params, rows.tokens, rows.positions, segments=rows.segments, remat=remat)
    predicting = jax.vmap(lambda row, columns: row[columns])(hidden, rows.predictors)
    logp, entropy = completion_logprobs(predicting, unembed(params), rows.targets)
    return jnp.where(rows.mask, logp, 0.0), jnp.where(rows.mask, entropy, 0.0)


@jax.named_scope("unembed")
def completion_logprobs(
    hidden: Float[Array, "B T D"],
    unembed: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Natural-log probability of each target and entropy (nats) of its distribution, softmax(hidden @ unembed.T).

    `hidden[i, t]` predicts `targets[i, t]`; temperature 1. Both results are differentiable in hidden and unembed.
    At most max(tokens_per_chunk, B) rows of V logits exist at a time. Logits, softmax and the sums over chunks are f32
    whatever the weights' dtype.
    """
    batch, length = targets.shape
    chunks = -(-length // max(tokens_per_chunk // batch, 1))
    span = -(-length // chunks)

    def split(x: Array) -> Array:  # [B, T, ...] -> [chunks, B * span, ...]
        rest = x.shape[2:]
        x = jnp.pad(x, [(0, 0), (0, chunks * span - length)] + [(0, 0)] * len(rest))
        return jnp.moveaxis(x.reshape(batch, chunks, span, *rest), 1, 0).reshape(chunks, batch * span, *rest)

    def join(x: Array) -> Array:  # [chunks, B * span] -> [B, T]
        return jnp.moveaxis(x.reshape(chunks, batch, span), 0, 1).reshape(batch, chunks * span)[:, :length]

    logp, entropy = _scan_chunks(split(hidden), unembed, split(targets))
    return join(logp), join(entropy)


@jax.custom_vjp
def _scan_chunks(hidden: Array, unembed: Array, targets: Array) -> tuple[Array, Array]:
    """hidden [C, N, D], unembed [V, D], targets [C, N] -> logp, entropy [C, N], one chunk after the other."""
    return _scan_forward(hidden, unembed, targets)[0]


def _logits(hidden: Array, unembed: Array) -> Array:
    return jnp.einsum("nd,vd->nv", hidden, unembed, preferred_element_type=jnp.float32)


def _is_target(logits: Array, targets: Array) -> Array:
    # a comparison instead of a gather: it fuses, and a vocabulary sharded over devices needs no collecting
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, 1) == targets[:, None]


def _scan_forward(hidden: Array, unembed: Array, targets: Array) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    def chunk(_: None, inputs: tuple[Array, Array]) -> tuple[None, tuple[Array, Array, Array]]:
        hidden, targets = inputs
        logits = _logits(hidden, unembed)
        largest = jnp.max(logits, axis=1)
        shifted = logits - largest[:, None]
        weights = jnp.exp(shifted)
        total = jnp.sum(weights, axis=1)
        log_total = jnp.log(total)
        logp = jnp.sum(jnp.where(_is_target(logits, targets), shifted, 0.0), axis=1) - log_total
        entropy = log_total - jnp.sum(weights * shifted, axis=1) / total
        return None, (logp, entropy, largest + log_total)

    _, (logp, entropy, normalizer) = jax.lax.scan(chunk, None, (hidden, targets))
    return (logp, entropy), (hidden, unembed, targets, entropy, normalizer)


def _scan_backward(saved: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Array, Array, None]:
    """With p = softmax(l): d logp / d l_j = [j is target] - p_j and d entropy / d l_j = -p_j (log p_j + entropy)."""
    hidden, unembed, targets, entropy, normalizer = saved

    def chunk(d_unembed: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, targets = inputs[:2]
        entropy, normalizer, d_logp, d_entropy = (x[:, None] for x in inputs[2:])
        logits = _logits(hidden, unembed)
        log_p = logits - normalizer
        d_logits = d_logp * _is_target(logits, targets) - jnp.exp(log_p) * (d_logp + d_entropy * (log_p + entropy))
        d_logits = d_logits.astype(unembed.dtype)  # bf16 weights: bf16 products, summed in f32
        d_hidden = jnp.einsum("nv,vd->nd", d_logits, unembed, preferred_element_type=jnp.float32)
        d_unembed += jnp.einsum("nv,nd->vd", d_logits, hidden, preferred_element_type=jnp.float32)
        return d_unembed, d_hidden.astype(hidden.dtype)

    zeros = jnp.zeros_like(unembed, dtype=jnp.float32)
    d_unembed, d_hidden = jax.lax.scan(chunk, zeros, (hidden, targets, entropy, normalizer, *gradients))
    return d_hidden, d_unembed.astype(unembed.dtype), None


_scan_chunks.defvjp(_scan_forward, _scan_backward)
