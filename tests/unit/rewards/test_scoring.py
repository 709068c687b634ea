"""All metrics at once: the reward's formula, what Missing does, and that timing changes nothing."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jax_rl.config.schema import ChrFConfig, MetricXConfig, MQMConfig, RewardConfig, XCometConfig
from jax_rl.errors import UserError
from jax_rl.rewards.cache import ScoreCache
from jax_rl.rewards.judge_client import JudgeError
from jax_rl.rewards.scoring import Scorer, build_scorer, sequence_reward
from jax_rl.rewards.types import ErrorSpan, Missing, Score, Scored, Translation
from jax_rl.rewards.worker_client import WorkerStartError

CFG = RewardConfig(w_metricx=0.5, w_xcomet_seq=2.0, xcomet_seq_scale=3.0, w_mqm_seq=0.25, mqm_seq_scale=0.1, w_chrf=4.0)
ALL = {"metricx": Scored(7.0), "xcomet": Scored(0.9), "mqm": Scored(-6.0), "chrf": Scored(0.5)}
MAJOR = ErrorSpan(0, 1, "MAJOR", 0.5, "x")
MINOR = ErrorSpan(1, 2, "MINOR", None, "y")


def texts(*mts: str) -> list[Translation]:
    return [Translation("source", mt, None, "English", "Korean") for mt in mts]


class LengthMetric:
    """Scores the length of a translation, and keeps what it was asked. `before` runs first, in the metric's thread."""

    identity = "length"

    def __init__(self, name: str, before: Callable[[Sequence[Translation]], None] = lambda batch: None) -> None:
        self.name = name
        self.before = before
        self.requests: list[list[str]] = []
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        self.requests.append([translation.mt for translation in batch])
        self.threads.add(threading.get_ident())
        self.before(batch)
        return [self.score_one(translation.mt) for translation in batch]

    def score_one(self, mt: str) -> Score:
        if mt.startswith("fails"):
            return Missing("no score")
        return Scored(float("nan") if mt == "nan" else float(len(mt)), (MAJOR,) if self.name == "xcomet" else (MINOR,))

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def open_scorer(tmp_path):
    scorers = []

    def build(*metrics: LengthMetric, cached: bool = True, cfg: RewardConfig = CFG) -> Scorer:
        cache = ScoreCache(tmp_path / "scores.sqlite") if cached else None
        scorers.append(Scorer(metrics, cache, cfg))
        return scorers[-1]

    yield build
    for scorer in scorers:
        scorer.close()


def test_the_sequence_reward_is_the_weighted_sum():
    expected = 0.5 * (5.0 - 7.0) + 2.0 * 0.9 * 3.0 + 0.25 * -6.0 * 0.1 + 4.0 * 0.5
    assert sequence_reward(ALL, CFG) == pytest.approx(expected)
    assert sequence_reward(dict(reversed(ALL.items())), CFG) == sequence_reward(ALL, CFG)
    offset = replace(CFG, metricx=MetricXConfig(offset=25.0))
    assert sequence_reward({"metricx": Scored(7.0)}, offset) == 0.5 * 18.0


def test_a_missing_score_that_counts_makes_the_reward_missing_with_all_reasons():
    scores = ALL | {"metricx": Missing("worker died"), "chrf": Missing("no reference")}
    assert sequence_reward(scores, CFG) == Missing("metricx: worker died; chrf: no reference")


@pytest.mark.parametrize(
    ("name", "weight", "needed"),
    [
        ("metricx", "w_metricx", False),
        ("xcomet", "w_xcomet_seq", True),
        ("mqm", "w_mqm_seq", True),
        ("chrf", "w_chrf", False),
    ],
)
def test_with_weight_0_only_a_metric_with_spans_is_needed(name, weight, needed):
    reward = sequence_reward(ALL | {name: Missing("out")}, replace(CFG, **{weight: 0.0}))
    assert reward == Missing(f"{name}: out") if needed else isinstance(reward, float)


def test_results_in_order_with_the_union_of_spans(open_scorer):
    scorer = open_scorer(LengthMetric("mqm"), LengthMetric("metricx"), LengthMetric("xcomet"))
    long, failed, short = scorer.score(texts("long one", "fails", "short"))
    minor, major = Scored(8.0, (MINOR,)), Scored(8.0, (MAJOR,))
    assert long.scores == {"mqm": minor, "metricx": minor, "xcomet": major}
    assert long.spans == short.spans == (MAJOR, MINOR)
    assert failed.sequence_reward == Missing("metricx: no score; xcomet: no score; mqm: no score")
    assert failed.spans == ()
    assert long.sequence_reward == sequence_reward(long.scores, CFG)


def test_identical_translations_are_asked_once_per_request(open_scorer):
    metric = LengthMetric("metricx")
    scorer = open_scorer(metric, cached=False)
    results = scorer.score(texts("b", "aa", "b", "b", "aa"))
    assert [result.scores["metricx"].value for result in results] == [1, 2, 1, 1, 2]
    scorer.score(texts("b"))
    assert metric.requests == [["b", "aa"], ["b"]]


