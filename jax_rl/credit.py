"""Credit assignment: scores and error spans of completions become rewards of their tokens, and figures for the log."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jax_rl.config.schema import RewardConfig
from jax_rl.rewards.scoring import CompletionScores
from jax_rl.rewards.spans import spans_to_token_rewards
from jax_rl.rewards.types import Missing, Scored, Translation
from jax_rl.rollout.collect import Rollout, RolloutBatch

SEVERITIES = ("minor", "major", "critical")


@dataclass(frozen=True)
class Credit:
    """Rewards of B completions of at most T tokens. Where `scored` is false the reward is 0 and must not be used."""

    sequence_rewards: np.ndarray  # [B] float32
    token_rewards: np.ndarray  # [B, T] float32
    scored: np.ndarray  # [B] bool


def to_translations(batch: RolloutBatch) -> list[Translation]:
    """What the metrics are asked about each completion."""
    return [
        Translation(
            src=prompt.example.src_text,
            mt=rollout.completion_text,
            ref=prompt.example.ref_text,
            src_lang=prompt.example.src_lang,
            tgt_lang=prompt.example.tgt_lang,
        )
        for rollout, prompt in zip(batch.rollouts, batch.prompts, strict=True)
    ]


def assign_credit(batch: RolloutBatch, scores: Sequence[CompletionScores], cfg: RewardConfig) -> Credit:
    """Sequence rewards as they are, and each error span's weight on the tokens that wrote its characters."""
    sequence_rewards = np.zeros(len(scores), np.float32)
    token_rewards = np.zeros(batch.mask.shape, np.float32)
    scored = np.zeros(len(scores), bool)
    for row, (rollout, score) in enumerate(zip(batch.rollouts, scores, strict=True)):
        if isinstance(score.sequence_reward, Missing):
            continue
        scored[row] = True
        sequence_rewards[row] = score.sequence_reward
        token_rewards[row, : len(rollout.completion_token_ids)] = spans_to_token_rewards(
            rollout.completion_text,
            rollout.token_char_offsets,
            score.spans,
            cfg.severity_weights,
            cfg.overlap_policy,
            cfg.majority_threshold,
            cfg.use_confidence,
            cfg.span_combine_policy,
        )
    return Credit(sequence_rewards, token_rewards, scored)


def completion_figures(rollout: Rollout, scores: CompletionScores, metricx_offset: float) -> dict[str, float | None]:
    """One completion in numbers: raw metric values (None where missing), spans by severity, length."""
    values = {name: s.value if isinstance(s, Scored) else None for name, s in scores.scores.items()}
    metricx = values.get("metricx")
    severities = [span.severity.lower() for span in scores.spans]
    return {
        "reward": None if isinstance(scores.sequence_reward, Missing) else scores.sequence_reward,
        "metricx_score": metricx,
        "metricx_reward": None if metricx is None else metricx_offset - metricx,
        "xcomet_score": values.get("xcomet"),
        "mqm_score": values.get("mqm"),
        "chrf": values.get("chrf"),
        "spans": float(len(severities)),
        **{f"span_{name}": float(severities.count(name)) for name in SEVERITIES},
        "completion_len": float(len(rollout.completion_token_ids)),
        "truncated": float(rollout.finish_reason == "length"),
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


def mean_and_std(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of what is there; None where nothing is."""
    present = [v for v in values if v is not None]
    return (float(np.mean(present)), float(np.std(present))) if present else (None, None)
