"""The embedded default's policy: a tiny Gemma 3, supervised for a few minutes on the training pairs.

    python -m jax_rl.toy.policy --data DIR --out FOLDER

writes a Hugging Face folder. It reads `train.jsonl` and `eval.jsonl` as `jax_rl.toy.text` leaves them.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_rl.config.schema import DataConfig
from jax_rl.data.examples import Example, load_examples
from jax_rl.data.prompts import encode_prompts
from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.models.hf_checkpoint import save_model
from jax_rl.models.registry import Model, model_from_config
from jax_rl.rollout.engine import bucket, left_pad
from jax_rl.tokens.tokenizer import Tokenizer
from jax_rl.toy.tokenizer import BOS, END_OF_TURN, EOS, PAD, save_tokenizer, train_tokenizer

TEMPLATE = "Translate to {target_lang}: {text}"
VOCAB_SIZE = 2048
CONFIG = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 288,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 32,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 512,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": [EOS, END_OF_TURN],
    "dtype": "float32",
}


Pair = tuple[list[int], list[int]]  # prompt and completion ids, the end token included
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens [B, P+T], positions [B, P+T], mask [B, T]


def encode_pairs(tokenizer: Tokenizer, examples: list[Example]) -> list[Pair]:
    prompts = encode_prompts(tokenizer, examples, TEMPLATE, {}, 512, "error")
    references = [tokenizer.encode(e.ref_text, add_special_tokens=False) for e in examples if e.ref_text is not None]
    return [(list(p.token_ids), [*ids, END_OF_TURN]) for p, ids in zip(prompts, references, strict=True)]


def pad(pairs: list[Pair]) -> Batch:
    """Left-padded prompts, right-padded completions, both to a bucket of lengths."""
    prompt_len = bucket(max(len(prompt) for prompt, _ in pairs))
    completion_len = bucket(max(len(completion) for _, completion in pairs), smallest=8)
    tokens, positions = left_pad([prompt for prompt, _ in pairs], prompt_len, PAD)
    completion = np.full((len(pairs), completion_len), PAD, np.int32)
    mask = np.zeros(completion.shape, bool)
    for row, (_, ids) in enumerate(pairs):
        completion[row, : len(ids)], mask[row, : len(ids)] = ids, True
    after = positions.max(axis=1, keepdims=True) + 1 + np.arange(completion_len)
    positions = np.concatenate([positions, np.where(mask, after, -1)], axis=1).astype(np.int32)
    return np.concatenate([tokens, completion], axis=1), positions, mask


def batches(pairs: list[Pair], batch_size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Endless epochs of batches of like lengths, in random order."""
    while True:
        order = rng.permutation(len(pairs))
        order = order[np.argsort([sum(map(len, pairs[i])) for i in order], kind="stable")]
        starts = range(0, len(pairs) - batch_size + 1, batch_size)
        for start in rng.permutation(starts):
            yield pad([pairs[i] for i in order[start : start + batch_size]])


def supervise(model: Model, train: list[Pair], held_out: list[Pair], steps: int, batch_size: int, lr: float):
    """Cross-entropy of the references, AdamW with a warm-up and a cosine; returns the parameters."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, lr, steps // 20, steps, lr / 50)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.1))
    params = model.init(jax.random.key(0), jnp.float32)
    opt_state = optimizer.init(params)

    def loss_fn(params, tokens, positions, mask):
        logp, _ = forward_logprobs(model.forward, model.unembed, params, tokens, positions, mask, remat=False)
        return -jnp.sum(logp) / jnp.sum(mask)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    measure = jax.jit(loss_fn)
    held_out_batch, losses = pad(held_out), []
    for number, batch in zip(range(1, steps + 1), batches(train, batch_size, np.random.default_rng(0))):
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(loss)
        if number % 100 == 0 or number == steps:
            recent = float(np.mean(jax.device_get(losses[-100:])))
            unseen = float(measure(params, *held_out_batch))
            print(f"step {number}/{steps}: loss {recent:.3f}, held out {unseen:.3f}", flush=True)
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and eval.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    files = DataConfig(train_file=str(args.data / "train.jsonl"), eval_file=str(args.data / "eval.jsonl"))
    train, held_out = load_examples(files, "train", None), load_examples(files, "eval", None)
    args.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer([t for e in train for t in (e.src_text, e.ref_text) if t], VOCAB_SIZE), args.out)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tokenizer, model = Tokenizer.load(args.out), model_from_config(CONFIG)
    pairs, held_out_pairs = encode_pairs(tokenizer, train), encode_pairs(tokenizer, held_out)
    params = supervise(model, pairs, held_out_pairs, args.steps, args.batch_size, args.lr)
    save_model(args.out, model, params)


if __name__ == "__main__":
    main()
