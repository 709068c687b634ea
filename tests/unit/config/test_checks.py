"""Values that do not go together, and paths."""

import logging
import os
import sys
from pathlib import Path

import pytest

from jax_rl.config import Config, ConfigError, load_config, resolve_reference


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.jsonl").write_text("{}\n")
    return tmp_path / "configs"


def load(folder: Path, *overrides: str) -> Config:
    path = folder / "run.yaml"
    path.write_text("model: {policy_name_or_path: google/gemma-3-270m-it}\ndata: {train_file: train.jsonl}\n")
    return load_config(path, overrides)


def problem_of(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.policy_name_or_path=null"], ["model.policy_name_or_path", "not set"]),
        (["data.train_file=null"], ["data.train_file", "no data"]),
        (["data.hf_dataset_name=a/b"], ["data.hf_dataset_name", "drop the other"]),
        (["data.split_field=split"], ["data.split_field", "data.train_split"]),
        (["data.split_field=s", "data.train_split=a"], ["data.eval_split", "evaluation would take every row"]),
        (["data.split_field=s", "data.eval_split=a"], ["data.train_split", "training would take every row"]),
        (["prompt.template=translate"], ["prompt.template", "no {text}"]),
        (["prompt.template={text} {lang}"], ["{lang}", "{source_lang}"]),
        (["prompt.template={text} {}"], ["{} is not a placeholder"]),
        (["prompt.template={text} {text.x}"], ["{text.x}"]),
        (["prompt.template={text:>9}"], ["no format"]),
        (["prompt.template={text} {"], ["prompt.template", "twice"]),
        (["reward.metricx.enabled=false", "reward.xcomet.enabled=false"], ["no reward is enabled", "chrf"]),
        (["reward.metricx.enabled=false", "reward.xcomet.enabled=false", "reward.chrf.enabled=true"], ["weigh 0"]),
        (["reward.mqm.enabled=true", "reward.mqm.model_name=m"], ["reward.mqm.base_url", "not set"]),
        (["reward.mqm.enabled=true", "reward.mqm.base_url=http://h/v1"], ["reward.mqm.model_name", "not set"]),
        (["reward.mqm={enabled: true, base_url: h:1, model_name: m}"], ["reward.mqm.base_url", "http://"]),
        (["reward.mqm={enabled: true, base_url: http://h, model_name: m, score_min: 0}"], ["score_min", "below"]),
        (["model.lora={enabled: true, dropout: 0.1}"], ["model.lora.dropout", "0.1 is not supported", "must be 0"]),
        (["model.reference=separate"], ["model.reference", "model.reference_gpu_ids"]),
        (["model.reference=policy_mesh", "model.reference_device=cuda:1"], ["policy_mesh", "drop one"]),
        (["model.reference=lora_base"], ["lora_base needs model.lora.enabled, which is false"]),
        (
            ["model.reference=lora_base", "model.lora.enabled=true", "model.reference_name_or_path=a/b"],
            ["model.reference_name_or_path", "policy's own base", "a/b"],
        ),
        (["misc.profile_updates=[3, 21]"], ["misc.profile_updates", "21 will not be made", "rl.updates is 20"]),
        (["misc.profile_updates=[0]"], ["misc.profile_updates", ">= 1"]),
        (["model.reference_device=cuda:\u00b2"], ["model.reference_device", "cuda:N"]),
        (["misc.device=gpu"], ["misc.device", '"gpu"', "cuda:N"]),
        (["reward.xcomet.device=tpu"], ["reward.xcomet.device", '"tpu"', "cpu, cuda"]),
        (["model.policy_gpu_ids=[0, 1]", "model.reference_gpu_ids=[1, 2]"], ["device 1", "disjoint or equal"]),
        (["model.policy_gpu_ids=[0, 1]", "model.reference_device=cuda:1"], ["reference_device", "disjoint or equal"]),
        (["model.policy_gpu_ids=[0, 0]"], ["model.policy_gpu_ids", "twice"]),
        (["model.policy_gpu_ids=[-1]"], ["model.policy_gpu_ids", "item 1", ">= 0"]),
        (["model.reference_gpu_ids=[1]", "model.reference_device=cpu"], ["drop one"]),
        (["model.policy_gpu_ids=[0, 1]", "reward.metricx.device=cuda:1"], ["metricx.device", "cuda:1", "[0, 1]"]),
        (["model.reference_gpu_ids=[2]", "reward.xcomet.device=cuda:2"], ["reward.xcomet.device", "cuda:2"]),
        (["model.mesh={data: -1, fsdp: -1}"], ["model.mesh.data", "data and fsdp are -1", "only one"]),
        (["model.mesh.tensor=0"], ["model.mesh.tensor", "it must be >= 1, or -1"]),
        (["model.rollout_mesh.data=-2"], ["model.rollout_mesh.data", "-2", ">= -1"]),
        (["logging.jsonl_name=a/b.jsonl"], ["logging.jsonl_name", "output_dir"]),
        (["logging.jsonl_name=train_rollouts.jsonl"], ["logging.rollout_jsonl_name", "another"]),
        (["data.eval_file=none.jsonl"], ["data.eval_file", "configs/none.jsonl does not exist"]),
        (["data.eval_file=."], ["data.eval_file", "is a folder"]),
        (["logging.resume_from_checkpoint=run/checkpoint-3"], ["logging.resume_from_checkpoint", "does not exist"]),
        (["logging.output_dir=train.jsonl"], ["logging.output_dir", "is a file"]),
        (["model.policy_name_or_path=../models/none"], ["model.policy_name_or_path", "models/none does not exist"]),
        (["model.tokenizer_name_or_path=a/b/c"], ["a/b/c", "hub name"]),
        (["reward.metricx.python_executable=../.venv/bin/python"], ["python_executable", "does not exist"]),
        (["reward.metricx.python_executable=no-such-python"], ["no-such-python is not on PATH"]),
        (["reward.metricx.python_executable=./train.jsonl"], ["train.jsonl is not a program"]),
    ],
)  # fmt: skip
def test_each_rule_has_its_own_message(folder: Path, overrides: list[str], words: list[str]) -> None:
    problem = problem_of(folder, *overrides)
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.policy_gpu_ids=[0, 1]", "model.reference_gpu_ids=[1, 0]"],
        ["model.policy_gpu_ids=[0, 1]", "model.reference_gpu_ids=[2]", "reward.metricx.device=cuda:3"],
        ["model.policy_gpu_ids=[0]", "reward.metricx.device=cuda:0", "misc.device=cpu"],
        ["model.policy_gpu_ids=[0]", "reward.metricx.device=cuda:0", "reward.metricx.enabled=false"],
        ["reward.metricx.enabled=false", "reward.mqm.prompt_file=none.json"],
        ["reward.metricx.enabled=false", "reward.metricx.model_name=./none"],
        ["reward.chrf.enabled=true", "reward.w_chrf=1", "reward.metricx.enabled=false", "reward.xcomet.enabled=false"],
        ["prompt.template={source_lang} {src_lang_code} {target_lang} {tgt_lang_code} {{x}} {text}"],
        ["data.train_file=null", "data.hf_dataset_name=a/b"],
    ],
)
def test_what_makes_sense_is_accepted(folder: Path, overrides: list[str]) -> None:
    load(folder, *overrides)


