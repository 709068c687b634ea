"""Scoring on several hosts: who is asked what, and who hears it. The hosts are threads that exchange values."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jax_rl.config.schema import RewardConfig
from jax_rl.rewards.scoring import Scorer
from jax_rl.rewards.shared import SharedScorer
from jax_rl.rewards.types import ErrorSpan, Missing, Scored, Translation


class Recorder:
    """A metric that scores a text by its length and keeps what it was asked."""

    name, identity = "xcomet", "recorder"

    def __init__(self):
        self.asked = []

    def score(self, batch):
        self.asked += [translation.mt for translation in batch]
        spans = (ErrorSpan(0, 1, "ODD", 0.5, "x"),)
        return [Missing("no score") if t.mt == "fails" else Scored(float(len(t.mt)), spans) for t in batch]

    def close(self):
        pass


def share(hosts, mts):
    """What each host's scorer gives for the batch, the texts that each was asked, and what each counted."""
    exchange, barrier = [None] * hosts, threading.Barrier(hosts, timeout=30)

    def run(index):
        def gather(what, value):
            exchange[index] = value
            barrier.wait()
            values = list(exchange)
            barrier.wait()
            return values

        metric = Recorder()
        own_rows = lambda total: slice(total * index // hosts, total * (index + 1) // hosts)  # noqa: E731
        scorer = SharedScorer(Scorer([metric], None, RewardConfig()), gather, own_rows)
        results = scorer.score([Translation("s", mt, None, "English", "Korean") for mt in mts])
        counts = scorer.take_counts()
        scorer.close()
        return results, metric.asked, counts

    with ThreadPoolExecutor(hosts) as pool:
        return list(pool.map(run, range(hosts)))


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_all_hosts_hear_what_one_would(hosts):
    mts = ["aa", "b", "fails", "aa", "cccc", "b", "fails", "ddddd", "aa"]
    ((alone, _, counted),) = share(1, mts)
    for results, _, counts in share(hosts, mts):
        assert results == alone
        assert (counts.missing, counts.unknown_severities) == (counted.missing, counted.unknown_severities)
    assert counted.missing == {"xcomet: no score": 2} and counted.unknown_severities == 7


@pytest.mark.parametrize("hosts", [2, 3])
def test_one_text_is_asked_once_wherever_its_completions_stand(hosts):
    """A group of eight equal completions must not differ by the batches that two hosts' models saw."""
    answers = share(hosts, ["same"] * 3 + ["other", "third"] + ["same"] * 5)
    asked = [text for _, texts, _ in answers for text in texts]
    assert sorted(asked) == ["other", "same", "third"]
