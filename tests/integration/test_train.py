"""Runs of the toy config through the command line: what is written, what must not matter, what is refused."""

import gzip
import importlib.util
import json
import shutil

import numpy as np
import pytest
import yaml

from jax_rl import train
from jax_rl.config import load_config
from jax_rl.models.hf_checkpoint import load_model

PHASES = ("rollout", "reference", "score_wait", "advantages", "update")


def test_what_a_run_leaves_behind(tmp_path, start_training, repo):
    out = tmp_path / "run"
    overrides = ["logging.tensorboard=true", "logging.keep_last_n_checkpoints=2", "misc.profile_updates=[2]"]
    run = start_training(out, *overrides, workers=False)
    assert run.finish() == 0, run.stderr[-3000:]
    names = {p.name for p in out.iterdir()}
    assert names >= {"resolved_config.yaml", "train_log.jsonl", "train_rollouts.jsonl", "eval_outputs.jsonl"}
    assert names >= {"tensorboard", "checkpoint-4", "checkpoint-6", "resume_latest", "best", "final"}
    assert "checkpoint-2" not in names and not [n for n in names if n.startswith(".")]
    updates = [("train", n) for n in range(1, 7)]
    assert run.kinds() == [("eval", 0), *updates[:3], ("eval", 3), *updates[3:], ("eval", 6)]
    required = (
        "rollout_avg_completion_len adv_raw_mean adv_raw_std adv_norm_mean adv_norm_std policy_loss approx_kl "
        "clip_fraction entropy kl_to_reference token_count metricx_score_mean metricx_score_std metricx_reward_mean "
        "metricx_reward_std xcomet_score_mean xcomet_score_std mqm_score_mean mqm_score_std token_rewards_mean "
        "token_rewards_std token_rewards_non_zero_ratio span_minor_mean span_major_mean span_critical_mean "
        "learning_rate grad_norm zero_variance_group_fraction truncated_fraction unscored_fraction"
    ).split()
    with open(out / "train_log.jsonl") as file:
        train_row = next(row for row in map(json.loads, file) if row["type"] == "train")
    assert not set(required) - train_row.keys()
    assert train_row["sampler_logp_gap"] < 1e-4, "what the sampler computed is what the trainer computes"
    phases = {k: v for k, v in train_row.items() if k.startswith("seconds_") and "scoring" not in k}
    assert phases.keys() >= {f"seconds_{name}" for name in (*PHASES, "total")}
    assert sum(phases.values()) - phases["seconds_total"] <= phases["seconds_total"], "phases follow one another"
    assert 0 <= train_row["seconds_scoring_overlapped"] <= train_row["seconds_scoring"] + 1e-9
    rollouts = [json.loads(line) for line in (out / "train_rollouts.jsonl").read_text().splitlines()]
    assert len(rollouts) == 6 * 2 * 2
    assert {"completion_text", "scores", "spans", "advantage", "finish_reason"} <= rollouts[0].keys()
    assert_transformers_loads(out / "final")
    again = load_config(out / "resolved_config.yaml")
    assert again.rl.updates == 6 and again.logging.output_dir == str(out)
    assert_profile(out / "profile", repo)


def assert_profile(folder, repo):
    """Update 2 alone is traced: the trainer's phases on the host's lines, the programs' scopes on the device's."""
    (trace,) = folder.rglob("*.trace.json.gz")
    assert trace.is_relative_to(folder / "update-2")
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert names >= {"train", "score_chrf", *PHASES}
    spec = importlib.util.spec_from_file_location("profile_table", repo / "scripts" / "profile_table.py")
    profile_table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(profile_table)
    seconds = profile_table.device_seconds(folder / "update-2")
    scopes = {scope for path in seconds for scope in path.removesuffix(" (backward)").split("/")}
    assert scopes >= profile_table.SCOPES - {"logprobs", "linear_attention", "loss", "resize"}
    assert seconds["(no scope)"] < 0.3 * sum(seconds.values())


