"""The update as a whole: what must not change its result, and what must not change its state."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.learning.packing import Packing
from jax_rl.learning.programs import LogprobProgram, make_programs, sum_names
from jax_rl.learning.update import UpdateBatch, make_step_batches, run_update


def train(toy, data, forward=None, params=None, programs=None, **changes):
    """One update from fresh weights: (state, stats)."""
    rl = toy.rl(**changes)
    optimizer = make_optimizer(rl)
    programs = programs or make_programs(forward or toy.forward, toy.unembed, optimizer, rl, toy.completion)
    return run_update(init_train_state(params or toy.init(), optimizer), data, programs, rl)


def assert_same(a, b, stats_tolerance=1e-5, params_tolerance=2e-6):
    for name, value in a[1].items():
        assert value == pytest.approx(b[1][name], abs=stats_tolerance), name
    for mine, theirs in zip(jax.tree.leaves(a[0].params), jax.tree.leaves(b[0].params), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=params_tolerance)


def pick(data, rows):
    return jax.tree.map(lambda x: x[rows], data)


def widen(data, left, right):
    """The same completions with more padding on both sides."""

    def both(x, value):
        return np.pad(x, ((0, 0), (left, right)), constant_values=value)

    def after(x):
        return np.pad(x, ((0, 0), (0, right)))

    return UpdateBatch(
        both(data.tokens, 3), both(data.positions, -1), *map(after, (data.mask, data.advantages, data.ref_logp))
    )


def test_padding_and_row_order_change_nothing(toy):
    data = toy.batch(6)
    rl = toy.rl()
    programs = make_programs(toy.forward, toy.unembed, make_optimizer(rl), rl, toy.completion)
    right = train(toy, data, programs=programs)
    assert_same(train(toy, widen(data, 3, 2), programs=programs), right)
    assert_same(train(toy, pick(data, [4, 0, 5, 2, 1, 3]), programs=programs), right)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_the_size_of_micro_batches_changes_nothing(toy, aggregation):
    data = toy.batch(6)
    right = train(toy, data, loss_aggregation=aggregation)
    for size in (1, 4):  # 4 does not divide 6
        assert_same(train(toy, data, loss_aggregation=aggregation, micro_batch_size=size), right)


def test_rows_without_tokens_are_left_out(toy):
    data = toy.batch(6)
    right = train(toy, pick(data, [1, 2, 4]), grad_accum=2)
    empty = replace(data, mask=data.mask & np.isin(np.arange(6), [1, 2, 4])[:, None])
    got = train(toy, empty, grad_accum=2)
    assert_same(got, right)
    assert got[1]["optimizer_steps"] == 2


def test_an_update_without_any_token_changes_nothing(toy):
    params = jax.tree.map(np.asarray, toy.init())
    data = toy.batch(4)
    state, stats = train(toy, replace(data, mask=np.zeros_like(data.mask)), grad_accum=2)
    assert jax.tree.all(jax.tree.map(np.array_equal, state.params, params))
    assert stats["optimizer_steps"] == stats["token_count"] == 0 and stats["policy_loss"] is None


def test_it_learns_what_the_advantages_say(toy):
    data = toy.batch(8)
    rl = toy.rl(kl_coef=0.0, entropy_coef=0.0, grad_accum=4, ppo_epochs=2)
    optimizer = make_optimizer(rl)
    programs = make_programs(toy.forward, toy.unembed, optimizer, rl, toy.completion)

    def agreement(params):
        logp = toy.logprobs(programs.logprobs, params, data)
        return float(np.sum(logp * data.advantages))

    before = agreement(toy.init())
    state, stats = run_update(init_train_state(toy.init(), optimizer), data, programs, rl)
    assert agreement(state.params) > before + 0.1
    assert int(state.step) == stats["optimizer_steps"] == 4
    assert stats["approx_kl"] > 0 and stats["kl_to_reference"] > 0
    assert stats["token_count"] == 2 * data.mask.sum()


def test_one_step_needs_no_pass_for_old_logprobs(toy):
    data = toy.batch(5)
    rl = toy.rl()
    optimizer = make_optimizer(rl)
    programs = make_programs(toy.forward, toy.unembed, optimizer, rl, toy.completion)
    old = toy.logprobs(programs.logprobs, toy.init(), data)
    explicit = train(toy, replace(data, old_logp=old), programs=programs)

    def refuse(*args):
        raise AssertionError("a forward pass that one step does not need")

    implicit = train(toy, data, programs=replace(programs, logprobs=LogprobProgram(refuse)))
    assert_same(implicit, explicit)
    assert implicit[1]["approx_kl"] == 0 and implicit[1]["clip_fraction"] == 0


def test_later_steps_are_measured_against_the_policy_that_sampled(toy):
    data = toy.batch(6)
    rl = toy.rl(grad_accum=3, ppo_epochs=2, micro_batch_size=2)
    optimizer = make_optimizer(rl)
    programs = make_programs(toy.forward, toy.unembed, optimizer, rl, toy.completion)
    old = toy.logprobs(programs.logprobs, toy.init(), data)
    state, sums = init_train_state(toy.init(), optimizer), []
    for rows in ([0, 1, 2], [3, 4, 5]) * 2:
        state, stats = one_step(programs, state, pick(replace(data, old_logp=old), rows), rl)
        sums.append({name: float(value) for name, value in stats.items()})
    got, averages = run_update(init_train_state(toy.init(), optimizer), data, programs, rl)
    right = {"policy_loss": np.mean([s["policy_loss"] for s in sums])}
    tokens = sum(s["token_count"] for s in sums)
    right |= {name: sum(s[name] for s in sums) / tokens for name in ("approx_kl", "entropy", "kl_to_reference")}
    assert_same((got, {name: averages[name] for name in right}), (state, right))


def one_step(programs, state, data, rl):
    """An optimizer step of all rows in one micro-batch."""
    (micro_batch,) = make_step_batches(data, Packing(len(data.mask), 0, False), rl, programs.max_new_tokens)
    totals = programs.start(state.params, sum_names(data.ref_logp is not None, data.sampler_logp is not None))
    return programs.step(state, programs.accumulate(state.params, None, totals, micro_batch))


def flat_bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def bad_gradient(toy):
    """A forward whose value is right and whose gradient is not finite: the slope of a square root at 0."""

    def forward(params, tokens, positions, *, segments, remat):
        hidden, cache = toy.forward(params, tokens, positions, segments=segments, remat=remat)
        return hidden + jnp.sqrt(jnp.sum(params["norm"] * 0.0)), cache

    return forward


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_non_finite_step_leaves_the_state_bit_for_bit(toy, fault, dtype):
    rl = toy.rl()
    optimizer = make_optimizer(rl)
    good = make_programs(toy.forward, toy.unembed, optimizer, rl, toy.completion)
    bad = good if fault == "loss" else make_programs(bad_gradient(toy), toy.unembed, optimizer, rl, 5)
    data = toy.batch(3)
    poisoned = replace(data, advantages=np.where(data.mask, np.inf, 0).astype(np.float32)) if bad is good else data

    state, _ = one_step(good, init_train_state(toy.init(dtype=dtype), optimizer), data, rl)
    before = flat_bytes((state.params, state.opt_state, state.step))
    for times in (1, 2):
        state, sums = one_step(bad, state, poisoned, rl)
        assert sums["skipped"] == 1 and np.isfinite(sums["loss"]) == (fault == "gradient")
        assert (int(state.skipped_in_row), int(state.skipped_total)) == (times, times)
        assert flat_bytes((state.params, state.opt_state, state.step)) == before
    state, sums = one_step(good, state, data, rl)
    assert sums["skipped"] == 0 and flat_bytes(state.params) != before[: len(jax.tree.leaves(state.params))]
    assert (int(state.step), int(state.skipped_in_row), int(state.skipped_total)) == (2, 0, 2)


def test_an_update_stops_when_too_many_steps_in_a_row_are_skipped(toy):
    data = toy.batch(8)
    data.advantages[2:7][data.mask[2:7]] = np.nan
    state, stats = train(toy, data, grad_accum=1, max_skipped_steps=3)
    assert (int(state.step), int(state.skipped_in_row)) == (2, 3)
    assert (stats["optimizer_steps"], stats["skipped_steps"]) == (2, 3)
    assert np.isfinite(stats["loss"])


def test_bf16_weights_train_and_stay_bf16(toy):
    data = toy.batch(6)
    state, stats = train(toy, data, params=toy.init(dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    in_f32 = jax.tree.map(lambda p: p.astype(jnp.float32), toy.init(dtype=jnp.bfloat16))
    assert stats["loss"] == pytest.approx(train(toy, data, params=in_f32)[1]["loss"], abs=0.02)


def test_updates_of_one_shape_share_their_programs(toy):
    traces = []

    def forward(*args, segments, remat):
        traces.append(remat)
        return toy.forward(*args, segments=segments, remat=remat)

    rl = toy.rl(grad_accum=2, micro_batch_size=2)
    optimizer = make_optimizer(rl)
    programs = make_programs(forward, toy.unembed, optimizer, rl, toy.completion)
    state, after_first = init_train_state(toy.init(), optimizer), 0
    for missing in (0, 1, 3):  # full steps, a half-empty last one, fewer steps
        data = toy.batch(6, seed=missing)
        data.mask[:missing] = False
        state, _ = run_update(state, data, programs, rl)
        after_first = len(traces) if missing == 0 else after_first
        assert len(traces) == after_first


def test_reference_logprobs_in_parts_equal_those_of_all_rows(toy):
    data = toy.batch(5)
    rl = toy.rl()
    programs = make_programs(toy.forward, toy.unembed, make_optimizer(rl), rl, toy.completion)
    whole = toy.logprobs(programs.logprobs, toy.init(), data)
    parts = toy.logprobs(programs.logprobs, toy.init(), data, Packing(2, tokens=0, shares_prompts=False))
    assert whole.shape == data.mask.shape
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_a_penalty_without_reference_logprobs_is_refused_before_anything_runs(toy):
    with pytest.raises(ValueError, match=r"rl.kl_coef is 0.1 but the batch has no ref_logp"):
        train(toy, replace(toy.batch(2), ref_logp=None))
    _, stats = train(toy, replace(toy.batch(2), ref_logp=None), kl_coef=0.0)
    assert stats["kl_to_reference"] is None
