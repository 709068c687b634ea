"""YAML files, overrides and old keys -> Config; and everything wrong at once."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jax_rl.config import Config, ConfigError, dump_config, load_config
from jax_rl.config.schema import RLConfig

GOOD = {"model": {"policy_name_or_path": "google/gemma-3-270m-it"}, "data": {"train_file": "train.jsonl"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.jsonl").write_text("{}\n")
    return tmp_path


def write(folder: Path, text: str = "", data: str = "train_file: train.jsonl") -> Path:
    path = folder / "run.yaml"
    path.write_text(f"model: {{policy_name_or_path: google/gemma-3-270m-it}}\ndata: {{{data}}}\n{text}")
    return path


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return list(caught.value.problems)


def test_values_arrive_and_the_rest_keeps_its_defaults(folder: Path) -> None:
    cfg = load_config(write(folder, "rl: {updates: 7, algorithm: reinforce}\neval:\n"))
    assert cfg.rl == dataclasses.replace(RLConfig(), updates=7, algorithm="reinforce")
    assert cfg.eval == Config().eval  # an empty section


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("rl: {lr: 1e-6}", "lr", 1e-6),  # YAML 1.1 reads it as text
        ("rl: {lr: 5.E-7}", "lr", 5e-7),
        ("rl: {lr: 1}", "lr", 1.0),
        ("rl: {eps: .5}", "eps", 0.5),
    ],
)
def test_numbers_are_floats_however_they_are_written(folder: Path, text: str, key: str, value: float) -> None:
    read = getattr(load_config(write(folder, text)).rl, key)
    assert read == value and type(read) is float


def test_lists_mappings_and_null(folder: Path) -> None:
    text = "generation:\n  chat_template_kwargs: {enable_thinking: true, tools: [1, {a: null}]}\nlogging: {}\n"
    cfg = load_config(write(folder, text + "eval: {eval_limit: null}\nreward: {mqm: {stop: [a, '1']}}"))
    assert cfg.generation.chat_template_kwargs == {"enable_thinking": True, "tools": [1, {"a": None}]}
    assert cfg.eval.eval_limit is None
    assert cfg.reward.mqm.stop == ("a", "1")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("rl: {lrr: 1}", 3, ["rl.lrr", "rl.lr?"]),
        ("rl: {max_new_token: 1}", 3, ["rl.max_new_token", "generation.max_new_tokens?"]),
        ("reward: {metricx: {ofset: 1}}", 3, ["reward.metricx.ofset", "reward.metricx.offset?"]),
        ("generatoin: {top_p: 1}", 3, ["generatoin", "generation?"]),
        ("lr: 3", 3, ["lr: unknown", "rl.lr?"]),
        ("rl:\n  batch_size: two", 4, ["rl.batch_size", '"two"', "whole number >= 1"]),
        ("rl: {batch_size: '2'}", 3, ["rl.batch_size", '"2" is text', "without quotes"]),
        ("rl: {batch_size: 2.5}", 3, ["rl.batch_size", "2.5", "whole number"]),
        ("rl: {batch_size: true}", 3, ["rl.batch_size", "true", "whole number"]),
        ("rl: {batch_size: 0}", 3, ["rl.batch_size", "0 is out of range", ">= 1"]),
        ("rl: {batch_size: }", 3, ["rl.batch_size", "empty", "leave the key out"]),
        ("rl: {lr: -1}", 3, ["rl.lr", "-1 is out of range", "> 0"]),
        ("rl: {lr: .nan}", 3, ["rl.lr", "nan"]),
        ("rl: {lr: abc}", 3, ["rl.lr", '"abc"', "a number"]),
        ("rl: {lr: true}", 3, ["rl.lr", "true", "a number"]),
        ("rl: {algorithm: ppo}", 3, ["rl.algorithm", '"ppo"', "grpo, reinforce"]),
        ("rl: {normalize_advantage: 1}", 3, ["rl.normalize_advantage", "true or false"]),
        ("rl: 3", 3, ["rl: 3", "section"]),
        ("logging: {jsonl_name: [a]}", 3, ["logging.jsonl_name", "a list", "text"]),
        ("eval: {eval_limit: none}", 3, ["eval.eval_limit", "or null", "without quotes"]),
        ("reward: {severity_weights: {MAJOR: bad}}", 3, ["reward.severity_weights", "MAJOR", '"bad"', "a number"]),
        ("reward: {severity_weights: [1]}", 3, ["reward.severity_weights", "[1]", "a mapping"]),
        ("generation: {chat_template_kwargs: {x: .inf}}", 3, ["generation.chat_template_kwargs", "inf", "JSON"]),
        ("generation: {top_p: 1.1}", 3, ["generation.top_p", "1.1", "<= 1"]),
    ],
)
def test_a_wrong_line_names_key_value_and_what_is_right(folder: Path, text: str, line: int, words: list[str]) -> None:
    (problem,) = problems_of(write(folder, text))
    assert problem.startswith(f"line {line}: ")
    for word in words:
        assert word in problem


def test_text_keys_refuse_what_yaml_turned_into_something_else(folder: Path) -> None:
    path = write(folder, data="train_file: train.jsonl, default_src_lang_code: no, hf_revision: 123")
    code, revision = problems_of(path)
    assert "data.default_src_lang_code" in code and "in quotes" in code
    assert "data.hf_revision: 123" in revision and "in quotes" in revision


def test_what_looks_like_a_date_stays_text(folder: Path) -> None:
    cfg = load_config(write(folder, data="train_file: train.jsonl, hf_revision: 2024-01-02"))
    assert cfg.data.hf_revision == "2024-01-02"


def test_all_problems_come_at_once_and_follow_on_problems_do_not(folder: Path) -> None:
    path = folder / "bad.yaml"
    path.write_text("model: {policy_name_or_path: 3}\ndata: {train_file: no.jsonl}\nrl: {lr: x, updatez: 2}\n")
    found = problems_of(path, "eval.eval_limit=0")
    assert [problem.split(": ")[1] for problem in found] == [
        "model.policy_name_or_path",  # and no second line that it is not set
        "rl.lr",
        "rl.updatez",
        "eval.eval_limit",
        "data.train_file",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rl: [1, 2", 3),
        ("rl:\n\tlr: 1", 4),
        ("rl: {lr: 1}\n  x: 1", 4),
        ("a: *b", 3),
        ("---\nrl: {}", 3),
        ("rl: !!python/name:os.system x", 3),
    ],
)
def test_broken_yaml_names_the_line(folder: Path, text: str, line: int) -> None:
    (problem,) = problems_of(write(folder, text))
    assert problem.startswith(f"line {line}") and "YAML" in problem


def test_a_yaml_error_does_not_quote_a_line_that_holds_a_secret(folder: Path) -> None:
    (problem,) = problems_of(write(folder, "reward: {mqm: {api_key: sk-123}\nrl: {}"))
    assert "sk-123" not in problem


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "3"])
def test_a_file_that_is_no_mapping(folder: Path, text: str) -> None:
    path = folder / "x.yaml"
    path.write_text(text)
    (problem,) = problems_of(path)
    assert "section" in problem


def test_a_recursive_file_is_refused(folder: Path) -> None:
    (problem,) = problems_of(write(folder, "generation: &a\n  chat_template_kwargs: *a"))
    assert "contains itself" in problem


def test_anchors_and_merges_work(folder: Path) -> None:
    text = "reward:\n  metricx: &m {batch_size: 3, device: cpu}\n  xcomet: {<<: *m, batch_size: 5}"
    cfg = load_config(write(folder, text))
    assert (cfg.reward.metricx.batch_size, cfg.reward.xcomet.batch_size) == (3, 5)
    assert cfg.reward.xcomet.device == "cpu"


def test_a_key_given_twice(folder: Path) -> None:
    (problem,) = problems_of(write(folder, "rl:\n  lr: 1\n  updates: 3\n  lr: 2"))
    assert problem == "line 6: rl.lr: is given twice; keep one of them"


def test_missing_folder_and_binary_files(folder: Path) -> None:
    assert "No such file" in problems_of(folder / "none.yaml")[0]
    assert "directory" in problems_of(folder)[0]
    (folder / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problems_of(folder / "x.yaml")[0]


def test_overrides_win_and_are_read_as_yaml(folder: Path) -> None:
    path = write(folder, "rl: {lr: 1e-6}")
    cfg = load_config(
        path,
        ["rl.lr=3e-5", "model.policy_gpu_ids=[0, 1]", "eval.eval_limit=null", "generation.chat_template_kwargs.x=y",
         "reward.severity_weights.MINOR=-2", "misc={seed: 3}"],
    )  # fmt: skip
    assert cfg.rl.lr == 3e-5 and cfg.model.policy_gpu_ids == (0, 1) and cfg.eval.eval_limit is None
    assert cfg.generation.chat_template_kwargs == {"enable_thinking": False, "x": "y"}
    assert cfg.reward.severity_weights == {"MINOR": -2.0, "MAJOR": -5.0, "CRITICAL": -10.0}
    assert cfg.misc.seed == 3


@pytest.mark.parametrize("text", ["{text} in {target_lang}", "'{text}: x'", "{text}", "- {text}", "a: {text}"])
def test_an_override_of_a_text_key_needs_no_quotes(folder: Path, text: str) -> None:
    cfg = load_config(write(folder), [f"prompt.template={text}", "data.hf_revision=123", "data.tgt_lang_field=no"])
    assert cfg.prompt.template == text.strip("'")
    assert (cfg.data.hf_revision, cfg.data.tgt_lang_field) == ("123", "no")


def test_an_empty_override_of_a_text_key_is_null(folder: Path) -> None:
    assert load_config(write(folder), ["data.hf_revision="]).data.hf_revision is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rl.lrr=1", ["rl.lrr", "rl.lr?"]),
        ("rl.updates=x", ["rl.updates", '"x"', "whole number"]),
        ("updates", ['"updates"', "section.key=value"]),
        ("=3", ["section.key=value"]),
        ("rl.lr.x=1", ["rl.lr.x"]),
        ("rl.stop=[1", ["rl.stop", "not valid YAML"]),
    ],
)
def test_a_wrong_override_is_reported_like_a_wrong_line(folder: Path, override: str, words: list[str]) -> None:
    (problem,) = problems_of(write(folder, "rl: {lr: 1e-5}"), override)
    assert problem.startswith("command line: ")
    for word in words:
        assert word in problem


OLD = """
rl: {backend: deepspeed, deepspeed_zero_stage: 3, deepspeed_config: {a: 1}}
reward: {mqm: {timeout_s: 33, error_policy: zero}}
"""


def test_files_of_the_pytorch_system_load_with_one_line_for_each_old_key(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(folder, OLD)
    path.write_text(path.read_text().replace("{policy", "{attn_implementation: flash_attention_2, policy"))
    with caplog.at_level(logging.WARNING, logger="jax_rl.config"):
        cfg = load_config(path)
    assert cfg.reward.mqm.timeout_sec == 33.0 and cfg.reward.mqm.error_policy == "skip"
    keys = ["rl.backend", "rl.deepspeed_zero_stage", "rl.deepspeed_config", "reward.mqm.timeout_s",
            "reward.mqm.error_policy", "model.attn_implementation"]  # fmt: skip
    assert [message.split(": ")[1] for message in caplog.messages] == keys


def test_an_old_key_beside_the_new_one_does_not_win(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = load_config(write(folder, "reward: {mqm: {timeout_s: 33, timeout_sec: 44}}"))
    assert cfg.reward.mqm.timeout_sec == 44
    assert "timeout_sec is set" in caplog.text


def test_a_wrong_value_of_an_old_key_names_its_line(folder: Path) -> None:
    (problem,) = problems_of(write(folder, "reward:\n  mqm:\n    timeout_s: soon"))
    assert problem.startswith("line 5: reward.mqm.timeout_sec")


def test_the_dump_loads_to_the_same_config_from_any_folder(folder: Path, tmp_path: Path) -> None:
    text = (
        "prompt: {template: \"{text}\\n한국어: 'x' {{y}}\"}\nrl: {lr: 1e-6}\nmisc: {huggingface_cache_dir: hub}\n"
        "reward: {mqm: {stop: ['1e5', 'no', '2024-01-01']}, severity_weights: {MINOR: -1, MAJOR: 0, CRITICAL: -1e1}}\n"
    )
    cfg = load_config(write(folder, text), ["model.policy_gpu_ids=[3]"])
    elsewhere = tmp_path / "a" / "resolved_config.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(dump_config(cfg))
    assert load_config(elsewhere) == cfg


def test_the_dump_holds_every_key_but_the_secrets(folder: Path) -> None:
    cfg = load_config(write(folder, "reward: {mqm: {api_key: sk-1}}\nmisc: {huggingface_token: hf_2}"))
    assert (cfg.reward.mqm.api_key, cfg.misc.huggingface_token) == ("sk-1", "hf_2")
    text = dump_config(cfg)
    for line in ["  api_key_env: OPENAI_API_KEY", "  chrf:", "  keep_last_n_checkpoints: 0"]:
        assert line in text
    for secret in ["sk-1", "hf_2", "api_key:", "huggingface_token:"]:
        assert secret not in text
    assert "sk-1" not in repr(cfg) and "hf_2" not in repr(cfg)


@pytest.mark.parametrize(
    "override", ["reward.mqm.api_key=sk-1", "reward.mqm={api_key: sk-1}", "misc.huggingface_token=sk-1"]
)
def test_secrets_are_refused_on_the_command_line_and_not_repeated(folder: Path, override: str) -> None:
    (problem,) = problems_of(write(folder), override)
    assert "_env" in problem and "sk-1" not in problem


def test_a_secret_of_the_wrong_type_is_not_shown(folder: Path) -> None:
    (problem,) = problems_of(write(folder, "reward: {mqm: {api_key: 12345}}"))
    assert "reward.mqm.api_key" in problem and "12345" not in problem


def test_the_config_is_read_without_jax() -> None:
    heavy = "{'jax', 'numpy', 'torch', 'transformers'}"
    code = f"import sys, jax_rl.config; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
