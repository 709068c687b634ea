"""The XCOMET worker, in its own environment, against COMET's `predict` (see tiny_xcomet.py)."""

import dataclasses
import unicodedata

import pytest

from jax_rl.config.schema import XCometConfig
from jax_rl.rewards.types import Missing, Scored
from jax_rl.rewards.worker_client import WorkerStartError
from jax_rl.rewards.xcomet import XCometMetric


@pytest.fixture(scope="module")
def config(tiny_xcomet):
    return XCometConfig(model_name=tiny_xcomet.folder, batch_size=5, device="cpu", python_executable=tiny_xcomet.python)


@pytest.fixture(scope="module")
def metrics(config, log_dir):
    """Both start at once, and load side by side."""
    metrics = {
        "qe": XCometMetric(config, 1, log_dir / "qe"),
        "ref": XCometMetric(
            dataclasses.replace(config, use_reference=True, overflow_policy="skip"), 1, log_dir / "ref"
        ),
    }
    yield metrics
    for metric in metrics.values():
        metric.close()


def assert_predicted(scores, translations, predicted):
    """Scores and spans are those of `predict`, but for the white space at the ends of its spans."""
    assert [score.value for score in scores] == pytest.approx(predicted["scores"], abs=1e-6)
    for score, translation, theirs in zip(scores, translations, predicted["spans"], strict=True):
        texts = [translation.mt[span["start"] : span["end"]] for span in theirs]
        assert [span.text for span in score.spans] == [text.strip() for text in texts if text.strip()]
        kept = [span for span, text in zip(theirs, texts, strict=True) if text.strip()]
        assert [span.end for span in score.spans] == [span["end"] for span in kept]
        assert [span.severity for span in score.spans] == [span["severity"].upper() for span in kept]
        confidences = [span["confidence"] for span in kept]
        assert [span.confidence for span in score.spans] == pytest.approx(confidences, abs=1e-6)
        for span in score.spans:
            assert translation.mt[span.start : span.end] == span.text


@pytest.mark.parametrize("mode", ["qe", "ref"])
def test_scores_and_spans_are_those_of_predict(metrics, tiny_xcomet, mode):
    predicted = tiny_xcomet.expected[mode]
    assert sum(map(len, predicted["spans"])) > 5  # else this would test little
    translations = tiny_xcomet.translations()
    assert_predicted(metrics[mode].score(translations), translations, predicted)


def test_spans_of_decomposed_text_are_ranges_of_that_text(metrics, tiny_xcomet):
    """XLM-R's tokenizer would make each decomposed Hangul word one unknown token."""
    composed = metrics["qe"].score(tiny_xcomet.translations())
    translations = tiny_xcomet.translations(lambda text: unicodedata.normalize("NFD", text))
    decomposed = metrics["qe"].score(translations)
    assert [score.value for score in decomposed] == pytest.approx([score.value for score in composed], abs=1e-6)
    for one, other, translation in zip(decomposed, composed, translations, strict=True):
        assert [unicodedata.normalize("NFC", span.text) for span in one.spans] == [span.text for span in other.spans]
        assert [translation.mt[span.start : span.end] for span in one.spans] == [span.text for span in one.spans]
        assert len(one.spans) == 0 or one.spans[-1].end > other.spans[-1].end  # the decomposed text is longer


def test_too_long_and_truncate_cuts_the_end_of_the_source(metrics, tiny_xcomet):
    short = tiny_xcomet.translations()[0]
    long = dataclasses.replace(short, **tiny_xcomet.expected["long"])
    metrics["qe"].pop_counts()
    scores = metrics["qe"].score([short, long])
    shortened = tiny_xcomet.expected["shortened"]["scores"]
    assert any(scores[1].value == pytest.approx(value, abs=1e-6) for value in shortened)
    assert scores[0].value == pytest.approx(tiny_xcomet.expected["qe"]["scores"][0], abs=1e-6)
    assert metrics["qe"].pop_counts() == {"blank": 0, "truncated": 1, "skipped": 0, "missing": 0, "restarts": 0}


def test_a_candidate_that_fills_the_limit_alone_is_missing(metrics, tiny_xcomet):
    long = dataclasses.replace(tiny_xcomet.translations()[0], mt="파일을 저장 " * 300)
    (score,) = metrics["qe"].score([long])
    assert isinstance(score, Missing) and "XCOMET's limit is 508" in score.reason


def test_too_long_and_skip_is_missing(metrics, tiny_xcomet):
    short = tiny_xcomet.translations()[0]
    scores = metrics["ref"].score([dataclasses.replace(short, **tiny_xcomet.expected["long"]), short])
    assert isinstance(scores[0], Missing) and isinstance(scores[1], Scored)
    assert metrics["ref"].pop_counts()["skipped"] == 1


def test_what_is_no_number_is_missing_and_harms_no_other(metrics, tiny_xcomet):
    translations = tiny_xcomet.translations()
    translations[2] = dataclasses.replace(translations[2], mt="저장 " + tiny_xcomet.expected["poison"])
    scores = metrics["qe"].score(translations)
    assert scores.pop(2) == Missing("XCOMET gave no finite number")
    predicted = tiny_xcomet.expected["qe"]["scores"]
    assert [score.value for score in scores] == pytest.approx(predicted[:2] + predicted[3:], abs=1e-6)


def test_blank_translations_are_the_worst_by_definition(metrics, tiny_xcomet):
    """No model is asked: XCOMET finds no error in nothing."""
    blank = [dataclasses.replace(tiny_xcomet.translations()[0], mt=mt) for mt in ("", "\n ", "\u200b")]
    assert metrics["qe"].score(blank) == [Scored(0.0)] * 3


def test_odd_characters(metrics, tiny_xcomet):
    """A lone surrogate is an error for the tokenizer, and for the whole batch."""
    mt = "저장 \ud800\x00 ㈜ ＡＢＣ… 👍🏽\u200b\n 재설정 이름 수 재설정"
    (score,) = metrics["qe"].score([dataclasses.replace(tiny_xcomet.translations()[0], mt=mt)])
    assert isinstance(score, Scored)
    assert all(0 <= span.start < span.end <= len(mt) and mt[span.start : span.end] == span.text for span in score.spans)


def test_a_folder_that_is_no_checkpoint(config, log_dir, tmp_path):
    metric = XCometMetric(dataclasses.replace(config, model_name=str(tmp_path)), 1, log_dir / "broken")
    try:
        with pytest.raises(WorkerStartError, match="is not an XCOMET checkpoint: there is no hparams.yaml in it"):
            metric.wait_until_ready()
    finally:
        metric.close()
