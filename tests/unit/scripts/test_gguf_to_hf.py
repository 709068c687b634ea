"""The converter of GGUF files against transformers' own reader of the same file."""

import importlib.util
import json

import gguf
import numpy as np
import pytest
import tokenizers

HIDDEN, MLP, HEADS, KV_HEADS, LAYERS, HEAD_DIM = 64, 96, 4, 2, 2, 16
WORDS = ["<|end|>", "<|start|>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe", "12"]
MERGES = ["t h", "th e", "Ġ the", "1 2"]
CHAT = "{{ bos_token }}{{ messages[0].content }}"


@pytest.fixture(scope="module")
def converter(repo):
    spec = importlib.util.spec_from_file_location("gguf_to_hf", repo / "scripts" / "gguf_to_hf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_gguf(path, architecture="llama", split="smollm") -> None:
    """Random weights: blocks of 4 bits, the embedding of 8, the norms whole, as llama.cpp's Q4_1 files have them."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(32)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3] + [1] * (len(WORDS) - 2))
    writer.add_token_merges(MERGES)
    for add in (writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(0)
    writer.add_bos_token_id(1)
    writer.add_chat_template(CHAT)
    random, kinds = np.random.default_rng(0), gguf.GGMLQuantizationType

    def add(name: str, *shape: int, kind=kinds.Q4_1) -> None:
        values = random.normal(size=shape).astype(np.float32)
        data = values if kind == kinds.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    add("token_embd", len(WORDS), HIDDEN, kind=kinds.Q8_0)
    add("output_norm", HIDDEN, kind=kinds.F32)
    for n in range(LAYERS):
        for name, rows in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
            add(f"blk.{n}.{name}", rows * HEAD_DIM, HIDDEN)
        add(f"blk.{n}.attn_output", HIDDEN, HEADS * HEAD_DIM)
        add(f"blk.{n}.ffn_gate", MLP, HIDDEN)
        add(f"blk.{n}.ffn_up", MLP, HIDDEN)
        add(f"blk.{n}.ffn_down", HIDDEN, MLP)
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{n}.{name}", HIDDEN, kind=kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_weights_config_and_ids_are_those_that_transformers_reads(converter, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_gguf(tmp_path / "model.gguf", split="gpt-2")
    converter.convert(tmp_path / "model.gguf", tmp_path / "out")
    mine = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    expected = theirs.state_dict()
    assert mine.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in mine.state_dict().items())
    for name in ("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "num_key_value_heads", "head_dim"):
        assert getattr(mine.config, name) == getattr(theirs.config, name), name
    ours = AutoTokenizer.from_pretrained(tmp_path / "out")
    reference = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the  the 12123 x12", "<|start|>the<|end|>", "안녕\n\n"):
        assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == 0
    assert ours.chat_template == CHAT


def test_smollm_merges_no_digits(converter, tmp_path):
    write_gguf(tmp_path / "model.gguf", split="smollm")
    converter.convert(tmp_path / "model.gguf", tmp_path / "out")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert made.encode("the 12the").tokens == ["the", "Ġ", "1", "2", "the"]


@pytest.mark.parametrize(
    ("given", "says"), [({"architecture": "qwen2"}, "is qwen2"), ({"split": "deepseek"}, "deepseek")]
)
def test_what_it_does_not_convert_it_names(converter, tmp_path, given, says):
    write_gguf(tmp_path / "model.gguf", **given)
    with pytest.raises(SystemExit, match=says):
        converter.convert(tmp_path / "model.gguf", tmp_path / "out")
