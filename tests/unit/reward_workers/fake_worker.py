"""A worker without a model, for the tests of the machinery: what it does wrong is in its options and samples.

Each sample is {"mt": text, "do": [action, argument]} (`do` may be absent); its score is the length of the text.
"""

import argparse
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from reward_workers import serve


class FakeWorker:
    def __init__(self, options):
        if "pid_file" in options:
            Path(options["pid_file"]).write_text(str(os.getpid()))
        if options.get("start") == "hang":
            time.sleep(600)
        if options.get("start") == "import error":
            import no_such_module  # noqa: F401
        if options.get("start") == "exit":
            sys.exit(3)
        self.facts = {"model": options.get("model", "fake")}
        if "model_file" in options:
            self.facts["model"] = Path(options["model_file"]).read_text()

    def score(self, samples):
        for sample in samples:
            act(*sample.get("do", ["nothing", None]))
        scores = [{"score": float(len(sample["mt"]))} for sample in samples]
        if any(sample.get("do") == ["nan", None] for sample in samples):
            scores[0] = {"score": float("nan")}
        return {"results": scores, "truncated": 0, "skipped": 0, "pid": os.getpid()}


def act(action, argument):
    if action == "signal":
        os.kill(os.getpid(), getattr(signal, argument))
    if action == "signal once" and not os.path.exists(argument):
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "sleep once" and not os.path.exists(argument):
        Path(argument).touch()
        time.sleep(600)
    if action == "sleep":
        time.sleep(argument)
    if action == "segfault":
        ctypes.string_at(0)
    if action == "raise":
        raise ValueError(argument)
    if action == "meet":
        mine, other = map(Path, argument)
        mine.touch()
        while not other.exists():
            time.sleep(0.01)
    if action == "noise":
        print("Predicting: 100%|####|")
        os.write(1, b"\x00\x00\x00\x02{}")
        ctypes.CDLL(None).puts(b"from C")
        sys.stderr.write("x" * argument)
        sys.stderr.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    serve.add_channel_arguments(parser)
    channel = serve.open_channel(parser.parse_args())
    print("noise before anything else")
    serve.serve(channel, FakeWorker)
