"""Credit assignment: scores and error spans of completions become rewards of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jax_rl.config.schema import RewardConfig
from jax_rl.rewards.scoring import CompletionScores
from jax_rl.rewards.spans import spans_to_token_rewards
from jax_rl.rewards.types import Missing, Translation
from jax_rl.rollout.collect import RolloutBatch


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
