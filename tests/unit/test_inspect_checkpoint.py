"""The checkpoint inspector on real Orbax checkpoints and safetensors files."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jax_rl.checkpoints import CheckpointError, Checkpoints
from jax_rl.errors import UserError
from jax_rl.inspect_checkpoint import main

META = {"update": 7, "data_position": {"epoch": 1, "row": 4}, "config": {"rl": {"lr": 1e-6}}}


def make_state(seed: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "embed": jax.random.normal(keys[0], (50, 8), jnp.bfloat16),
        "layers": ({"w": jax.random.normal(keys[1], (3, 8, 8))}, {"w": jax.random.normal(keys[2], (3, 8, 8))}),
    }
    return {"params": params, "opt_state": optax.adamw(1e-3).init(params), "step": jnp.int32(21)}


def save(folder: Path, state: dict[str, Any]) -> Path:
    Checkpoints(folder).save(state, META)
    return folder / "checkpoint-7"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run"), make_state())


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_json_holds_every_array_with_its_norm(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, checkpoint, "--json"))
    state = make_state()
    rows = {row["path"]: row for row in report["arrays"]}
    assert len(rows) == len(jax.tree.leaves(state))
    assert rows["params/embed"]["shape"] == [50, 8]
    assert (rows["params/embed"]["dtype"], rows["params/embed"]["bytes"]) == ("bfloat16", 800)
    for path, array in [
        ("params/embed", state["params"]["embed"]),
        ("params/layers/1/w", state["params"]["layers"][1]["w"]),
    ]:
        assert rows[path]["norm"] == pytest.approx(np.linalg.norm(np.asarray(array, np.float64)), rel=1e-12)
    groups = {group["group"]: group for group in report["groups"]}
    assert groups["params"]["elements"] == 50 * 8 + 2 * 3 * 64
    assert groups["opt_state"]["bytes"] == 2 * (800 + 2 * 768) + 4
    assert groups["params"]["norm"] == pytest.approx(float(np.sqrt(sum(
        np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(state["params"])))))  # fmt: skip
    assert report["step"] == 21
    assert (report["facts"]["update"], report["facts"]["data_position"]) == (7, META["data_position"])
    assert report["config"] == META["config"]


def test_the_table_says_the_same_in_words(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, checkpoint)
    for line in ["step: 21", "update: 7", 'data_position: {"epoch": 1, "row": 4}', "    lr: 1.0e-06"]:
        assert line in text.splitlines()
    (row,) = [line for line in text.splitlines() if line.startswith("params/layers/0/w")]
    assert row.split()[1:4] == ["3x8x8", "float32", "768"]
    assert text.splitlines()[-1].split()[:2] == ["total", str(len(jax.tree.leaves(make_state())))]


@pytest.mark.parametrize(
    ("pattern", "count"), [("params/*", 3), ("embed", 3), ("params/layers/./w", 2), ("*/w", 6), (r"/\d/w$", 6)]
)
def test_patterns_are_globs_or_regexes(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], pattern: str, count: int
) -> None:
    assert len(json.loads(run(capsys, checkpoint, "--param", pattern, "--json"))["arrays"]) == count


def test_a_pattern_without_a_match_names_some_paths(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"params/embed|opt_state/0/count"):
        main([str(checkpoint), "--param", "nothing"])


def test_diff_measures_the_relative_change(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_state()
    first = state["params"]["layers"][0]["w"]
    state["params"]["layers"][0]["w"] = first * 1.25  # exact in float32: a relative change of a quarter
    state["params"]["layers"][1]["w"] = state["params"]["layers"][1]["w"][:2]
    state["params"]["new"] = jnp.ones(3)
    state["opt_state"][0].mu["embed"] = jnp.ones((50, 8), jnp.bfloat16)
    report = json.loads(run(capsys, checkpoint, "--diff", save(tmp_path, state), "--json"))
    changes = {row["path"]: row["relative"] for row in report["changes"]}
    assert changes["params/layers/0/w"] == pytest.approx(0.25, rel=1e-6)
    assert changes["params/embed"] == 0 and changes["opt_state/0/count"] == 0
    assert changes["opt_state/0/mu/embed"] is None  # infinitely more than zero
    assert report["reshaped"] == [{"path": "params/layers/1/w", "before": [3, 8, 8], "after": [2, 8, 8]}]
    assert report["only_there"] == ["params/new"] and report["only_here"] == []
    text = run(capsys, checkpoint, "--diff", tmp_path / "checkpoint-7", "--param", "params/*")
    assert "params/layers/0/w  2.500e-01" in text and "opt_state" not in text
    assert f"only in {tmp_path / 'checkpoint-7'}: params/new" in text


def test_values_that_are_not_finite_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = make_state()
    state["params"]["embed"] = state["params"]["embed"].at[3, :2].set(jnp.nan).at[4, 0].set(jnp.inf)
    folder = save(tmp_path, state)
    assert "(3 not finite)" in run(capsys, folder, "--param", "params/embed")
    row = json.loads(run(capsys, folder, "--param", "params/embed", "--json"))["arrays"][0]
    assert row["norm"] is None and row["nonfinite"] == 3


def write_safetensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    header, end = {}, 0
    for name, (dtype, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in tensors.values():
            file.write(array.tobytes())


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    weights = {f"model.layers.{i}.mlp.weight": ("BF16", rng.normal(size=(4, 5)).astype(jnp.bfloat16)) for i in range(2)}
    weights |= {"model.embed_tokens.weight": ("F32", np.ones((3, 3), np.float32)), "step": ("I64", np.array(9))}
    write_safetensors(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    return tmp_path


def test_a_hugging_face_folder_is_read_from_its_headers(hugging_face: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, hugging_face, "--json"))
    rows = {row["path"]: row for row in report["arrays"]}
    assert rows["model.embed_tokens.weight"]["norm"] == 3.0
    assert rows["model.layers.1.mlp.weight"]["dtype"] == "bfloat16"
    assert report["config"] == {"model_type": "gemma3_text"}
    assert {group["group"] for group in report["groups"]} == {"model.layers", "model.embed_tokens", "step"}
    assert "model_type: gemma3_text" in run(capsys, hugging_face)


def test_a_cut_safetensors_file_is_named(hugging_face: Path) -> None:
    path = hugging_face / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="model.safetensors"):
        main([str(hugging_face)])


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jax_rl.inspect_checkpoint", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("damage", ["_METADATA", "d"])
def test_a_damaged_checkpoint_ends_with_2_and_no_traceback_of_ours(tmp_path: Path, damage: str) -> None:
    # in a process of its own: Orbax leaves threads behind that fail later
    folder = save(tmp_path, make_state())
    victim = folder / "state" / damage
    for path in victim.iterdir() if victim.is_dir() else [victim]:
        path.unlink()
    done = run_command(folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {folder / 'state'} is damaged" in done.stderr and "inspect_checkpoint.py" not in done.stderr


def test_two_that_have_nothing_in_common(checkpoint: Path, hugging_face: Path) -> None:
    with pytest.raises(UserError, match="no array in common"):
        main([str(checkpoint), "--diff", str(hugging_face), "--param", "params|model"])


def test_a_folder_that_is_no_checkpoint_ends_with_2_and_one_line(tmp_path: Path) -> None:
    done = run_command(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "is not a checkpoint" in done.stderr and str(tmp_path) in done.stderr


def test_what_looks_a_little_like_a_checkpoint_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "none", tmp_path / "meta.json"):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            main([str(folder)])


def test_help_needs_no_jax() -> None:
    code = "import sys; from jax_rl.inspect_checkpoint import main\ntry: main(['--help'])\n"
    code += "finally: assert not {'jax', 'orbax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


MEASURE = """
import re, sys
from pathlib import Path
from jax_rl import checkpoint_view
from jax_rl.inspect_checkpoint import main

def memory(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use
before = memory("VmRSS")
main(sys.argv[1:])
print(memory("VmHWM") - before, file=sys.stderr)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's memory figures")
def test_the_memory_does_not_grow_with_the_number_of_arrays(tmp_path: Path) -> None:
    big = {f"w{i}": np.full((2048, 2048), i, np.float32) for i in range(20)}  # 20 x 16 MiB
    give_back = {
        "MALLOC_MMAP_THRESHOLD_": str(1 << 20)
    }  # freed blocks return to the system: what is measured is in use
    run_folder, hub = tmp_path / "run", tmp_path / "hub"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(run_folder / "state", {"params": big})
        checkpointer.wait_until_finished()
    (run_folder / "meta.json").write_text(json.dumps(META))
    hub.mkdir()
    write_safetensors(hub / "model.safetensors", {name: ("F32", array) for name, array in big.items()})
    (hub / "config.json").write_text("{}")
    for arguments in ([hub], [run_folder, "--diff", run_folder]):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *map(str, arguments)],
            capture_output=True, text=True, timeout=120, env=os.environ | give_back,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        growth = int(done.stderr.splitlines()[-1])
        assert growth < 128, f"{growth} MiB more for {arguments}; one array is 16, all together are 320"
