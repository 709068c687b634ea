"""The chat messages that ask a judge for GEMBA-MQM: the gemba package's own, or those of `reward.mqm.prompt_file`.

A prompt file is a JSON list of {"role": "system" | "user" | "assistant", "content": "..."}. In every content
{source_lang}, {target_lang}, {source_seg} and {target_seg} stand for the two languages, the source and the
translation, and {reference_seg} for the reference (with `use_reference`, and only then). Other braces mean themselves.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_rl.errors import UserError

Messages = list[dict[str, str]]

_PLACEHOLDERS = ("source_lang", "target_lang", "source_seg", "target_seg", "reference_seg")
_PLACEHOLDER = re.compile("{(" + "|".join(_PLACEHOLDERS) + ")}")
_ROLES = ("system", "developer", "user", "assistant")
# importing gemba brings pandas and a debugger along: not into the trainer
_READ_GEMBA = """
import json, sys
from gemba.gemba_mqm_utils import TEMPLATE_GEMBA_MQM
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(TEMPLATE_GEMBA_MQM, file, ensure_ascii=False)
"""
_READ_TIMEOUT_SEC = 300.0
_TRANSLATION_BLOCK = "{target_lang} translation:\n```{target_seg}```"
_REFERENCE_BLOCK = "{target_lang} reference:\n```{reference_seg}```\n"


class PromptError(UserError):
    """The judge's prompt cannot be had, or is not one."""


def load_prompt(prompt_file: str | None, use_reference: bool, cache_dir: Path) -> Messages:
    """The messages with their placeholders, checked. `cache_dir` keeps the gemba package's between runs."""
    if prompt_file is not None:
        return _checked(_read_json(Path(prompt_file)), f"reward.mqm.prompt_file {prompt_file}", use_reference)
    messages = _checked(_gemba_messages(cache_dir), "the prompt of the gemba package", use_reference=False)
    return _with_reference(messages) if use_reference else messages


def fill_prompt(messages: Messages, values: dict[str, str]) -> Messages:
    """The messages with each placeholder replaced, once: braces in the texts themselves stay as they are."""
    return [
        {**message, "content": _PLACEHOLDER.sub(lambda match: values[match.group(1)], message["content"])}
        for message in messages
    ]


def _gemba_messages(cache_dir: Path) -> Any:
    try:
        version = metadata.version("gemba")
    except metadata.PackageNotFoundError:
        raise PromptError(
            "the MQM judge takes its prompt from the package gemba, which is not installed: "
            "install jax_rl with its extra 'judge', or set reward.mqm.prompt_file"
        ) from None
    path = cache_dir / f"gemba-{version}-mqm-prompt.json"
    if not path.exists():
        _read_gemba_into(path)
    return _read_json(path)


def _read_gemba_into(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        written = Path(scratch) / path.name
        # -P: a folder named gemba in the working directory is not the package
        command = [sys.executable, "-P", "-c", _READ_GEMBA, str(written)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_READ_TIMEOUT_SEC)
        except subprocess.CalledProcessError as error:
            raise PromptError(f"the gemba package gives no MQM prompt: {error.stderr.strip()[-500:]}") from None
        except subprocess.TimeoutExpired:
            raise PromptError(f"importing the gemba package took more than {_READ_TIMEOUT_SEC:.0f} s") from None
        os.replace(written, path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"cannot read the judge's prompt {path}: {error}") from None


def _checked(messages: Any, origin: str, use_reference: bool) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise PromptError(f"{origin} must be a JSON list of messages, not {type(messages).__name__}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise PromptError(f"{origin}: message {number} must have the keys role and content and no others")
        if message["role"] not in _ROLES or not isinstance(message["content"], str):
            raise PromptError(f"{origin}: message {number} needs text as content and a role of {', '.join(_ROLES)}")
    used = {name for message in messages for name in _PLACEHOLDER.findall(message["content"])}
    for name in ("source_seg", "target_seg"):
        if name not in used:
            raise PromptError(f"{origin} has no {{{name}}}")
    if use_reference != ("reference_seg" in used):
        has = "has" if "reference_seg" in used else "has no"
        setting = "true" if use_reference else "false"
        raise PromptError(f"{origin} {has} {{reference_seg}}, but reward.mqm.use_reference is {setting}")
    return messages


def _with_reference(messages: Messages) -> Messages:
    """gemba's prompt with the reference shown before the translation to judge; its examples have none."""
    *examples, task = messages
    if _TRANSLATION_BLOCK not in task["content"]:
        raise PromptError("this gemba version's prompt has no place for a reference: set reward.mqm.prompt_file")
    content = task["content"].replace(_TRANSLATION_BLOCK, _REFERENCE_BLOCK + _TRANSLATION_BLOCK)
    return [*examples, {**task, "content": content}]
