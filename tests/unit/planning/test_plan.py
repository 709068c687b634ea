"""A whole plan: the program's JSON on simulated devices, and its bytes against those of real arrays."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from jax_rl import plan
from jax_rl.config import load_config
from jax_rl.learning.optimizer import init_train_state, make_optimizer
from jax_rl.models.sharing import Places
from jax_rl.planning.build import make_plan
from jax_rl.planning.published import planned_model
from jax_rl.planning.targets import open_target
from jax_rl.rollout.shapes import bucket

KEYS = {"name", "devices", "bytes_per_device", "peak_bytes", "flops", "collectives", "compile_cpu_seconds"}


def run_plan(config, target, repo):
    """The JSON, from a process of its own: devices and compilers are fixed when JAX starts."""
    command = [sys.executable, "-m", "jax_rl.plan", "--config", str(config), "--target", target, "--json"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(repo / ".cache" / "programs")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def planned(write_config, repo):
    return run_plan(write_config(), "cpu:8", repo)


@pytest.fixture(scope="module")
def on_this_machine(write_config):
    cfg = load_config(write_config(), files=False)
    return cfg, planned_model(cfg), make_plan(cfg, planned_model(cfg), open_target(None))


def test_the_json_has_every_key(planned):
    assert planned["target"] == "cpu:8" and planned["fits"] is True and planned["advice"] == []
    assert planned["device_memory_bytes"] > 0
    assert [program["name"] for program in planned["programs"]] == [
        "prefill",
        "decode",
        "reference",
        "accumulate",
        "step_weights",
        "step_moments",
    ]
    for program in planned["programs"]:
        assert program.keys() >= KEYS
        assert program["devices"] == 8 and program["refused"] is None
        assert (program["flops"] > 0) == (not program["name"].startswith("step"))
        assert program["peak_bytes"] >= sum(program["bytes_per_device"].values())
    assert planned["flops_per_update"] == sum(program["flops"] for program in planned["programs"])


@pytest.mark.parametrize("target, compiler", [("h100:2x2", "jax_cuda12_plugin"), ("v5e:2x2", "libtpu")])
def test_accelerators_are_planned_without_having_them(write_config, repo, target, compiler):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"{compiler} is not installed (an optional extra)")
    report = run_plan(write_config(reward={"metricx": {"device": "cpu"}, "xcomet": {"device": "cpu"}}), target, repo)
    assert report["fits"] is True and report["least_seconds_per_update"] > 0
    assert {program["devices"] for program in report["programs"]} == ({4} if target == "v5e:2x2" else {2})


def test_fsdp_divides_matrices_and_gathers_them(planned):
    """Vectors are whole on every device; of the tiny model 8 divides every matrix."""
    layer_vectors, layer = 4 * 64 + 2 * 16, 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    train = next(program for program in planned["programs"] if program["name"] == "accumulate")
    matrices, vectors = 512 * 64 + 4 * layer, 64 + 4 * layer_vectors
    assert train["bytes_per_device"]["parameters"] == 2 * (matrices // 8 + vectors)
    assert train["bytes_per_device"]["gradients"] == 4 * (matrices // 8 + vectors)
    assert train["collectives"]["all-gather"] > 0


def test_bytes_are_those_of_real_arrays(on_this_machine):
    cfg, model, made = on_this_machine
    train = next(program for program in made.programs if program.name == "step_weights")
    state = init_train_state(model.init(jax.random.key(0), cfg.misc.dtype), make_optimizer(cfg.rl))
    decode = next(program for program in made.programs if program.name == "decode")
    groups = cfg.generation.num_samples_per_prompt
    prompts = model.init_cache(16 // groups, 16, cfg.misc.dtype)
    rows = np.repeat(np.arange(16 // groups), groups)
    cache = model.share_prompts(prompts, Places.of_rows(rows, 16 // groups, groups), bucket(8 - 1))

    def size(tree):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))

    assert train.bytes_per_device["parameters"] == size(state.params)
    assert train.bytes_per_device["optimizer"] == size(state.opt_state)
    assert decode.bytes_per_device["kv_cache"] == size(cache)


def test_bytes_that_are_counted_are_the_compiler_s(on_this_machine):
    """What a program is given, by part, adds up to the arguments that XLA says it takes."""
    _, _, made = on_this_machine
    for program in made.programs:
        given = {part: size for part, size in program.bytes_per_device.items() if part != "temporaries"}
        if program.name == "prefill":
            del given["kv_cache"]  # a result
        assert program.argument_bytes == pytest.approx(sum(given.values()), abs=64), program.name


def test_what_is_over_budget_does_not_fit_and_says_what_would(write_config):
    cfg = load_config(write_config(), files=False)
    target = open_target(None)
    small = replace(target, chip=replace(target.chip, memory_bytes=2 * 2**20))
    made = make_plan(cfg, planned_model(cfg), small)
    report = made.to_json()
    assert report["fits"] is False
    assert any("rl.micro_batch_size" in line or "take more devices" in line for line in report["advice"])


@pytest.mark.parametrize(
    "target, words",
    [
        ("abacus:8", "--target abacus:8 is not known; it must be like h100:8"),
        ("h100:2x2x2", "is not known"),
        ("h100:8", "pip install 'jax_rl[plan-gpu]'"),
        ("v5p:2x2x1", "pip install 'jax_rl[plan-tpu]'"),
    ],
)
def test_a_target_that_cannot_be_had_is_one_message(write_config, capsys, monkeypatch, target, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plan.main(["--config", str(write_config()), "--target", target]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and len(error.splitlines()) == 1


def test_a_model_that_is_neither_a_folder_nor_built_in_lists_those_that_are(write_config, capsys):
    path = write_config(model={"policy_name_or_path": "someone/model"})
    assert plan.main(["--config", str(path)]) == 2
    assert "google/gemma-3-27b-it" in capsys.readouterr().err
