"""The built-in config.json files, read as transformers reads what is published."""

import pytest
from transformers import Gemma3TextConfig, Qwen3_5Config

from jax_rl.models.params import count_params
from jax_rl.models.registry import model_from_config
from jax_rl.planning.published import published_configs

BILLIONS = {  # of the text models
    "google/gemma-3-270m": 0.268,
    "google/gemma-3-270m-it": 0.268,
    "google/gemma-3-1b-it": 1.000,
    "google/gemma-3-4b-pt": 3.880,
    "google/gemma-3-12b-it": 11.77,
    "google/gemma-3-27b-it": 27.01,
    "google/translategemma-27b-it": 27.01,
    "Qwen/Qwen3.5-27B": 26.9,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_has_the_published_number_of_parameters(name):
    count = count_params(model_from_config(published_configs()[name]).specs)
    assert count / 1e9 == pytest.approx(BILLIONS[name], rel=2e-3)


@pytest.mark.parametrize("name", sorted(published_configs()))
def test_is_read_as_transformers_reads_it(name):
    raw = published_configs()[name]
    cfg = model_from_config(raw).cfg
    if raw["model_type"] == "qwen3_5":
        hf = Qwen3_5Config(**raw).text_config
        fields = ["linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim", "linear_value_head_dim"]
    else:
        text = dict(raw.get("text_config", raw))
        if text.get("rope_scaling"):
            text["rope_scaling"] = dict(text["rope_scaling"])  # transformers changes it
        hf = Gemma3TextConfig(**text)
        fields = ["sliding_window", "query_pre_attn_scalar"]
    fields += "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads head_dim".split()
    for field in [*fields, "num_key_value_heads"]:
        assert getattr(cfg, field) == getattr(hf, field), field
    assert list(cfg.layer_types) == list(hf.layer_types)
