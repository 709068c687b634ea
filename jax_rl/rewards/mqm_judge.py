"""GEMBA-MQM (Kocmi and Federmann 2023): an LLM behind an OpenAI-compatible server lists a translation's errors."""

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jax_rl.config.schema import MQMConfig
from jax_rl.rewards.judge_client import ChatClient, JudgeError
from jax_rl.rewards.mqm_parse import MAX_POINTS, locate_errors, parse_answer
from jax_rl.rewards.mqm_prompt import Messages, fill_prompt, load_prompt
from jax_rl.rewards.text import NormalizedText, is_blank, normalize, normalized
from jax_rl.rewards.types import ErrorSpan, Missing, Score, Scored, Translation

_IDENTITY_VERSION = 1  # raise it when the same answer comes to another score or other spans
_QUOTED_CHARS = 80


class MQMJudge:
    """MQM scores 0 (no error) down to -25, then clipped and scaled as the config says, with the errors' spans.

    `cache_dir` keeps the gemba package's prompt. Raises JudgeError from `score` when the server fails for good and
    `error_policy` is raise; PromptError or JudgeSetupError when the judge cannot be set up.
    """

    name = "mqm"

    def __init__(self, cfg: MQMConfig, cache_dir: Path, first_backoff_sec: float = 0.5) -> None:
        self._cfg = cfg
        self._prompt = load_prompt(cfg.prompt_file, cfg.use_reference, cache_dir)
        self._client = ChatClient(cfg, first_backoff_sec)
        self._runner = asyncio.Runner()  # one event loop for all requests: connections stay open between them
        self._running: asyncio.Task[object] | None = None
        self._busy = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._retries_told = 0
        self.identity = _identity(cfg, self._prompt)

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        with self._busy:
            scored: dict[int, Score] = {}
            try:
                self._runner.run(self._score_all(batch, scored))
            except asyncio.CancelledError:
                raise _with_scored(JudgeError("the judge was closed in the middle of a request"), scored) from None
            except JudgeError as error:
                raise _with_scored(error, scored) from None
            finally:
                self._running = None
            return [scored[place] for place in range(len(batch))]

    def pop_counts(self) -> dict[str, int]:
        """What has happened since the last call: translations blank, answers cut off, requests made again."""
        counts = {key: self._counts[key] for key in ("blank", "cut")}
        counts["retries"] = self._client.retries - self._retries_told
        self._retries_told += counts["retries"]
        self._counts.clear()
        return counts

    def close(self) -> None:
        """Ends what is under way, from any thread, and the connections."""
        if (running := self._running) is not None:
            self._runner.get_loop().call_soon_threadsafe(running.cancel)
        with self._busy:
            self._runner.run(self._client.close())
            self._runner.close()

    async def _score_all(self, batch: Sequence[Translation], scored: dict[int, Score]) -> None:
        """Fills `scored`, by place in the batch: what was answered before a failure is paid for, and not lost."""
        self._running = asyncio.current_task()
        slots = asyncio.Semaphore(self._cfg.batch_size)

        async def score_into(place: int, translation: Translation) -> None:
            scored[place] = await self._score_one(translation, slots)

        try:
            async with asyncio.TaskGroup() as group:  # the first failure cancels the rest
                for place, translation in enumerate(batch):
                    group.create_task(score_into(place, translation))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _score_one(self, translation: Translation, slots: asyncio.Semaphore) -> Score:
        if is_blank(translation.mt):
            self._counts["blank"] += 1
            return Scored(self._in_configured_units(-MAX_POINTS))
        if self._cfg.use_reference and (translation.ref is None or is_blank(translation.ref)):
            return Missing("reward.mqm.use_reference is set, and the example has no reference")
        mt = normalize(translation.mt)
        try:
            async with slots:
                answer = await self._client.ask(self._messages(translation, mt.text))
        except JudgeError as error:
            if self._cfg.error_policy == "skip":
                return Missing(str(error))
            raise
        self._counts["cut"] += answer.cut
        verdict = parse_answer(normalized(answer.content), answer.cut)
        if verdict is None:
            what = "was cut off before its verdict" if answer.cut else "has no verdict"
            return Missing(f"the judge's answer {what}: {answer.content[:_QUOTED_CHARS]!r}")
        spans = locate_errors(mt.text, verdict.errors)
        return Scored(
            self._in_configured_units(verdict.score),
            tuple(_in_original(span, mt, translation.mt) for span in spans),
        )

    def _messages(self, translation: Translation, mt: str) -> Messages:
        return fill_prompt(
            self._prompt,
            {
                "source_lang": self._cfg.source_lang or translation.src_lang,
                "target_lang": self._cfg.target_lang or translation.tgt_lang,
                "source_seg": normalized(translation.src),
                "target_seg": mt,
                "reference_seg": normalized(translation.ref or ""),
            },
        )

    def _in_configured_units(self, score: float) -> float:
        low, high = self._cfg.score_min, self._cfg.score_max
        clipped = min(max(score, low), high)
        return (clipped - low) / (high - low) if self._cfg.scale_to_unit_interval else clipped


def _with_scored(error: JudgeError, scored: dict[int, Score]) -> JudgeError:
    error.scored = scored
    return error


def _in_original(span: ErrorSpan, mt: NormalizedText, original: str) -> ErrorSpan:
    start, end = mt.original_range(span.start, span.end)
    return replace(span, start=start, end=end, text=original[start:end])


def _identity(cfg: MQMConfig, prompt: Messages) -> str:
    """All of the config that an answer or its score depends on. Not the address: a judge may move between two runs."""
    asked = (cfg.model_name, cfg.source_lang, cfg.target_lang, cfg.use_reference)
    sampled = (cfg.temperature, cfg.top_p, cfg.max_tokens, cfg.stop, cfg.chat_template_kwargs)
    scored = (cfg.score_min, cfg.score_max, cfg.scale_to_unit_interval)
    parts = json.dumps([_IDENTITY_VERSION, asked, sampled, scored, prompt], sort_keys=True)
    return f"{cfg.model_name} {hashlib.sha256(parts.encode()).hexdigest()}"
