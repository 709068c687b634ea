"""Every score of a run, in one SQLite file.

The make-up of a batch moves a learned metric's score by about 1e-5, so a resumed run sees the same numbers only if it
asks nothing twice. What is Missing is not kept: it is asked again.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from jax_rl.rewards.text import normalized
from jax_rl.rewards.types import ErrorSpan, Metric, Missing, Score, Scored, Translation

_SCHEMA = """CREATE TABLE IF NOT EXISTS scores (
    key BLOB PRIMARY KEY, metric TEXT NOT NULL, value REAL NOT NULL, spans TEXT NOT NULL
) WITHOUT ROWID"""
_READ_CHUNK = 500  # SQLite allows 999 variables in one statement
_LOCK_TIMEOUT_SEC = 60.0  # how long to wait for another process that writes


class ScoreCache:
    """Scores by (metric name, identity, texts, languages). May be used from several threads.

    Source and reference are keyed in NFC, the translation as handed in: its error spans count its own characters.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            # SQLite's default rollback journal: unlike WAL it also works on network file systems
            self._db = sqlite3.connect(path, timeout=_LOCK_TIMEOUT_SEC, check_same_thread=False)
            with self._db:
                self._db.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise OSError(f"cannot open the score cache {path}: {error}; move it away or mend it") from error

    def get(self, metric: Metric, batch: Sequence[Translation]) -> list[Scored | None]:
        """The stored score of each translation, None where there is none."""
        keys = [_key(metric, translation) for translation in batch]
        found: dict[bytes, Scored] = {}
        with self._lock:
            for start in range(0, len(keys), _READ_CHUNK):
                chunk = keys[start : start + _READ_CHUNK]
                marks = ",".join("?" * len(chunk))
                rows = self._db.execute(f"SELECT key, value, spans FROM scores WHERE key IN ({marks})", chunk)
                found |= {key: Scored(value, _spans_from_json(spans)) for key, value, spans in rows}
        return [found.get(key) for key in keys]

    def put(self, metric: Metric, scores: Iterable[tuple[Translation, Score]]) -> None:
        """Stores the scores of one request in one transaction: after a crash either all are there or none."""
        rows = (
            (_key(metric, translation), metric.name, score.value, json.dumps([astuple(span) for span in score.spans]))
            for translation, score in scores
            if not isinstance(score, Missing)
        )
        with self._lock, self._db:
            # what was answered first stays: a run must not see two values of one key
            self._db.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)", rows)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _key(metric: Metric, translation: Translation) -> bytes:
    ref = None if translation.ref is None else normalized(translation.ref)
    texts = [normalized(translation.src), translation.mt, ref]
    parts = [metric.name, metric.identity, *texts, translation.src_lang, translation.tgt_lang]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def _spans_from_json(text: str) -> tuple[ErrorSpan, ...]:
    return tuple(ErrorSpan(*fields) for fields in json.loads(text))
