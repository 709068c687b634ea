"""Logprobs and entropies of completion tokens, without ever holding the [B, T, V] logits.

The walk goes over blocks of the vocabulary and takes all tokens together, so that rows sharded over devices stay where
they are. A block's logits are made, reduced and forgotten; the backward pass makes them again (a scan alone would keep
them), and is then done with the block's rows of the matrix: their gradient is added to once.
"""

from collections.abc import Callable
from functools import partial
from math import ceil, log
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jax_rl.learning.packing import Rows, unpacked_rows
from jax_rl.models.stack import Remat
from jax_rl.models.tables import Table

Params = Any  # a pytree of arrays
# (params, tokens, positions, segments=, remat=) -> (hidden, cache)
Forward = Callable[..., tuple[Float[Array, "B L D"], Any]]
Unembed = Callable[[Params], Float[Array, "V D"] | Table]

LOGITS_AT_ONCE = 2**24  # 64 MiB in f32


def forward_logprobs(
    forward: Forward,
    unembed: Unembed,
    params: Params,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    mask: Bool[Array, "B T"],
    *,
    remat: Remat | None,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Runs the model and returns (logp, entropy) [B, T] of the completion, the last T of the L = P + T columns.

    A token is predicted by the column before it, so the first completion token by the prompt's last one, P - 1.
    Both are 0 outside the mask. Positions count 0, 1, ... over a row's real tokens and are -1 on pads.
    """
    return row_logprobs(forward, unembed, params, unpacked_rows(tokens, positions, mask), remat=remat)


def row_logprobs(
    forward: Forward, unembed: Unembed, params: Params, rows: Rows, *, remat: Remat | None
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
    unembed: Float[Array, "V D"] | Table,
    targets: Int[Array, "B T"],
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Float32[Array, "B T"], Float32[Array, "B T"]]:
    """Natural-log probability of each target and entropy (nats) of its distribution, softmax(hidden @ unembed.T).

    `hidden[i, t]` predicts `targets[i, t]`; temperature 1. Both results are differentiable in hidden and unembed; the
    gradient of a `Table` is that of its `total`. About `logits_at_once` logits exist at a time. Logits, softmax and the
    sums over blocks are f32 whatever the weights' dtype.
    """
    weight, total = (unembed.weight, unembed.total) if isinstance(unembed, Table) else (unembed, None)
    blocks = count_blocks(weight.shape[0], targets.size, logits_at_once)
    logp, entropy = _walk(hidden.reshape(-1, hidden.shape[-1]), weight, total, targets.reshape(-1), blocks)
    return logp.reshape(targets.shape), entropy.reshape(targets.shape)


def count_blocks(vocab: int, tokens: int, logits_at_once: int) -> int:
    """Into how many blocks the vocabulary is cut, for about so many logits at a time.

    The divisor of the vocabulary that is nearest; where none comes within a factor of two, blocks leave a rest, smaller
    than a block, which costs the backward pass two copies of the table.
    """
    wanted = min(max(vocab * tokens / logits_at_once, 1.0), vocab)
    nearest = min((n for n in range(1, vocab + 1) if vocab % n == 0), key=lambda n: abs(log(n / wanted)))
    return nearest if abs(log(nearest / wanted)) <= log(2) else vocab // (vocab // ceil(wanted))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _walk(hidden: Array, unembed: Array, total: Array | None, targets: Array, blocks: int) -> tuple[Array, Array]:
    """hidden [N, D], unembed [V, D], targets [N] -> logp, entropy [N], one block of the vocabulary after the other.

    total [V, D] f32: its "gradient" is itself plus unembed's, which then has none of its own.
    """
    return _walk_forward(hidden, unembed, total, targets, blocks)[0]


def _cut(matrix: Array, blocks: int) -> tuple[Array, Array]:
    """[V, D] -> [V // blocks, blocks, D] and the rest: block j has the tokens j, j + blocks, ...

    Each takes as much from every part of a vocabulary that is sharded over devices.
    """
    rest = matrix.shape[0] % blocks
    whole = matrix if rest == 0 else matrix[:-rest]
    return whole.reshape(-1, blocks, matrix.shape[1]), matrix[matrix.shape[0] - rest :]


def _block(cut: Array, number: Array) -> tuple[Array, Array]:
    """Rows of the matrix, and their tokens."""
    tokens = jnp.arange(cut.shape[0], dtype=number.dtype) * cut.shape[1] + number
    return jax.lax.dynamic_index_in_dim(cut, number, axis=1, keepdims=False), tokens


def _rest(cut: Array, rest: Array, dtype: Any) -> tuple[Array, Array]:
    return rest, jnp.arange(len(rest), dtype=dtype) + cut.shape[0] * cut.shape[1]


def _logits(hidden: Array, rows: Array) -> Array:
    return jnp.einsum("nd,vd->nv", hidden, rows, preferred_element_type=jnp.float32)


def _is_target(tokens: Array, targets: Array) -> Array:
    # a comparison instead of a gather: it fuses, and a vocabulary sharded over devices needs no collecting
    return tokens[None, :] == targets[:, None]


def _walk_forward(
    hidden: Array, unembed: Array, total: Array | None, targets: Array, blocks: int
) -> tuple[tuple[Array, Array], tuple[Array | None, ...]]:
    cut, rest = _cut(unembed, blocks)

    Seen = tuple[Array, Array, Array, Array]

    def see(seen: Seen, rows: Array, tokens: Array) -> Seen:
        """Of the logits l seen so far: their largest m, sum e^(l-m), sum e^(l-m) (l-m), and the target's, 0 if not."""
        largest, weight, weighted, target = seen
        logits = _logits(hidden, rows)
        new = jnp.maximum(largest, jnp.max(logits, axis=1))
        shifted = logits - new[:, None]
        weights = jnp.exp(shifted)
        shrink = jnp.exp(largest - new)
        weighted = shrink * (weighted + (largest - new) * weight) + jnp.sum(weights * shifted, axis=1)
        weight = shrink * weight + jnp.sum(weights, axis=1)
        target += jnp.sum(jnp.where(_is_target(tokens, targets), logits, 0.0), axis=1)
        return new, weight, weighted, target

    nothing = jnp.zeros(targets.shape, jnp.float32)
    lowest = jnp.full_like(nothing, jnp.finfo(jnp.float32).min)
    numbers = jnp.arange(blocks, dtype=targets.dtype)
    start = (lowest, nothing, nothing, nothing)
    seen, _ = jax.lax.scan(lambda seen, number: (see(seen, *_block(cut, number)), None), start, numbers)
    if rest.shape[0]:
        seen = see(seen, *_rest(cut, rest, targets.dtype))
    largest, weight, weighted, target = seen
    log_weight = jnp.log(weight)
    logp, entropy = (target - largest) - log_weight, log_weight - weighted / weight
    return (logp, entropy), (hidden, unembed, total, targets, entropy, largest + log_weight)


def _walk_backward(
    blocks: int, saved: tuple[Any, ...], gradients: tuple[Array, Array]
) -> tuple[Array, Array | None, Array | None, None]:
    """With p = softmax(l): d logp / d l_j = [j is target] - p_j and d entropy / d l_j = -p_j (log p_j + entropy)."""
    hidden, unembed, total, targets = saved[:4]
    entropy, normalizer, d_logp, d_entropy = (x[:, None] for x in (*saved[4:], *gradients))
    cut, rest = _cut(unembed, blocks)

    def gradients_of(rows: Array, tokens: Array) -> tuple[Array, Array]:
        """What a block's logits give to hidden, and to its rows."""
        logits = _logits(hidden, rows)
        log_p = logits - normalizer
        is_target = _is_target(tokens, targets)
        d_logits = d_logp * is_target - jnp.exp(log_p) * (d_logp + d_entropy * (log_p + entropy))
        d_logits = d_logits.astype(unembed.dtype)  # bf16 weights: bf16 products, summed in f32
        d_hidden = jnp.einsum("nv,vd->nd", d_logits, rows, preferred_element_type=jnp.float32)
        return d_hidden, jnp.einsum("nv,nd->vd", d_logits, hidden, preferred_element_type=jnp.float32)

    def block(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        d_hidden, d_rows = gradients_of(*_block(cut, number))
        return (carry[0] + d_hidden, carry[1].at[:, number].add(d_rows)), None

    start = jnp.zeros(unembed.shape, jnp.float32) if total is None else total
    zeros = jnp.zeros(hidden.shape, jnp.float32)
    numbers = jnp.arange(blocks, dtype=targets.dtype)
    start_cut, d_rest = _cut(start, blocks)
    (d_hidden, d_cut), _ = jax.lax.scan(block, (zeros, start_cut), numbers)
    d_unembed = d_cut.reshape(-1, unembed.shape[1])
    if rest.shape[0]:
        more, d_rows = gradients_of(*_rest(cut, rest, targets.dtype))
        d_hidden, d_unembed = d_hidden + more, jnp.concatenate([d_unembed, d_rest + d_rows])
    d_hidden = d_hidden.astype(hidden.dtype)
    return (
        (d_hidden, d_unembed.astype(unembed.dtype), None, None) if total is None else (d_hidden, None, d_unembed, None)
    )


_walk.defvjp(_walk_forward, _walk_backward)
