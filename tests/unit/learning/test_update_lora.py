"""Updates of adapters: the weights that they adapt are read and never written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.learning.programs import make_programs
from jax_rl.learning.update import run_update
from jax_rl.models.lora import adapter_specs, attach, init_adapters
from jax_rl.models.registry import model_from_config

SCALE = 2.0


@pytest.fixture(scope="module")
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return model_from_config({"model_type": "llama", "vocab_size": 13, "initializer_range": 0.3, **sizes})


@pytest.fixture(scope="module")
def frozen(model):
    return jax.jit(lambda: model.init(jax.random.key(0), jnp.bfloat16))()


@pytest.fixture(scope="module")
def adapters(model):
    specs = adapter_specs(model.specs, 2, ("q_proj", "down_proj"))
    here = SingleDeviceSharding(jax.devices()[0])
    return init_adapters(specs, jax.random.key(1), lambda spec: here)


def as_bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_updates_change_the_adapters_alone(model, frozen, adapters, toy):
    rl = toy.rl(grad_accum=3, weight_decay=0.0)
    programs = make_programs(model.forward, model.unembed, make_optimizer(rl), rl, toy.completion, SCALE)
    data, before = toy.batch(6), as_bytes(frozen)

    def logprobs(params):
        return toy.logprobs(programs.logprobs, params, data)

    base = logprobs(attach(frozen, adapters, 0.0))
    state = init_train_state(jax.tree.map(jnp.copy, adapters), make_optimizer(rl))
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(adapters)])
    for _ in range(2):
        state, stats = run_update(state, data, programs, rl, frozen)
    assert int(state.step) == 4 and stats["skipped_steps"] == 0
    assert as_bytes(frozen) == before
    changed = jax.tree.map(lambda old, new: not np.array_equal(old, new), adapters, state.params)
    assert all(jax.tree.leaves(changed))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_array_equal(logprobs(attach(frozen, state.params, 0.0)), base)
    assert np.abs(logprobs(attach(frozen, state.params, SCALE)) - base).max() > 1e-3
