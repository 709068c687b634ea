"""The engine's reference: a whole forward pass for each token, no cache, every row to the end."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_rl.rollout.sampling import sample_tokens


def generate_plainly(model, params, prompts, keys, group_size, sampling, *, length, eos_ids, forced_lengths=None):
    """Lists of token ids and of their logprobs, one a completion."""
    rows = [list(prompt) for prompt in prompts for _ in range(group_size)]
    starts = [len(row) for row in rows]
    width = max(starts) + length
    each = np.arange(len(rows))

    @jax.jit
    def next_logits(params, tokens, last):
        positions = jnp.where(jnp.arange(width) <= last[:, None], jnp.arange(width), -1)
        hidden, _ = model.forward(params, tokens, positions)
        return model.logits(params, hidden[each, last][:, None])[:, 0]

    logprobs = [[] for _ in rows]
    ended = np.zeros(len(rows), bool)
    draw = jax.jit(sample_tokens)
    for step in range(length):
        tokens = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
        logits = next_logits(params, tokens, np.array([len(row) - 1 for row in rows]))
        seen = np.zeros(logits.shape, bool)
        for i, row in enumerate(rows):
            seen[i, row] = True
        allowed = logits if forced_lengths is None else logits.at[:, np.array(eos_ids)].set(-jnp.inf)
        drawn = np.array(draw(allowed, seen, keys, step, sampling))
        if forced_lengths is not None:
            drawn[np.asarray(forced_lengths) == step + 1] = eos_ids[0]
        logp = np.asarray(jax.nn.log_softmax(logits))[each, drawn]
        for i in np.flatnonzero(~ended):
            rows[i].append(int(drawn[i]))
            logprobs[i].append(float(logp[i]))
        ended |= np.isin(drawn, eos_ids)
    return [row[start:] for row, start in zip(rows, starts, strict=True)], logprobs