def assert_transformers_loads(folder):
    """The exported policy gives the same logits in transformers."""
    import jax.numpy as jnp
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = AutoTokenizer.from_pretrained(folder)("Open the file 파일", return_tensors="np")["input_ids"]
    model, params = load_model(folder, jnp.float32)
    hidden, _ = model.forward(params, jnp.asarray(text, jnp.int32), jnp.arange(text.shape[1])[None])
    ours = np.asarray(model.logits(params, hidden))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        np.testing.assert_allclose(ours, theirs(torch.tensor(text)).logits.numpy(), atol=1e-4)


def test_a_finished_run_started_again_changes_nothing(tmp_path, start_training):
    first = start_training(tmp_path / "run", "rl.updates=2", workers=False)
    assert first.finish() == 0, first.stderr[-3000:]
    log, weights = first.log(), (tmp_path / "run/final/model.safetensors").read_bytes()
    again = start_training(tmp_path / "run", "rl.updates=2", workers=False)
    assert again.finish() == 0, again.stderr[-3000:]
    assert again.log() == log
    assert (tmp_path / "run/final/model.safetensors").read_bytes() == weights
    evaluation = start_training(tmp_path / "run", "rl.updates=2", "eval.eval_limit=9", "--eval-only", workers=False)
    assert evaluation.finish() == 0, evaluation.stderr[-3000:]
    *before, row = evaluation.log()
    assert before == log and row["eval_only"] and row["type"] == "eval" and row["update"] == 2
    assert row["examples"] > row["examples_paired"] == log[0]["examples"], "the change is over those of update 0"
    branch = start_training(
        tmp_path / "branch",
        f"logging.resume_from_checkpoint={tmp_path / 'run' / 'checkpoint-2'}",
        "logging.save_only_best=true",
        "rl.updates=3",
        "rl.lr=1e-12",
        workers=False,
    )
    assert branch.finish() == 0, branch.stderr[-3000:]
    assert (tmp_path / "branch/best/model.safetensors").is_file(), "no better than the one of the other folder"
    over = start_training(tmp_path / "run", "rl.updates=1", "logging.auto_resume=false", workers=False)
    assert over.finish() == 0, over.stderr[-3000:]
    assert (tmp_path / "run/final.old-1/model.safetensors").read_bytes() == weights
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names >= {"final", "best", "best.old-1", "train_log.jsonl.old-1", "checkpoint-1", "checkpoint-2.old-1"}


def test_a_judge_that_fails_in_an_evaluation_costs_no_update(tmp_path, start_training, chat_server, reply):
    """Its server breaks in the last evaluation of a run that saves at its end alone; the same command goes on."""
    out = tmp_path / "run"
    (tmp_path / "prompt.json").write_text('[{"role": "user", "content": "{source_seg} = {target_seg}"}]')
    mqm = {"enabled": True, "base_url": chat_server.base_url, "model_name": "judge", "max_retries": 0}
    overrides = [
        f"reward.mqm={json.dumps(mqm | {'prompt_file': str(tmp_path / 'prompt.json')})}",
        "reward.w_mqm_seq=1",
        "rl.updates=2",
        "eval.num_samples_per_prompt=1",
        "eval.baseline_temperature=null",
        "logging.save_every_n_updates=0",
        "logging.save_only_best=true",
    ]
    first = start_training(out, *overrides, workers=False)
    broken = reply(status=400, body="broken")
    trained = [("eval", 0), ("train", 1), ("train", 2)]
    chat_server.respond = lambda request: broken if first.kinds() == trained else reply.chat("no-error")
    assert first.finish() == 1 and "HTTP 400" in first.stderr
    assert first.kinds() == trained
    chat_server.respond = lambda request: reply.chat("no-error")
    rows, refused = first.log(), chat_server.requests[-1]["messages"]
    again = start_training(out, *overrides, workers=False)
    assert again.finish() == 0, again.stderr[-3000:]
    assert "at update 2" in again.stderr and again.log()[:3] == rows and again.kinds() == [*trained, ("eval", 2)]
    asked = [request["messages"] for request in chat_server.requests if request["messages"] != refused]
    assert len(asked) == len({json.dumps(messages) for messages in asked}), "nothing that was answered is asked again"
    assert not [p.name for p in out.iterdir() if p.name == "final" or p.name.startswith("checkpoint-")]
    assert_transformers_loads(out / "best")
    third = start_training(out, *overrides, workers=False)
    assert third.finish() == 0 and third.log() == again.log(), "what was made up for is saved"


