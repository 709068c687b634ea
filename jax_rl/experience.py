"""One update's experience: completions, their scores, reference logprobs and advantages. Changes no parameter."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from jax_rl.config.schema import RewardConfig
from jax_rl.credit import Credit, assign_credit, to_translations
from jax_rl.data.order import prompt_indices
from jax_rl.figures import output_row, overlap_figures, scoring_figures, update_figures
from jax_rl.learning.advantages import Advantages, compute_advantages
from jax_rl.learning.update import UpdateBatch, packing_of, start_logprobs
from jax_rl.models.params import Params
from jax_rl.rewards.scoring import CompletionScores
from jax_rl.rewards.types import Missing
from jax_rl.rollout.collect import RolloutBatch, concatenate, generate_rollouts, in_order
from jax_rl.runlog.timing import PhaseClock
from jax_rl.setup import Run, training_sampling

log = logging.getLogger(__name__)


class RunStopped(RuntimeError):
    """The run cannot go on: too few scores, or steps that are not finite. The trainer saves the state first."""


@dataclass(frozen=True)
class Experience:
    """Everything that an update learns from and logs; B completions in group order."""

    batch: RolloutBatch
    scores: list[CompletionScores]
    credit: Credit
    advantages: Advantages
    ref_logp: np.ndarray | None  # [B, T] float32
    scoring: dict[str, float | None]  # what was missing or unknown, and how far it hid behind the device's work

    def update_batch(self) -> UpdateBatch:
        return UpdateBatch(
            tokens=self.batch.tokens,
            positions=self.batch.positions,
            mask=np.asarray(self.advantages.valid),
            advantages=np.asarray(self.advantages.advantages),
            ref_logp=self.ref_logp,
            sampler_logp=self.batch.logp,
        )

    def figures(self, metricx_offset: float) -> dict[str, float | None]:
        """The part of a `train` row that is known before the update."""
        stats = {name: float(value) for name, value in self.advantages.stats.items()}
        return update_figures(self.batch, self.scores, self.credit, metricx_offset) | self.scoring | stats

    def output_rows(self, update: int) -> list[dict]:
        """Rows of train_rollouts.jsonl."""
        token_advantages = np.asarray(self.advantages.advantages)
        rows = []
        for row, (scores, mask) in enumerate(zip(self.scores, self.batch.mask, strict=True)):
            mean_advantage = float(token_advantages[row][mask].mean())
            rows.append({"update": update, **output_row(self.batch, row, scores), "advantage": mean_advantage})
        return rows


def collect_experience(run: Run, trained: Params, update: int, clock: PhaseClock) -> Experience:
    """Samples the update's completions and scores them; scoring overlaps generation and reference logprobs.

    So does a reference on devices of its own: it works on one part while the policy's devices generate the next.

    Raises:
        RunStopped: fewer than `reward.min_scored_fraction` of the completions have a score.
    """
    cfg = run.cfg
    indices = prompt_indices(len(run.train_prompts), cfg.misc.seed, update - 1, cfg.rl.batch_size)
    reference = run.reference_policy(trained)

    def start_reference(part: RolloutBatch) -> Callable[[], np.ndarray]:
        if reference is None:
            return lambda: np.zeros(part.mask.shape, np.float32)
        run.hosts.reach(f"the reference's logprobs of update {update}")
        packing = packing_of(cfg.rl, len(part.mask), run.reference_logprobs)
        return start_logprobs(run.reference_logprobs, reference, part.tokens, part.positions, part.mask, packing)

    run.hosts.reach(f"the rollout of update {update}")
    rollouts = generate_rollouts(
        run.engine,
        run.rollout_policy(trained),
        run.tokenizer,
        [run.train_prompts[i] for i in indices],
        indices.tolist(),
        group_size=cfg.generation.num_samples_per_prompt,
        sampling=training_sampling(cfg),
        seed=cfg.misc.seed,
        stream=update,
        prompts_per_batch=cfg.generation.prompts_per_batch,
    )
    with clock.phase("rollout"):
        under_way = [(part, run.scorer.submit(to_translations(part)), start_reference(part)) for part in rollouts]
        parts = [part for part, _, _ in under_way]
        batch = concatenate(parts, run.tokenizer.pad_id)
    with clock.phase("reference"):
        ref_logp = None if reference is None else np.stack(in_order(parts, [finish() for _, _, finish in under_way]))
    with clock.phase("score_wait"):
        scores = in_order(parts, [future.result() for _, future, _ in under_way])
    counts = run.scorer.take_counts()
    scoring = scoring_figures(counts) | overlap_figures(counts.busy, clock.intervals("rollout", "reference"))
    with clock.phase("advantages"):
        credit = assign_credit(batch, scores, cfg.reward)
        _require_scores(scores, cfg.reward)
        advantages = compute_advantages(
            credit.sequence_rewards,
            credit.token_rewards,
            batch.mask,
            credit.scored,
            group_size=cfg.generation.num_samples_per_prompt,
            group_normalize=cfg.rl.group_normalize,
            group_advantage_coef=cfg.rl.group_advantage_coef,
            normalize_advantage=cfg.rl.normalize_advantage,
            eps=cfg.rl.eps,
        )
    if ref_logp is not None:
        batch = replace(batch, rollouts=_with_reference(batch, ref_logp))
    return Experience(batch, scores, credit, advantages, ref_logp, scoring)


def _with_reference(batch: RolloutBatch, ref_logp: np.ndarray):
    return [
        replace(rollout, ref_logprobs=ref_logp[row][batch.mask[row]].tolist())
        for row, rollout in enumerate(batch.rollouts)
    ]


def _require_scores(scores: list[CompletionScores], cfg: RewardConfig) -> None:
    reasons = Counter(s.sequence_reward.reason for s in scores if isinstance(s.sequence_reward, Missing))
    if not reasons:
        return
    missing, total = sum(reasons.values()), len(scores)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(5))
    if total - missing < cfg.min_scored_fraction * total:
        raise RunStopped(
            f"only {total - missing} of {total} completions have a score, less than reward.min_scored_fraction "
            f"{cfg.min_scored_fraction}: {listed}"
        )
    log.warning("%d of %d completions have no score and are left out: %s", missing, total, listed)
