"""Drawing one token per row. The order is Hugging Face's: repetition penalty, temperature, top-k, top-p.

Randomness has no state: the key of a completion is a pure function of (seed, stream, prompt, sample), and the noise of
a token a function of that key and the completion's position. So a sample depends neither on the rows that it ran beside
nor on the number of devices.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

EVAL_STREAM = 0x7FFFFFFF  # training uses the update's number, which never gets this far


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams:
    """None is off, and without a temperature the best token is taken.

    A program is compiled for what is on: one serves every temperature. `top_k` alone is a shape.
    """

    temperature: Any = 1.0  # float, or what JAX puts in its place; so are the two below
    top_k: int | None = field(default=None, metadata={"static": True})
    top_p: Any = None
    repetition_penalty: Any = None

    @classmethod
    def of(
        cls, temperature: float, top_k: int = 0, top_p: float = 1.0, repetition_penalty: float = 1.0
    ) -> "SamplingParams":
        """From a config's numbers: temperature 0 is greedy, top_k 0, top_p 1 and repetition_penalty 1 are off."""
        return cls(
            temperature=temperature or None,
            top_k=top_k or None,
            top_p=None if top_p == 1 else top_p,
            repetition_penalty=None if repetition_penalty == 1 else repetition_penalty,
        )

    @property
    def kind(self) -> str:
        """What a program is compiled for."""
        parts = {"repetition penalty": self.repetition_penalty, "temperature": self.temperature}
        if self.temperature is not None:
            parts |= {f"top_k {self.top_k}": self.top_k, "top_p": self.top_p}
        return ", ".join(name for name, value in parts.items() if value is not None) or "greedy"


def sample_keys(
    seed: int,
    stream: int,
    prompt_ids: Int[np.ndarray, " N"],
    group_size: int,
    first_samples: Int[np.ndarray, " N"] | None = None,
) -> Key[Array, " B"]:
    """Keys of the B = N * group_size completions, row `n * group_size + k` being sample k of prompt n.

    first_samples: the number of each prompt's first sample, 0 by default; of a prompt that was sampled before under the
        same seed and stream, as many as there were.
    """
    base = jax.random.fold_in(jax.random.key(seed), stream)

    def of_prompt(prompt_id, first):
        key = jax.random.fold_in(base, prompt_id)
        return jax.vmap(lambda k: jax.random.fold_in(key, k))(first + jnp.arange(group_size))

    first = np.zeros(len(prompt_ids), np.int32) if first_samples is None else first_samples
    return jax.vmap(of_prompt)(jnp.asarray(prompt_ids), jnp.asarray(first)).reshape(-1)


def penalize_repetition(
    logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: ArrayLike
) -> Float[Array, "B V"]:
    """CTRL's penalty (Keskar et al. 2019) on every token of the prompt and of the completion so far."""
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample_tokens(
    logits: Float[Array, "B V"],
    seen: Bool[Array, "B V"] | None,
    keys: Key[Array, " B"],
    position: Int[Array, ""],
    params: SamplingParams,
) -> Int[Array, " B"]:
    """One token id per row. `position` is the completion's index of the token, `seen` is None without a penalty."""
    if params.repetition_penalty is not None:
        if seen is None:
            raise ValueError("repetition_penalty needs the tokens seen so far")
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / params.temperature
    keys = _fold_in(keys, position)
    if params.top_k is not None:
        return _draw_from_top_k(keys, logits, params.top_k, params.top_p)
    if params.top_p is not None:
        return _draw_from_nucleus(keys, logits, params.top_p)
    return _draw(keys, logits)


def _fold_in(keys: Key[Array, " B"], number: Int[Array, ""] | int) -> Key[Array, " B"]:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _draw(keys: Key[Array, " B"], logits: Float[Array, "B V"]) -> Int[Array, " B"]:
    """A token by its probability, in two draws: of some sqrt(V) sets of tokens one by its mass, then a token of it.

    So noise is needed for 2 sqrt(V) things, not for V. A set is every n-th token: where the vocabulary lies on several
    devices each has a part of every set, and no logit has to move.
    """
    rows, vocab = logits.shape
    size = 1 << ((vocab - 1).bit_length() + 1) // 2
    sets = jnp.pad(logits, ((0, 0), (0, -vocab % size)), constant_values=-jnp.inf).reshape(rows, size, -1)
    count = sets.shape[2]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (count + size,)))(keys)
    drawn = jnp.argmax(jax.nn.logsumexp(sets, axis=1) + noise[:, :count], axis=1)
    tokens = jnp.take_along_axis(sets, drawn[:, None, None], axis=2)[:, :, 0]
    return (jnp.argmax(tokens + noise[:, count:], axis=1) * count + drawn).astype(jnp.int32)


def _draw_from_nucleus(keys: Key[Array, " B"], logits: Float[Array, "B V"], top_p: ArrayLike) -> Int[Array, " B"]:
    """Draws from all tokens until the draw lies in the nucleus, which needs no sorting: 1 / top_p times on average."""
    probs = jax.nn.softmax(logits, axis=-1)
    ids = jnp.arange(logits.shape[1])

    def outside(token: Int[Array, " B"]) -> Bool[Array, " B"]:
        prob = jnp.take_along_axis(probs, token[:, None], axis=1)
        before = (probs > prob) | ((probs == prob) & (ids < token[:, None]))  # what a sort would put before it
        return jnp.sum(probs, axis=1, where=before) >= top_p

    def draw_again(state):
        tries, token, rejected = state
        token = jnp.where(rejected, _draw(_fold_in(keys, tries), logits), token)
        return tries + 1, token, outside(token)

    rows = len(logits)
    start = (jnp.int32(0), jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool))
    return lax.while_loop(lambda state: state[2].any(), draw_again, start)[1]


def _draw_from_top_k(
    keys: Key[Array, " B"], logits: Float[Array, "B V"], top_k: int, top_p: ArrayLike | None
) -> Int[Array, " B"]:
    """Noise is drawn for the `top_k` best tokens alone, of which the nucleus may keep fewer."""
    kept, ids = lax.top_k(logits, min(top_k, logits.shape[-1]))
    if top_p is not None:
        probs = jax.nn.softmax(kept, axis=-1)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        kept = jnp.where(mass_before < top_p, kept, -jnp.inf)
    winner = jnp.argmax(kept + _gumbel_of_ids(keys, ids), axis=-1)
    return jnp.take_along_axis(ids, winner[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _gumbel_of_ids(keys: Key[Array, " B"], ids: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Gumbel noise that belongs to the token id, not to its rank: tokens that swap ranks by rounding keep theirs."""

    def of_row(key, row):
        return jax.vmap(lambda i: jax.random.gumbel(jax.random.fold_in(key, i)))(row)

    return jax.vmap(of_row)(keys, ids)