def test_micro_batches_change_no_loss(tmp_path, start_training):
    """Micro-batches of 4 completions, of 1, and packed under a budget that takes several: the same samples, and losses
    equal to 1e-5."""
    logs = []
    for name, size in (("micro_batch_size", 4), ("micro_batch_size", 1), ("micro_batch_tokens", 64)):
        run = start_training(tmp_path / f"{name}-{size}", f"rl.{name}={size}", "rl.updates=3", workers=False)
        assert run.finish() == 0, run.stderr[-3000:]
        logs.append([row for row in run.log() if row["type"] == "train"])
    for expected, *others in zip(*logs, strict=True):
        for row in others:
            assert row["rollout_avg_completion_len"] == expected["rollout_avg_completion_len"]
            for name in ("loss", "policy_loss", "entropy", "kl_to_reference", "grad_norm"):
                np.testing.assert_allclose(row[name], expected[name], atol=1e-5, rtol=1e-5, err_msg=name)


def test_too_few_scores_stop_the_run_with_its_state_saved(tmp_path, start_training):
    """No example has a reference, so chrF, the only reward, is missing for every completion."""
    rows = [{"id": i, "src_text": f"File {i}"} for i in range(8)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    overrides = [f"data.train_file={data}", f"data.eval_file={data}", "data.limit=8", "eval.run_before_train=false"]
    run = start_training(out, *overrides, workers=False)
    assert run.finish() == 1
    assert "only 0 of 4 completions have a score, less than reward.min_scored_fraction 0.5" in run.stderr
    assert "4 x chrf: " in run.stderr
    assert (out / "checkpoint-0" / "meta.json").is_file()


@pytest.fixture
def toy_text(repo) -> str:
    """The toy config for a file in any folder."""
    text = (repo / "configs" / "train_toy.yaml").read_text()
    return text.replace("../", f"{repo}/").replace(" ./toy/", f" {repo}/configs/toy/")


@pytest.fixture
def bad_run(tmp_path, toy_text, capsys):
    """Runs the command with a changed toy config; returns (exit code, stderr, whether anything was written)."""

    def run(*overrides: str) -> tuple[int, str, bool]:
        config = tmp_path / "bad.yaml"
        config.write_text(toy_text)
        code = train.main(["--config", str(config), f"logging.output_dir={tmp_path / 'out'}", *overrides])
        return code, capsys.readouterr().err, (tmp_path / "out").exists()

    return run


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.updats=3", "rl.updates"),
        ("rl.updates=many", "rl.updates"),
        ("data.train_file=/nowhere/train.jsonl", "/nowhere/train.jsonl"),
        ("prompt.template=Translate", "{text}"),
        ("model.reference_gpu_ids=[1, 2]", "model.reference_gpu_ids"),
        ("model.policy_name_or_path=/nowhere/policy", "/nowhere/policy"),
        ("logging.resume_from_checkpoint={folder}", "is not a checkpoint"),
    ],
)
def test_bad_values_are_refused_with_one_message(bad_run, tmp_path, override, message):
    overrides = [override.replace("{folder}", str(tmp_path))]
    if "gpu_ids" in override:
        overrides.append("model.policy_gpu_ids=[0, 1]")
    code, stderr, wrote = bad_run(*overrides)
    assert code == 2
    assert message in stderr and "Traceback" not in stderr
    assert not wrote


