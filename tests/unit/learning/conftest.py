"""A model small enough to write twice: embeddings, a causal mean over the visible tokens, one layer, a scale."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.config.schema import RLConfig
from jax_rl.learning.packing import Packing
from jax_rl.learning.update import UpdateBatch, batched_logprobs
from jax_rl.models.blocks import embed_tokens, keep

VOCAB, WIDTH, PROMPT, COMPLETION = 13, 6, 4, 5


def forward(params, tokens, positions, *, segments=None, remat):
    """Hidden states; like the real models it sees exactly the tokens whose position is between 0 and the query's."""

    def layer(params):
        x = embed_tokens(params, tokens, keep)
        visible = (positions[:, None, :] >= 0) & (positions[:, None, :] <= positions[:, :, None])
        if segments is not None:
            visible &= (segments[:, None, :] == segments[:, :, None]) | (segments[:, None, :] == 0)
        share = visible / jnp.maximum(visible.sum(-1, keepdims=True), 1)
        seen = jnp.einsum("bqk,bkd->bqd", share.astype(x.dtype), x)
        hidden = jnp.tanh(jnp.einsum("bld,ed->ble", x + seen, params["mix"]))
        return hidden * params["norm"]

    return (jax.checkpoint(layer) if remat else layer)(params), None


def unembed(params):
    return params["embed"]


def init(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    shapes = {"embed": (VOCAB, WIDTH), "mix": (WIDTH, WIDTH), "norm": (WIDTH,)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def batch(rows, seed=0, prompt=PROMPT, completion=COMPLETION):
    """Random prompts and completions of different lengths, padded as rollouts are."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((rows, prompt + completion), np.int32)
    positions = np.full_like(tokens, -1)
    mask = np.zeros((rows, completion), bool)
    for row in range(rows):
        before, after = rng.integers(1, PROMPT + 1), rng.integers(1, COMPLETION + 1)
        real = slice(prompt - before, prompt + after)
        tokens[row, real] = rng.integers(0, VOCAB, before + after)
        positions[row, real] = np.arange(before + after)
        mask[row, :after] = True
    noise = [np.zeros(mask.shape, np.float32) for _ in range(2)]
    for array, (mean, std) in zip(noise, [(0, 1), (-2.5, 0.5)], strict=True):
        array[mask] = rng.normal(mean, std, mask.sum())
    return UpdateBatch(tokens, positions, mask, advantages=noise[0], ref_logp=noise[1])


def rl_config(**changes):
    defaults = {"lr": 1e-2, "grad_accum": 0, "kl_coef": 0.1, "entropy_coef": 0.01, "weight_decay": 0.1}
    return RLConfig(**(defaults | changes))


def logprobs(program, params, data, packing=None):
    """Of all completions; packing None: all rows at once, as they are."""
    packing = packing or Packing(len(data.mask), tokens=0, shares_prompts=False)
    return batched_logprobs(program, params, data.tokens, data.positions, data.mask, packing)


@pytest.fixture(scope="session")
def toy():
    return SimpleNamespace(
        forward=forward,
        unembed=unembed,
        init=init,
        batch=batch,
        rl=rl_config,
        logprobs=logprobs,
        vocab=VOCAB,
        prompt=PROMPT,
        completion=COMPLETION,
    )
