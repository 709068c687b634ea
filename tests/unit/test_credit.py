"""Spans on characters become rewards on the tokens that wrote them; what has no score gives no reward."""

import numpy as np

from jax_rl.config.schema import RewardConfig
from jax_rl.credit import assign_credit, to_translations
from jax_rl.data.examples import Example
from jax_rl.data.prompts import Prompt
from jax_rl.figures import completion_figures, output_row, scoring_figures, update_figures
from jax_rl.rewards.scoring import CompletionScores, ScoringCounts
from jax_rl.rewards.types import ErrorSpan, Missing, Scored
from jax_rl.rollout.collect import Rollout, RolloutBatch, concatenate

EXAMPLE = Example("a", "Open file", "English", "Korean", "en", "ko", "파일 열기")


def batch(texts_and_offsets, width=5, prompt_width=4, first=0) -> RolloutBatch:
    rollouts, mask = [], np.zeros((len(texts_and_offsets), width), bool)
    for row, (text, offsets) in enumerate(texts_and_offsets):
        ids = list(range(10, 10 + len(offsets)))
        mask[row, : len(ids)] = True
        rollouts.append(Rollout("a", "p", [1], text, ids, [-1.0] * len(ids), None, offsets, "stop"))
    shape = (len(rollouts), prompt_width + width)
    prompts = [Prompt(EXAMPLE, "p", (1,))] * len(rollouts)
    tokens, positions, logp = np.zeros(shape, np.int32), np.full(shape, -1, np.int32), -mask.astype(np.float32)
    return RolloutBatch(rollouts, prompts, tokens, positions, mask, logp, first + np.arange(len(rollouts)))


def scored(reward, spans=(), **values) -> CompletionScores:
    return CompletionScores({name: Scored(v) for name, v in values.items()}, reward, tuple(spans))


def span(start, end, severity, confidence=None) -> ErrorSpan:
    return ErrorSpan(start, end, severity, confidence, "")


TWO = [("파일 열기", [(0, 2), (2, 4), (4, 5), (5, 5)]), ("열기", [(0, 1), (1, 2), (2, 2)])]


def test_each_span_weighs_on_the_tokens_that_wrote_it():
    scores = [scored(1.5, [span(0, 2, "MAJOR"), span(4, 5, "MINOR")]), scored(-2.0, [span(0, 2, "CRITICAL")])]
    credit = assign_credit(batch(TWO), scores, RewardConfig())
    assert credit.sequence_rewards.tolist() == [1.5, -2.0]
    assert credit.token_rewards.tolist() == [[-5, 0, -1, 0, 0], [-10, -10, 0, 0, 0]]
    assert credit.scored.tolist() == [True, True]


def test_a_missing_score_gives_no_reward_at_all():
    scores = [CompletionScores({"metricx": Missing("down")}, Missing("metricx: down"), (span(0, 2, "MAJOR"),))]
    credit = assign_credit(batch(TWO[:1]), scores, RewardConfig())
    assert credit.scored.tolist() == [False]
    assert not credit.token_rewards.any() and credit.sequence_rewards.tolist() == [0.0]


def test_the_metrics_are_asked_about_the_stripped_completion():
    (first, _) = to_translations(batch(TWO))
    assert (first.src, first.mt, first.ref) == ("Open file", "파일 열기", "파일 열기")
    assert (first.src_lang, first.tgt_lang) == ("English", "Korean")


def test_figures_leave_out_what_is_missing():
    lost = CompletionScores({"metricx": Missing("down"), "chrf": Scored(0.5)}, Missing("metricx: down"), ())
    found = scored(2.0, [span(0, 1, "MAJOR"), span(1, 2, "minor")], metricx=3.0, chrf=0.25)
    two = batch(TWO)
    figures = completion_figures(two.rollouts[0], lost, metricx_offset=5.0)
    assert figures["reward"] is None and figures["metricx_reward"] is None and figures["spans"] is None
    assert figures["chrf"] == 0.5
    figures = completion_figures(two.rollouts[1], found, metricx_offset=5.0)
    assert (figures["metricx_reward"], figures["spans"], figures["span_minor"]) == (2.0, 2.0, 1.0)
    row = update_figures(two, [lost, found], assign_credit(two, [lost, found], RewardConfig()), 5.0)
    assert row["reward_mean"] == 2.0 and row["metricx_score_mean"] == 3.0 and row["chrf_mean"] == 0.375
    assert row["xcomet_score_mean"] is None and row["span_major_mean"] == 1.0
    assert row["token_rewards_mean"] == -2.0 and row["token_rewards_non_zero_ratio"] == 2 / 3


def test_an_output_row_says_why_a_score_is_missing():
    lost = CompletionScores({"metricx": Missing("down")}, Missing("metricx: down"), ())
    row = output_row(batch(TWO), 0, lost)
    assert row["scores"] == {"metricx": None} and row["missing"] == {"metricx": "down"}
    assert row["sequence_reward"] is None


def test_what_depends_on_the_cache_stays_out_of_the_rows():
    counts = ScoringCounts()
    counts.missing["metricx: down"] += 2
    counts.events.update({"metricx/cache_hits": 7, "metricx/asked": 1, "metricx/truncated": 3})
    assert scoring_figures(counts) == {"missing_scores": 2.0, "unknown_severities": 0.0}


def test_concatenate_aligns_prompts_on_the_right():
    narrow, wide = batch(TWO, prompt_width=4), batch(TWO, prompt_width=7, first=2)
    both = concatenate([narrow, wide], pad_id=9)
    assert both.tokens.shape == (4, 12) and len(both.rollouts) == 4
    assert both.tokens[0, :3].tolist() == [9, 9, 9] and both.positions[0, :3].tolist() == [-1, -1, -1]
    np.testing.assert_array_equal(both.tokens[2:], wide.tokens)
