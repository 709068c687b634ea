"""What a worker's answers become."""

import sys

import pytest

from jax_rl.config.schema import XCometConfig
from jax_rl.rewards.types import Scored, Translation
from jax_rl.rewards.xcomet import XCometMetric

WORKER = """
import argparse
from reward_workers import serve

class Worker:
    facts = {}

    def __init__(self, options):
        pass

    def score(self, samples):
        results = [{"score": float(sample["mt"]), "spans": []} for sample in samples]
        return {"results": results, "truncated": 0, "skipped": 0}

parser = argparse.ArgumentParser()
parser.add_argument("kind", nargs=2)
serve.add_channel_arguments(parser)
serve.serve(serve.open_channel(parser.parse_args()), Worker)
"""


@pytest.fixture
def xcomet(tmp_path):
    """One whose model scores a translation with the number that it is."""
    program, worker = tmp_path / "python", tmp_path / "worker.py"
    worker.write_text(WORKER)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {worker} "$@"\n')
    program.chmod(0o755)
    metric = XCometMetric(XCometConfig(python_executable=str(program), device="cpu"), 0, tmp_path)
    yield metric
    metric.close()


def test_xcomet_is_held_to_its_range(xcomet):
    """Its head is linear: a poor translation may come out below 0, which is what a blank one gets."""
    batch = [Translation("s", mt, None, "English", "Korean") for mt in ("-0.25", "0.5", "", "1.5")]
    assert xcomet.score(batch) == [Scored(0.0), Scored(0.5), Scored(0.0), Scored(1.0)]
