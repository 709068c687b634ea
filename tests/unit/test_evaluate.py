"""Intervals, paired differences, selection score and corpus scores of an evaluation."""

import unicodedata

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from scipy import stats

from jax_rl.config.schema import ChrFConfig, Config, MetricXConfig, RewardConfig, XCometConfig
from jax_rl.evaluate import EvalReport, bleu_tokenizer, bootstrap_interval, corpus_scores, select_score, summarize

NAMES = "reward metricx_score metricx_reward xcomet_score mqm_score chrf spans completion_len".split()


def report(examples: str = "", **greedy) -> EvalReport:
    """`examples`: a letter each, their id and text."""
    count = len(next(iter(greedy.values())))
    figures = {name: greedy.get(name, [None] * count) for name in NAMES}
    outputs = [{"example_id": letter, "src_text": letter * 3} for letter in (examples or "abcdefgh")[:count]]
    return EvalReport({"greedy": figures}, {}, {}, outputs)


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=60)
    ours = bootstrap_interval(values, 20_000)
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    np.testing.assert_allclose(ours, reference, atol=0.02)
    assert ours == bootstrap_interval(values, 20_000), "the same data must give the same interval"


def test_differences_are_paired_by_example_and_leave_out_what_is_missing():
    before = report(chrf=[0.1, 0.5, None, 0.9])
    after = report(chrf=[0.2, 0.6, 0.7, None])
    row = summarize(after, before, Config())
    assert row["chrf_mean"] == pytest.approx(0.5) and row["chrf_scored"] == 3
    assert row["chrf_diff"] == pytest.approx(0.1)
    assert row["chrf_diff_ci95"] == pytest.approx([0.1, 0.1])  # paired: every difference is 0.1
    assert row["mqm_score_mean"] is None and "mqm_score_diff" not in row


def test_another_set_of_examples_is_compared_where_it_is_the_same(caplog):
    """The prompts changed between two starts: some are new, some gone, one comes twice."""
    before = report("abcd", chrf=[0.1, 0.5, 0.7, 0.9])
    row = summarize(report("dxaay", chrf=[1.0, 0.0, 0.3, 0.8, 0.0]), before, Config())
    assert row["chrf_diff"] == pytest.approx((0.1 + 0.2) / 2)  # d, and the first a
    assert row["examples_paired"] == 2 and "2 of the 5 evaluated examples" in caplog.text
    row = summarize(report("xyz", chrf=[1.0, 0.0, 0.3]), before, Config())
    assert row["examples_paired"] == 0 and "chrf_diff" not in row
    other_text = report("abcd", chrf=[0.1, 0.5, 0.7, 0.9])
    other_text.outputs[0]["src_text"] = "another"
    assert summarize(other_text, before, Config())["examples_paired"] == 3


def test_selection_score_is_the_weighted_sum_over_the_means():
    reward = RewardConfig(w_metricx=2.0, w_xcomet_seq=3.0, xcomet_seq_scale=10.0, w_chrf=1.0, chrf=ChrFConfig(True))
    greedy = report(metricx_score=[4.0, None], xcomet_score=[0.2, 0.4], chrf=[0.5, 0.5]).figures["greedy"]
    assert select_score(greedy, Config(reward=reward)) == pytest.approx(2 * 1.0 + 3 * 10 * 0.3 + 0.5)
    off = RewardConfig(metricx=MetricXConfig(enabled=False), xcomet=XCometConfig(enabled=False))
    assert select_score(greedy, Config(reward=off)) == 0.0


def test_selection_score_is_missing_while_a_weighted_metric_has_no_score():
    assert select_score(report(metricx_score=[None, None]).figures["greedy"], Config()) is None


def test_corpus_scores_are_sacrebleus():
    outputs = [
        {"completion_text": "파일을 여세요", "ref_text": "파일 열기"},
        {"completion_text": "저장", "ref_text": "저장"},
        {"completion_text": "참조 없음", "ref_text": None},
    ]
    row = corpus_scores(outputs, ["ko"] * 3)
    hypotheses, references = ["파일을 여세요", "저장"], [["파일 열기", "저장"]]
    chrf, bleu = CHRF(word_order=2), BLEU(tokenize="char", effective_order=True)
    assert row["corpus_chrf++"] == chrf.corpus_score(hypotheses, references).score
    assert row["corpus_bleu"] == bleu.corpus_score(hypotheses, references).score
    assert "nw:2" in row["corpus_chrf++_signature"] and "tok:char" in row["corpus_bleu_signature"]
    assert row["corpus_references"] == 2
    assert corpus_scores(outputs[2:], ["ko"]) == {}
    decomposed = [o | {"completion_text": unicodedata.normalize("NFD", o["completion_text"])} for o in outputs]
    assert corpus_scores(decomposed, ["ko"] * 3) == row


def test_bleu_is_of_each_target_language():
    german, korean = "Das ist ein kleines Haus", "저것은 작은 집입니다"
    outputs = [{"completion_text": text[:-1], "ref_text": text} for text in (german, korean, german)]
    row = corpus_scores(outputs, ["de", "ko", "de"])
    assert "corpus_bleu" not in row and row["corpus_references"] == 3
    german_bleu, korean_bleu = BLEU(tokenize="13a", effective_order=True), BLEU(tokenize="char", effective_order=True)
    assert row["corpus_bleu_de"] == german_bleu.corpus_score([german[:-1]] * 2, [[german] * 2]).score
    assert row["corpus_bleu_ko"] == korean_bleu.corpus_score([korean[:-1]], [[korean]]).score
    assert "tok:13a" in corpus_scores(outputs, ["de", "fr", "de"])["corpus_bleu_signature"]


def test_a_report_survives_a_checkpoint():
    before = report(chrf=[0.1, None])
    assert EvalReport.from_json(before.to_json()) == before


@pytest.mark.parametrize(("code", "name"), [("ko_KR", "char"), ("zh-CN", "zh"), ("ja", "char"), ("de", "13a")])
def test_bleu_tokenizer(code, name):
    assert bleu_tokenizer(code) == name
