"""SmolLM2-135M through the real loader and the real engine, beside transformers: perplexity and tokens per second.

    python scripts/smollm2.py FOLDER        a Hugging Face folder, made by gguf_to_hf.py

Prints one table. The perplexities must agree to four digits; a difference ends the script with exit code 1.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from jax_rl.learning.logprobs import forward_logprobs
from jax_rl.models.hf_checkpoint import load_model
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import SamplingParams, sample_keys
from jax_rl.tokens.tokenizer import Tokenizer

TEXT = (
    "The Apache License is a permissive free software license. It lets anyone use the software for any purpose, share "
    "it, change it, and share what they have changed, without paying for it. Whoever shares it must say what was "
    "changed and keep the notices of copyright, patents and attribution that came with it. It does not let anyone use "
    "the names or the trademarks of those who wrote it, and it gives no warranty of any kind."
)
QUESTIONS = ["Translate to French: Good morning.", "Name three colours.", "What is a compiler?", "Say hello."]
NEW_TOKENS, ROUNDS = 64, 3


def main(folder: Path) -> int:
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    their_tokenizer, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    model, params = load_model(folder, jnp.float32)
    ids = tokenizer.encode(TEXT, add_special_tokens=True)
    assert ids == their_tokenizer(TEXT).input_ids, "the tokenizers differ"

    perplexities = [our_perplexity(model, params, ids), their_perplexity(theirs, ids)]
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    encoded = [tokenizer.encode(tokenizer.apply_chat_template(p), add_special_tokens=False) for p in prompts]
    engine = RolloutEngine(model, NEW_TOKENS, (), tokenizer.pad_id)  # no end token: every row has NEW_TOKENS
    keys = sample_keys(0, 0, np.arange(len(encoded), dtype=np.int32), 1)
    batch = their_tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt")

    def our_generation() -> np.ndarray:
        generated = engine.generate(params, encoded, keys, 1, SamplingParams(temperature=None))
        return generated.tokens[:, generated.prompt_len :]

    def their_generation() -> np.ndarray:
        with torch.no_grad():
            out = theirs.generate(**batch, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
        return out[:, batch.input_ids.shape[1] :].numpy()

    speeds = tokens_per_second([our_generation, their_generation])
    print(f"| SmolLM2-135M, float32, {len(ids)} tokens of text | jax_rl | transformers |\n|---|---|---|")
    print(f"| perplexity | {perplexities[0]:.5g} | {perplexities[1]:.5g} |")
    print(f"| greedy tokens/s, {len(encoded)} rows x {NEW_TOKENS} | {speeds[0]:.1f} | {speeds[1]:.1f} |")
    print(f"\n{QUESTIONS[2]}\n{tokenizer.decode(our_generation()[2].tolist())}")
    return int(abs(perplexities[0] / perplexities[1] - 1) > 5e-5)


def our_perplexity(model, params, ids: list[int]) -> float:
    tokens, mask = jnp.asarray([ids]), jnp.ones((1, len(ids) - 1), bool)
    positions = jnp.arange(len(ids))[None]
    run = jax.jit(lambda *args: forward_logprobs(model.forward, model.unembed, *args, remat=False)[0])
    return float(np.exp(-np.mean(run(params, tokens, positions, mask))))


def their_perplexity(model, ids: list[int]) -> float:
    with torch.no_grad():
        return float(torch.exp(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss))


def tokens_per_second(systems: list[Callable[[], np.ndarray]]) -> list[float]:
    """Medians of interleaved rounds, after one each that compiles."""
    seconds: list[list[float]] = [[] for _ in systems]
    tokens = [system().size for system in systems]
    for _ in range(ROUNDS):
        for system, times in zip(systems, seconds, strict=True):
            start = time.perf_counter()
            system()
            times.append(time.perf_counter() - start)
    return [count / statistics.median(times) for count, times in zip(tokens, seconds, strict=True)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
