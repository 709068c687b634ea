"""Llama's and Qwen3's config.json are read as transformers reads them."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from jax_rl.models.errors import ModelError
from jax_rl.models.registry import model_from_config

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS = {
    "llama 3.1 8b, transformers 4": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        "rope_theta": 500000.0,
        "vocab_size": 128256,
    },
    "smollm2 135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "llama 2 7b": {"model_type": "llama", "rms_norm_eps": 1e-5},
    "qwen3 8b, transformers 5": {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field(name):
    raw = CONFIGS[name]
    kind, rotary = (
        (Qwen3Config, Qwen3RotaryEmbedding) if raw["model_type"] == "qwen3" else (LlamaConfig, LlamaRotaryEmbedding)
    )
    hf, cfg = kind(**raw), model_from_config(raw).cfg
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(cfg, field) == getattr(hf, field), field
    for field in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(cfg, field) == getattr(hf, field), field
    theirs = rotary(hf).inv_freq
    np.testing.assert_allclose(cfg.rope.frequencies(cfg.head_dim), theirs.to(torch.float32).numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "relu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    ],
)
def test_what_is_not_implemented_is_refused(change):
    with pytest.raises(ModelError, match="bias|hidden_act|yarn|low_freq_factor"):
        model_from_config(CONFIGS["llama 2 7b"] | change)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="'gemma4' is not known; known: gemma3, .*qwen3_5_text"):
        model_from_config({"model_type": "gemma4"})
