"""From token ids to completions: texts, character ranges and the arrays that the update trains on."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from jax_rl.data.prompts import Prompt
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams, sample_keys
from jax_rl.tokens.offsets import compute_token_char_offsets
from jax_rl.tokens.tokenizer import Tokenizer

Item = TypeVar("Item")


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
    places: np.ndarray  # [B] each completion's row when all prompts stand in the order they were asked for


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
    Prompts of like length, whose translations end at about the same time, share a batch: `in_order` and `concatenate`
    give the order of `prompts` back.

    Args:
        prompt_ids: a stable number of each prompt (its row in the data set), part of its samples' keys. One that comes
            again (an epoch ends in the middle of an update) gets the samples that follow those of the first time.
        seed, stream: the rest of the keys; `stream` is the update's number or `sampling.EVAL_STREAM`.
    """
    size = prompts_per_batch or len(prompts)
    ids = np.asarray(prompt_ids, np.int32)
    first_samples = np.array([group_size * np.sum(ids[:i] == ids[i]) for i in range(len(ids))], np.int32)
    order = np.argsort([len(p.token_ids) for p in prompts], kind="stable")
    for start in range(0, len(prompts), size):
        numbers = np.sort(order[start : start + size])
        chunk = [prompts[i] for i in numbers]
        keys = sample_keys(seed, stream, ids[numbers], group_size, first_samples[numbers])
        generated = engine.generate(params, [p.token_ids for p in chunk], keys, group_size, sampling)
        rows = [prompt for prompt in chunk for _ in range(group_size)]
        rollouts = []
        for row, prompt in enumerate(rows):
            length = int(generated.mask[row].sum())
            sampled = generated.tokens[row, generated.prompt_len : generated.prompt_len + length].tolist()
            text, offsets = compute_token_char_offsets(tokenizer, sampled)
            rollouts.append(
                Rollout(
                    example_id=prompt.example.example_id,
                    prompt_text=prompt.text,
                    prompt_input_ids=list(prompt.token_ids),
                    completion_text=text,
                    completion_token_ids=sampled,
                    old_logprobs=generated.logp[row, :length].tolist(),
                    ref_logprobs=None,
                    token_char_offsets=offsets,
                    finish_reason="stop" if sampled[-1] in engine.eos_ids else "length",
                )
            )
        places = (numbers[:, None] * group_size + np.arange(group_size)).reshape(-1)
        arrays = (generated.tokens, generated.positions, generated.mask, generated.logp)
        yield RolloutBatch(rollouts, rows, *arrays, places)


def in_order(batches: Sequence[RolloutBatch], per_batch: Iterable[Iterable[Item]]) -> list[Item]:
    """One item a completion, batch by batch, put into the order that the prompts were asked for in."""
    items = [item for batch in per_batch for item in batch]
    return [items[i] for i in np.argsort(np.concatenate([b.places for b in batches]))]


def concatenate(batches: Sequence[RolloutBatch], pad_id: int) -> RolloutBatch:
    """One batch of all, in the order that the prompts were asked for in, left-padded to the widest."""
    completion_len = batches[0].mask.shape[1]
    widest = max(b.tokens.shape[1] for b in batches)
    if any(b.mask.shape[1] != completion_len for b in batches):
        raise ValueError("batches of different max_new_tokens cannot be concatenated")
    places = np.concatenate([b.places for b in batches])
    order = np.argsort(places)

    def widen(arrays: list[np.ndarray], fill: int) -> np.ndarray:
        wide = [np.pad(a, ((0, 0), (widest - a.shape[1], 0)), constant_values=fill) for a in arrays]
        return np.concatenate(wide)[order]

    return RolloutBatch(
        rollouts=in_order(batches, [b.rollouts for b in batches]),
        prompts=in_order(batches, [b.prompts for b in batches]),
        tokens=widen([b.tokens for b in batches], pad_id),
        positions=widen([b.positions for b in batches], -1),
        mask=np.concatenate([b.mask for b in batches])[order],
        logp=np.concatenate([b.logp for b in batches])[order],
        places=places[order],
    )