def test_a_key_in_the_place_of_a_variable_name_is_refused_and_not_shown(folder: Path) -> None:
    problem = problem_of(folder, "reward.mqm.api_key_env=sk-proj-1")
    assert "reward.mqm.api_key_env" in problem and "sk-proj-1" not in problem


def test_a_password_in_the_judge_address_is_refused_and_not_shown(folder: Path) -> None:
    problem = problem_of(folder, "reward.mqm={enabled: true, base_url: 'http://me:pw123@h/v1', model_name: m}")
    assert "api_key_env" in problem and "pw123" not in problem


def test_paths_count_from_the_folder_of_the_yaml_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "models" / "policy").mkdir(parents=True)
    monkeypatch.chdir("/")
    cfg = load(
        folder,
        "model.policy_name_or_path=../models/policy",
        "logging.output_dir=../outputs/run",
        "misc.compilation_cache_dir=~/programs",
    )
    assert cfg.model.policy_name_or_path == str(folder.parent / "models" / "policy")
    assert cfg.data.train_file == str(folder / "train.jsonl")
    assert cfg.logging.output_dir == str(folder.parent / "outputs" / "run")
    assert cfg.misc.compilation_cache_dir == os.path.expanduser("~/programs")


def test_the_default_output_folder_is_a_path_too(folder: Path) -> None:
    assert load(folder).logging.output_dir == str(folder / "outputs" / "run")


