"""Scoring beside generation: a judge that answers only when the last chunk of prompts is decoded holds nobody up."""

import json
import threading

import pytest

from jax_rl import train
from jax_rl.rollout.engine import RolloutEngine

CHUNKS = 2


def test_a_finished_chunk_is_scored_while_the_next_is_decoded(
    repo, small_policy, tmp_path, chat_server, reply, monkeypatch
):
    events, decoded, generate = [], threading.Event(), RolloutEngine.generate

    def answer(request):
        events.append("asked")
        return reply.chat("no-error", until=decoded.is_set, until_sec=300)

    def recorded(*args, **kwargs):
        generated = generate(*args, **kwargs)
        events.append("decoded")
        if events.count("decoded") == CHUNKS:
            decoded.set()
        return generated

    chat_server.respond = answer
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(RolloutEngine, "generate", recorded)
    (tmp_path / "prompt.json").write_text('[{"role": "user", "content": "{source_seg} = {target_seg}"}]')
    mqm = {
        "enabled": True,
        "base_url": chat_server.base_url,
        "model_name": "judge",
        "prompt_file": str(tmp_path / "prompt.json"),
        "timeout_sec": 400,
    }
    overrides = {
        "model.policy_name_or_path": str(small_policy),
        "data.limit": 8,
        "generation": {"max_new_tokens": 16, "num_samples_per_prompt": 4, "prompts_per_batch": 2},
        "reward": {"w_mqm_seq": 1.0, "metricx": {"enabled": False}, "xcomet": {"enabled": False}, "mqm": mqm},
        "rl.updates": 1,
        "rl.batch_size": 2 * CHUNKS,
        "eval": {"eval_limit": 1, "run_before_train": False, "eval_every_n_updates": 0, "num_samples_per_prompt": 1},
        "eval.baseline_temperature": None,
        "logging": {"output_dir": str(tmp_path / "run"), "tensorboard": False},
        "misc.compilation_cache_dir": str(repo / ".cache" / "programs"),
    }
    arguments = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    assert train.main(["--config", str(repo / "configs" / "train_toy.yaml"), *arguments]) == 0
    first_question, last_chunk = events.index("asked"), [i for i, e in enumerate(events) if e == "decoded"]
    assert last_chunk[0] < first_question < last_chunk[1]
    with open(tmp_path / "run" / "train_log.jsonl") as file:
        row = json.loads(file.readline())
    assert row["type"] == "train" and row["mqm_score_mean"] == 0
    assert 0 < row["seconds_scoring_overlapped"] <= row["seconds_scoring"]
    assert row["scoring_overlap"] == pytest.approx(row["seconds_scoring_overlapped"] / row["seconds_scoring"])
