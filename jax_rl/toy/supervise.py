"""A supervised run on very few pairs: cross-entropy of the references, with every trick that keeps it from memorising.

Each time a pair is drawn it looks different: pairs are joined, words are cut into other pieces (BPE dropout,
arXiv:1910.13267), and tokens are hidden behind <unk>, on both sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_rl.data.examples import Example
from jax_rl.data.prompts import encode_prompts
from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.models.registry import Model
from jax_rl.rollout.shapes import bucket, left_pad
from jax_rl.tokens.tokenizer import Tokenizer

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens [B, P+T], positions [B, P+T], mask [B, T]


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    completion: list[int]  # the end token included
    trained: list[bool]  # which completion tokens are predicted


@dataclass(frozen=True)
class Noise:
    """How much a drawn pair is changed; all are probabilities."""

    join: float = 0.3  # of a pair being followed by another
    bpe_dropout: float = 0.1  # of a merge being left out
    hide: float = 0.12  # of a token being replaced by <unk>; a hidden target is not trained


def encode_pairs(tokenizer: Tokenizer, examples: list[Example], template: str, end_of_turn: int) -> list[Pair]:
    prompts = encode_prompts(tokenizer, examples, template, {}, 512, "error")
    pairs = []
    for prompt, example in zip(prompts, examples, strict=True):
        completion = [*tokenizer.encode(example.ref_text or "", add_special_tokens=False), end_of_turn]
        pairs.append(Pair(list(prompt.token_ids), completion, [True] * len(completion)))
    return pairs


def noisy_pairs(
    tokenizer: Tokenizer,
    examples: list[Example],
    template: str,
    end_of_turn: int,
    unk: int,
    noise: Noise,
    rng: np.random.Generator,
) -> list[Pair]:
    """Each example once, changed anew at every call."""

    def joined(example: Example) -> Example:
        if rng.random() >= noise.join:
            return example
        other = examples[rng.integers(len(examples))]
        source = f"{example.src_text} {other.src_text}"
        return replace(example, src_text=source, ref_text=f"{example.ref_text} {other.ref_text}")

    def hidden(pair: Pair) -> Pair:
        fixed = tokenizer.special_ids
        prompt = [unk if rng.random() < noise.hide and t not in fixed else t for t in pair.prompt]
        gone = [rng.random() < noise.hide and t not in fixed for t in pair.completion]
        completion = [unk if g else t for t, g in zip(pair.completion, gone)]
        return Pair(prompt, completion, [not g for g in gone])

    tokenizer.backend.model.dropout = noise.bpe_dropout
    try:
        pairs = encode_pairs(tokenizer, [joined(e) for e in examples], template, end_of_turn)
    finally:
        tokenizer.backend.model.dropout = None
    return [hidden(pair) for pair in pairs]


def pad(pairs: list[Pair], pad_id: int) -> Batch:
    """Left-padded prompts, right-padded completions, both to a bucket of lengths."""
    prompt_len = bucket(max(len(pair.prompt) for pair in pairs))
    completion_len = bucket(max(len(pair.completion) for pair in pairs), smallest=8)
    tokens, positions = left_pad([pair.prompt for pair in pairs], prompt_len, pad_id)
    completion = np.full((len(pairs), completion_len), pad_id, np.int32)
    real, trained = np.zeros(completion.shape, bool), np.zeros(completion.shape, bool)
    for row, pair in enumerate(pairs):
        length = len(pair.completion)
        completion[row, :length], real[row, :length], trained[row, :length] = pair.completion, True, pair.trained
    after = positions.max(axis=1, keepdims=True) + 1 + np.arange(completion_len)
    positions = np.concatenate([positions, np.where(real, after, -1)], axis=1).astype(np.int32)
    return np.concatenate([tokens, completion], axis=1), positions, trained


def batches_of_like_length(
    pairs: list[Pair], batch_size: int, pad_id: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """All pairs once, but for what does not fill a batch, in random order."""
    order = sorted(rng.permutation(len(pairs)), key=lambda i: len(pairs[i].prompt) + len(pairs[i].completion))
    for start in rng.permutation(range(0, len(pairs) - batch_size + 1, batch_size)):
        yield pad([pairs[i] for i in order[start : start + batch_size]], pad_id)


def supervise(model: Model, epochs: Iterator[Iterator[Batch]], held_out: Batch, steps: int, lr: float):
    """AdamW with a warm-up and a cosine; returns the parameters."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, steps // 20, steps, lr / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1))
    params = model.init(jax.random.key(0), jnp.float32)
    opt_state = optimizer.init(params)

    def loss_fn(params, tokens, positions, mask):
        logp, _ = forward_logprobs(model.forward, model.unembed, params, tokens, positions, mask, remat=None)
        return -jnp.sum(logp) / jnp.sum(mask)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    measure = jax.jit(loss_fn)
    losses: list[jax.Array] = []
    for number, batch in zip(range(1, steps + 1), (batch for epoch in epochs for batch in epoch)):
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
        if number % 100 == 0 or number == steps:
            recent = float(np.mean(jax.device_get(losses[-100:])))
            unseen = float(measure(params, *held_out))
            print(f"step {number}/{steps}: loss {recent:.3f}, held out {unseen:.3f}", flush=True)
    return params
