"""Chats of each family against transformers' own tokenizer class and its rendering, refusals included.

The templates beside this file use every construct that the published ones use, in other words.
"""

import json
from pathlib import Path

import jinja2
import pytest

from jax_rl.tokens.chat_template import ChatTemplate
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError

TEMPLATES = Path(__file__).parent / "chat_templates"
MARKS = {
    "gemma": ["<start_of_turn>", "<end_of_turn>", "<start_of_image>"],
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
FAMILIES = {  # template -> what AutoTokenizer calls the tokenizer of that family, the kind it is trained as here, marks
    "gemma3": ("GemmaTokenizer", "gemma", "gemma"),
    "translategemma": ("GemmaTokenizer", "gemma", "gemma"),
    "qwen3": ("Qwen2Tokenizer", "byte_level_nfc", "qwen"),
    "qwen3_5": ("Qwen3_5Tokenizer", "byte_level_nfc", "qwen"),
    "llama3": ("TokenizersBackend", "byte_level", "llama"),
}
TEXT = '  Übersetze «안녕, "hi" <x> & y\'s 🤯» e\u0301 \n'  # Qwen's NFC makes one character of the last two
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"word": {"type": "string", "ü": [1, None]}}}}
CALL = {
    "type": "function",
    "function": {"name": "look_up", "arguments": {"word": "안녕", "n": 3, "in": ["de", "<ko>"]}},
}
USER, ANSWER = {"role": "user", "content": TEXT}, {"role": "assistant", "content": " Guten Tag \n"}
SYSTEM = {"role": "system", "content": " Be brief. "}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nGuten Tag", "tool_calls": [CALL, CALL]}
REASONED = {"role": "assistant", "content": "Guten Tag", "reasoning_content": "\nhm\n"}
RESULT = {"role": "tool", "content": "Hallo"}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TEXT}, {"type": "text", "text": "b"}]}
ODD = {"role": "user", "content": 3}
CHATS = {
    "one text": [USER],
    "system": [SYSTEM, USER],
    "system in parts": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER],
    "turns": [SYSTEM, USER, ANSWER, USER],
    "two users": [USER, USER],
    "late system": [USER, SYSTEM],
    "parts": [PARTS],
    "odd content": [ODD],
    "thought": [USER, THOUGHT],
    "reasoned": [USER, REASONED, USER, REASONED],
    "tool": [USER, THOUGHT, RESULT, RESULT, ANSWER],
    "one call": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "ipython", "content": {"a": "ü"}}],
    "template in the text": [{"role": "user", "content": "{{ 1 + 1 }} {% raw %} {# a #}"}],
}
OPTIONS: list[dict] = [{}, {"enable_thinking": False}, {"add_generation_prompt": False}, {"tools": [TOOL]}]


def codes(source, target, text=TEXT, **more):
    content = [{"type": "text", "source_lang_code": source, "target_lang_code": target, "text": text, **more}]
    return [{"role": "user", "content": content}]


CODED = {
    "known": codes("en", "ko"),
    "underscore": codes("de_AT", "zh-Hans"),
    "unknown target": codes("en", "zh-CN"),
    "unknown source": codes("xx", "ko"),
    "image": codes("en", "ko", type="image"),
    "other type": codes("en", "ko", type="audio"),
    "two items": [{"role": "user", "content": codes("en", "ko")[0]["content"] * 2}],
    "turns": [*codes("en", "ko"), ANSWER, *codes("ko", "en", "안녕")],
}


@pytest.fixture(scope="module")
def families(backends, tmp_path_factory):
    """Template -> (our tokenizer, transformers'), both from a folder that transformers wrote."""
    import transformers

    made = {}
    for name, (class_name, kind, marks) in FAMILIES.items():
        model = json.loads(backends[kind].to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        folder = tmp_path_factory.mktemp(name)
        if class_name == "TokenizersBackend":  # Llama 3 has no class of its own
            theirs = transformers.PreTrainedTokenizerFast(
                tokenizer_object=backends[kind], bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
            )
        else:
            theirs = getattr(transformers, class_name)(vocab=model["vocab"], merges=merges)
        theirs.add_special_tokens({"additional_special_tokens": MARKS[marks]})
        theirs.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
        theirs.save_pretrained(folder)
        assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == class_name
        made[name] = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    return made


def render(tokenizer, chat, options):
    """The text, or why there is none."""
    try:
        return tokenizer.apply_chat_template(chat, **options), None
    except (TokenizerError, jinja2.TemplateError, TypeError) as error:
        return None, str(error)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_text_and_refusals_are_those_of_transformers(families, name):
    """Llama 3 asks for the day; without transformers' answer a prompt has the template's own date."""
    mine, reference = families[name]
    written = refused = 0
    for chat in [*CHATS.values(), *CODED.values()]:
        for options in OPTIONS:
            given = {"add_generation_prompt": True, "date_string": "24 Dec 2024"} | options
            expected, reason = render(reference, chat, {"tokenize": False} | given)
            text, refusal = render(mine, chat, options)
            assert text == expected, (chat, options)
            if expected is None:
                assert refusal.endswith(reason), (chat, options)
                refused += 1
                continue
            ids = reference.apply_chat_template(chat, return_dict=False, **given)
            assert mine.encode(text, add_special_tokens=False) == ids
            written += 1
    assert written >= 8 and refused >= 8


@pytest.mark.parametrize("name", FAMILIES)
def test_which_template_takes_language_codes(families, name):
    assert families[name][0].takes_language_codes == (name == "translategemma")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].content[0].source_lang_code ~ messages[0].content[0].target_lang_code }}", True),
        ("{% set c = messages[0]['content'][0] %}{{ c.get('source_lang_code') }}{{ c['target_lang_code'] }}", True),
        ("{{ messages[0].content[0].source_lang_code }}", False),
        ("{{ source_lang_code }} {{ target_lang_code }} {{ messages[0].content }}", False),
        ("{{ raise_exception('no source_lang_code, no target_lang_code') }}", False),
        ("source_lang_code target_lang_code {# c['source_lang_code'] c['target_lang_code'] #}", False),
    ],
)
def test_what_counts_as_taking_language_codes(template, expected):
    assert ChatTemplate(template).takes_language_codes is expected
