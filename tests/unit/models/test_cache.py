"""Rows of a decode cache can share prompts, be picked and given more room, and decoding goes on as if nothing was."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.models.errors import ModelError
from jax_rl.models.registry import model_from_config
from jax_rl.models.sharing import Places

WIDTH, STEPS = 10, 12
CONFIG = {
    "model_type": "gemma3_text",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,  # (sliding, full) x 2 and a tail
    "sliding_window_pattern": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 4,
    "initializer_range": 0.3,
}
LENGTHS = np.array([10, 7, 3])


@pytest.fixture(scope="module")
def model():
    return model_from_config(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(partial(model.init, dtype=jnp.float32))(jax.random.key(0))


@pytest.fixture(scope="module")
def step(model, params):
    return jax.jit(partial(model.forward, params))


@pytest.fixture(scope="module")
def prompts():
    positions = np.arange(WIDTH)[None] - (WIDTH - LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(0, 50, positions.shape)
    return tokens.astype(np.int32), np.maximum(positions, -1).astype(np.int32)


@pytest.fixture(scope="module")
def next_tokens():
    return np.random.default_rng(1).integers(0, 50, (STEPS, 3)).astype(np.int32)


@pytest.fixture(scope="module")
def undisturbed(model, step, prompts, next_tokens):
    """Hidden states of all steps, [STEPS, B, D], with enough slots from the start."""
    _, cache = step(*prompts, cache=model.init_cache(3, WIDTH + STEPS, jnp.float32))
    return decode(step, cache, next_tokens, LENGTHS)[0]


def decode(step, cache, tokens, lengths):
    out = []
    for i, row in enumerate(tokens):
        hidden, cache = step(row[:, None], (lengths + i)[:, None].astype(np.int32), cache=cache)
        out.append(np.asarray(hidden[:, 0]))
    return np.stack(out), cache


@pytest.fixture(scope="module")
def continuations():
    """Two unlike ones of each prompt: [STEPS, 6]."""
    return np.random.default_rng(3).integers(0, 50, (STEPS, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def apart(model, step, prompts, continuations):
    """Hidden states of all steps, [STEPS, 6, D], each row with a cache of its own."""
    twice = [np.repeat(x, 2, axis=0) for x in prompts]
    _, cache = step(*twice, cache=model.init_cache(6, WIDTH + STEPS, jnp.float32))
    return decode(step, cache, continuations, np.repeat(LENGTHS, 2))[0]


def shared(model, step, prompts, slots):
    _, cache = step(*prompts, cache=model.init_cache(3, WIDTH, jnp.float32))
    return model.share_prompts(cache, Places.of_rows(np.array([0, 0, 1, 1, 2, 2]), 3, 2), slots)


def test_rows_that_share_a_prompt_decode_as_alone(model, step, prompts, continuations, apart):
    ours, _ = decode(step, shared(model, step, prompts, STEPS), continuations, np.repeat(LENGTHS, 2))
    np.testing.assert_allclose(ours, apart, atol=1e-5)


def test_rows_that_are_kept_do_not_notice_the_others_go(model, step, prompts, continuations, apart):
    """Three rows of two prompts in another order, one that has ended among them; one prompt goes."""
    lengths = np.repeat(LENGTHS, 2)
    first, cache = decode(step, shared(model, step, prompts, 5), continuations[:5], lengths)
    live, held = jnp.array([5, 0, 3, 4]), jnp.array([2, 0])
    cache = model.keep_rows(cache, live, held, Places.of_rows(np.array([0, 1, -1, 0]), 2, 2))
    cache = model.grow_cache(cache, STEPS)
    rest, _ = decode(step, cache, continuations[5:, live], lengths[live] + 5)
    np.testing.assert_allclose(first, apart[:5], atol=1e-5)
    np.testing.assert_allclose(rest[:, [0, 1, 3]], apart[5:, [5, 0, 4]], atol=1e-5)


def test_a_cache_that_grows_on_the_way_decodes_the_same(model, step, prompts, next_tokens, undisturbed):
    _, cache = step(*prompts, cache=model.init_cache(3, WIDTH + 4, jnp.float32))
    first, cache = decode(step, cache, next_tokens[:4], LENGTHS)
    assert int(cache.length) == cache.slots == WIDTH + 4
    cache = model.grow_cache(cache, WIDTH + STEPS)
    rest, cache = decode(step, cache, next_tokens[4:], LENGTHS + 4)
    np.testing.assert_allclose(np.concatenate([first, rest]), undisturbed, atol=1e-5)
    assert cache.slots == WIDTH + STEPS


def test_impossible_sizes_are_errors(model, params, prompts):
    with pytest.raises(ModelError, match="10 tokens do not fit into a cache of 9 slots"):
        jax.eval_shape(partial(model.forward, params), *prompts, cache=model.init_cache(3, 9, jnp.float32))
    with pytest.raises(ModelError, match="cannot shrink to 8"):
        model.grow_cache(model.init_cache(3, 9, jnp.float32), 8)


@pytest.mark.parametrize("layers", [4, 5, 3])  # all in the scan, with a tail, no repetition
def test_decoding_writes_the_donated_cache_in_place(layers):
    """Beside the cache a step needs room for one layer's keys and values, not for another cache."""
    model = model_from_config({**CONFIG, "num_hidden_layers": layers, "sliding_window": 2048})
    cache = jax.eval_shape(lambda: model.init_cache(64, 2048, jnp.float32))
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.float32))
    token = jax.ShapeDtypeStruct((64, 1), jnp.int32)
    compiled = jax.jit(model.forward, donate_argnames="cache").lower(params, token, token, cache=cache).compile()
    memory = compiled.memory_analysis()
    one_layer = 2 * 64 * 2 * 2048 * 16 * 4
    assert memory.alias_size_in_bytes >= layers * one_layer
    assert memory.temp_size_in_bytes < 1.5 * one_layer


def test_sliding_layers_remember_their_window_alone(model):
    """2 periods of a sliding and a full layer and a sliding one as the tail, 2 key heads of 16."""
    cache = model.init_cache(3, 20, jnp.float32)
    assert cache.layers["blocks"]["0"].k.shape == (2, 3, 2, 4, 16)
    assert cache.layers["blocks"]["1"].k.shape == (2, 3, 2, 20, 16)
    assert cache.layers["tail"]["0"].v.shape == (3, 2, 4, 16)
    assert model.init_cache(3, 3, jnp.float32).layers["tail"]["0"].v.shape == (3, 2, 3, 16)


@pytest.mark.parametrize("start", [1, 3, 4, 6])  # slots of the prompt: less than the window, the window, more
def test_a_ring_that_grows_and_wraps_decodes_the_same(model, step, params, start):
    tokens = np.random.default_rng(2).integers(0, 50, (2, 16)).astype(np.int32)
    positions = np.tile(np.arange(16, dtype=np.int32), (2, 1))
    whole, _ = step(tokens, positions)
    first, cache = step(tokens[:, :start], positions[:, :start], cache=model.init_cache(2, start, jnp.float32))
    hidden = [np.asarray(first)]
    for i in range(start, 16):
        cache = model.grow_cache(cache, i + 1)
        one, cache = step(tokens[:, i : i + 1], positions[:, i : i + 1], cache=cache)
        hidden.append(np.asarray(one))
    np.testing.assert_allclose(np.concatenate(hidden, axis=1), whole, atol=1e-5)
