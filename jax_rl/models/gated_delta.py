"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464): a linear-attention state that forgets and corrects itself.

Per head, with state S [dk, dv], log decay g <= 0 and step size beta, each token does

    S <- exp(g) S;   u = beta (v - Sᵀ k);   S <- S + k uᵀ;   o = Sᵀ q.

`recurrent` does just that, one token after the other: for decoding. `chunked` does the same with matmuls over chunks of
tokens (the WY form, section 3.3 there): for training and prefill. A token with g = 0 and beta = 0 leaves the state as
it is: so padding is told. All in float32, whatever comes in, and without TF32.
B rows, T tokens, Hk key heads, Hv value heads (a multiple), dk, dv head widths, C tokens in a chunk, N chunks.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int

F32 = jnp.float32
CHUNK = 32  # a power of two; at 64 float32 rounding grows by a third (test_qwen3_5.py)


def l2_normalize(x: Float[Array, "*rows d"]) -> Float32[Array, "*rows d"]:
    """x / |x|, with 1e-6 under the root."""
    x = x.astype(F32)
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _prepare(q: Array, k: Array, v: Array, g: Array, beta: Array) -> tuple[Array, ...]:
    """float32; queries and keys normalised, queries times dk^-1/2; key head i serves the i-th run of value heads."""
    repeats = v.shape[2] // k.shape[2]
    q, k = l2_normalize(q) * q.shape[-1] ** -0.5, l2_normalize(k)
    q, k = (jnp.repeat(x, repeats, axis=2) for x in (q, k))
    return q, k, v.astype(F32), g.astype(F32), beta.astype(F32)


@jax.default_matmul_precision("highest")
def recurrent(
    q: Float[Array, "B T Hk dk"],
    k: Float[Array, "B T Hk dk"],
    v: Float[Array, "B T Hv dv"],
    g: Float[Array, "B T Hv"],
    beta: Float[Array, "B T Hv"],
    state: Float32[Array, "B Hv dk dv"],
) -> tuple[Float32[Array, "B T Hv dv"], Float32[Array, "B Hv dk dv"]]:
    """Token by token: outputs, and the state after the last."""

    def token(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v, g, beta = inputs
        state = state * jnp.exp(g)[..., None, None]
        u = (v - jnp.einsum("bhk,bhkv->bhv", k, state)) * beta[..., None]
        state = state + k[..., None] * u[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    by_token = tuple(jnp.moveaxis(x, 1, 0) for x in _prepare(q, k, v, g, beta))
    state, out = lax.scan(token, state, by_token)
    return jnp.moveaxis(out, 0, 1), state


@jax.default_matmul_precision("highest")
def chunked(
    q: Float[Array, "B T Hk dk"],
    k: Float[Array, "B T Hk dk"],
    v: Float[Array, "B T Hv dv"],
    g: Float[Array, "B T Hv"],
    beta: Float[Array, "B T Hv"],
    state: Float32[Array, "B Hv dk dv"],
    segments: Int[Array, "B T"] | None = None,
    chunk: int = CHUNK,
) -> tuple[Float32[Array, "B T Hv dv"], Float32[Array, "B Hv dk dv"]]:
    """What `recurrent` gives, by matmuls: the corrections u of a chunk solve a unit lower triangular system.

    segments: the state starts from 0 wherever the number changes; the first segment goes on from `state`.
    """
    length = q.shape[1]
    q, k, v, g, beta = (_split(x, chunk) for x in _prepare(q, k, v, g, beta))  # [B, N, H, C, d] or [B, N, H, C]
    decay = jnp.cumsum(g, axis=-1)  # log of what is left at token i of the chunk's beginning
    reaches = jnp.tril(jnp.ones((chunk, chunk), bool))  # [i, j]: whether token j has an effect on token i
    from_before = to_after = jnp.ones((1, 1, 1, chunk), bool)
    survives = jnp.ones((1, 1, 1, 1), bool)  # whether the state that comes in is there at the end
    if segments is not None:
        seg = _split_segments(segments, chunk)
        reaches = reaches & (seg[..., :, None] == seg[..., None, :])
        incoming = jnp.concatenate([seg[:, :1, :, :1], seg[:, :-1, :, -1:]], axis=1)
        from_before, to_after, survives = seg == incoming, seg == seg[..., -1:], seg[..., -1:] == incoming

    # masked before the exponential: nothing overflows, and the gradient of what is masked is 0, not 0 * inf
    between = jnp.exp(jnp.where(reaches, decay[..., :, None] - decay[..., None, :], -jnp.inf))
    since_start = jnp.exp(jnp.where(from_before, decay, -jnp.inf))[..., None]
    until_end = jnp.exp(jnp.where(to_after, decay[..., -1:] - decay, -jnp.inf))[..., None]
    whole = jnp.where(survives, jnp.exp(decay[..., -1:]), 0.0)[..., None]

    scaled_k = k * beta[..., None]
    system = jnp.tril(scaled_k @ jnp.swapaxes(k, -1, -2) * between, -1)
    right_sides = jnp.concatenate([v * beta[..., None], scaled_k * since_start], axis=-1)
    solved = invert_unit_lower(system) @ right_sides
    u_alone, u_per_state = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]  # u = u_alone - u_per_state S
    within = q @ jnp.swapaxes(k, -1, -2) * between

    def one_chunk(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        u_alone, u_per_state, within, q, k, whole = inputs
        u = u_alone - u_per_state @ state
        return state * whole + jnp.swapaxes(k, -1, -2) @ u, q @ state + within @ u

    by_chunk = (u_alone, u_per_state, within, q * since_start, k * until_end, whole)
    state, out = lax.scan(one_chunk, state, tuple(jnp.moveaxis(x, 1, 0) for x in by_chunk))  # out [N, B, H, C, dv]
    out = jnp.moveaxis(out, (0, 3), (1, 2))
    return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length], state


def _split(x: Array, chunk: int) -> Array:
    """[B, T, H, ...] -> [B, N, H, C, ...], filled up with zeros: tokens that change nothing."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 3, 2)


def _split_segments(segments: Array, chunk: int) -> Array:
    """[B, T] -> [B, N, 1, C]; what fills up belongs to the last segment."""
    segments = jnp.pad(segments, [(0, 0), (0, -segments.shape[1] % chunk)], mode="edge")
    return segments.reshape(segments.shape[0], -1, 1, chunk)


def invert_unit_lower(strict: Float32[Array, "*rows C C"]) -> Float32[Array, "*rows C C"]:
    """(I + strict)^-1 of a strictly lower triangular matrix, C a power of two, by matmuls alone.

    The inverses of neighbouring diagonal blocks of size s give that of the block of size 2 s:
    [[P, 0], [M, Q]]^-1 = [[P^-1, 0], [-Q^-1 M P^-1, Q^-1]].
    """
    rows, size = strict.shape[:-2], strict.shape[-1]
    inverse = jnp.ones((*rows, size, 1, 1), strict.dtype)
    block = 1
    while block < size:
        pairs = size // (2 * block)
        tiles = strict.reshape(*rows, pairs, 2, block, pairs, 2, block)
        number = jnp.arange(pairs)
        below = jnp.moveaxis(tiles[..., number, 1, :, number, 0, :], 0, -3)  # M of each pair
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(lower @ below @ upper)
        top = jnp.concatenate([upper, jnp.zeros_like(corner)], axis=-1)
        inverse = jnp.concatenate([top, jnp.concatenate([corner, lower], axis=-1)], axis=-2)
        block *= 2
    return inverse[..., 0, :, :]
