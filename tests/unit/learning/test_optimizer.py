"""AdamW against torch's, and bf16 weights that lose nothing of their f32 updates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rl.learning.optimizer import OptimizerState, init_train_state, join_bits, make_optimizer, split_bits


def gradients(step, params):
    """Different every step and larger than the clip."""
    rng = np.random.default_rng(step)
    return {name: jnp.asarray(rng.normal(size=p.shape), jnp.float32) for name, p in params.items()}


def run(optimizer, params, steps):
    state, step = optimizer.init(params), jax.jit(partial(both_halves, optimizer))
    for number in range(steps):
        params, state = step(gradients(number, params), state, params)
    return params, state


def both_halves(optimizer, gradients, state, params):
    params, low_bits = optimizer.new_params(gradients, state.optax, params, state.low_bits)
    return params, OptimizerState(optimizer.new_moments(gradients, state.optax), low_bits)


def test_equals_torch_with_its_clip_and_decay(toy):
    params = toy.init()
    mine, _ = run(make_optimizer(toy.rl(lr=3e-3, weight_decay=0.1, max_grad_norm=0.7)), params, 5)

    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(p))) for name, p in params.items()}
    matrices, scales = [theirs["embed"], theirs["mix"]], [theirs["norm"]]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=3e-3)
    for step in range(5):
        for name, gradient in gradients(step, params).items():
            theirs[name].grad = torch.tensor(np.asarray(gradient))
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 0.7)
        adamw.step()
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name].detach().numpy(), atol=1e-6)


def test_stacked_scales_are_not_decayed(toy):
    names = ["input_layernorm", "dt_bias", "A_log", "up_proj"]
    params = {"blocks": {name: jnp.ones((2, 3)) for name in names} | {"vector": jnp.ones(3)}}
    optimizer = make_optimizer(toy.rl(lr=0.1, weight_decay=0.5))
    zeros = jax.tree.map(jnp.zeros_like, params)
    new, _ = jax.jit(partial(both_halves, optimizer))(zeros, optimizer.init(params), params)
    moved = {name for name, value in new["blocks"].items() if not np.array_equal(value, params["blocks"][name])}
    assert moved == {"up_proj"}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=64, max_size=64))
def test_a_weight_and_its_low_bits_are_the_exact_f32(patterns):
    values = np.array(patterns, np.uint32).view(np.float32)
    values = np.where(np.isfinite(values) & (np.abs(values) < 3e38), values, np.float32(1.5))
    weight, low_bits = split_bits(jnp.asarray(values))
    back = np.asarray(join_bits(weight, low_bits))
    np.testing.assert_array_equal(back.view(np.uint32), values.view(np.uint32))
    nearest = np.abs(values - np.asarray(jnp.asarray(values).astype(jnp.bfloat16), np.float32))
    np.testing.assert_array_equal(np.abs(values - np.asarray(weight, np.float32)), nearest)


def test_bf16_weights_follow_the_f32_run_bit_by_bit(toy):
    start = toy.init(dtype=jnp.bfloat16)
    optimizer = make_optimizer(toy.rl(lr=1e-6, weight_decay=0.01))
    params, state = run(optimizer, start, 40)
    in_f32, _ = run(optimizer, jax.tree.map(lambda p: p.astype(jnp.float32), start), 40)
    for name, value in in_f32.items():
        assert params[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(join_bits(params[name], state.low_bits[name]), value)
        assert not np.array_equal(value, start[name].astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optax)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_other_dtypes_are_refused(toy):
    with pytest.raises(TypeError, match="weights are float16: only float32 and bfloat16"):
        init_train_state(toy.init(dtype=jnp.float16), make_optimizer(toy.rl()))