def test_no_reward_enabled_is_refused(bad_run):
    metrics = [f"reward.{name}.enabled=false" for name in ("metricx", "xcomet", "mqm", "chrf")]
    code, stderr, wrote = bad_run(*metrics)
    assert code == 2 and "reward" in stderr and "Traceback" not in stderr and not wrote


def test_a_broken_row_is_refused_with_file_and_line(bad_run, tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"src_text": "one"}\n{"src_text": "two"\n')
    code, stderr, wrote = bad_run(f"data.train_file={data}")
    assert code == 2 and f"{data}, line 2: broken JSON" in stderr and "Traceback" not in stderr and not wrote


def test_a_tokenizer_of_another_model_is_refused(bad_run, tmp_path, repo):
    """Its ids would read past the embedding."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(repo / "configs/toy/policy", folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {"id": 99_999, "content": "<far>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(added | {"normalized": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 99_999]}))
    code, stderr, wrote = bad_run(f"model.tokenizer_name_or_path={folder}")
    assert code == 2 and "gives id 99999, but the policy's vocabulary ends at" in stderr
    assert "Traceback" not in stderr and not wrote


def test_a_start_that_fails_does_not_wait_for_the_workers(bad_run, tmp_path, small_policy):
    """The reference is refused while a worker still loads."""
    program = tmp_path / "slow"
    program.write_text(f"#!/bin/sh\nsleep 60\ntouch {tmp_path / 'loaded'}\n")
    program.chmod(0o755)
    overrides = [f"model.reference_name_or_path={small_policy}", "rl.kl_coef=0.1", "reward.xcomet.enabled=false"]
    code, stderr, _ = bad_run(*overrides, f"reward.metricx.python_executable={program}")
    assert code == 2 and "is not the same architecture" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "loaded").exists()


def test_eval_only_prints_a_table_and_updates_nothing(tmp_path, repo, small_policy, capsys):
    unfinished = tmp_path / "out" / ".resume_latest.new-7" / "state"  # of a trainer that is saving
    unfinished.mkdir(parents=True)
    code = train.main(
        [
            "--config",
            str(repo / "configs/train_toy.yaml"),
            "--eval-only",
            f"model.policy_name_or_path={small_policy}",
            f"logging.output_dir={tmp_path / 'out'}",
            "reward.metricx.enabled=false",
            "reward.xcomet.enabled=false",
            "reward.w_chrf=1.0",
            "eval.eval_limit=4",
            "eval.num_samples_per_prompt=2",
            "logging.save_eval_outputs=true",
        ]
    )
    assert code == 0
    assert "chrF" in capsys.readouterr().out
    assert unfinished.exists() and not list((tmp_path / "out").glob("checkpoint-*"))
    with open(tmp_path / "out/eval_outputs.jsonl") as file:
        outputs = [json.loads(line) for line in file]
    assert [row["decoding"] for row in outputs] == ["greedy"] * 4 + ["sampled"] * 8
    assert all(row["completion_text"] is not None and "chrf" in row["scores"] for row in outputs)


def test_secrets_reach_no_file_and_no_log(tmp_path, start_training, toy_text):
    secret = "sk-very-secret-0123456789"
    config = tmp_path / "secret.yaml"
    config.write_text(toy_text.replace("\nmisc:\n", f"\nmisc:\n  huggingface_token: {secret}\n"))
    run = start_training(tmp_path / "run", "rl.updates=1", workers=False, config=config)
    assert run.finish() == 0, run.stderr[-3000:]
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or secret.encode() not in path.read_bytes(), f"{path} holds the token"
    assert secret not in run.stderr
    meta = json.loads((tmp_path / "run/checkpoint-1/meta.json").read_text())
    assert meta["update"] == 1 and meta["config"]["rl"]["updates"] == 1
    assert yaml.safe_load((tmp_path / "run/resolved_config.yaml").read_text()) == meta["config"]
