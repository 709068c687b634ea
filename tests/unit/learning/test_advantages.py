"""Advantages against the formulas in float64 numpy, and what must not matter to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_rl.learning.advantages import compute_advantages

OPTIONS = {
    "group_size": 2,
    "group_normalize": True,
    "group_advantage_coef": 1.0,
    "normalize_advantage": True,
    "eps": 1e-8,
}


def reference(rewards, token_rewards, mask, scored, *, group_size, group_normalize, group_advantage_coef, **rest):
    """Spec §6, points 1, 2, 3 and 5, row by row; (raw, advantages, valid)."""
    valid = np.zeros_like(mask)
    raw, z = np.zeros(mask.shape), np.zeros(len(mask))
    for first in range(0, len(mask), group_size):
        rows = [i for i in range(first, first + group_size) if scored[i] and mask[i].any()]
        if len(rows) < 2 and group_size > 1:
            continue
        means = np.array([rewards[i] + token_rewards[i][mask[i]].mean() for i in rows])
        for i, mean in zip(rows, means, strict=True):
            valid[i] = mask[i]
            raw[i] = np.where(mask[i], rewards[i] + token_rewards[i], 0)
            z[i] = (mean - means.mean()) / (means.std() + rest["eps"])
    out = np.where(valid, raw + group_advantage_coef * z[:, None], 0) if group_normalize else raw.copy()
    if rest["normalize_advantage"] and valid.any():
        out[valid] = (out[valid] - out[valid].mean()) / (out[valid].std() + rest["eps"])
    return raw, out, valid


@st.composite
def problems(draw):
    """Rewards on a grid of eighths, so that equal means are equal and different ones differ visibly."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, length = 12, 4  # one shape, or each example would compile its own program
    rewards = rng.integers(-80, 40, rows) / 8
    token_rewards = rng.choice([0.0, 0.0, -1.0, -5.0], (rows, length))
    mask = np.arange(length) < rng.choice([1, 2, 4, 4], rows)[:, None]
    mask[rng.random(rows) < 0.1] = False
    scored = rng.random(rows) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    rewards[~scored], token_rewards[~scored] = np.nan, np.nan
    options = OPTIONS | {
        "group_size": draw(st.sampled_from([1, 2, 3])),
        "group_advantage_coef": 0.5,
        "group_normalize": draw(st.booleans()),
        "normalize_advantage": draw(st.booleans()),
    }
    return (rewards.astype(np.float32), token_rewards.astype(np.float32), mask, scored), options


@settings(max_examples=80)
@given(problems())
def test_equals_the_formula_in_float64(problem):
    arrays, options = problem
    got = compute_advantages(*arrays, **options)
    raw, advantages, valid = reference(*[a.astype(np.float64) if a.dtype != bool else a for a in arrays], **options)
    np.testing.assert_array_equal(got.valid, valid)
    np.testing.assert_allclose(got.raw, raw, atol=1e-5)
    np.testing.assert_allclose(got.advantages, advantages, atol=2e-5)
    if valid.any():
        for name, values in [("adv_raw", raw[valid]), ("adv_norm", advantages[valid])]:
            np.testing.assert_allclose(got.stats[name + "_mean"], values.mean(), atol=2e-5)
            np.testing.assert_allclose(got.stats[name + "_std"], values.std(), atol=2e-5)
    np.testing.assert_allclose(got.stats["unscored_fraction"], 1 - arrays[3].mean(), atol=1e-6)


@settings(max_examples=20)
@given(problems(), st.randoms(use_true_random=False))
def test_padding_and_the_order_of_groups_change_nothing(problem, random):
    arrays, options = problem
    plain = compute_advantages(*arrays, **options)
    order = list(range(len(arrays[0]) // options["group_size"]))
    random.shuffle(order)
    rows = (np.array(order)[:, None] * options["group_size"] + np.arange(options["group_size"])).ravel()
    padding = [((0, 0), (0, 3))] * 2
    token_rewards, mask = (np.pad(a, p) for a, p in zip(arrays[1:3], padding, strict=True))
    moved = compute_advantages(arrays[0][rows], token_rewards[rows], mask[rows], arrays[3][rows], **options)
    for a, b in zip(plain[:3], moved[:3], strict=True):
        np.testing.assert_allclose(np.pad(a, padding[0])[rows], b, atol=2e-5)
    for name in plain.stats:
        np.testing.assert_allclose(plain.stats[name], moved.stats[name], atol=2e-5)


def test_rounding_does_not_pass_for_a_difference_between_equal_completions():
    # a third of -5 over 3, 6 and 9 tokens: equal means whose f32 values differ in the last bit
    mask = np.arange(9) < np.array([[3], [6], [9]])
    token_rewards = np.where(np.arange(9) < np.array([[1], [2], [3]]), -5.0, 0.0).astype(np.float32)
    got = compute_advantages(
        np.full(3, 4.1, np.float32),
        token_rewards,
        mask,
        np.ones(3, bool),
        **OPTIONS | {"group_size": 3, "normalize_advantage": False},
    )
    np.testing.assert_array_equal(got.advantages, got.raw)
    assert got.stats["zero_variance_group_fraction"] == 1


def test_a_large_common_offset_keeps_small_differences():
    rewards = np.array([1000.0, 1000.5, 1000.0, 1001.0], np.float32)
    shape = (4, 3)
    arrays = (rewards, np.zeros(shape, np.float32), np.ones(shape, bool), np.ones(4, bool))
    got = compute_advantages(*arrays, **OPTIONS)
    np.testing.assert_allclose(got.advantages, reference(*arrays, **OPTIONS)[1], atol=1e-4)


def test_groups_are_counted():
    rewards = np.array([1, 1, 2, 3, 0, 5, 1, 2], np.float32)  # equal, different, one unscored, none scored
    scored = np.array([1, 1, 1, 1, 0, 1, 0, 0], bool)
    mask = np.ones((8, 2), bool)
    got = compute_advantages(rewards, np.zeros((8, 2), np.float32), mask, scored, **OPTIONS)
    assert got.stats["zero_variance_group_fraction"] == 0.5
    assert got.stats["dropped_group_fraction"] == 0.5
    assert got.stats["unscored_fraction"] == 0.375
    np.testing.assert_array_equal(got.valid.any(axis=1), [1, 1, 1, 1, 0, 0, 0, 0])


def test_groups_of_one_keep_their_scored_completions():
    rewards = np.array([1, 2, 6], np.float32)
    scored = np.array([True, True, False])
    options = OPTIONS | {"group_size": 1, "normalize_advantage": False}
    got = compute_advantages(rewards, np.zeros((3, 2), np.float32), np.ones((3, 2), bool), scored, **options)
    np.testing.assert_array_equal(got.advantages, [[1, 1], [2, 2], [0, 0]])
    assert got.stats["dropped_group_fraction"] == pytest.approx(1 / 3)
    assert got.stats["zero_variance_group_fraction"] == 0


def test_part_of_a_group_is_refused():
    with pytest.raises(ValueError, match="3 completions do not divide into groups of 2"):
        mask = np.ones((3, 1), bool)
        compute_advantages(np.zeros(3, np.float32), np.zeros((3, 1), np.float32), mask, np.ones(3, bool), **OPTIONS)
