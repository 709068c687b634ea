"""From token ids to completions: texts, character ranges and the arrays that the update trains on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jax_rl.data.prompts import Prompt
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams, sample_keys
from jax_rl.tokens.offsets import compute_token_char_offsets
from jax_rl.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rollout:
    """One completion: exactly the tokens that were sampled, and what they spell."""

    example_id: str
    prompt_text: str
    prompt_input_ids: list[int]
    completion_text: str  # without special tokens, stripped at both ends
    completion_token_ids: list[int]  # the end-of-turn token included
    old_logprobs: list[float]  # the sampler's, of the untempered policy (temperature 1, no top-p or top-k)
    ref_logprobs: list[float] | None  # the reference's, once they are computed
    token_char_offsets: list[tuple[int, int]]  # the characters of completion_text that each token wrote
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class RolloutBatch:
    """Completions in group order (row // G is the prompt) with their arrays, padded to one shape."""

    rollouts: list[Rollout]
    prompts: list[Prompt]  # one per completion
    tokens: np.ndarray  # [B, P+T] int32
    positions: np.ndarray  # [B, P+T] int32, -1 on padding
    mask: np.ndarray  # [B, T] bool
    logp: np.ndarray  # [B, T] float32, the sampler's


def generate_rollouts(
    engine: RolloutEngine,
    params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[int],
    *,
    group_size: int,
    sampling: SamplingParams,
    seed: int,
    stream: int,
    prompts_per_batch: int = 0,
) -> Iterator[RolloutBatch]:
    """Yields the completions of `prompts`, `prompts_per_batch` prompts at a time (0 = all at once).

    A consumer may score one batch while the next is generated. What is sampled does not depend on the batching.

    Args:
        prompt_ids: a stable number of each prompt (its row in the data set), part of its samples' keys.
        seed, stream: the rest of the keys; `stream` is the update's number or `sampling.EVAL_STREAM`.
    """
    size = prompts_per_batch or len(prompts)
    for start in range(0, len(prompts), size):
        chunk = prompts[start : start + size]
        keys = sample_keys(seed, stream, np.asarray(prompt_ids[start : start + size], np.int32), group_size)
        generated = engine.generate(params, [p.token_ids for p in chunk], keys, group_size, sampling)
        rows = [prompt for prompt in chunk for _ in range(group_size)]
        rollouts = []
        for row, prompt in enumerate(rows):
            length = int(generated.mask[row].sum())
            ids = generated.tokens[row, generated.prompt_len : generated.prompt_len + length].tolist()
            text, offsets = compute_token_char_offsets(tokenizer, ids)
            rollouts.append(
                Rollout(
                    example_id=prompt.example.example_id,
                    prompt_text=prompt.text,
                    prompt_input_ids=list(prompt.token_ids),
                    completion_text=text,
                    completion_token_ids=ids,
                    old_logprobs=generated.logp[row, :length].tolist(),
                    ref_logprobs=None,
                    token_char_offsets=offsets,
                    finish_reason="stop" if ids[-1] in engine.eos_ids else "length",
                )
            )
        yield RolloutBatch(rollouts, rows, generated.tokens, generated.positions, generated.mask, generated.logp)


def concatenate(batches: Sequence[RolloutBatch], pad_id: int) -> RolloutBatch:
    """One batch of all, its prompts left-padded to the widest."""
    completion_len = batches[0].mask.shape[1]
    widest = max(b.tokens.shape[1] for b in batches)

    def widen(arrays: list[np.ndarray], fill: int) -> np.ndarray:
        return np.concatenate([np.pad(a, ((0, 0), (widest - a.shape[1], 0)), constant_values=fill) for a in arrays])

    if any(b.mask.shape[1] != completion_len for b in batches):
        raise ValueError("batches of different max_new_tokens cannot be concatenated")
    return RolloutBatch(
        rollouts=[r for b in batches for r in b.rollouts],
        prompts=[p for b in batches for p in b.prompts],
        tokens=widen([b.tokens for b in batches], pad_id),
        positions=widen([b.positions for b in batches], -1),
        mask=np.concatenate([b.mask for b in batches]),
        logp=np.concatenate([b.logp for b in batches]),
    )
