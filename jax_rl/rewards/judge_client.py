"""One chat completion from an OpenAI-compatible server: retries, time limits, and a key that never shows."""

import asyncio
import email.utils
import json
import logging
import math
import os
import random
import time
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from jax_rl.config.schema import MQMConfig
from jax_rl.errors import UserError
from jax_rl.rewards.mqm_prompt import Messages
from jax_rl.rewards.types import MetricFailed

_LOG = logging.getLogger(__name__)
_LONGEST_BACKOFF_SEC = 30.0
_LONGEST_RETRY_AFTER_SEC = 300.0  # a server that wants a longer pause has failed
_DETAIL_CHARS = 300


class JudgeError(MetricFailed):
    """The judge's server refused, answered what is no chat completion, or failed after all retries."""


class JudgeSetupError(UserError):
    """The judge cannot be asked at all: a package is missing, or its key is not one."""


@dataclass(frozen=True)
class ChatAnswer:
    content: str  # empty where the server sent none
    cut: bool  # stopped by the token limit or a filter, not by the model


class ChatClient:
    """Asks one server for chat completions. All calls must run in the same event loop."""

    def __init__(self, cfg: MQMConfig, first_backoff_sec: float) -> None:
        try:
            import openai  # here: it is an extra, and takes half a second
        except ImportError:
            raise JudgeSetupError(
                "the MQM judge needs the package openai, which is not installed: install jax_rl with its extra 'judge'"
            ) from None
        self._openai = openai
        self._key = _api_key(cfg)
        self._key_origin = "reward.mqm.api_key" if cfg.api_key else f"the environment variable {cfg.api_key_env}"
        self._max_retries = cfg.max_retries
        self._timeout_sec = cfg.timeout_sec
        self._first_backoff_sec = first_backoff_sec
        self.retries = 0  # so far, over all requests
        address = urlsplit(cfg.base_url or "").netloc.rpartition("@")[2]  # without user and password
        self._server = f"the judge {cfg.model_name} at {address}"
        self._client = openai.AsyncOpenAI(
            base_url=cfg.base_url,
            api_key=self._key or "none",  # a local server asks for none, the client wants one
            timeout=cfg.timeout_sec,
            max_retries=0,  # the client would also retry on 409 and on a header's word
        )
        self._arguments: dict[str, Any] = {
            "model": cfg.model_name,
            "temperature": cfg.temperature,
            "top_p": cfg.top_p,
            "max_tokens": cfg.max_tokens,
        }
        if cfg.stop:
            self._arguments["stop"] = list(cfg.stop)
        if cfg.chat_template_kwargs:
            self._arguments["extra_body"] = {"chat_template_kwargs": cfg.chat_template_kwargs}

    async def ask(self, messages: Messages) -> ChatAnswer:
        """One answer. Waits and asks again on 408, 429, 5xx, time-outs and broken connections; raises JudgeError."""
        arguments = {**self._arguments, "messages": messages}
        attempt = 0
        while True:
            try:
                # the client's own limit is per read: a server that trickles would hold a request for ever
                async with asyncio.timeout(self._timeout_sec):
                    raw = await self._client.chat.completions.with_raw_response.create(**arguments)
                return self._read(raw.text)
            except self._openai.APIStatusError as error:
                status = error.status_code
                if status not in (408, 429) and status < 500:
                    self._fail(f"HTTP {status}: {error.message}{self._key_hint(status)}")
                problem, pause = f"HTTP {status}: {error.message}", _retry_after(error.response.headers)
            except (TimeoutError, self._openai.APITimeoutError):
                problem, pause = f"no answer within {self._timeout_sec:g} s", 0.0
            except self._openai.APIConnectionError as error:
                problem, pause = f"{type(error.__cause__).__name__}: {error.__cause__}", 0.0

            if attempt == self._max_retries:
                self._fail(f"{problem} (attempt {attempt + 1}, the last)")
            if pause > _LONGEST_RETRY_AFTER_SEC:
                self._fail(f"{problem} (asks for a pause of {pause:.0f} s)")
            pause = max(pause, min(self._first_backoff_sec * 2**attempt, _LONGEST_BACKOFF_SEC) * random.uniform(0.5, 1))
            attempt += 1
            self.retries += 1
            _LOG.warning("%s: %s; retry %d of %d in %.1f s",
                         self._server, self._safe(problem), attempt, self._max_retries, pause)  # fmt: skip
            await asyncio.sleep(pause)

    async def close(self) -> None:
        await self._client.close()

    def _read(self, body: str) -> ChatAnswer:
        try:
            choice = json.loads(body)["choices"][0]
            content = choice["message"].get("content") or ""
            if not isinstance(content, str):
                raise TypeError
            return ChatAnswer(content, cut=choice.get("finish_reason") in ("length", "content_filter"))
        except (ValueError, LookupError, TypeError, AttributeError):
            self._fail(f"HTTP 200, but not a chat completion: {body[:_DETAIL_CHARS]!r}")

    def _fail(self, problem: str) -> NoReturn:
        # from None: the client's own error may quote the key
        raise JudgeError(f"{self._server}: {self._safe(problem)}") from None

    def _safe(self, text: str) -> str:
        if self._key:
            text = text.replace(self._key, "[key]")
        return text[: 2 * _DETAIL_CHARS]

    def _key_hint(self, status: int) -> str:
        if status not in (401, 403):
            return ""
        return f" (the key is from {self._key_origin})" if self._key else f" (no key: {self._key_origin} is not set)"


def _api_key(cfg: MQMConfig) -> str:
    key = (cfg.api_key or os.environ.get(cfg.api_key_env) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeSetupError(
            f"the judge's key, from reward.mqm.api_key or {cfg.api_key_env}, has characters that no header may hold"
        )
    return key


def _retry_after(headers: Any) -> float:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date); 0 where it does not say."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
