"""The embedded default's policy: a tiny Gemma 3, supervised for a few minutes on the training pairs.

    python -m jax_rl.toy.policy --data DIR --out FOLDER

writes a Hugging Face folder. It reads `train.jsonl` and `eval.jsonl` as `jax_rl.toy.text` leaves them.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jax_rl.config.schema import DataConfig
from jax_rl.data.examples import load_examples
from jax_rl.models.hf_export import save_model
from jax_rl.models.registry import model_from_config
from jax_rl.tokens.tokenizer import Tokenizer
from jax_rl.toy.supervise import Batch, Noise, batches_of_like_length, encode_pairs, noisy_pairs, pad, supervise
from jax_rl.toy.tokenizer import BOS, END_OF_TURN, EOS, PAD, UNK, save_tokenizer, train_tokenizer

TEMPLATE = "Translate to {target_lang}: {text}"
VOCAB_SIZE = 1536
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and eval.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    files = DataConfig(train_file=str(args.data / "train.jsonl"), eval_file=str(args.data / "eval.jsonl"))
    train, held_out = load_examples(files, "train", None), load_examples(files, "eval", None)
    args.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(train_tokenizer([t for e in train for t in (e.src_text, e.ref_text) if t], VOCAB_SIZE), args.out)
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    tokenizer, model = Tokenizer.load(args.out), model_from_config(CONFIG)
    rng = np.random.default_rng(0)

    def epochs() -> Iterator[Iterator[Batch]]:
        while True:
            pairs = noisy_pairs(tokenizer, train, TEMPLATE, END_OF_TURN, UNK, Noise(), rng)
            yield batches_of_like_length(pairs, args.batch_size, PAD, rng)

    unseen = pad(encode_pairs(tokenizer, held_out, TEMPLATE, END_OF_TURN), PAD)
    save_model(args.out, model, supervise(model, epochs(), unseen, args.steps, args.lr))


if __name__ == "__main__":
    main()
