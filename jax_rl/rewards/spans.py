"""From error spans over characters to one reward per token."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from jax_rl.rewards.types import ErrorSpan

OverlapPolicy = Literal["any_overlap", "majority_overlap"]
CombinePolicy = Literal["sum", "min", "max"]

_COMBINE: dict[str, Callable[[list[float]], float]] = {"sum": sum, "min": min, "max": max}


def spans_to_token_rewards(
    mt_text: str,
    token_char_offsets: Sequence[tuple[int, int]],
    error_spans: Sequence[ErrorSpan],
    severity_weights: Mapping[str, float],
    overlap_policy: OverlapPolicy = "any_overlap",
    majority_threshold: float = 0.5,
    use_confidence: bool = False,
    combine_policy: CombinePolicy = "sum",
) -> list[float]:
    """One number per token: the combined weights of the error spans that hit it, 0.0 where none does.

    mt_text             the text that offsets and spans count the characters of
    token_char_offsets  (start, end) per token, end exclusive; a token with an empty range gets 0.0
    error_spans         clipped to the text; what is empty after that is ignored
    severity_weights    severity -> reward, in any letter case; an unknown severity weighs 0, see
                        `count_unknown_severities`
    overlap_policy      any_overlap: one shared character is enough;
                        majority_overlap: overlap / length of the token >= majority_threshold
    use_confidence      multiply a span's weight by its confidence, where it has one
    combine_policy      several spans on one token: their sum, their min (the lowest number: the harshest) or
                        their max (the mildest)
    """
    if overlap_policy not in ("any_overlap", "majority_overlap"):
        raise ValueError(f"overlap_policy is {overlap_policy!r}; it must be any_overlap or majority_overlap")
    if combine_policy not in _COMBINE:
        raise ValueError(f"span_combine_policy is {combine_policy!r}; it must be sum, min or max")
    combine = _COMBINE[combine_policy]
    threshold = majority_threshold if overlap_policy == "majority_overlap" else 0.0
    weighted = _weighted_ranges(len(mt_text), error_spans, severity_weights, use_confidence)

    rewards = []
    for token_start, token_end in token_char_offsets:
        hits = []
        for span_start, span_end, weight in weighted:
            overlap = min(token_end, span_end) - max(token_start, span_start)
            if overlap > 0 and overlap >= threshold * (token_end - token_start):
                hits.append(weight)
        rewards.append(float(combine(hits)) if hits else 0.0)
    return rewards


def count_unknown_severities(error_spans: Sequence[ErrorSpan], severity_weights: Mapping[str, float]) -> int:
    """How many spans have a severity that `severity_weights` does not name, so that they weigh 0."""
    known = {severity.upper() for severity in severity_weights}
    return sum(span.severity.upper() not in known for span in error_spans)


def _weighted_ranges(
    text_length: int, error_spans: Sequence[ErrorSpan], severity_weights: Mapping[str, float], use_confidence: bool
) -> list[tuple[int, int, float]]:
    """(start, end, weight) of each span that covers at least one character of the text."""
    weights = {severity.upper(): weight for severity, weight in severity_weights.items()}
    ranges = []
    for span in error_spans:
        start, end = max(span.start, 0), min(span.end, text_length)
        if start >= end:
            continue
        weight = weights.get(span.severity.upper(), 0.0)
        if use_confidence and span.confidence is not None:
            weight *= span.confidence
        ranges.append((start, end, weight))
    return ranges
