"""Numbers and rows for the logs: one completion, one update."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np

from jax_rl.credit import Credit
from jax_rl.rewards.scoring import CompletionScores, ScoringCounts
from jax_rl.rewards.text import is_blank
from jax_rl.rewards.types import Missing, Scored
from jax_rl.rollout.collect import Rollout, RolloutBatch
from jax_rl.runlog.timing import Interval, covered_seconds, shared_seconds

log = logging.getLogger(__name__)

SEVERITIES = ("minor", "major", "critical")
Value = float | None


def completion_figures(rollout: Rollout, scores: CompletionScores, metricx_offset: float) -> dict[str, Value]:
    """One completion in numbers: raw metric values (None where missing), spans by severity, length."""
    values = {name: s.value if isinstance(s, Scored) else None for name, s in scores.scores.items()}
    metricx = values.get("metricx")
    reward = None if isinstance(scores.sequence_reward, Missing) else scores.sequence_reward
    unscored = reward is None
    severities = [span.severity.lower() for span in scores.spans]
    return {
        "reward": reward,
        "metricx_score": metricx,
        "metricx_reward": None if metricx is None else metricx_offset - metricx,
        "xcomet_score": values.get("xcomet"),
        "mqm_score": values.get("mqm"),
        "chrf": values.get("chrf"),
        "spans": None if unscored else float(len(severities)),
        **{f"span_{name}": None if unscored else float(severities.count(name)) for name in SEVERITIES},
        "completion_len": float(len(rollout.completion_token_ids)),
        "truncated": float(rollout.finish_reason == "length"),
        "blank": float(is_blank(rollout.completion_text)),
    }


def output_row(batch: RolloutBatch, row: int, scores: CompletionScores) -> dict:
    """One completion as `train_rollouts.jsonl` and `eval_outputs.jsonl` keep it."""
    rollout, example = batch.rollouts[row], batch.prompts[row].example
    return {
        "example_id": rollout.example_id,
        "src_text": example.src_text,
        "ref_text": example.ref_text,
        "completion_text": rollout.completion_text,
        "finish_reason": rollout.finish_reason,
        "scores": {n: s.value if isinstance(s, Scored) else None for n, s in scores.scores.items()},
        "missing": {n: s.reason for n, s in scores.scores.items() if isinstance(s, Missing)},
        "sequence_reward": None if isinstance(scores.sequence_reward, Missing) else scores.sequence_reward,
        "spans": [vars(span) for span in scores.spans],
    }


def scoring_figures(counts: ScoringCounts) -> dict[str, Value]:
    """What was missing or unknown, for a log row. What depends on the cache goes to the text log alone.

    A resumed run finds more scores in the cache, and its rows must be those of a run that was never stopped.
    """
    told_elsewhere = ("/cache_hits", "/asked", "/restarts")
    events = {name: n for name, n in counts.events.items() if n and not name.endswith(told_elsewhere)}
    if events:
        log.info("scoring: %s", ", ".join(f"{count} x {name}" for name, count in sorted(events.items())))
    if counts.unknown_severities:
        log.warning("%d error spans have a severity without a weight and count as 0", counts.unknown_severities)
    return {
        "missing_scores": float(sum(counts.missing.values())),
        "unknown_severities": float(counts.unknown_severities),
    }


def overlap_figures(scoring: Sequence[Interval], device: Sequence[Interval]) -> dict[str, Value]:
    """How far scoring hid behind the device's work.

    Args:
        scoring: when each metric was at work on each batch.
        device: the phases that sample completions and compute reference logprobs, with what the host does in them.

    Returns `seconds_scoring`, during which at least one metric was at work; `seconds_scoring_overlapped`, those of them
    inside the phases of `device`; and `scoring_overlap`, their share of the former: 1 where scoring cost no time of its
    own, 0 where it began when the device had finished, None where there was none.
    """
    seconds, overlapped = covered_seconds(scoring), shared_seconds(scoring, device)
    return {
        "seconds_scoring": seconds,
        "seconds_scoring_overlapped": overlapped,
        "scoring_overlap": overlapped / seconds if seconds else None,
    }


def mean_and_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of what is there; None where nothing is."""
    present = [v for v in values if v is not None]
    return (float(np.mean(present)), float(np.std(present))) if present else (None, None)


def update_figures(
    batch: RolloutBatch, scores: Sequence[CompletionScores], credit: Credit, metricx_offset: float
) -> dict[str, Value]:
    """What an update's completions look like: the part of a `train` row that does not come from learning."""
    rows = [completion_figures(r, s, metricx_offset) for r, s in zip(batch.rollouts, scores, strict=True)]
    means = {name: mean_and_std(row[name] for row in rows) for name in rows[0]}
    token_rewards = credit.token_rewards[batch.mask & credit.scored[:, None]]
    token_mean, token_std = mean_and_std(token_rewards.tolist())
    figures: dict[str, Value] = {"rollout_avg_completion_len": means["completion_len"][0]}
    for name in ("reward", "metricx_score", "metricx_reward", "xcomet_score", "mqm_score", "chrf"):
        figures[f"{name}_mean"], figures[f"{name}_std"] = means[name]
    return figures | {
        "token_rewards_mean": token_mean,
        "token_rewards_std": token_std,
        "token_rewards_non_zero_ratio": float(np.mean(token_rewards != 0)) if token_rewards.size else None,
        **{f"span_{severity}_mean": means[f"span_{severity}"][0] for severity in SEVERITIES},
        "truncated_fraction": means["truncated"][0],
        "blank_fraction": means["blank"][0],
    }
