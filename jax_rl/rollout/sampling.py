"""Drawing one token per row. The order is Hugging Face's: repetition penalty, temperature, top-k, top-p.

Randomness has no state: the key of a completion is a pure function of (seed, stream, prompt, sample), and the noise of
a token a function of that key and the completion's position. So a sample depends neither on the rows that it ran beside
nor on the number of devices.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

EVAL_STREAM = 0x7FFFFFFF  # training uses the update's number, which never gets this far


@dataclass(frozen=True)
class SamplingParams:
    """`temperature` 0 is greedy, `top_k` 0, `top_p` 1 and `repetition_penalty` 1 are off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def sample_keys(seed: int, stream: int, prompt_ids: Int[np.ndarray, " N"], group_size: int) -> Key[Array, " B"]:
    """Keys of the B = N * group_size completions, row `n * group_size + k` being sample k of prompt n."""
    base = jax.random.fold_in(jax.random.key(seed), stream)

    def of_prompt(prompt_id):
        key = jax.random.fold_in(base, prompt_id)
        return jax.vmap(lambda k: jax.random.fold_in(key, k))(jnp.arange(group_size))

    return jax.vmap(of_prompt)(jnp.asarray(prompt_ids)).reshape(-1)


def penalize_repetition(logits: Float[Array, "B V"], seen: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
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
    if params.repetition_penalty != 1.0:
        if seen is None:
            raise ValueError("repetition_penalty needs the tokens seen so far")
        logits = penalize_repetition(logits, seen, params.repetition_penalty)
    if params.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / params.temperature
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
    if params.top_k == 0 and params.top_p == 1.0:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    vocab = logits.shape[-1]
    kept, ids = lax.top_k(logits, min(params.top_k or vocab, vocab))
    if params.top_p < 1.0:
        probs = jax.nn.softmax(kept, axis=-1)
        mass_before = jnp.cumsum(probs, axis=-1) - probs
        kept = jnp.where(mass_before < params.top_p, kept, -jnp.inf)
    winner = jnp.argmax(kept + _gumbel_of_ids(keys, ids), axis=-1)
    return jnp.take_along_axis(ids, winner[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _gumbel_of_ids(keys: Key[Array, " B"], ids: Int[Array, "B K"]) -> Float[Array, "B K"]:
    """Gumbel noise that belongs to the token id, not to its rank: tokens that swap ranks by rounding keep theirs."""

    def of_row(key, row):
        return jax.vmap(lambda i: jax.random.gumbel(jax.random.fold_in(key, i)))(row)

    return jax.vmap(of_row)(keys, ids)
