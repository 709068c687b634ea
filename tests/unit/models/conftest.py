"""Tiny random Gemma 3 checkpoints, written by transformers itself."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

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


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Values under which every weight matters: transformers starts norms at 0 and all else near it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(0.2 * noise + (1.0 if "vision" in name else 0.0))
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


@pytest.fixture(scope="session")
def make_text_model():
    """transformers' Gemma3ForCausalLM with random values; keyword arguments change its config."""
    return text_model


@pytest.fixture(scope="session")
def text_hf() -> torch.nn.Module:
    return text_model()


@pytest.fixture(scope="session")
def text_folder(text_hf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3_text")
    text_hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def wrapper_hf() -> torch.nn.Module:
    return wrapper_model()


@pytest.fixture(scope="session")
def wrapper_folder(wrapper_hf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gemma3_wrapper")
    wrapper_hf.save_pretrained(folder)
    return folder
