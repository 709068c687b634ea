"""Any list of layer kinds is split into a repeating part and a tail, and the parameters keep their layer numbers."""

import jax
import jax.numpy as jnp
from hypothesis import given
from hypothesis import strategies as st
from jax.nn import initializers

from jax_rl.models.params import ParamSpec, spec_leaves
from jax_rl.models.registry import model_from_config
from jax_rl.models.stack import find_period, stack_specs

GEMMA = {
    "model_type": "gemma3_text",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "sliding_window_pattern": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 64,
}
KINDS = st.lists(st.sampled_from("ab"), min_size=1, max_size=12).map(tuple)


@given(KINDS)
def test_the_split_is_the_list(kinds):
    period = find_period(kinds)
    assert period.kinds * period.repeats + period.tail == kinds
    assert period.repeats != 1 and bool(period.kinds) == bool(period.repeats)


@given(KINDS)
def test_no_split_traces_fewer_layers(kinds):
    period = find_period(kinds)
    splits = [
        width + len(kinds) - repeats * width
        for width in range(1, len(kinds) + 1)
        for repeats in range(1, len(kinds) // width + 1)
        if kinds[: width * repeats] == kinds[:width] * repeats
    ]
    assert len(period.kinds) + len(period.tail) == min(splits)


@given(KINDS)
def test_every_layer_is_named_once_and_stacks_hold_one_kind(kinds):
    def one_layer(kind, number):
        return {"w": ParamSpec((3, 2), ("out", "in"), initializers.zeros, (f"layers.{number}.{kind}",))}

    specs = spec_leaves(stack_specs(kinds, one_layer))
    names = [name for spec in specs for name in spec.hf_names]
    assert sorted(names) == sorted(f"layers.{i}.{kind}" for i, kind in enumerate(kinds))
    for spec in specs:
        assert len({name[-1] for name in spec.hf_names}) == 1
        assert spec.tensor_shape == (3, 2)
        assert spec.shape == ((len(spec.hf_names), 3, 2) if spec.stacked else (3, 2))


def test_what_is_computed_again_is_not_kept():
    """Kept for the backward pass, in bytes: nothing but a layer's input and attention; the products too; everything."""
    model = model_from_config(GEMMA)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.float32))
    tokens = jax.ShapeDtypeStruct((1, 512), jnp.int32)

    def kept(remat):
        def loss(params, tokens):
            return jnp.sum(model.forward(params, tokens, jnp.arange(512)[None], remat=remat)[0] ** 2)

        return jax.jit(jax.grad(loss)).lower(params, tokens).compile().memory_analysis().temp_size_in_bytes

    full, minimal, everything = map(kept, ("full", "minimal", None))
    of_products = 6 * 512 * (2 * 64 + 2 * 64 + 2 * 256) * 4  # layers, tokens, outputs of q, k, v, o, gate, up, down
    assert full + of_products / 2 < minimal < everything
