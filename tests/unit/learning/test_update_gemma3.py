"""The update with a real Gemma 3, tiny: what holds for the toy model holds for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.learning.programs import make_programs
from jax_rl.learning.update import run_update
from jax_rl.models.registry import model_from_config

CONFIG = {
    "model_type": "gemma3_text",
    "vocab_size": 13,  # the toy batches' tokens
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 3,
    "sliding_window_pattern": 2,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def model():
    return model_from_config(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda: model.init(jax.random.key(0), jnp.float32))()


def test_logprobs_equal_those_of_full_logits(model, params, toy):
    data, rl = toy.batch(5), toy.rl()
    programs = make_programs(model.forward, model.unembed, make_optimizer(rl), rl, toy.completion)
    logp = toy.logprobs(programs.logprobs, params, data)
    tokens, positions = jnp.asarray(data.tokens), jnp.asarray(data.positions)
    hidden, _ = jax.jit(model.forward)(params, tokens, positions)
    log_p = jax.nn.log_softmax(model.logits(params, hidden[:, toy.prompt - 1 : -1]))
    right = jnp.take_along_axis(log_p, tokens[:, toy.prompt :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(logp, np.where(data.mask, right, 0), atol=1e-5)


def test_micro_batches_change_nothing(model, params, toy):
    data, results = toy.batch(6), []
    for size in (1, 4):
        rl = toy.rl(grad_accum=6, micro_batch_size=size, lr=1e-3)
        optimizer = make_optimizer(rl)
        programs = make_programs(model.forward, model.unembed, optimizer, rl, toy.completion)
        results.append(run_update(init_train_state(jax.tree.map(jnp.copy, params), optimizer), data, programs, rl))
    (a, a_stats), (b, b_stats) = results
    assert a_stats == pytest.approx(b_stats, abs=1e-5)
    assert a_stats["skipped_steps"] == 0
    assert not np.array_equal(a.params["embed"], params["embed"])
    for mine, theirs in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
