"""From examples to token ids: the instruction, the checkpoint's chat template, and prompts that are too long."""

import logging
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jax_rl.data.examples import Example
from jax_rl.data.sources import DataError
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    example: Example
    text: str  # what was encoded, the chat template included
    token_ids: tuple[int, ...]


def format_translation_prompt(example: Example, template: str) -> str:
    r"""The instruction for one example.

    `template` has {text} and may have {source_lang}, {src_lang_code}, {target_lang}, {tgt_lang_code}; a backslash
    followed by n means a newline, a brace meant as text is written twice. The example's own text is put in as it is.

    Raises DataError where the template is not one.
    """
    values = {
        "source_lang": example.src_lang,
        "src_lang_code": example.src_lang_code,
        "target_lang": example.tgt_lang,
        "tgt_lang_code": example.tgt_lang_code,
        "text": example.src_text,
    }
    try:
        parts = list(string.Formatter().parse(template.replace("\\n", "\n")))
    except ValueError as error:
        raise DataError(f"prompt.template {template!r}: {error}; a brace meant as text is written twice") from error
    pieces = []
    for literal, name, spec, conversion in parts:
        pieces.append(literal)
        if name is None:
            continue
        if name not in values or spec or conversion:
            known = ", ".join(f"{{{key}}}" for key in values)
            written = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise DataError(f"prompt.template {template!r}: {{{written}}} is not one of {known}")
        pieces.append(values[name])
    if "text" not in [name for _, name, _, _ in parts]:
        raise DataError(f"prompt.template {template!r} has no {{text}}; put it where the source text belongs")
    return "".join(pieces)


def encode_prompts(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    template: str,
    chat_template_kwargs: Mapping[str, Any],
    max_tokens: int,
    policy: Literal["error", "skip"],
) -> list[Prompt]:
    """One prompt per example, in order, through the tokenizer's chat template where it has one.

    A chat template that takes language codes (TranslateGemma) writes its own instruction: it is given the source text
    and the example's two codes, and `template` is not used.

    Args:
        max_tokens: the longest prompt, chat template included; never cut.
        policy: what a longer one is: an error that names it, or left out and counted in a warning.

    Raises:
        DataError: a prompt is too long, or none is left.
        TokenizerError: the chat template refuses an example, which is named; a language code it does not know is named
            too.
    """
    if tokenizer.takes_language_codes:
        log.info("the checkpoint's chat template writes the instruction from the language codes: no prompt.template")
    prompts = [_encode(tokenizer, example, template, chat_template_kwargs) for example in examples]
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= max_tokens]
    if len(fitting) == len(prompts):
        return prompts
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    found = (
        f"{len(prompts) - len(fitting)} of {len(prompts)} prompts have more tokens than data.max_prompt_tokens = "
        f"{max_tokens}; the longest is example {longest.example.example_id!r} with {len(longest.token_ids)}"
    )
    if policy == "error":
        raise DataError(f"{found}; raise that limit, or set data.overlong_prompt_policy: skip")
    if not fitting:
        raise DataError(f"{found}; none is left")
    log.warning("%s; they are left out", found)
    return fitting


def _encode(tokenizer: Tokenizer, example: Example, template: str, kwargs: Mapping[str, Any]) -> Prompt:
    if tokenizer.has_chat_template:
        text = _render(tokenizer, example, template, kwargs)
        return Prompt(example, text, tuple(tokenizer.encode(text, add_special_tokens=False)))
    text = format_translation_prompt(example, template)
    ids = tokenizer.encode(text, add_special_tokens=True)
    # some tokenizers close every text with their EOS: the completion would begin after the end
    while ids and ids[-1] in tokenizer.eos_ids:
        ids.pop()
    return Prompt(example, text, tuple(ids))


def _render(tokenizer: Tokenizer, example: Example, template: str, kwargs: Mapping[str, Any]) -> str:
    """Through the chat template: the instruction, or the bare text and its codes where the template instructs."""
    if tokenizer.takes_language_codes:
        codes = {"source_lang_code": example.src_lang_code, "target_lang_code": example.tgt_lang_code}
        content: Any = [{"type": "text", **codes, "text": example.src_text}]
        named = f" (source_lang_code {example.src_lang_code!r}, target_lang_code {example.tgt_lang_code!r})"
    else:
        content, named = format_translation_prompt(example, template), ""
    try:
        return tokenizer.apply_chat_template([{"role": "user", "content": content}], **kwargs)
    except TokenizerError as error:
        raise TokenizerError(f"example {example.example_id!r}{named}: {error}") from error
