"""The client against real processes that really fail."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jax_rl.config.schema import MetricXConfig, XCometConfig
from jax_rl.errors import UserError
from jax_rl.rewards.worker_client import (
    WorkerClient,
    WorkerFailed,
    WorkerStartError,
    worker_command,
    worker_environment,
)
from jax_rl.rewards.worker_process import WorkerCommand

WRAPPER = ("sh", "-c", '"$@"; exit $?', "sh")  # a program that stays in between, as ssh and srun do
FAKE_WORKER = str(Path(__file__).parents[1] / "reward_workers" / "fake_worker.py")


@pytest.fixture
def start(tmp_path):
    """Starts fake workers and, at the end, closes them and checks that no child is left."""
    clients = []

    def start_client(options=None, **settings):
        defaults = {"startup_seconds": 60, "request_seconds": 60, "max_restarts": 1, "silence_seconds": 30}
        name = f"fake{len(clients)}"
        client = WorkerClient(
            name,
            WorkerCommand((sys.executable, FAKE_WORKER)),
            {"pid_file": str(tmp_path / f"{name}.pid"), **(options or {})},
            environment=worker_environment("cpu"),
            log_path=tmp_path / f"{name}.log",
            **{**defaults, **settings},
        )
        clients.append(client)
        return client

    before = children()
    yield start_client
    for client in clients:
        client.close()
    assert children() == before


def children():
    """Process ids of all our children, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
            found |= set((task / "children").read_text().split())
    return found


def scores(answer):
    return [result["score"] for result in answer["results"]]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited for a minute"
        time.sleep(0.01)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # before it is opened, or between that and the reading
        return True


def kill_when(file, pid_file, number):
    """From a thread: sends the signal to the process named in `pid_file` as soon as `file` is there."""

    def kill():
        wait_for(file.exists)
        os.kill(int(pid_file.read_text()), number)

    threading.Thread(target=kill).start()


def test_noise_on_every_output_reaches_only_the_log(start, tmp_path):
    client = start()
    answer = client.score([{"mt": "가나다", "do": ["noise", 1 << 20]}, {"mt": "\u2028\n\x00ab"}])
    assert scores(answer) == [3.0, 5.0]
    log = (tmp_path / "fake0.log").read_bytes()
    assert b"noise before anything else" in log and b"from C" in log and b"x" * 1000 in log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_ends_or_stops_in_the_middle_of_a_request_is_replaced(start, tmp_path, caplog, number):
    client = start(silence_seconds=3)
    client.wait_until_ready()
    first_pid = int((tmp_path / "fake0.pid").read_text())
    kill_when(tmp_path / "asleep", tmp_path / "fake0.pid", number)
    with caplog.at_level(logging.INFO):
        answer = client.score([{"mt": "ab", "do": ["sleep once", str(tmp_path / "asleep")]}])
    assert scores(answer) == [2.0]
    assert answer["pid"] != first_pid and is_gone(first_pid)
    why = "was ended by signal 9 (SIGKILL)" if number == signal.SIGKILL else "no sign of life for 3 s"
    assert [record.message for record in caplog.records] == [f"fake0 worker: {why}; restart 1 of 1"]


def test_a_worker_killed_between_requests_is_replaced(start, tmp_path):
    client = start()
    first = client.score([{"mt": "a"}])["pid"]
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: is_gone(first))
    assert scores(client.score([{"mt": "abc"}])) == [3.0]
    assert client.restarts == 1


def test_too_slow_though_alive_and_the_next_request_gets_its_own_answer(start):
    client = start(request_seconds=2.5, silence_seconds=2, max_restarts=0)
    with pytest.raises(WorkerFailed, match=r"no answer within 2\.5 s"):
        client.score([{"mt": "slow", "do": ["sleep", 600]}])
    assert scores(client.score([{"mt": "ab"}])) == [2.0]


def test_a_request_that_always_kills_fails_after_the_restarts_and_harms_no_other(start, caplog):
    client = start(max_restarts=2)
    with pytest.raises(WorkerFailed, match="after 2 restarts: was ended by signal 9") as failure:
        client.score([{"mt": "poison", "do": ["signal", "SIGKILL"]}])
    assert "\n" not in str(failure.value)
    assert client.restarts == 2
    assert "noise before anything else" in caplog.records[-1].message  # the end of the worker's output
    assert scores(client.score([{"mt": "ab"}])) == [2.0]


def test_an_exception_in_the_worker_is_told_and_its_traceback_logged(start, tmp_path):
    client = start(max_restarts=0)
    with pytest.raises(WorkerFailed, match="ValueError: made up"):
        client.score([{"mt": "a", "do": ["raise", "made up"]}])
    assert "in act" in (tmp_path / "fake0.log").read_text()


