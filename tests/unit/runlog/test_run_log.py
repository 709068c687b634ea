"""The run log as a whole: a killed and resumed run leaves what an uninterrupted one does."""

import json
import math
import re
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from jax_rl.config import Config
from jax_rl.runlog.progress import RunProgress
from jax_rl.runlog.run_log import RunLog
from jax_rl.runlog.tensorboard import Scalars

CFG = replace(Config(), rl=replace(Config().rl, updates=12))


def row_of(update: int) -> dict:
    return {"reward_mean": update / 2, "kl_to_reference": 0.01 * update, "rollout_tokens_per_second": None, "name": "x"}


def run_updates(folder: Path, first: int, last: int, resume_update: int | None) -> None:
    with RunLog(folder, CFG, resume_update) as log:
        for update in range(first, last + 1):
            log.train(update, row_of(update))
            log.rollouts([{"update": update, "completion_text": f"{k}"} for k in range(2)])
            if update % 4 == 0:
                log.evaluation(update, {"model_select_score": 1.0 + update})
                log.eval_outputs([{"update": update, "completion_text": "y"}])


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    run_updates(whole, 1, 12, None)
    run_updates(broken, 1, 7, None)
    with open(broken / "train_log.jsonl", "ab") as file:
        file.write(b'{"type": "train", "upd')  # what a kill leaves
    run_updates(broken, 5, 12, resume_update=4)
    for name in ("train_log.jsonl", "train_rollouts.jsonl", "eval_outputs.jsonl"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    rows = [json.loads(line) for line in (whole / "train_log.jsonl").read_text().splitlines()]
    assert [(row["type"], row["update"]) for row in rows[3:5]] == [("train", 4), ("eval", 4)]
    assert scalars(broken / "tensorboard", "train/reward_mean") == [(u, u / 2) for u in range(1, 13)]
    assert scalars(broken / "tensorboard", "eval/model_select_score") == [(4, 5.0), (8, 9.0), (12, 13.0)]


def test_a_new_run_in_an_old_folder_keeps_the_old_log(tmp_path: Path) -> None:
    run_updates(tmp_path, 1, 3, None)
    old = (tmp_path / "train_log.jsonl").read_bytes()
    run_updates(tmp_path, 1, 2, None)
    assert (tmp_path / "train_log.jsonl.old-1").read_bytes() == old
    assert scalars(tmp_path / "tensorboard", "train/reward_mean") == [(1, 0.5), (2, 1.0)]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself shows."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulators.EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_gets_finite_numbers_alone(tmp_path: Path) -> None:
    writer = Scalars(tmp_path, None)
    writer.write(0, "eval", {"good": 2.5, "bad": math.nan, "none": None, "flag": True, "text": "x", "list": [1.0]})
    # no close: what was written is on disk already
    assert scalars(tmp_path, "eval/good") == [(0, 2.5)]
    with pytest.raises(KeyError):
        scalars(tmp_path, "eval/bad")
    writer.close()


def test_without_tensorboard_there_is_no_folder(tmp_path: Path) -> None:
    cfg = replace(CFG, logging=replace(CFG.logging, tensorboard=False))
    with RunLog(tmp_path, cfg, None) as log:
        log.train(1, row_of(1))
    assert [path.name for path in tmp_path.iterdir()] == ["train_log.jsonl"]


def test_progress_without_a_terminal_is_plain_lines() -> None:
    out = StringIO()
    with RunProgress(4, done=1, console=Console(file=out, width=30)) as progress:
        progress.advance(2, {"reward_mean": -1.23456, "kl_to_reference": 0.00123, "rollout_tokens_per_second": 12345.6})
        progress.say("a remark that is longer than the window is wide")
        time.sleep(0.6)
        progress.advance(3, {"reward_mean": None})
        progress.advance(4, {"reward_mean": None})
    first, remark, second, last = out.getvalue().splitlines()
    assert (
        first == "update 2/4  reward -1.235  KL 0.0012  12,346 tokens/s  ? left"
    )  # it compiles: no measure of the rest
    assert re.fullmatch(r"update 3/4  .*  0:00:0[1-9] left", second)
    assert remark == "a remark that is longer than the window is wide"
    assert last == "update 4/4  reward -  KL -  - tokens/s  0:00:00 left"
    assert "\x1b" not in out.getvalue()


def test_progress_on_a_terminal_is_a_bar() -> None:
    out = StringIO()
    with RunProgress(4, console=Console(file=out, width=100, force_terminal=True)) as progress:
        progress.advance(2, {"reward_mean": 1.5, "kl_to_reference": 0.25, "rollout_tokens_per_second": 10})
        progress.say("[not markup]")
    text = out.getvalue()
    assert "2/4" in text and "reward 1.500" in text and "KL 0.25" in text and "left" in text
    assert "[not markup]" in text and "\x1b[" in text
