"""Error spans to token rewards, against a brute force that walks over single characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rl.rewards.spans import count_unknown_severities, spans_to_token_rewards
from jax_rl.rewards.types import ErrorSpan

WEIGHTS = {"MINOR": -1.0, "MAJOR": -5.0, "CRITICAL": -10.0}
TEXT = "the quick brown fox"
WORDS = [(0, 3), (3, 9), (9, 15), (15, 19)]  # each with the blank before it


def span(start: int, end: int, severity: str = "MAJOR", confidence: float | None = None) -> ErrorSpan:
    return ErrorSpan(start, end, severity, confidence, TEXT[max(start, 0) : max(end, 0)])


def brute_force(text, offsets, spans, weights, policy, threshold, use_confidence, combine):
    rewards = []
    for start, end in offsets:
        token = set(range(start, end))
        hits = []
        for error in spans:
            shared = token & set(range(error.start, error.end)) & set(range(len(text)))
            hit = len(shared) > 0 if policy == "any_overlap" else shared and len(shared) / len(token) >= threshold
            if hit:
                weight = weights.get(error.severity.upper(), 0.0)
                hits.append(weight * error.confidence if use_confidence and error.confidence is not None else weight)
        rewards.append({"sum": sum, "min": min, "max": max}[combine](hits) if hits else 0.0)
    return rewards


spans_strategy = st.lists(
    st.builds(
        span,
        st.integers(-5, 25),
        st.integers(-5, 25),
        st.sampled_from(["MINOR", "MAJOR", "CRITICAL", "minor", "Critical", "neutral"]),
        st.none() | st.floats(0, 1),
    ),
    max_size=5,
)
offsets_strategy = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)).map(sorted).map(tuple), max_size=8)


@given(
    offsets_strategy,
    spans_strategy,
    st.sampled_from(["any_overlap", "majority_overlap"]),
    st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    st.booleans(),
    st.sampled_from(["sum", "min", "max"]),
)
def test_agrees_with_counting_characters(offsets, spans, policy, threshold, use_confidence, combine):
    arguments = (TEXT, offsets, spans, WEIGHTS, policy, threshold, use_confidence, combine)
    assert spans_to_token_rewards(*arguments) == pytest.approx(brute_force(*arguments))


def test_one_shared_character_is_enough_for_any_overlap():
    assert spans_to_token_rewards(TEXT, WORDS, [span(8, 10)], WEIGHTS) == [0.0, -5.0, -5.0, 0.0]


def test_majority_needs_the_share():
    half_of_quick = [span(6, 9)]
    rewards = [
        spans_to_token_rewards(TEXT, WORDS, half_of_quick, WEIGHTS, "majority_overlap", threshold)[1]
        for threshold in (0.5, 0.51)
    ]
    assert rewards == [-5.0, 0.0]


@pytest.mark.parametrize(("combine", "expected"), [("sum", -16.0), ("min", -10.0), ("max", -1.0)])
def test_min_is_the_harshest_and_max_the_mildest(combine, expected):
    spans = [span(0, 3, "minor"), span(0, 3, "MAJOR"), span(0, 3, "Critical")]
    assert spans_to_token_rewards(TEXT, [(0, 3)], spans, WEIGHTS, combine_policy=combine) == [expected]


def test_confidence_scales_only_where_there_is_one_and_it_is_wanted():
    spans = [span(0, 3, "MAJOR", 0.5), span(0, 3, "MAJOR", None)]
    assert spans_to_token_rewards(TEXT, [(0, 3)], spans, WEIGHTS, use_confidence=True) == [-7.5]
    assert spans_to_token_rewards(TEXT, [(0, 3)], spans, WEIGHTS, use_confidence=False) == [-10.0]


def test_out_of_range_spans_are_clipped_and_empty_ranges_give_nothing():
    spans = [span(-7, 2), span(18, 99), span(30, 40), span(5, 5), span(9, 4)]
    assert spans_to_token_rewards(TEXT, [*WORDS, (1, 1)], spans, WEIGHTS) == [-5.0, 0.0, 0.0, -5.0, 0.0]


def test_unknown_severities_weigh_nothing_and_are_counted():
    spans = [span(0, 3, "NEUTRAL"), span(0, 3, "minor"), span(4, 6, "")]
    assert spans_to_token_rewards(TEXT, WORDS, spans, WEIGHTS)[0] == -1.0
    assert count_unknown_severities(spans, WEIGHTS) == 2


def test_severity_weights_may_be_written_in_any_case():
    assert spans_to_token_rewards(TEXT, [(0, 3)], [span(0, 3, "MAJOR")], {"major": -2.0}) == [-2.0]


def test_a_wrong_policy_is_named():
    with pytest.raises(ValueError, match="'most'.*any_overlap or majority_overlap"):
        spans_to_token_rewards(TEXT, WORDS, [], WEIGHTS, overlap_policy="most")
    with pytest.raises(ValueError, match="'mean'.*sum, min or max"):
        spans_to_token_rewards(TEXT, WORDS, [], WEIGHTS, combine_policy="mean")
