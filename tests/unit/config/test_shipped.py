"""Every config that people start from loads, the README's example included."""

import re

import pytest

from jax_rl.config import dump_config, load_config

SHIPPED = {  # name -> what a fresh clone has instead of a model that is made only on demand
    "train_toy.yaml": [],
    "smollm2_135m.yaml": ["model.policy_name_or_path={repo}/configs/toy/policy"],
    "wmt24pp_enko_gemma3_4b.yaml": [],
    "gemma3_27b_8gpu.yaml": [],
    "gemma3_27b_8gpu_colocated.yaml": [],
    "gemma3_27b_8gpu_lora.yaml": [],
    "gemma3_27b_2x8gpu.yaml": [],
    "gemma3_27b_v5p_64.yaml": [],
    "qwen3_5_27b_8gpu_mqm.yaml": [],
}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_loads_and_its_dump_loads_again(repo, tmp_path, name):
    cfg = load_config(repo / "configs" / name, [override.format(repo=repo) for override in SHIPPED[name]])
    (tmp_path / "again.yaml").write_text(dump_config(cfg))
    assert load_config(tmp_path / "again.yaml") == cfg


def test_no_shipped_config_is_left_out(repo):
    assert {path.name for path in (repo / "configs").glob("*.yaml")} == set(SHIPPED)


def test_the_readmes_example_loads(repo, tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (repo / "README.md").read_text(), re.DOTALL)
    text = text.replace("/models/my-gemma3-sft", str(repo / "configs/toy/policy")).replace(" .venv-", f" {repo}/.venv-")
    (tmp_path / "train.jsonl").write_text('{"src_text": "one"}\n')
    (tmp_path / "my.yaml").write_text(text)
    cfg = load_config(tmp_path / "my.yaml")
    assert cfg.rl.updates == 500 and cfg.model.reference_gpu_ids == (1,)
    assert cfg.logging.output_dir == str(tmp_path / "runs/a")