def test_a_hub_name_stays_one_unless_a_folder_is_there(folder: Path) -> None:
    name = "model.policy_name_or_path=toy/policy"
    assert load(folder, name).model.policy_name_or_path == "toy/policy"
    (folder / "toy" / "policy").mkdir(parents=True)
    assert load(folder, name).model.policy_name_or_path == str(folder / "toy" / "policy")
    assert load(folder).reward.metricx.tokenizer_name == "google/mt5-xl"


def test_the_python_of_a_virtual_environment_is_not_resolved_to_what_it_links_to(folder: Path) -> None:
    link = folder.parent / ".venv-x" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(sys.executable)
    cfg = load(folder, "reward.xcomet.python_executable=../.venv-x/bin/python")
    assert cfg.reward.xcomet.python_executable == str(link)


def test_a_bare_program_name_is_left_to_path(folder: Path) -> None:
    assert load(folder, "reward.xcomet.python_executable=python3").reward.xcomet.python_executable == "python3"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.severity_weights={minor: -1}", ["no MAJOR, CRITICAL; "]),
        ("model.use_fast_tokenizer=false", ["model.use_fast_tokenizer", "always the fast one"]),
        ("model.trust_remote_code=true", ["model.trust_remote_code", "ever run"]),
    ],
)
def test_what_is_allowed_and_probably_not_meant_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture, override: str, words: list[str]
) -> None:
    with caplog.at_level(logging.WARNING, logger="jax_rl.config"):
        load(folder, override)
    for word in words:
        assert word in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reference"),
    [
        ([], "policy_mesh"),
        (["model.reference_gpu_ids=[1]"], "separate"),
        (["model.reference_device=cpu"], "separate"),
        (["model.lora.enabled=true"], "lora_base"),
        (["model.lora.enabled=true", "model.reference_gpu_ids=[1]"], "lora_base"),
        (["model.lora.enabled=true", "model.reference_name_or_path=google/gemma-3-270m-it"], "lora_base"),
        (["model.lora.enabled=true", "model.reference_name_or_path=a/b"], "policy_mesh"),
        (["model.lora.enabled=true", "model.reference=separate", "model.reference_gpu_ids=[1]"], "separate"),
    ],
)
def test_what_auto_makes_of_the_reference(folder, overrides, reference):
    assert resolve_reference(load(folder, *overrides)) == reference


@pytest.mark.parametrize("more", ["data.eval_file=train.jsonl", "data.eval_sampling_count=2", "data.eval_split=b"])
def test_one_split_value_is_enough_where_the_other_side_has_rows_of_its_own(folder, more):
    assert load(folder, "data.split_field=s", "data.train_split=a", more).data.train_split == "a"


def test_severities_are_known_in_any_case(folder, caplog):
    load(folder, "reward.severity_weights={minor: -1, Major: -5, CRITICAL: -10}")
    assert "severity_weights" not in caplog.text
    load(folder, "reward.severity_weights={minor: -1, huge: -5}")
    assert "no MAJOR, CRITICAL" in caplog.text and "huge never occurs" in caplog.text


def test_split_values_without_a_field_are_told_of(folder, caplog):
    load(folder, "data.eval_split=dev")
    assert "data.split_field, which is not set: not used" in caplog.text
