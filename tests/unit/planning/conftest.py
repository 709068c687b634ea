"""A tiny Gemma 3 that is a config.json and nothing else."""

import json

import pytest
import yaml

TINY = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "sliding_window_pattern": 2,
    "vocab_size": 512,
}


@pytest.fixture(scope="session")
def write_config(tmp_path_factory):
    """Writes a config for the tiny model; returns the file."""

    def write(**sections):
        folder = tmp_path_factory.mktemp("plan")
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(TINY))
        values = {
            "model": {"policy_name_or_path": "./model"},
            "data": {"train_file": "./absent.jsonl", "max_prompt_tokens": 16},
            "generation": {"max_new_tokens": 8, "num_samples_per_prompt": 4},
            "rl": {"batch_size": 4, "grad_accum": 0, "micro_batch_size": 8},
            "eval": {"eval_limit": 4},
        }
        for section, keys in sections.items():
            values[section] = values.get(section, {}) | keys
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write
