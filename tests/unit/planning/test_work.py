"""The shapes that are planned are those that an update makes of completions as long as they may be."""

import jax
import pytest

from jax_rl.config.schema import Config, EvalConfig, GenerationConfig, ModelConfig, RLConfig
from jax_rl.learning.packing import Packing, bucket
from jax_rl.parallel.devices import Placement
from jax_rl.parallel.layouts import make_layouts
from jax_rl.planning.published import planned_model
from jax_rl.planning.work import Batch, Work, cut, work_of

WORK = Work(Batch(4, 32, 1), group=8, prompt_len=64, new_tokens=32, step_rows=32, micro_rows=16, steps=1)


def test_rows_that_are_not_packed_are_the_micro_batch_size():
    made = cut(WORK, 32, Packing(16, 0, True, 4))
    assert (made.rows, made.columns, made.slots, made.segments) == (16, 96, 32, False)
    assert (made.count, made.prompts) == (2, 32)


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_packed_rows_hold_a_prompt_and_completions_within_the_budget(shares_prompts):
    """512 columns on each of 2 devices hold a prompt of 64 and all 8 completions of 31, or 5 texts of 95."""
    made = cut(WORK, 32, Packing(16, 1024, shares_prompts, 2))
    assert made.rows % 2 == 0 and made.rows * made.columns <= 1024
    assert made.segments is shares_prompts
    assert made.columns == bucket(64 + 8 * 31 if shares_prompts else 64 + 31)
    assert made.prompts == (4 if shares_prompts else 32)


@pytest.mark.parametrize(
    "limit, samples, expected", [(4, 1, None), (64, 1, Batch(64, 64, 0)), (4, 16, Batch(4, 64, 0))]
)
def test_an_evaluation_is_planned_where_it_is_larger_than_an_update(limit, samples, expected):
    cfg = Config(
        model=ModelConfig(policy_name_or_path="google/gemma-3-4b-it"),
        generation=GenerationConfig(num_samples_per_prompt=8),
        rl=RLConfig(batch_size=4),
        eval=EvalConfig(eval_limit=limit, num_samples_per_prompt=samples),
    )
    devices = tuple(jax.devices()[:1])
    layouts = make_layouts(cfg, Placement(devices, devices), planned_model(cfg))
    assert work_of(cfg, layouts).evaluation == expected