def test_only_what_the_cache_lacks_is_asked(open_scorer):
    metric = LengthMetric("metricx")
    scorer = open_scorer(metric)
    first = scorer.score(texts("a", "fails", "bb"))
    assert scorer.score(texts("bb", "fails", "a", "new")) == [first[2], first[1], first[0], *scorer.score(texts("new"))]
    assert metric.requests == [["a", "fails", "bb"], ["fails", "new"]]
    scorer.close()
    again = LengthMetric("metricx")
    assert open_scorer(again).score(texts("a", "bb")) == [first[0], first[2]]
    assert again.requests == []


def test_a_value_that_is_no_number_is_missing_and_not_kept(open_scorer):
    metric = LengthMetric("metricx")
    scorer = open_scorer(metric)
    for _ in range(2):
        assert scorer.score(texts("nan"))[0].sequence_reward == Missing("metricx: the metric's value is nan")
    assert metric.requests == [["nan"], ["nan"]]


def test_all_metrics_work_at_the_same_time(open_scorer):
    together = threading.Barrier(3)
    metrics = [LengthMetric(name, before=lambda batch: together.wait(20)) for name in ("metricx", "xcomet", "mqm")]
    assert len(open_scorer(*metrics).score(texts("a"))) == 1


def test_submit_does_not_wait(open_scorer):
    go_on = threading.Event()
    scorer = open_scorer(LengthMetric("metricx", before=lambda batch: go_on.wait(20)))
    first, second = scorer.submit(texts("a")), scorer.submit(texts("bb"))
    assert not first.done()
    go_on.set()
    assert [future.result()[0].scores["metricx"].value for future in (first, second)] == [1, 2]


def test_a_metric_keeps_its_thread(open_scorer):
    metrics = [LengthMetric("metricx"), LengthMetric("xcomet")]
    scorer = open_scorer(*metrics)
    for mt in "abc":
        scorer.score(texts(mt))
    assert all(len(metric.threads) == 1 for metric in metrics)
    assert metrics[0].threads != metrics[1].threads


def expected_requests(batches: Sequence[Sequence[str]]) -> list[list[str]]:
    """What a metric is asked when one batch follows another, in a world without threads."""
    kept: set[str] = set()
    requests = []
    for batch in batches:
        asked = [mt for mt in dict.fromkeys(batch) if mt not in kept]
        kept |= {mt for mt in asked if not mt.startswith("fails")}
        requests += [asked] if asked else []
    return requests


@pytest.mark.parametrize("seed", range(5))
def test_requests_do_not_depend_on_timing(open_scorer, seed):
    rng = random.Random(seed)
    words = ["a", "bb", "ccc", "dddd", "fails", "fails too", "eeeee"]
    batches = [rng.choices(words, k=rng.randint(1, 6)) for _ in range(12)]
    delays = {name: random.Random(f"{seed}{name}") for name in ("metricx", "xcomet", "chrf")}
    metrics = [
        LengthMetric(name, before=lambda batch, delay=delay: time.sleep(delay.random() / 200))
        for name, delay in delays.items()
    ]
    scorer = open_scorer(*metrics)
    futures = []
    for batch in batches:
        futures.append(scorer.submit(texts(*batch)))
        time.sleep(rng.random() / 200)
    values = [[result.scores["chrf"] for result in future.result()] for future in futures]
    assert values == [[LengthMetric("chrf").score_one(mt) for mt in batch] for batch in batches]
    assert [metric.requests for metric in metrics] == [expected_requests(batches)] * 3


def test_what_a_metric_raises_the_future_raises_and_the_next_request_is_served(open_scorer):
    def refuse(batch: Sequence[Translation]) -> None:
        if batch[0].mt == "bad":
            raise ConnectionError("the judge says no")

    scorer = open_scorer(LengthMetric("metricx"), LengthMetric("mqm", before=refuse))
    failing, fine = scorer.submit(texts("bad")), scorer.submit(texts("good"))
    with pytest.raises(ConnectionError, match="^the judge says no$"):
        failing.result()
    assert fine.result()[0].scores["mqm"].value == 4


def test_a_metric_that_answers_too_little_is_named(open_scorer):
    metric = LengthMetric("metricx")
    metric.score = lambda batch: [Scored(1.0)]
    with pytest.raises(RuntimeError, match="metricx gave 1 scores for 2 translations"):
        open_scorer(metric).score(texts("a", "b"))


def test_closing_ends_what_is_under_way_and_queued(open_scorer):
    started = threading.Event()

    def hang(batch: Sequence[Translation]) -> None:
        started.set()
        metric.closed.wait(20)  # as a worker client does: close() ends its request
        raise RuntimeError("closed in the middle")

    metric, other = LengthMetric("metricx", before=hang), LengthMetric("xcomet")
    scorer = open_scorer(metric, other)
    under_way, queued = scorer.submit(texts("a")), scorer.submit(texts("b"))
    assert started.wait(20)
    scorer.close()
    scorer.close()
    with pytest.raises(RuntimeError, match="closed in the middle"):
        under_way.result(0)
    with pytest.raises(RuntimeError, match="closed before it came to this request"):
        queued.result(0)
    with pytest.raises(RuntimeError, match="the scorer is closed"):
        scorer.submit(texts("c"))
    assert other.closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("score-")]