def test_a_score_that_is_no_number_is_refused(start):
    client = start(max_restarts=0)
    with pytest.raises(WorkerFailed, match="not a message"):
        client.score([{"mt": "a", "do": ["nan", None]}])


def test_a_segmentation_fault_leaves_its_dump(start, caplog):
    client = start(max_restarts=0)
    with pytest.raises(WorkerFailed, match="SIGSEGV"):
        client.score([{"mt": "a", "do": ["segfault", None]}])
    assert "Fatal Python error: Segmentation fault" in caplog.records[-1].message


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("import error", r"ModuleNotFoundError: No module named 'no_such_module'[\s\S]*Traceback"),
        ("exit", "exit code 3"),
        ("hang", "no answer within 2 s"),
    ],
)
def test_a_worker_that_never_comes_up_is_an_error(start, how, message):
    client = start({"start": how}, startup_seconds=2 if how == "hang" else 60)
    with pytest.raises(WorkerStartError, match=message):
        client.wait_until_ready()
    with pytest.raises(WorkerStartError, match=message):
        client.score([{"mt": "a"}])


def test_a_model_that_changes_on_disk_is_not_taken_for_the_old_one(start, tmp_path):
    model = tmp_path / "model"
    model.write_text("old")
    client = start({"model_file": str(model)})
    assert client.wait_until_ready() == {"model": "old"}
    model.write_text("new")
    with pytest.raises(WorkerFailed, match="its model changed on disk"):
        client.score([{"mt": "a", "do": ["signal once", str(tmp_path / "killed")]}])


def test_two_workers_score_at_the_same_time(start, tmp_path):
    """Each answers only when the other has begun: one after the other would never end."""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    one, two = start(), start()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(one.score, [{"mt": "a", "do": ["meet", [a, b]]}])
        second = threads.submit(two.score, [{"mt": "bb", "do": ["meet", [b, a]]}])
        assert scores(first.result()) == [1.0] and scores(second.result()) == [2.0]


def test_a_worker_outlives_the_thread_that_had_it_restarted(start, tmp_path):
    client = start()
    pids = []
    for do in (["signal once", str(tmp_path / "killed")], ["nothing", None]):
        samples = [{"mt": "a", "do": do}]
        thread = threading.Thread(target=lambda samples=samples: pids.append(client.score(samples)["pid"]))
        thread.start()
        thread.join()
    assert pids[0] == pids[1] and client.restarts == 1


def test_close_ends_a_request_under_way(start, tmp_path):
    client = start()
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(client.score, [{"mt": "a", "do": ["sleep once", str(tmp_path / "asleep")]}])
        wait_for((tmp_path / "asleep").exists)
        client.close()
        with pytest.raises(WorkerFailed, match="was closed"):
            answer.result()
    assert is_gone(int((tmp_path / "fake0.pid").read_text()))


def test_close_while_the_worker_loads(start, tmp_path):
    client = start({"start": "hang"})
    wait_for((tmp_path / "fake0.pid").exists)
    client.close()
    with pytest.raises(WorkerStartError):
        client.wait_until_ready()


@pytest.mark.parametrize("wrapper", [(), WRAPPER], ids=["child", "behind a wrapper"])
def test_a_killed_trainer_takes_its_workers_with_it(tmp_path, wrapper):
    """One worker idle, one in the middle of a request, and SIGKILL for the process that started them."""
    code = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_worker_client import FAKE_WORKER, WRAPPER, WorkerClient, WorkerCommand, worker_environment
def start(name):
    command = WorkerCommand((*{wrapper!r}, sys.executable, FAKE_WORKER), {bool(wrapper)})
    return WorkerClient(name, command, {{}}, environment=worker_environment("cpu"),
        log_path=Path({str(tmp_path)!r}) / name, startup_seconds=60, request_seconds=600, max_restarts=0)
idle, busy = start("idle"), start("busy")
print(*[client.score([{{"mt": ""}}])["pid"] for client in (idle, busy)], flush=True)
busy.score([{{"mt": "", "do": ["sleep once", {str(tmp_path / "asleep")!r}]}}])
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with trainer:
        pids = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(pids) == 2
        wait_for((tmp_path / "asleep").exists)
        trainer.kill()
    wait_for(lambda: all(is_gone(pid) for pid in pids))


def test_the_log_does_not_grow_without_end(start, tmp_path):
    client = start()
    for _ in range(2):
        client.score([{"mt": "a", "do": ["noise", 9 << 20]}])
    client.score([{"mt": "a", "do": ["noise", 10]}])
    log = tmp_path / "fake0.log"
    assert log.stat().st_size < 1000 and "was dropped" in log.read_text()


