"""Rendering a checkpoint's chat template as transformers does, without importing it.

Template dialect: https://huggingface.co/docs/transformers/chat_templating (jinja2, sandboxed: templates come from
strangers). Left out on purpose: `strftime_now`, so that a prompt never depends on the day; templates that ask for it
fall back to the fixed date that they carry.
"""

import json
from collections.abc import Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_LANGUAGE_CODES = {"source_lang_code", "target_lang_code"}


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for supervised training; here its body is simply rendered."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class ChatTemplate:
    """One template, compiled.

    takes_language_codes  whether it writes the translation's instruction itself, from `source_lang_code` and
                          `target_lang_code` of the user's one content item (TranslateGemma), and not from a text
    """

    def __init__(self, source: str) -> None:
        """Raises jinja2.TemplateSyntaxError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        self.takes_language_codes = _LANGUAGE_CODES <= _fields_read(environment.parse(source))
        self._template = environment.from_string(source)

    def render(self, messages: Sequence[dict[str, Any]], special_tokens: dict[str, str], **kwargs: Any) -> str:
        """The text of a conversation, ready for the assistant's turn.

        `kwargs` reach the template as variables and win over `special_tokens` (bos_token, eos_token, ...). Raises
        jinja2.TemplateError where the template refuses, TypeError where it cannot work with what it was given.
        """
        variables = {"add_generation_prompt": True, "tools": None, "documents": None, **special_tokens, **kwargs}
        return self._template.render(messages=list(messages), **variables)


def _fields_read(tree: nodes.Template) -> set[str]:
    """Every name after a dot and every text in the code: `x.name`, `x["name"]`, `x.get("name")`, `"name" in x`."""
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    return attributes | {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}


def _to_json(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """jinja2's own filter escapes for HTML; a prompt wants the characters themselves."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
