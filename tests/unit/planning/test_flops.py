"""Formulas against XLA's own count, of a model without a loop, and against counting pairs one by one."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jax_rl.models.lora import adapter_specs
from jax_rl.models.registry import model_from_config
from jax_rl.planning.flops import forward_flops, matrix_weights, mixing_flops, train_flops
from jax_rl.planning.published import published_configs


@pytest.fixture(scope="module")
def model():
    """Three layers that XLA sees one by one: no period is repeated, so nothing is a loop."""
    return model_from_config(
        {
            "model_type": "gemma3_text",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "sliding_window": 512,
            "vocab_size": 1024,
        }
    )


def test_a_forward_pass_agrees_with_the_compiler(model):
    """XLA also counts norms and softmax, and masked pairs: with few tokens and wide layers a few percent."""
    params = jax.eval_shape(lambda key: model.init(key, jnp.float32), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 32), jnp.int32)

    def logits(params, tokens, positions):
        return model.logits(params, model.forward(params, tokens, positions)[0])

    counted = jax.jit(logits).lower(params, tokens, tokens).compile().cost_analysis()["flops"]
    ours = forward_flops(model, 2, 32, 32)
    assert ours < counted < 1.06 * ours


def test_pairs_are_those_that_see_each_other(model):
    small = replace(model, cfg=replace(model.cfg, sliding_window=3))

    def pairs(tokens, before, window):
        return sum(max(0, q - window) < k <= q for q in range(before + 1, before + tokens + 1) for k in range(1, q + 1))

    for tokens, before in ((5, 0), (1, 7), (4, 2)):
        expected = 4 * 4 * 32 * (2 * pairs(tokens, before, 10**6) + pairs(tokens, before, 3))
        assert mixing_flops(small, tokens, before) == expected


@pytest.mark.parametrize("name, billions", [("google/gemma-3-27b-it", 27.0), ("Qwen/Qwen3.5-27B", 26.9)])
def test_of_long_work_with_few_tokens_remains_two_and_eight_a_weight(name, billions):
    model = model_from_config(published_configs()[name])
    head = model.cfg.vocab_size * model.cfg.hidden_size
    weights = matrix_weights(model.specs) + head
    assert weights / 1e9 == pytest.approx(billions - (head / 1e9 if "Qwen" in name else 0), rel=5e-3)
    assert forward_flops(model, 1, 64, 64) == pytest.approx(2 * weights * 64, rel=0.01)
    assert train_flops(model, 1, 64, 64, None) == pytest.approx(8 * weights * 64, rel=0.01)
    layers = matrix_weights(model.specs)
    minimal = train_flops(model, 1, 64, 64, None, remat="minimal")
    assert minimal == pytest.approx((6 * layers + 8 * head) * 64, rel=0.01)
    adapters = adapter_specs(model.specs, 16, ("all-linear",))
    assert train_flops(model, 1, 64, 64, adapters) == pytest.approx(6 * weights * 64, rel=0.03)
