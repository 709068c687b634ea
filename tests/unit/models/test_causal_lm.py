"""The NNX module is the same model as the plain functions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jax_rl.models.causal_lm import CausalLM
from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.registry import model_from_config


def test_module_and_functions_agree(text_folder):
    lm = CausalLM.load(text_folder)
    model, params = lm.split()
    same_model, same_params = load_model(text_folder, jnp.float32)
    assert model == same_model
    jax.tree.map(np.testing.assert_array_equal, params, same_params)
    tokens = jnp.arange(3, 23).reshape(2, 10)
    positions = jnp.tile(jnp.arange(10), (2, 1))
    logits = jax.jit(lambda params: model.logits(params, model.forward(params, tokens, positions)[0]))(params)
    np.testing.assert_allclose(nnx.jit(CausalLM.__call__)(lm, tokens), logits, atol=1e-5)


def test_every_parameter_is_an_nnx_param(text_folder):
    lm = CausalLM.load(text_folder)
    graph, state = nnx.split(lm, nnx.Param)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(lm.model.specs))
    rebuilt = nnx.merge(graph, jax.tree.map(jnp.zeros_like, state))
    assert not any(leaf.any() for leaf in jax.tree.leaves(rebuilt.split()[1]))
    assert any(leaf.any() for leaf in jax.tree.leaves(lm.split()[1]))


def test_a_fresh_module_is_initialised_as_transformers_does():
    raw = {"model_type": "gemma3_text", "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 500, "head_dim": 16}
    _, params = CausalLM.init(model_from_config(raw), jax.random.key(0)).split()
    assert abs(float(params["embed"].std()) - 0.02) < 0.001
    assert not params["norm"].any() and params["tail"]["0"]["mlp"]["up_proj"].shape == (9216, 64)
