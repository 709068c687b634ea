"""Side by side with transformers, TRL and Tunix: `make bench`, or `make bench BENCH_ARGS=--quick`.

For each model and workload every system starts in a process of its own, shows that its reference, which no update
changes, gives the same logprobs as the others', and then makes one update after the other in turns with the rest.
Writes results.json and table.md.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.table import write_tables
from benchmarks.workloads import MODELS, WORKLOADS

REPO = Path(__file__).parents[1]
VENVS = {"ours": ".venv", "hf": ".venv-bench-torch", "trl": ".venv-bench-torch", "tunix": ".venv-bench-tunix"}
PYTHON = {name: REPO / venv / "bin" / "python" for name, venv in VENVS.items()}
EXTRAS = {"memory": ("36m", "36m-v262k"), "overlap": ("36m",)}  # and the model folders that they take
TOLERANCE = 1e-3  # nats, of any logprob
QUIET = 0.1  # cores: an update beside which other processes took more is marked


def main() -> None:
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "versions": {}, "limits": {}, "runs": {}, "extras": {}}

    def save() -> None:
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        write_tables(results, args.out / "table.md")

    for name in args.systems:  # this also brings the libraries into the page cache, before any start is timed
        code = f"import json; from benchmarks.systems.{name} import versions; print(json.dumps(versions()))"
        results["versions"][name] = ask_once(PYTHON[name], "-c", code)
    for library, python in (("torch", PYTHON["hf"]), ("xla", PYTHON["ours"])):
        say(f"limits of the machine with {library}")
        results["limits"][library] = ask_once(python, "-m", "benchmarks.limits", library, *args.models)
    for model in args.models:
        for workload in args.workloads:
            say(f"{model}, {workload}")
            run = compare(args.systems, model, workload, args.rounds, args.out)
            results["runs"].setdefault(model, {})[workload] = run
            save()
    if not args.quick:
        for name, models in EXTRAS.items():
            say(f"ours alone: {name}")
            folders = [model_folder(model) for model in models]
            results["extras"][name] = ask_once(PYTHON["ours"], "-m", "benchmarks.extras", name, *folders)
            save()
    print((args.out / "table.md").read_text())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, one workload, one round: does it run?")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["36m", "129m"])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--systems", nargs="+", choices=PYTHON, default=list(PYTHON))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=REPO / "outputs" / "bench")
    args = parser.parse_args()
    if args.quick:
        args.models, args.workloads, args.rounds = ["36m"], ["translation-0.6"], 1
    return args


class Died(Exception):
    """A system's process has ended, for want of memory, say."""


def compare(systems: list[str], model: str, workload: str, rounds: int, out: Path) -> dict:
    """{system: {"cold_start": s, "warm_start": s, "rounds": [phases of each update]}}; a start ends with an update.

    A peer that dies is left out, after a word; what has been measured of the others counts.
    """
    caches = out / "compiled"
    shutil.rmtree(caches, ignore_errors=True)
    workers, run = {}, {name: {"rounds": []} for name in systems}

    def alive(names: list[str], task: Callable[[str], object]) -> dict[str, object]:
        """What `task(name)` gives of each of the systems that live through it."""
        answers = {}
        for name in [name for name in names if name in run]:
            try:
                answers[name] = task(name)
            except Died as error:
                if name == "ours":
                    raise SystemExit(str(error)) from error
                say(str(error))
                del run[name]
        return answers

    def start(name: str) -> None:
        workers[name] = Worker(name, model, workload, caches / name, out)
        run[name]["cold_start"] = workers[name].start()
        say(f"  {name}: first update {run[name]['cold_start']:.1f} s after the start")

    def update(name: str) -> None:
        phases, others = workers[name].timed_update()
        run[name]["rounds"].append({**phases, "other_cores": others})
        parts = ", ".join(f"{phase} {times['seconds']:.2f}" for phase, times in phases.items())
        say(f"  {name}: {parts} s" + (f"; others took {others:.1f} cores" if others > QUIET else ""))

    def start_again(name: str) -> None:
        worker = Worker(name, model, workload, caches / name, out)
        try:
            run[name]["warm_start"] = worker.start()
        finally:
            worker.close()

    try:
        alive(systems, start)
        require_same_logprobs(alive(systems, lambda name: workers[name].ask("logprobs")))
        for count in range(rounds):
            alive(systems if count % 2 == 0 else systems[::-1], update)
    finally:
        for worker in workers.values():
            worker.close()
    alive(systems, start_again)
    return run


class Worker:
    """A system in its own process."""

    def __init__(self, name: str, model: str, workload: str, cache: Path, out: Path) -> None:
        self.name, self.log = name, out / f"{name}.log"
        folder = model_folder(model)
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            [PYTHON[name], "-m", "benchmarks.worker", name, folder, model, workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            cwd=REPO,
            env=environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        )

    def start(self) -> float:
        """Makes the first update. Seconds since the process began."""
        self.ask("update")
        return time.perf_counter() - self._began

    def timed_update(self) -> tuple[dict, float]:
        """The phases of an update, and how many cores other processes took beside it."""
        busy, began = busy_seconds(), time.perf_counter()
        phases = self.ask("update")
        seconds = time.perf_counter() - began
        return phases, max(0.0, busy_seconds() - busy - phases["update"]["cpu_seconds"]) / seconds

    def ask(self, task: str):
        """The answer of the process.

        Raises:
            Died: there is none.
        """
        answer = ""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
            raise Died(f"{self.name} died at {task!r}; the end of {self.log}:\n{tail}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def require_same_logprobs(answers: dict[str, dict[str, list[list[float]]]]) -> None:
    """Ends the benchmark unless all systems agree: answers are {system: {temperature: logprobs of each row}}."""
    everything = {temperature: rows for answer in answers.values() for temperature, rows in answer.items()}
    for name, answer in answers.items():
        for temperature, rows in answer.items():
            gap = max(np.abs(np.subtract(a, b)).max() for a, b in zip(rows, everything[temperature], strict=True))
            if not gap <= TOLERANCE:
                raise SystemExit(f"{name} is another model: a logprob at temperature {temperature} is off by {gap:.2g}")


def model_folder(model: str) -> Path:
    """The Hugging Face folder that every system loads, written once."""
    folder = REPO / ".cache" / "bench" / model
    if not (folder / "tokenizer.json").exists():
        run_once(PYTHON["hf"], "-m", "benchmarks.model_folder", model, folder)
    return folder


def ask_once(*command) -> object:
    """The JSON that a command prints in its last line."""
    return json.loads(run_once(*command).splitlines()[-1])


def run_once(*command) -> str:
    """What a command prints. A failure ends the benchmark with the end of its error output."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=REPO, env=environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments[1:])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(REPO / ".cache" / "bench" / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def busy_seconds() -> float:
    """CPU seconds of the whole machine, idle and waiting left out."""
    ticks = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, object]:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in info if line.startswith("flags")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": next(line for line in info if line.startswith("model name")).split(": ")[1],
        "simd": next((name for name in ("avx512f", "avx2") if name in flags), "none of avx512f, avx2"),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
