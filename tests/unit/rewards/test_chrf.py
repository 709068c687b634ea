"""Sentence chrF, against a plain implementation of its formula."""

import unicodedata
from collections import Counter

import pytest

from jax_rl.rewards.chrf import ChrF
from jax_rl.rewards.types import Missing, Scored, Translation


def chrf2(hypothesis: str, reference: str) -> float:
    """Popović 2015 without white space: mean over character n-grams of orders 1..6 that both texts have, beta = 2."""
    precisions, recalls = [], []
    for order in range(1, 7):
        ours, theirs = (
            Counter(text[i : i + order] for i in range(len(text) - order + 1))
            for text in ("".join(hypothesis.split()), "".join(reference.split()))
        )
        if ours and theirs:
            matches = (ours & theirs).total()
            precisions.append(matches / ours.total())
            recalls.append(matches / theirs.total())
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0


def score(mt: str, ref: str | None):
    (result,) = ChrF().score([Translation("source", mt, ref, "English", "Korean")])
    return result


@pytest.mark.parametrize(
    ("mt", "ref"),
    [
        ("the cat sat", "the cat sat"),
        ("a cat sits there", "the cat sat"),
        ("xyz", "the cat"),
        ("번역 결과", "번역한 결과입니다"),
    ],
)
def test_agrees_with_the_formula(mt, ref):
    assert score(mt, ref).value == pytest.approx(chrf2(mt, ref), abs=1e-9)


def test_normal_forms_are_one_text():
    assert score(unicodedata.normalize("NFD", "번역 결과"), "번역 결과") == Scored(1.0)


def test_blank_is_the_worst_and_no_reference_is_missing():
    assert score(" \n", "the cat") == Scored(0.0)
    assert isinstance(score("the cat", None), Missing)
    assert isinstance(score("the cat", " "), Missing)


def test_scores_come_in_order():
    batch = [Translation("s", mt, "the cat", "English", "Korean") for mt in ("the cat", "", "the dog")]
    first, second, third = (result.value for result in ChrF().score(batch))
    assert first == 1.0 and second == 0.0 and 0 < third < 1
