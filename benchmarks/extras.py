"""Two figures of ours alone, printed as one JSON object.

python -m benchmarks.extras memory FOLDER_V8192 FOLDER_V262144
python -m benchmarks.extras overlap FOLDER
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

from benchmarks.systems.ours import EvenShare, System
from benchmarks.workloads import MODELS, draw
from jax_rl.rewards.types import Scored, Translation

UPDATES = 3


def memory(*folders: str) -> dict:
    """Peak resident memory of the train step by vocabulary, without the embedding's own arrays, in MiB.

    These are its weights, gradients and two moments, all float32. Each vocabulary in a process of its own.
    """
    command = [sys.executable, "-m", "benchmarks.extras", "train_peak"]
    runs = [subprocess.run([*command, folder], stdout=subprocess.PIPE, check=True, text=True) for folder in folders]
    return {Path(folder).name: json.loads(run.stdout) for folder, run in zip(folders, runs)}


def train_peak(folder: str) -> dict:
    size = MODELS[Path(folder).name]
    one_group = draw("translation-0.6", replace(size, prompts=1))
    system = System(Path(folder), size, one_group, rl__kl_coef=0.0)
    system.update()
    peak = system.update()["train"]["peak_mb"]
    embedding = 4 * 4 * size.head_params / 2**20
    return {"vocab": size.vocab, "peak_mb": peak, "embedding_mb": embedding, "rest_mb": peak - embedding}


class Sleeping(EvenShare):
    """Scores as a metric on another device does: it takes its time, and none of ours."""

    def __init__(self, seconds_per_text: float = 0.0) -> None:
        self.seconds_per_text = seconds_per_text

    def score(self, batch: Sequence[Translation]) -> list[Scored]:
        time.sleep(self.seconds_per_text * len(batch))
        return super().score(batch)


def overlap(folder: str) -> dict:
    """Median seconds of an update without scoring, of its rollout, and of an update whose scoring takes as long.

    With scoring the rollout goes in halves: the first can be scored while the second is generated.
    """
    size = MODELS[Path(folder).name]
    work = draw("translation-0.6", size)
    plain = System(Path(folder), size, work)
    plain.update()
    alone = [plain.update() for _ in range(UPDATES)]
    rollout = median(phases["rollout"]["seconds"] for phases in alone)
    # every distinct text is asked for once, and random texts are distinct
    metric = Sleeping(rollout / len(work.lengths))
    scored = System(Path(folder), size, work, metric, generation__prompts_per_batch=max(size.prompts // 2, 1))
    scored.update()
    return {
        "update_alone": median(phases["update"]["seconds"] for phases in alone),
        "rollout_alone": rollout,
        "update_with_scoring": median(scored.update()["update"]["seconds"] for _ in range(UPDATES)),
    }


if __name__ == "__main__":
    task = {"memory": memory, "train_peak": train_peak, "overlap": overlap}[sys.argv[1]]
    print(json.dumps(task(*sys.argv[2:])))
