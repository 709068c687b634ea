"""One system in its own process: loaded once, then one request a line over stdin, one answer a line over stdout.

python -m benchmarks.worker SYSTEM FOLDER MODEL WORKLOAD
"""

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.workloads import MODELS, check_rows, draw


def main() -> None:
    name, folder, model, workload = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    module = importlib.import_module(f"benchmarks.systems.{name}")
    system = module.System(Path(folder), MODELS[model], draw(workload, MODELS[model]))
    for line in sys.stdin:
        task = json.loads(line)
        if task == "logprobs":
            answer = system.logprobs(check_rows(MODELS[model]))
        elif task == "update":
            answer = system.update()
        else:
            raise ValueError(f"no such task: {task}")
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # training loops that wait for their next step are left where they are


if __name__ == "__main__":
    main()
