"""The shapes of an update, from the config alone: every prompt and every completion as long as it may be."""

import math
from dataclasses import dataclass

import numpy as np

from jax_rl.config import Config
from jax_rl.learning.packing import Packing, make_micro_batches
from jax_rl.learning.update import step_sizes
from jax_rl.parallel.layouts import Layouts
from jax_rl.parallel.sharding import Layout
from jax_rl.rollout.shapes import bucket, cache_slots

EVALUATION = "eval_"  # begins the names of what only an evaluation runs


@dataclass(frozen=True)
class Batch:
    """Completions that are generated at once."""

    prompts: int
    rows: int  # completions, those of the prompts that fill up the devices included
    calls: int  # how many such batches an update has


@dataclass(frozen=True)
class Work:
    """Prompts, completions and tokens."""

    batch: Batch  # of generation
    group: int  # completions of a prompt
    prompt_len: int
    new_tokens: int
    step_rows: int  # completions of an optimizer step
    micro_rows: int  # of a forward and backward pass that is not packed
    steps: int  # optimizer steps
    evaluation: Batch | None = None  # an evaluation's generation batch, where it is larger

    @property
    def length(self) -> int:
        return self.prompt_len + self.new_tokens

    @property
    def cache_sizes(self) -> list[int]:
        """Slots of the cache beside the prompts, from a completion's first tokens to the longest one's."""
        sizes = [cache_slots(0, self.new_tokens)]
        while sizes[-1] < self.new_tokens - 1:
            sizes.append(cache_slots(sizes[-1] + 1, self.new_tokens))
        return sizes


@dataclass(frozen=True)
class Cut:
    """How completions are cut into micro-batches."""

    count: int
    rows: int  # of the largest one, as below
    columns: int
    slots: int
    segments: bool  # rows hold more than one text
    prompts: int  # how often a prompt is read: once a row


def work_of(cfg: Config, layouts: Layouts) -> Work:
    group, prompts = cfg.generation.num_samples_per_prompt, cfg.rl.batch_size
    completions = prompts * group
    step_rows, micro_rows = step_sizes(cfg.rl, completions, layouts.policy)
    at_once = min(cfg.generation.prompts_per_batch or prompts, prompts)
    batch = Batch(at_once, layouts.rollout.fill(at_once) * group, math.ceil(prompts / at_once))
    return Work(
        batch=batch,
        group=group,
        prompt_len=bucket(cfg.data.max_prompt_tokens),
        new_tokens=cfg.generation.max_new_tokens,
        step_rows=step_rows,
        micro_rows=micro_rows,
        steps=math.ceil(completions / step_rows) * cfg.rl.ppo_epochs,
        evaluation=_evaluation(cfg, layouts.rollout, batch),
    )


def _evaluation(cfg: Config, layout: Layout, update: Batch) -> Batch | None:
    """The largest generation batch of an evaluation, if larger than an update's; the number of prompts must be in the
    config (`eval.eval_limit`).
    """
    prompts = cfg.eval.eval_limit or 0
    prompts = min(cfg.generation.prompts_per_batch or prompts, prompts)
    rows = layout.fill(prompts) * cfg.eval.num_samples_per_prompt
    return Batch(prompts, rows, 0) if prompts > update.prompts or rows > update.rows else None


def cut(work: Work, completions: int, packing: Packing) -> Cut:
    """By the trainer's own code, from completions in groups."""
    texts = np.arange(completions, dtype=np.int32)[:, None] // work.group  # what tells one prompt from the next
    tokens = np.broadcast_to(texts, (completions, work.length))
    positions = np.broadcast_to(np.arange(work.length, dtype=np.int32), tokens.shape)
    batches = make_micro_batches(tokens, positions, np.ones((completions, work.new_tokens), bool), packing)
    largest = max((batch.rows for batch in batches), key=lambda rows: (rows.tokens.size, rows.tokens.shape[1]))
    return Cut(
        count=len(batches),
        rows=largest.tokens.shape[0],
        columns=largest.tokens.shape[1],
        slots=largest.targets.shape[1],
        segments=largest.segments is not None,
        prompts=sum(int(batch.rows.mask.any(axis=1).sum()) for batch in batches),
    )
