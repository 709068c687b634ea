"""Packed micro-batches: the same loss and gradients as the plain computation, and shapes that stay few."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.learning.packing import Packing, make_micro_batches
from jax_rl.learning.programs import make_logprob_program, make_programs, sum_names
from jax_rl.learning.update import UpdateBatch, make_step_batches, run_update
from jax_rl.models.registry import model_from_config

PROMPT, COMPLETION, GROUP, GROUPS = 9, 12, 4, 3

SIZES = {
    "vocab_size": 13,  # the toy model's
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.3,
}
GEMMA3 = {"model_type": "gemma3_text", "query_pre_attn_scalar": 8, "sliding_window": 6, "sliding_window_pattern": 2}
QWEN3_5 = {
    "model_type": "qwen3_5_text",
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def groups(seed=0, group=GROUP, count=GROUPS, prompt=PROMPT, completion=COMPLETION, fewest=1):
    """Completions of `count` prompts as rollouts pad them, with a row left out and one whose first tokens are."""
    rng = np.random.default_rng(seed)
    rows = group * count
    tokens = rng.integers(0, 13, (rows, prompt + completion)).astype(np.int32)  # pads hold anything
    positions = np.full_like(tokens, -1)
    mask = np.zeros((rows, completion), bool)
    for row in range(rows):
        if row % group == 0:
            before = int(rng.integers(fewest, prompt + 1))
        else:
            tokens[row, prompt - before : prompt] = tokens[row - 1, prompt - before : prompt]
        after = int(rng.integers(1, completion + 1))
        positions[row, prompt - before : prompt + after] = np.arange(before + after)
        mask[row, :after] = True
    mask[1] = False
    mask[2, : mask[2].sum() // 2] = False

    def noise(mean, std):
        return np.where(mask, rng.normal(mean, std, mask.shape), 0.0).astype(np.float32)

    return UpdateBatch(tokens, positions, mask, noise(0, 1), ref_logp=noise(-3, 0.5), sampler_logp=noise(-3, 0.5))


@pytest.fixture(scope="module")
def gemma3(toy):
    """Parameters, and the programs of an update: they do not depend on the loss's aggregation."""
    model = model_from_config(SIZES | GEMMA3)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.float32))()
    return params, programs_of(model, toy.rl())


def totals(programs, params, data, packing, rl):
    """Loss sums and gradients of one optimizer step of all of `data`."""
    result = programs.start(params, sum_names(data.ref_logp is not None, data.sampler_logp is not None))
    for micro_batch in make_step_batches(data, packing, rl, COMPLETION):
        result = programs.accumulate(params, None, result, micro_batch)
    return {name: float(value) for name, value in result.sums.items()}, jax.device_get(result.gradients)


def relative(got, right):
    return np.linalg.norm(got - right) / max(np.linalg.norm(right), 1e-30)


def programs_of(model, rl):
    shares = not model.family.recurrent
    return make_programs(model.forward, model.unembed, make_optimizer(rl), rl, COMPLETION, shares_prompts=shares)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_loss_and_gradients_are_those_of_the_plain_computation(gemma3, toy, aggregation):
    (params, programs), data = gemma3, groups()
    data = replace(data, old_logp=data.sampler_logp)
    rl = toy.rl(loss_aggregation=aggregation)
    plain_sums, plain_gradients = totals(programs, params, data, Packing(len(data.mask), 0, True), rl)
    sums, gradients = totals(programs, params, data, Packing(1, 64, True), rl)
    assert sums == pytest.approx(plain_sums, rel=1e-5)
    differences = jax.tree.map(relative, gradients, plain_gradients)
    assert max(jax.tree.leaves(differences)) < 1e-5, differences


