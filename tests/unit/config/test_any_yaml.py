"""Whatever stands in the file: a Config that survives a dump, or one ConfigError, and nothing else."""

import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jax_rl.config import ConfigError, dump_config, load_config
from jax_rl.config.keys import LEAVES

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["1e-6", "no", "cuda"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | scalars, inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    [*LEAVES, "rl.backend", "reward.mqm.timeout_s", "reward.mqm.error_policy", "rl", "reward.mqm", "x"]
)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = tree
        for section in sections:
            if not isinstance(place.get(section), dict):
                place[section] = {}
            place = place[section]
        place[name] = value
    return tree


@settings(max_examples=150)
@given(st.dictionaries(keys, values, max_size=4))
def test_a_file_is_a_config_or_a_config_error(flat: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        (path.parent / "train.jsonl").write_text("{}")
        base = {"model.policy_name_or_path": "a/b", "data.train_file": "train.jsonl"}
        path.write_text(yaml.safe_dump(nested(base | flat), allow_unicode=True), encoding="utf-8")
        try:
            cfg = load_config(path)
        except ConfigError as error:
            assert error.problems and all("\n" not in problem for problem in error.problems)
            return
        again = path.with_name("again.yaml")
        again.write_text(dump_config(cfg), encoding="utf-8")
        secrets = {cfg.reward.mqm.api_key, cfg.misc.huggingface_token} - {None, ""}
        if not secrets:
            assert load_config(again) == cfg


@settings(max_examples=150)
@given(keys, st.text(max_size=12))
@example("model.policy_name_or_path", "~\0")
def test_an_override_is_a_config_or_a_config_error(key: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        (path.parent / "train.jsonl").write_text("{}")
        path.write_text("model: {policy_name_or_path: a/b}\ndata: {train_file: train.jsonl}\n")
        try:
            load_config(path, [f"{key}={text}"])
        except ConfigError as error:
            assert error.problems
