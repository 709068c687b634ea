"""Instructions and token ids: placeholders, chat templates, BOS exactly once, prompts that are too long."""

import json
import logging

import pytest
import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from jax_rl.cli import main_guard
from jax_rl.config.schema import PromptConfig
from jax_rl.data.examples import DataError, Example
from jax_rl.data.prompts import encode_prompts, format_translation_prompt
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError

WORDS = [
    "<unk>",
    "<bos>",
    "<eos>",
    "<user>",
    "<model>",
    "Say",
    "in",
    "Korean",
    ":",
    "the",
    "cat",
    "sat",
    "NOTHINK",
    "\n",
]
CHAT = "{{ bos_token }}<user>{{ messages[0].content | trim }}<model>{% if not enable_thinking %}NOTHINK{% endif %}"
CODES_CHAT = """{%- set names = {"en": "English", "ko": "Korean"} -%}
{%- set item = messages[0].content[0] -%}
{{ bos_token }}<user>Say in {{ '' + names[item.source_lang_code] + names[item["target_lang_code"]] -}}
: {{ item.text | trim }}<model>"""
TEMPLATE = "Say in {target_lang} : {text}"


def example(text: str, example_id: str = "x") -> Example:
    return Example(example_id, text, "English", "Korean", "en", "ko", None)


def make_tokenizer(folder, chat_template: str | None = None, closes: bool = False) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(word, special=True) for word in WORDS[1:5]])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if closes else "<bos> $A", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>"} | ({"chat_template": chat_template} if chat_template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder)


def encode(tokenizer, texts, max_tokens=100, policy="error", kwargs=None):
    examples = [example(text, f"e{n}") for n, text in enumerate(texts)]
    return encode_prompts(tokenizer, examples, TEMPLATE, kwargs or {}, max_tokens, policy)


def words(ids) -> list[str]:
    return [WORDS[i] for i in ids]


def test_all_placeholders():
    template = "{source_lang}|{src_lang_code}|{target_lang}|{tgt_lang_code}|{text}|{text}"
    assert format_translation_prompt(example("hi"), template) == "English|en|Korean|ko|hi|hi"


def test_a_backslash_n_of_the_template_is_a_newline_that_of_the_text_is_not():
    assert format_translation_prompt(example(r"a\nb"), r"T:\n{text}" + "\n.") == "T:\n" + r"a\nb" + "\n."


def test_braces():
    """Doubled ones are text; those of the source are never placeholders."""
    assert format_translation_prompt(example("{src_lang} {0} }{"), '{{"k": "{text}"}}') == '{"k": "{src_lang} {0} }{"}'


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("Translate.", "has no {text}"),
        ("{text} {target}", "{target} is not one of"),
        ("{text} {}", "{} is not one of"),
        ("{text!r}", "{text!r} is not one of"),
        ("{text:>10}", "{text:>10} is not one of"),
        ("{text.__class__}", "{text.__class__} is not one of"),
        ("{text} {", "a brace meant as text is written twice"),
        ("{text} }", "a brace meant as text is written twice"),
    ],
)
def test_a_template_that_is_not_one(template, says):
    with pytest.raises(DataError) as error:
        format_translation_prompt(example("hi"), template)
    assert says in str(error.value) and template in str(error.value)


def test_the_default_template_is_one():
    text = format_translation_prompt(example("hi"), PromptConfig().template)
    assert text.endswith("\n\nhi") and "from English (en) to Korean (ko)" in text


def test_through_the_chat_template_with_one_bos_and_its_options(tmp_path):
    tokenizer = make_tokenizer(tmp_path, CHAT)
    (prompt,) = encode(tokenizer, ["the cat"], kwargs={"enable_thinking": False})
    assert words(prompt.token_ids) == ["<bos>", "<user>", *"Say in Korean : the cat".split(), "<model>", "NOTHINK"]
    assert prompt.text == "<bos><user>Say in Korean : the cat<model>NOTHINK"
    (thinking,) = encode(tokenizer, ["the cat"], kwargs={"enable_thinking": True})
    assert words(thinking.token_ids)[-1] == "<model>"


@pytest.mark.parametrize("closes", [False, True])
def test_without_a_chat_template_the_plain_prompt_has_its_bos_and_no_end(tmp_path, closes):
    (prompt,) = encode(make_tokenizer(tmp_path, closes=closes), ["the cat"])
    assert words(prompt.token_ids) == ["<bos>", *"Say in Korean : the cat".split()]
    assert prompt.text == "Say in Korean : the cat"


def test_a_chat_template_that_refuses(tmp_path):
    tokenizer = make_tokenizer(tmp_path, "{{ raise_exception('one dict with source_lang_code, please') }}")
    with pytest.raises(TokenizerError, match="example 'e0': .*source_lang_code, please"):
        encode(tokenizer, ["the cat"])


def test_a_chat_template_that_takes_language_codes_gets_the_text_and_the_codes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    first, second = encode(make_tokenizer(tmp_path, CODES_CHAT), ["the {cat} ", "sat"])
    assert first.text == "<bos><user>Say in EnglishKorean: the {cat}<model>"
    assert words(second.token_ids) == ["<bos>", "<user>", "Say", "in", "<unk>", ":", "sat", "<model>"]
    (record,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "language codes" in record.getMessage() and "prompt.template" in record.getMessage()


@pytest.mark.parametrize("codes", [("en", "zh-CN"), ("xx", "ko")])
def test_a_language_code_that_the_template_does_not_know_is_named_with_its_example(tmp_path, capsys, codes):
    tokenizer = make_tokenizer(tmp_path, CODES_CHAT)
    examples = [example("cat", "fine"), Example("bad", "cat", "A", "B", *codes, None)]
    assert main_guard(lambda: encode_prompts(tokenizer, examples, TEMPLATE, {}, 100, "error") and None) == 2
    message = capsys.readouterr().err
    assert f"example 'bad' (source_lang_code {codes[0]!r}, target_lang_code {codes[1]!r}): " in message
    assert message.count("\n") == 1 and "Traceback" not in message


def test_a_prompt_that_is_just_short_enough_is_whole(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    (prompt,) = encode(tokenizer, ["the cat"], max_tokens=7)
    assert len(prompt.token_ids) == 7


def test_a_prompt_that_is_too_long_is_an_error_that_names_it(tmp_path, capsys):
    tokenizer = make_tokenizer(tmp_path)
    texts = ["cat", "the cat sat", "the cat sat the cat", "the cat"]
    assert main_guard(lambda: encode(tokenizer, texts, max_tokens=7) and None) == 2
    message = capsys.readouterr().err
    assert message == (
        "error: 2 of 4 prompts have more tokens than data.max_prompt_tokens = 7; the longest is example 'e2' with 10; "
        "raise that limit, or set data.overlong_prompt_policy: skip\n"
    )


def test_prompts_that_are_too_long_are_left_out_and_counted(tmp_path, caplog):
    tokenizer = make_tokenizer(tmp_path)
    prompts = encode(tokenizer, ["cat", "the cat sat", "the cat sat the cat", "the cat"], max_tokens=7, policy="skip")
    assert [prompt.example.example_id for prompt in prompts] == ["e0", "e3"]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "2 of 4 prompts" in record.getMessage() and "left out" in record.getMessage()


def test_when_all_prompts_are_too_long_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(DataError, match="2 of 2 prompts .* none is left"):
        encode(make_tokenizer(tmp_path), ["cat", "cat"], max_tokens=3, policy="skip")
