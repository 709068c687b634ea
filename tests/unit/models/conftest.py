"""Tiny random checkpoints of every family, written by transformers itself."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

torch.set_num_threads(1)

WINDOW = 8
VOCAB = 200
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=7,
    layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=WINDOW,
    query_pre_attn_scalar=24,  # not the head_dim, as in 27b
    max_position_embeddings=512,
    rope_parameters={
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
)
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=56,
    patch_size=14,
)


QWEN3_5 = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=5,
    full_attention_interval=2,  # (DeltaNet, attention) x 2 and a tail
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    rms_norm_eps=1e-3,  # with 1e-6 and random weights float32 rounding is amplified: test_qwen3_5.py
    rope_parameters={
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
)
QWEN3_5_VISION = dict(
    depth=1,
    hidden_size=32,
    intermediate_size=48,
    num_heads=2,
    out_hidden_size=64,
    num_position_embeddings=16,
)
PLAIN = dict(  # Qwen3, Llama
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Values under which every weight matters: transformers starts norms at 0 or 1 and all else near 0."""
    generator = torch.Generator().manual_seed(seed)
    centred_on_0 = model.config.model_type.startswith(("gemma3", "qwen3_5"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("A_log"):
                p.copy_(torch.log(torch.rand(p.shape, generator=generator) * 4 + 0.01))
            elif name.endswith("dt_bias"):
                p.copy_(noise)
            elif "conv1d" in name:
                p.copy_(0.5 * noise)
            elif p.ndim == 1:
                one = not centred_on_0 or "vision" in name or "visual" in name or "linear_attn.norm" in name
                p.copy_(0.2 * noise + (1.0 if one else 0.0))
            else:
                p.copy_(noise * (0.3 if "embed_tokens" in name or "lm_head" in name else p.shape[-1] ** -0.5))
    model.tie_weights()
    return model.eval()


def text_model(**changes) -> torch.nn.Module:
    config = Gemma3TextConfig(**{**TEXT, **changes})
    config._attn_implementation = "eager"
    return randomise(Gemma3ForCausalLM(config))


def wrapper_model() -> torch.nn.Module:
    """With the usual 5 sliding layers to a full one; 7 layers hold no repetition of that, so nothing is scanned."""
    text = {name: value for name, value in TEXT.items() if name != "layer_types"}
    config = Gemma3Config(text_config=Gemma3TextConfig(**text), vision_config=VISION, mm_tokens_per_image=4)
    config._attn_implementation = "eager"
    return randomise(Gemma3ForConditionalGeneration(config), seed=1)


def qwen3_5_model(seed: int = 0, **changes) -> torch.nn.Module:
    return randomise(Qwen3_5ForCausalLM(Qwen3_5TextConfig(**{**QWEN3_5, **changes})), seed)


def qwen3_5_wrapper() -> torch.nn.Module:
    config = Qwen3_5Config(text_config=QWEN3_5, vision_config=QWEN3_5_VISION, tie_word_embeddings=False)
    return randomise(Qwen3_5ForConditionalGeneration(config), seed=1)


def qwen3_model() -> torch.nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e6}
    return randomise(Qwen3ForCausalLM(Qwen3Config(**PLAIN, tie_word_embeddings=True, rope_parameters=rope)))


def llama_model() -> torch.nn.Module:
    return randomise(LlamaForCausalLM(LlamaConfig(**PLAIN, tie_word_embeddings=False, rope_parameters=LLAMA3_ROPE)))


BUILDERS = {
    "gemma3": text_model,
    "gemma3_wrapper": wrapper_model,
    "llama": llama_model,
    "qwen3": qwen3_model,
    "qwen3_5": qwen3_5_model,
    "qwen3_5_wrapper": qwen3_5_wrapper,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """name of BUILDERS -> (transformers' model, the folder that it wrote), each made once."""

    @cache
    def make(name: str) -> tuple[torch.nn.Module, Path]:
        hf = BUILDERS[name]()
        folder = tmp_path_factory.mktemp(name)
        hf.save_pretrained(folder)
        return hf, folder

    return make


@pytest.fixture(scope="session")
def make_qwen3_5():
    """transformers' Qwen3_5ForCausalLM with random values; keyword arguments change its config."""
    return qwen3_5_model


@pytest.fixture(scope="session")
def make_text_model():
    """transformers' Gemma3ForCausalLM with random values; keyword arguments change its config."""
    return text_model


@pytest.fixture(scope="session")
def text_hf(tiny_checkpoint) -> torch.nn.Module:
    return tiny_checkpoint("gemma3")[0]


@pytest.fixture(scope="session")
def text_folder(tiny_checkpoint) -> Path:
    return tiny_checkpoint("gemma3")[1]


@pytest.fixture(scope="session")
def wrapper_hf(tiny_checkpoint) -> torch.nn.Module:
    return tiny_checkpoint("gemma3_wrapper")[0]


@pytest.fixture(scope="session")
def wrapper_folder(tiny_checkpoint) -> Path:
    return tiny_checkpoint("gemma3_wrapper")[1]
