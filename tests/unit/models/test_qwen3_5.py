"""What is Qwen3.5's alone; that it computes what transformers computes is in test_parity.py."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, Qwen3_5Config

from jax_rl.models.errors import ModelError
from jax_rl.models.hf_checkpoint import load_model
from jax_rl.models.params import count_params, spec_leaves
from jax_rl.models.registry import model_from_config

# as on the hub: text model and wrapper, transformers 5
HUB_27B = {
    "model_type": "qwen3_5",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "mlp_only_layers": [],
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 24,
        "num_hidden_layers": 64,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "vocab_size": 248320,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "rope_type": "default",
            "rope_theta": 10_000_000,
            "partial_rotary_factor": 0.25,
        },
    },
}


@pytest.fixture(scope="module")
def truth():
    path = Path(__file__).with_name("numpy_qwen3_5.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_with_the_published_epsilon_float32_is_no_further_from_the_truth_than_transformers(
    truth, make_qwen3_5, tmp_path
):
    """With random weights and eps 1e-6 rounding is amplified; both are measured against float64, over three models."""
    ours, theirs = [], []
    row = np.random.default_rng(0).integers(3, 200, 100)
    for seed in range(3):
        hf = make_qwen3_5(seed, rms_norm_eps=1e-6)
        hf.save_pretrained(tmp_path / str(seed))
        weights = {n.removeprefix("model."): p.detach().double().numpy() for n, p in hf.named_parameters()}
        true = truth.logits(weights, hf.config, row)
        model, params = load_model(tmp_path / str(seed), jnp.float32)
        hidden, _ = jax.jit(model.forward)(params, jnp.asarray(row)[None], jnp.arange(len(row))[None])
        with torch.no_grad():
            theirs.append(hf(input_ids=torch.tensor(row)[None], use_cache=False).logits[0].numpy() - true)
        ours.append(np.asarray(model.logits(params, hidden))[0] - true)

    def root_mean_square(errors):
        return float(np.sqrt(np.mean(np.square(errors))))

    print(f"\nrms {root_mean_square(ours):.1e}, transformers {root_mean_square(theirs):.1e}")
    assert root_mean_square(ours) < root_mean_square(theirs) < 1e-4


def test_the_27b_config_is_read_as_transformers_reads_it():
    model = model_from_config(HUB_27B)
    cfg, hf = model.cfg, Qwen3_5Config(**HUB_27B).text_config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(cfg, name) == getattr(hf, name), name
    for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "linear_num_value_heads", "linear_key_head_dim"):
        assert getattr(cfg, name) == getattr(hf, name), name
    assert list(cfg.layer_types) == hf.layer_types and not cfg.tie_word_embeddings
    assert (cfg.rope.theta, cfg.rope.rotated_share) == (1e7, 0.25)
    assert count_params(model.specs) == pytest.approx(26.9e9, rel=0.001)


def test_irregular_layer_lists_are_read_and_run(make_qwen3_5, tmp_path):
    kinds = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
    hf = make_qwen3_5(num_hidden_layers=4, layer_types=kinds)
    hf.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).layer_types == kinds
    model, params = load_model(tmp_path, jnp.float32)
    row = np.random.default_rng(0).integers(3, 200, 20)
    hidden, _ = jax.jit(model.forward)(params, jnp.asarray(row)[None], jnp.arange(20)[None])
    with torch.no_grad():
        theirs = hf(input_ids=torch.tensor(row)[None], use_cache=False).logits.numpy()
    np.testing.assert_allclose(model.logits(params, hidden), theirs, atol=1e-4)


@pytest.mark.parametrize(
    "field, value", [("attn_output_gate", False), ("hidden_act", "gelu"), ("attention_bias", True)]
)
def test_what_is_not_implemented_is_refused(field, value):
    raw = {**HUB_27B, "text_config": HUB_27B["text_config"] | {field: value}}
    with pytest.raises(ModelError, match=field):
        model_from_config(raw)


def test_decay_rates_stay_in_float32(tiny_checkpoint):
    _, folder = tiny_checkpoint("qwen3_5")
    model, params = load_model(folder, jnp.bfloat16)
    stored = load_file(folder / "model.safetensors")
    dtypes = {spec.hf_names[0]: leaf.dtype for spec, leaf in zip(spec_leaves(model.specs), jax.tree.leaves(params))}
    assert {name.rsplit(".", 1)[-1] for name, dtype in dtypes.items() if dtype == jnp.float32} == {"A_log", "dt_bias"}
    leaf = params["blocks"]["0"]["linear_attn"]["A_log"]
    np.testing.assert_array_equal(leaf[1], stored["model.layers.2.linear_attn.A_log"])
