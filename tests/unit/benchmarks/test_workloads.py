"""The draws are what the benchmark says it measures."""

import numpy as np
import pytest

from benchmarks.workloads import GROUP_SIZE, MODELS, SIGMAS, UNK, WORKLOADS, draw, ids_of, log_normal, reward, text_of

COMPARED = [MODELS["36m"], MODELS["129m"]]


@pytest.mark.parametrize("model", COMPARED)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_system_gets_the_same_whole_groups_of_plain_tokens(workload, model):
    work, again = draw(workload, model), draw(workload, model)
    assert work.prompts == again.prompts
    assert work.lengths.tolist() == again.lengths.tolist()
    assert len(work.prompts) == model.prompts
    assert work.lengths.shape == (model.prompts * GROUP_SIZE,)
    assert [work.prompts[row // GROUP_SIZE] for row in range(len(work.rows))] == work.rows
    assert all(UNK < token < model.vocab for prompt in work.prompts for token in prompt)
    assert work.lengths.min() >= 1
    assert work.lengths.max() <= work.max_new_tokens


@pytest.mark.parametrize("model", COMPARED)
def test_fixed_is_64_and_64(model):
    work = draw("fixed", model)
    assert {len(prompt) for prompt in work.prompts} == {64}
    assert set(work.lengths.tolist()) == {64}


@pytest.mark.parametrize("model", COMPARED)
@pytest.mark.parametrize("workload", SIGMAS)
def test_translation_has_the_means_and_the_cap(workload, model):
    work = draw(workload, model)
    assert work.max_new_tokens == 256
    assert work.lengths.mean() == pytest.approx(50, rel=0.05)
    assert np.mean([len(prompt) for prompt in work.prompts]) == pytest.approx(150, rel=0.12)  # few prompts: a thin tail


@pytest.mark.parametrize("sigma", SIGMAS.values())
def test_lengths_are_log_normal(sigma):
    lengths = log_normal(np.random.default_rng(0), 5000, sigma, 20_000)
    assert lengths.mean() == pytest.approx(5000, rel=0.005)
    logs = np.log(lengths)
    assert logs.std() == pytest.approx(sigma, rel=0.005)
    assert np.median(logs) == pytest.approx(np.log(5000) - sigma**2 / 2, abs=0.005)
    assert not np.all(np.diff(lengths) >= 0)  # groups mix short and long


def test_a_wider_draw_has_more_long_completions():
    narrow, wide = (draw(name, MODELS["36m"]).lengths for name in ("translation-0.6", "translation-0.9"))
    assert wide.max() == 256
    assert 150 < narrow.max() < 256


def test_sizes_are_the_models_that_are_named():
    totals = [model.body_params + model.head_params for model in COMPARED]
    assert totals == pytest.approx([35.7e6, 129e6], rel=0.003)  # norms left out


def test_texts_hold_their_ids_and_the_reward_is_a_share():
    ids = [5, 8, 1200, 7]
    assert ids_of(text_of(ids)) == ids
    assert ids_of(text_of(ids) + " <eos>") == ids
    assert reward(ids) == 0.5
    assert reward([]) == 0.0