@pytest.mark.parametrize("step", [0, 5])  # 5 completions: steps that begin and end inside a group
def test_updates_are_those_of_the_plain_computation(toy, step):
    params, data, results = toy.init(), groups(), []
    for budget in (0, 64):
        rl = toy.rl(grad_accum=step, ppo_epochs=2, micro_batch_tokens=budget, lr=1e-3)
        optimizer = make_optimizer(rl)
        programs = make_programs(toy.forward, toy.unembed, optimizer, rl, COMPLETION)
        results.append(run_update(init_train_state(toy.init(), optimizer), data, programs, rl))
    (plain, plain_stats), (packed, packed_stats) = results
    assert packed_stats == pytest.approx(plain_stats, rel=1e-4)
    assert packed_stats["optimizer_steps"] == (6 if step else 2)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain.params, params)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), plain.params, packed.params)
    assert max(jax.tree.leaves(apart)) < 0.01 * min(jax.tree.leaves(moved))


def test_logprobs_are_those_of_rows_as_they_are(toy):
    params, data = toy.init(), groups()
    program = make_logprob_program(toy.forward, toy.unembed)
    right = toy.logprobs(program, params, data)
    assert (right[data.mask] < 0).all() and not right[~data.mask].any()
    for packing in (Packing(1, 100, True), Packing(1, 100, False), Packing(1, 128, True, row_multiple=4)):
        np.testing.assert_allclose(toy.logprobs(program, params, data, packing), right, atol=1e-5)


def test_recurrent_layers_read_each_completion_in_a_row_of_its_own(toy):
    model, data = model_from_config(SIZES | QWEN3_5), groups()
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.float32))()
    programs = programs_of(model, toy.rl())
    right = toy.logprobs(programs.logprobs, params, data)
    packing = Packing(1, 100, programs.logprobs.shares_prompts)
    np.testing.assert_allclose(toy.logprobs(programs.logprobs, params, data, packing), right, atol=1e-5)


@pytest.mark.parametrize("row_multiple", [1, 4])
def test_every_token_has_one_slot_and_prompts_stand_once(row_multiple):
    data = groups(count=20)
    budget = 512
    batches = make_micro_batches(data.tokens, data.positions, data.mask, Packing(1, budget, True, row_multiple))
    taken = np.zeros(data.mask.shape, int)
    for batch in batches:
        rows, mask = batch.rows, batch.rows.mask
        assert rows.tokens.shape[0] % row_multiple == 0
        assert rows.tokens.size <= budget
        np.add.at(taken, (batch.completion[mask], batch.column[mask]), 1)
        np.testing.assert_array_equal(batch.gather(data.tokens[:, PROMPT:])[mask], rows.targets[mask])
    np.testing.assert_array_equal(taken, data.mask)
    read = sum((batch.rows.positions >= 0).sum() for batch in batches)
    prompts = (data.positions[::GROUP, :PROMPT] >= 0).sum()
    assert read <= prompts + data.mask.sum() + COMPLETION  # the row whose first tokens are left out is read whole


def test_a_row_longer_than_the_budget_is_cut_between_completions():
    data = groups(fewest=PROMPT)
    batches = make_micro_batches(data.tokens, data.positions, data.mask, Packing(1, 24, True))
    assert max(batch.rows.tokens.size for batch in batches) <= 32  # a prompt with its longest completion, in a bucket
    assert sum(batch.rows.mask.sum() for batch in batches) == data.mask.sum()


def test_shapes_come_from_a_small_set():
    shapes, slots, used = set(), 0, 0
    for seed in range(40):
        data = groups(seed, group=8, count=8, prompt=300, completion=120, fewest=30)
        for batch in make_micro_batches(data.tokens, data.positions, data.mask, Packing(1, 4096, True)):
            shapes.add((*batch.rows.tokens.shape, batch.rows.targets.shape[1]))
            slots, used = slots + batch.rows.tokens.size, used + (batch.rows.positions >= 0).sum()
    assert len(shapes) < 25
    assert used / slots > 0.75


@pytest.mark.parametrize("budget", [520, 700, 1000])
def test_a_budget_between_two_row_lengths_is_kept(budget):
    """A row is rounded up to a length of the set after its completions are chosen."""
    for seed in range(10):
        data = groups(seed, group=8, count=4, prompt=300, completion=120, fewest=30)
        for batch in make_micro_batches(data.tokens, data.positions, data.mask, Packing(1, budget, True)):
            assert batch.rows.tokens.size <= budget
