"""Scoring beside generation: a judge that answers only when the last chunk of prompts is decoded holds nobody up."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jax_rl import train
from jax_rl.rollout.engine import RolloutEngine

NO_ERROR = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "no-error"}, "finish_reason": "stop"}]}
CHUNKS = 2


class Judge(ThreadingHTTPServer):
    """An OpenAI-compatible server on loopback that answers nothing until `decoded` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.events: list[str] = []
        self.decoded = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Judge

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.events.append("asked")
        self.server.decoded.wait(300)
        body = json.dumps({"id": "1", "object": "chat.completion", **NO_ERROR}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    server = Judge()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.decoded.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_finished_chunk_is_scored_while_the_next_is_decoded(repo, tmp_path, judge, monkeypatch):
    generate = RolloutEngine.generate

    def recorded(*args, **kwargs):
        generated = generate(*args, **kwargs)
        judge.events.append("decoded")
        if judge.events.count("decoded") == CHUNKS:
            judge.decoded.set()
        return generated

    monkeypatch.setattr(RolloutEngine, "generate", recorded)
    (tmp_path / "prompt.json").write_text('[{"role": "user", "content": "{source_seg} = {target_seg}"}]')
    mqm = {
        "enabled": True,
        "base_url": f"http://127.0.0.1:{judge.server_port}/v1",
        "model_name": "judge",
        "prompt_file": str(tmp_path / "prompt.json"),
        "timeout_sec": 400,
    }
    overrides = {
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
    first_question, last_chunk = judge.events.index("asked"), [i for i, e in enumerate(judge.events) if e == "decoded"]
    assert last_chunk[0] < first_question < last_chunk[1]
    with open(tmp_path / "run" / "train_log.jsonl") as file:
        row = json.loads(file.readline())
    assert row["type"] == "train" and row["mqm_score_mean"] == 0
    assert 0 < row["seconds_scoring_overlapped"] <= row["seconds_scoring"]
    assert row["scoring_overlap"] == pytest.approx(row["seconds_scoring_overlapped"] / row["seconds_scoring"])
