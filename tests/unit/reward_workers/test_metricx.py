"""The MetricX worker, in its own environment, against transformers' own mT5 (see tiny_metricx.py)."""

import dataclasses
import shutil
import unicodedata
from pathlib import Path

import pytest

from jax_rl.config.schema import MetricXConfig
from jax_rl.rewards.metricx import MetricXMetric
from jax_rl.rewards.types import Missing, Scored
from jax_rl.rewards.worker_client import WorkerStartError

LIMIT = 120


@pytest.fixture(scope="module")
def config(tiny_metricx):
    return MetricXConfig(
        model_name=tiny_metricx.folder,
        tokenizer_name=tiny_metricx.folder,
        batch_size=5,
        device="cpu",
        dtype="float32",
        max_input_length=LIMIT,
        python_executable=tiny_metricx.python,
    )


@pytest.fixture(scope="module")
def metrics(config, log_dir):
    """Both start at once, and load side by side."""
    metrics = {
        "qe": MetricXMetric(config, 1, log_dir / "qe"),
        "ref": MetricXMetric(
            dataclasses.replace(config, use_reference=True, overflow_policy="skip", dtype="bfloat16"),
            1,
            log_dir / "ref",
        ),
    }
    yield metrics
    for metric in metrics.values():
        metric.close()


def values(scores):
    return [score.value for score in scores]


def changed(translations, **fields):
    return [dataclasses.replace(translation, **fields) for translation in translations]


def test_scores_are_those_of_transformers(metrics, tiny_metricx):
    scores = values(metrics["qe"].score(tiny_metricx.translations()))
    assert scores == pytest.approx(tiny_metricx.expected["qe"], abs=1e-3)
    assert 0.0 in scores and 25.0 in scores  # clipped at both ends


def test_with_a_reference(metrics, tiny_metricx):
    """In bfloat16, whose rounding is all that may differ."""
    scores = values(metrics["ref"].score(tiny_metricx.translations()))
    assert scores == pytest.approx(tiny_metricx.expected["ref"], abs=1.5)
    assert scores != pytest.approx(tiny_metricx.expected["qe"], abs=1.5)


def test_the_company_in_a_request_changes_nothing(metrics, tiny_metricx):
    translations = tiny_metricx.translations()
    together = values(metrics["qe"].score(translations))
    alone = [values(metrics["qe"].score([translation]))[0] for translation in reversed(translations)]
    assert together == pytest.approx(alone[::-1], abs=1e-3)


def test_decomposed_text_scores_as_composed(metrics, tiny_metricx):
    decomposed = tiny_metricx.translations(lambda text: unicodedata.normalize("NFD", text))
    assert decomposed != tiny_metricx.translations()
    assert values(metrics["qe"].score(decomposed)) == pytest.approx(tiny_metricx.expected["qe"], abs=1e-3)


def test_too_long_and_truncate_cuts_the_end_of_the_source(metrics, tiny_metricx):
    expected = tiny_metricx.expected
    short = tiny_metricx.translations()[0]
    long = dataclasses.replace(short, **expected["long"])
    metrics["qe"].pop_counts()
    scores = values(metrics["qe"].score([short, long]))
    assert scores[0] == pytest.approx(expected["qe"][0], abs=1e-3)
    assert any(scores[1] == pytest.approx(value, abs=1e-3) for value in expected["shortened"])
    assert 0 < scores[1] < 25
    assert metrics["qe"].pop_counts() == {"blank": 0, "truncated": 1, "skipped": 0, "missing": 0, "restarts": 0}


def test_a_candidate_that_fills_the_limit_alone_is_missing(metrics, tiny_metricx):
    long = changed(tiny_metricx.translations()[:1], mt="파일을 저장 " * 100)
    metrics["qe"].pop_counts()
    (score,) = metrics["qe"].score(long)
    assert isinstance(score, Missing) and "MetricX's limit is 120" in score.reason
    assert metrics["qe"].pop_counts() == {"blank": 0, "truncated": 0, "skipped": 1, "missing": 1, "restarts": 0}


def test_too_long_and_skip_is_missing(metrics, tiny_metricx):
    short = tiny_metricx.translations()[0]
    scores = metrics["ref"].score([dataclasses.replace(short, **tiny_metricx.expected["long"]), short])
    assert isinstance(scores[0], Missing) and isinstance(scores[1], Scored)
    assert metrics["ref"].pop_counts()["skipped"] == 1


def test_what_is_no_number_is_missing_and_harms_no_other(metrics, tiny_metricx):
    translations = tiny_metricx.translations()
    translations[2:3] = changed(translations[2:3], mt="저장 " + tiny_metricx.expected["poison"])
    scores = metrics["qe"].score(translations)
    assert scores[2] == Missing("MetricX in float32 gave no finite number")
    rest = [*range(2), *range(3, len(scores))]
    wanted = [tiny_metricx.expected["qe"][i] for i in rest]
    assert values([scores[i] for i in rest]) == pytest.approx(wanted, abs=1e-3)


def test_blank_translations_are_the_worst_by_definition(metrics, tiny_metricx):
    """No model is asked: these sources would make it answer NaN."""
    blank = [
        dataclasses.replace(tiny_metricx.translations()[0], src=tiny_metricx.expected["poison"], mt=mt)
        for mt in ("", " \n\t", "\u200b\ufeff", "\u3164")
    ]
    metrics["qe"].pop_counts()
    assert metrics["qe"].score(blank) == [Scored(25.0)] * 4
    assert metrics["qe"].pop_counts()["blank"] == 4
    assert metrics["qe"].score([]) == []


def test_characters_that_no_tokenizer_takes(metrics, tiny_metricx):
    odd = changed(tiny_metricx.translations()[:1], mt="저장 \ud800 \x00 𓀀 👍🏽")
    (score,) = metrics["qe"].score(odd)
    assert 0 <= score.value <= 25


def test_a_missing_reference_is_told(metrics, tiny_metricx):
    translations = tiny_metricx.translations()[:2]
    scores = metrics["ref"].score([*changed(translations[:1], ref=None), translations[1]])
    assert scores[0] == Missing("reward.metricx.use_reference is on, and the example has no reference")
    assert isinstance(scores[1], Scored)


def test_identity_tells_models_and_modes_apart(metrics, config, tmp_path, log_dir):
    other = tmp_path / "other"
    shutil.copytree(config.model_name, other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    retrained = MetricXMetric(dataclasses.replace(config, model_name=str(other)), 0, log_dir / "other")
    try:
        assert len({metric.identity for metric in (metrics["qe"], metrics["ref"], retrained)}) == 3
    finally:
        retrained.close()


def test_a_worker_that_cannot_load_says_why(config, log_dir):
    here = str(Path(__file__).parent)
    metric = MetricXMetric(dataclasses.replace(config, tokenizer_name=here), 1, log_dir / "broken")
    try:
        with pytest.raises(WorkerStartError, match="there is no .*spiece.model"):
            metric.wait_until_ready()
    finally:
        metric.close()
