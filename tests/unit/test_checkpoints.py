"""Checkpoints appear whole or not at all, and what comes back is what went in."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_rl.checkpoints import CheckpointError, Checkpoints, is_checkpoint, read_meta, restore


def state(value: float) -> dict:
    return {
        "params": {"w": jnp.full((64, 8), value, jnp.bfloat16), "blocks": {"0": jnp.arange(6.0) * value}},
        "step": jnp.int32(value),
    }


def zeros():
    return jax.tree.map(jnp.zeros_like, state(1))


def test_what_is_restored_is_what_was_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(3), {"update": 7, "note": "한국어"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-7", "resume_latest"]
    for name in ("checkpoint-7", "resume_latest"):
        restored, meta = restore(tmp_path / name, zeros())
        jax.tree.map(np.testing.assert_array_equal, restored, state(3))
        assert jax.tree.map(lambda a: a.dtype, restored) == jax.tree.map(lambda a: a.dtype, state(3))
        assert meta["update"] == 7 and meta["note"] == "한국어"


def test_numbered_checkpoint_shares_its_bytes_with_resume_latest(tmp_path):
    Checkpoints(tmp_path).save(state(1), {"update": 1})
    files = {
        name: {p.stat().st_ino for p in (tmp_path / name).rglob("*") if p.is_file()} for name in os.listdir(tmp_path)
    }
    assert files["checkpoint-1"] == files["resume_latest"]


def test_a_later_save_leaves_earlier_checkpoints_as_they_were(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), {"update": 1})
    checkpoints.save(state(2), {"update": 2})
    assert checkpoints.newest() in (tmp_path / "resume_latest", tmp_path / "checkpoint-2")
    restored, _ = restore(tmp_path / "checkpoint-1", zeros())
    jax.tree.map(np.testing.assert_array_equal, restored, state(1))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, ["checkpoint-1", "checkpoint-2", "checkpoint-10", "resume_latest"]),
        ({"keep_last": 2}, ["checkpoint-2", "checkpoint-10", "resume_latest"]),
        ({"resume_only": True}, ["resume_latest"]),
    ],
)
def test_what_is_kept(tmp_path, options, left):
    checkpoints = Checkpoints(tmp_path, **options)
    for update in (1, 2, 10):
        checkpoints.save(state(update), {"update": update})
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(left)
    assert read_meta(checkpoints.newest())["update"] == 10


def test_newest_counts_updates_not_names_and_ignores_torn_folders(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for update in (9, 10):
        checkpoints.save(state(update), {"update": update})
    torn = tmp_path / "checkpoint-11"
    torn.mkdir()
    (torn / "state").mkdir()
    (tmp_path / "resume_latest" / "meta.json").unlink()
    assert checkpoints.newest() == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("options", ["", "resume_only=True"])
def test_sigkill_while_saving_leaves_a_whole_checkpoint(tmp_path, options):
    """A child saves without end and is killed at a random moment, many times over: no start may find a torn one."""
    child = textwrap.dedent(
        f"""
        import sys
        import jax.numpy as jnp
        from jax_rl.checkpoints import Checkpoints, read_meta, restore
        checkpoints = Checkpoints({str(tmp_path)!r}, {options})
        checkpoints.mend()
        newest = checkpoints.newest()
        update = 0
        if newest is not None:
            like = {{"w": jnp.zeros(1000), "update": jnp.int32(0)}}
            restored, meta = restore(newest, like)
            update = meta["update"]
            assert int(restored["update"]) == update and float(restored["w"][0]) == update, "torn"
        print("started", update, flush=True)
        while True:
            update += 1
            checkpoints.save({{"w": jnp.full(1000, float(update)), "update": jnp.int32(update)}}, {{"update": update}})
            print("saved", update, flush=True)
        """
    )
    rng = np.random.default_rng(0)
    promised = 0
    for _ in range(4):
        with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            started = process.stdout.readline().split()
            assert started and started[0] == "started"
            assert int(started[1]) >= promised, "a save that was reported is gone"
            for _ in range(3):
                promised = int(process.stdout.readline().split()[1])
            time.sleep(rng.uniform(0, 0.05))  # a moment inside the next save
            process.kill()
            for line in process.stdout.read().splitlines():
                if line.startswith("saved"):
                    promised = int(line.split()[1])


def test_a_kill_while_meta_is_written_costs_no_earlier_checkpoint(tmp_path):
    """A full disk or a kill in the middle of the last file, and then several starts."""
    checkpoints = Checkpoints(tmp_path, resume_only=True)
    checkpoints.save(state(1), {"update": 1})
    torn = tmp_path / ".resume_latest.new-2"
    shutil.copytree(tmp_path / "resume_latest", torn)
    (torn / "meta.json").unlink()
    (torn / "meta.json.part").write_text('{"update": 2, "conf')
    for _ in range(2):
        checkpoints.mend()
        assert read_meta(checkpoints.newest())["update"] == 1
        restore(checkpoints.newest(), zeros())
    assert [p.name for p in tmp_path.iterdir()] == ["resume_latest"]


def test_a_damaged_unpublished_checkpoint_replaces_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1), {"update": 1})
    shutil.copytree(tmp_path / "resume_latest", tmp_path / ".resume_latest.new-2")
    (tmp_path / ".resume_latest.new-2" / "meta.json").write_text('{"update": 2, "conf')
    for _ in range(2):
        with pytest.raises(CheckpointError, match="cannot be read"):
            checkpoints.mend()
        assert read_meta(tmp_path / "resume_latest")["update"] == 1


def test_who_only_reads_disturbs_no_save(tmp_path):
    Checkpoints(tmp_path).save(state(1), {"update": 1})
    unfinished = tmp_path / ".resume_latest.new-2" / "state"
    unfinished.mkdir(parents=True)
    reader = Checkpoints(tmp_path)
    assert read_meta(reader.newest())["update"] == 1 and unfinished.exists()
    (tmp_path / "checkpoint-1").rename(tmp_path / "elsewhere")
    (tmp_path / "resume_latest").rename(tmp_path / ".resume_latest.old")  # between the writer's two renames
    assert read_meta(reader.newest())["update"] == 1
    assert Checkpoints(tmp_path / "nothing").newest() is None and not (tmp_path / "nothing").exists()


def test_a_part_of_the_state_can_be_restored_alone(tmp_path):
    Checkpoints(tmp_path).save(state(3), {"update": 3})
    restored, _ = restore(tmp_path / "checkpoint-3", {"params": zeros()["params"]})
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": state(3)["params"]})


def test_a_run_that_starts_over_sets_later_checkpoints_aside(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for update in (1, 2, 3):
        checkpoints.save(state(update), {"update": update})
    renamed = checkpoints.set_aside_after(1)
    assert sorted(p.name for p in renamed) == ["checkpoint-2.old-1", "checkpoint-3.old-1", "resume_latest.old-1"]
    assert checkpoints.newest() == tmp_path / "checkpoint-1"
    checkpoints.save(state(2), {"update": 2})
    assert read_meta(checkpoints.newest())["update"] == 2
    restored, _ = restore(tmp_path / "checkpoint-3.old-1", zeros())
    jax.tree.map(np.testing.assert_array_equal, restored, state(3))


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere is not a checkpoint: it does not exist"):
        restore(tmp_path / "nowhere", zeros())
    with pytest.raises(CheckpointError, match="is not a checkpoint: it has no meta.json"):
        restore(tmp_path, zeros())
    assert not is_checkpoint(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    Checkpoints(tmp_path).save(state(1), {"update": 1})
    other = {"params": {"w": jnp.zeros((4, 4))}, "step": jnp.int32(0)}
    with pytest.raises(CheckpointError, match="does not fit this model"):
        restore(tmp_path / "checkpoint-1", other)


def test_broken_meta_is_an_error_that_names_the_file(tmp_path):
    Checkpoints(tmp_path).save(state(1), {"update": 1})
    (tmp_path / "checkpoint-1" / "meta.json").write_text(json.dumps({"update": 1})[:-3])
    with pytest.raises(CheckpointError, match="meta.json cannot be read"):
        read_meta(tmp_path / "checkpoint-1")
