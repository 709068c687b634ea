"""The score cache: what it keys on, what it keeps, and that a killed writer leaves whole requests only."""

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from jax_rl.rewards.cache import ScoreCache
from jax_rl.rewards.types import ErrorSpan, Missing, Scored, Translation


@dataclass
class Judge:
    name: str = "xcomet"
    identity: str = "model-a"


TEXT = Translation("Gr\u00fcn", "gre\u0301en", "gr\u00fcn!", "German", "English")
SCORE = Scored(0.1 + 0.2, (ErrorSpan(0, 3, "MAJOR", 0.1, "gre"), ErrorSpan(3, 5, "minor", None, "\u0301e")))


@pytest.fixture
def cache(tmp_path):
    cache = ScoreCache(tmp_path / "scores.sqlite")
    yield cache
    cache.close()


def test_a_score_comes_back_bit_for_bit_after_reopening(tmp_path):
    first = ScoreCache(tmp_path / "new" / "scores.sqlite")
    first.put(Judge(), [(TEXT, SCORE)])
    first.close()
    second = ScoreCache(tmp_path / "new" / "scores.sqlite")
    assert second.get(Judge(), [TEXT]) == [SCORE]
    second.close()


def test_missing_is_asked_again(cache):
    other = replace(TEXT, mt="blue")
    cache.put(Judge(), [(TEXT, Missing("worker died")), (other, SCORE)])
    assert cache.get(Judge(), [TEXT, other]) == [None, SCORE]


@pytest.mark.parametrize(
    "change",
    [
        {"src": "Blau"},
        {"mt": "green"},
        {"mt": "gr\u00e9en"},  # the same in NFC, but its spans count other characters
        {"ref": None},
        {"ref": ""},
        {"tgt_lang": "French"},
        {"src_lang": "Dutch"},
    ],
)
def test_another_text_or_language_is_another_key(cache, change):
    cache.put(Judge(), [(TEXT, SCORE)])
    assert cache.get(Judge(), [replace(TEXT, **change)]) == [None]


def test_another_metric_or_model_is_another_key(cache):
    cache.put(Judge(), [(TEXT, SCORE)])
    assert cache.get(Judge(name="metricx"), [TEXT]) == [None]
    assert cache.get(Judge(identity="model-b"), [TEXT]) == [None]


def test_source_and_reference_are_keyed_in_nfc(cache):
    cache.put(Judge(), [(TEXT, SCORE)])
    assert cache.get(Judge(), [replace(TEXT, src="Gru\u0308n", ref="gru\u0308n!")]) == [SCORE]


def test_the_first_answer_stays(cache):
    cache.put(Judge(), [(TEXT, SCORE)])
    cache.put(Judge(), [(TEXT, Scored(0.9))])
    assert cache.get(Judge(), [TEXT]) == [SCORE]


def test_many_texts_in_one_lookup(cache):
    texts = [replace(TEXT, mt=str(number)) for number in range(1200)]
    cache.put(Judge(), [(text, Scored(float(text.mt))) for text in texts[::2]])
    found = cache.get(Judge(), texts)
    assert [score.value if score else None for score in found] == [n if n % 2 == 0 else None for n in range(1200)]


def test_threads_share_one_cache(cache):
    def write_and_read(metric: Judge) -> None:
        for number in range(50):
            text = replace(TEXT, mt=str(number))
            cache.put(metric, [(text, Scored(float(number)))])
            seen.append(cache.get(metric, [text]) == [Scored(float(number))])

    seen: list[bool] = []
    threads = [threading.Thread(target=write_and_read, args=(Judge(name),)) for name in ("metricx", "xcomet", "mqm")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 150


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "scores.sqlite"
    path.write_text("scores: none\n" * 100)
    with pytest.raises(OSError, match="scores.sqlite"):
        ScoreCache(path)


# writes request after request; in the one numbered argv[2] it stops half-way through the transaction and says so
WRITER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from jax_rl.rewards.cache import ScoreCache
from jax_rl.rewards.types import ErrorSpan, Scored, Translation

ROWS = 2000
cache = ScoreCache(Path(sys.argv[1]))
judge = SimpleNamespace(name="metricx", identity="tiny")
SPANS = (ErrorSpan(0, 1, "MINOR", None, "x" * 2000),)  # so large that SQLite writes to the file before the commit

def rows(request, stop):
    for row in range(ROWS):
        if stop and row == ROWS // 2:
            print("half-way", flush=True)
            time.sleep(600)
        yield Translation("s" * 300, f"{request}/{row}", None, "en", "ko"), Scored(float(row), SPANS)

for request in range(1000):
    print(request, flush=True)
    cache.put(judge, rows(request, stop=request == int(sys.argv[2])))
"""


def rows_per_request(path: Path, requests: int) -> list[int]:
    cache = ScoreCache(path)
    judge = Judge("metricx", "tiny")
    counts = []
    for request in range(requests):
        texts = [Translation("s" * 300, f"{request}/{row}", None, "en", "ko") for row in range(2000)]
        counts.append(sum(score is not None for score in cache.get(judge, texts)))
    cache.close()
    return counts


def kill_writer(path: Path, stop_in: int, after: str) -> None:
    """Starts the writer and kills it -9 once it has printed `after`."""
    command = [sys.executable, "-c", WRITER, str(path), str(stop_in)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert any(line.strip() == after for line in writer.stdout)
        writer.kill()
    assert writer.returncode == -signal.SIGKILL


def test_sigkill_in_the_middle_of_a_transaction_leaves_whole_requests(tmp_path):
    path = tmp_path / "scores.sqlite"
    kill_writer(path, stop_in=2, after="half-way")
    assert rows_per_request(path, 3) == [2000, 2000, 0]


def test_sigkill_at_any_moment_leaves_whole_requests_and_a_file_that_goes_on(tmp_path):
    path = tmp_path / "scores.sqlite"
    for request in (1, 2, 3):  # each writer starts over: what is there already stays
        kill_writer(path, stop_in=-1, after=str(request))
        counts = rows_per_request(path, request + 1)
        assert set(counts) <= {0, 2000}
        assert counts[:request] == [2000] * request