def test_counts(open_scorer):
    class CountingMetric(LengthMetric):
        def pop_counts(self) -> dict[str, int]:
            return {"truncated": 2}

    cfg = replace(CFG, severity_weights={"MINOR": -1.0})
    scorer = open_scorer(CountingMetric("metricx"), LengthMetric("xcomet"), cfg=cfg)
    scorer.score(texts("a", "fails", "fails", "a"))
    scorer.score(texts("a", "b"))
    counts = scorer.take_counts()
    assert counts.missing == {"metricx: no score": 2, "xcomet: no score": 2}
    assert counts.unknown_severities == 4
    assert counts.events == {
        "metricx/asked": 3, "metricx/cache_hits": 1, "metricx/truncated": 4, "xcomet/asked": 3, "xcomet/cache_hits": 1,
    }  # fmt: skip
    assert scorer.take_counts().missing == {}


OFF = RewardConfig(metricx=MetricXConfig(enabled=False), xcomet=XCometConfig(enabled=False), w_metricx=0.0, w_chrf=1.0)


def test_the_factory_builds_what_is_enabled_and_keeps_scores_with_the_run(chat_server, tmp_path):
    judge = MQMConfig(enabled=True, base_url=chat_server.base_url, model_name="tiny-judge")
    cfg = replace(OFF, mqm=judge, chrf=ChrFConfig(enabled=True))
    batch = [Translation("Hello", "Hallo", "Hallo", "English", "German")]
    for _ in range(2):
        scorer = build_scorer(cfg, tmp_path)
        (result,) = scorer.score(batch)
        scorer.close()
        assert result.scores == {"mqm": Scored(0.0), "chrf": Scored(1.0)} and result.sequence_reward == 1.0
    assert len(chat_server.requests) == 1
    assert (tmp_path / "reward_cache" / "scores.sqlite").exists()


def test_without_the_cache_nothing_is_kept(tmp_path):
    scorer = build_scorer(replace(OFF, chrf=ChrFConfig(enabled=True), cache_enabled=False), tmp_path)
    scorer.score(texts("a"))
    scorer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_does_not_start_is_told_of_the_others(tmp_path):
    worker = MetricXConfig(python_executable="/bin/false", device="cpu")
    before = set(threading.enumerate())
    scorer = build_scorer(replace(OFF, metricx=worker, chrf=ChrFConfig(enabled=True)), tmp_path)
    with pytest.raises(WorkerStartError, match="metricx"):
        scorer.wait_until_ready()
    scorer.close()
    assert set(threading.enumerate()) <= before


def test_a_metric_that_cannot_be_set_up_closes_the_others(tmp_path):
    slow, absent = MetricXConfig(device="cpu"), XCometConfig(python_executable="/no/python")
    before = set(threading.enumerate())
    with pytest.raises(UserError, match=r"reward\.xcomet\.python_executable"):
        build_scorer(replace(OFF, metricx=slow, xcomet=absent), tmp_path)
    assert set(threading.enumerate()) <= before


def test_closing_does_not_wait_for_a_worker_that_loads(tmp_path):
    program = tmp_path / "slow"
    program.write_text(f"#!/bin/sh\nsleep 60\ntouch {tmp_path / 'loaded'}\n")
    program.chmod(0o755)
    worker = MetricXConfig(python_executable=str(program), device="cpu")
    before = set(threading.enumerate())
    scorer = build_scorer(replace(OFF, metricx=worker), tmp_path)
    waiting = ThreadPoolExecutor(1)
    ready = waiting.submit(scorer.wait_until_ready)
    scorer.close()
    with pytest.raises(WorkerStartError, match="metricx"):
        ready.result(30)
    waiting.shutdown()
    assert not (tmp_path / "loaded").exists()
    assert set(threading.enumerate()) <= before


def test_what_was_scored_before_a_failure_is_kept(chat_server, reply, tmp_path):
    """The second start asks only for what the first one did not hear."""
    answers = iter([reply.chat("no-error"), reply.chat("no-error"), reply(status=400, body="broken")])
    chat_server.respond = lambda request: next(answers, reply.chat("no-error"))
    judge = MQMConfig(enabled=True, base_url=chat_server.base_url, model_name="tiny-judge")
    cfg, batch = replace(OFF, mqm=judge), texts("a", "b", "c", "d")
    scorer = build_scorer(cfg, tmp_path)
    with pytest.raises(JudgeError, match="HTTP 400"):
        scorer.score(batch)
    scorer.close()
    assert len(chat_server.requests) == 3
    scorer = build_scorer(cfg, tmp_path)
    assert [result.scores["mqm"] for result in scorer.score(batch)] == [Scored(0.0)] * 4
    scorer.close()
    asked = [request["messages"][-1]["content"] for request in chat_server.requests]
    assert len(asked) == 5 and asked[2] == asked[3] and len(set(asked)) == 4