def test_a_python_that_is_not_there():
    with pytest.raises(UserError, match=r"reward\.xcomet\.python_executable: /no/such/python is not a program"):
        worker_command("xcomet", XCometConfig(python_executable="/no/such/python"))


def test_without_python_executable_the_worker_runs_in_this_interpreter():
    assert worker_command("metricx", MetricXConfig()).arguments[0] == sys.executable


def test_the_command_behind_a_prefix():
    there = {"python_executable": "/opt/x/bin/python", "worker_folder": "/opt/x/reward workers", "device": "cuda:3"}
    srun = worker_command("metricx", MetricXConfig(command_prefix=("nice", "-n5"), **there))
    assert srun.elsewhere and srun.arguments[:3] == ("nice", "-n5", "env")
    assert "CUDA_VISIBLE_DEVICES=3" in srun.arguments
    assert srun.arguments[-3:] == ("/opt/x/bin/python", "/opt/x/reward workers", "metricx")


def test_ssh_gets_its_words_quoted(monkeypatch, tmp_path):
    (tmp_path / "ssh").write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')  # as ssh does: one line for a shell
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cfg = XCometConfig(command_prefix=("ssh", "aux"), python_executable="echo", worker_folder="/a b/$HOME")
    out = subprocess.run(worker_command("xcomet", cfg).arguments, capture_output=True, text=True, check=True)
    assert out.stdout == "/a b/$HOME xcomet\n"


def test_a_prefix_that_is_no_program():
    cfg = MetricXConfig(command_prefix=("no-such-launcher",), python_executable="python3")
    with pytest.raises(UserError, match=r"reward\.metricx\.command_prefix: no-such-launcher is not a program"):
        worker_command("metricx", cfg)


@pytest.fixture(params=["wrapper", "network namespace"])
def elsewhere(request):
    """A prefix whose program stays between us and the worker; or that gives it another network, with no way out."""
    if request.param == "wrapper":
        return WRAPPER
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make network namespaces")
    return ("unshare", "--net", *WRAPPER)


def test_a_worker_behind_a_prefix(elsewhere, tmp_path):
    """Noise on stdout does not reach the frames; after a SIGKILL a new one answers; closing leaves none."""
    client = WorkerClient(
        "far",
        WorkerCommand((*elsewhere, sys.executable, FAKE_WORKER), elsewhere=True),
        {},
        environment=worker_environment("cpu"),
        log_path=tmp_path / "far.log",
        startup_seconds=60,
        request_seconds=60,
        max_restarts=1,
    )
    answer = client.score([{"mt": "abc", "do": ["noise", 1 << 20]}])
    assert scores(answer) == [3]
    assert "from C" in (tmp_path / "far.log").read_text()
    again = client.score([{"mt": "ab", "do": ["signal once", str(tmp_path / "killed")]}])
    assert scores(again) == [2] and again["pid"] != answer["pid"] and client.restarts == 1
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.score, [{"mt": "a", "do": ["sleep once", str(tmp_path / "asleep")]}])
        wait_for((tmp_path / "asleep").exists)
        client.close()
        with pytest.raises(WorkerFailed, match="closed in the middle"):
            asked.result()
    wait_for(lambda: is_gone(again["pid"]))


def test_a_worker_inherits_neither_the_trainers_libraries_nor_its_secrets(monkeypatch):
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "XLA_FLAGS", "JAX_PLATFORMS", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/cache")
    environment = worker_environment("cpu")
    assert not {"PYTHONPATH", "LD_LIBRARY_PATH", "XLA_FLAGS", "JAX_PLATFORMS", "OPENAI_API_KEY"} & set(environment)
    assert (environment["OMP_NUM_THREADS"], environment["HF_HUB_OFFLINE"], environment["HF_HOME"]) == (
        "3",
        "1",
        "/cache",
    )


@pytest.mark.parametrize(
    ("device", "ours", "theirs"),
    [
        ("cpu", None, ""),
        ("cpu", "0,1", ""),
        ("cuda", None, None),
        ("cuda", "4,5", "4,5"),
        ("cuda:6", None, "6"),
        ("cuda:1", "4,5", "5"),
    ],
)
def test_a_worker_sees_its_device_alone(monkeypatch, device, ours, theirs):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if ours is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ours)
    assert worker_environment(device).get("CUDA_VISIBLE_DEVICES") == theirs


def test_a_device_that_the_environment_hides(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(UserError, match=r"cuda:2: CUDA_VISIBLE_DEVICES=4,5 leaves 2 devices"):
        worker_environment("cuda:2")
