"""The tokenizer against transformers on the same folder, and what it says of folders that are not usable."""

import json
import subprocess
import sys

import pytest
import tokenizers
from tokenizers import AddedToken

from jax_rl.cli import main_guard
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError

KINDS = ("byte_level_nfc", "byte_level", "gemma", "llama", "unigram")
GEMMA_TEMPLATE = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}{{ message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
QWEN_TEMPLATE = r"""{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ message.content }}{% endgeneration %}{% continue %}
    {%- endif %}
    {%- set ns.last = loop.index0 %}
    {{- '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}
{%- endfor %}
{%- if style is defined %}{{- style | tojson }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}
    {%- else %}{{- '<think>\n' }}{%- endif %}
{%- endif %}
"""
LOOSE_TEMPLATE = """{% set mark = 'a' %}
{% for message in messages %}
  {% generation %}
{{ message.content }}{% set mark = 'b' %}
  {% endgeneration %}
{{ mark }}
{% endfor %}
"""
TEXTS = ['안녕 "hi" <x> & y\'s\n', "  two  blanks ", "é 뷁🤯", "", "한 글 <think> <end_of_turn><|im_end|> <bos>"]
CHATS = [
    [{"role": "user", "content": TEXTS[0]}],
    [{"role": "user", "content": "{{ 1 + 1 }} {% raw %}"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b "}, {"role": "user", "content": "c"}],
]


def load_both(folder):
    from transformers import PreTrainedTokenizerFast  # torch comes with it

    return Tokenizer.load(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_those_of_transformers(folders, kind):
    mine, reference = load_both(folders[kind])
    for text in TEXTS:
        for special in (True, False):
            ids = mine.encode(text, add_special_tokens=special)
            assert ids == reference(text, add_special_tokens=special)["input_ids"]
            expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert mine.decode(ids) == expected
    assert (mine.bos_id, mine.pad_id) == (reference.bos_token_id, reference.pad_token_id)
    assert mine.eos_ids == (reference.eos_token_id,)
    assert mine.special_ids >= set(reference.all_special_ids)
    assert mine.vocab_size == len(reference)


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "by name"])
@pytest.mark.parametrize(
    ("kind", "template", "kwargs"),
    [
        ("gemma", GEMMA_TEMPLATE, {}),
        ("byte_level_nfc", QWEN_TEMPLATE, {"enable_thinking": False}),
        ("byte_level_nfc", QWEN_TEMPLATE, {"enable_thinking": True, "style": {"b": "<é>", "a": [1, None]}}),
        ("byte_level_nfc", QWEN_TEMPLATE, {"add_generation_prompt": False}),
        ("byte_level", LOOSE_TEMPLATE, {}),
    ],
)
def test_chats_are_those_of_transformers(backends, save_tokenizer, tmp_path, kind, template, kwargs, where):
    names: dict = {"bos_token": "<bos>", "eos_token": "<eos>"} if kind == "gemma" else {"eos_token": "<|im_end|>"}
    if where == "tokenizer_config.json":
        names["chat_template"] = template
    elif where == "by name":
        names["chat_template"] = [{"name": "tool", "template": "no"}, {"name": "default", "template": template}]
    folder = save_tokenizer(backends[kind], tmp_path, **names)
    if where == "chat_template.jinja":
        (folder / where).write_text(template)
    elif where == "chat_template.json":
        (folder / where).write_text(json.dumps({"chat_template": template}))
    mine, reference = load_both(folder)
    given = {"chat_template": template} if where == "chat_template.json" else {}  # transformers: processors only
    for chat in CHATS:
        text = mine.apply_chat_template(chat, **kwargs)
        options = {"add_generation_prompt": True} | given | kwargs
        assert text == reference.apply_chat_template(chat, tokenize=False, **options)
        ids = reference.apply_chat_template(chat, return_dict=False, **options)
        assert mine.encode(text, add_special_tokens=False) == ids
    assert mine.has_chat_template


@pytest.mark.parametrize("flags", [{"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_bos_is_added_where_tokenizer_json_says_so_whatever_the_flags(backends, save_tokenizer, tmp_path, flags):
    names = {"bos_token": {"__type": "AddedToken", "content": "<bos>"}, "eos_token": "<eos>"}
    mine, reference = load_both(save_tokenizer(backends["gemma"], tmp_path, **names, **flags))
    assert mine.encode("good", add_special_tokens=True) == reference("good")["input_ids"]


def test_a_token_that_only_the_config_calls_special_is_one(backends, save_tokenizer, tmp_path):
    """gemma's <start_of_turn> is a plain piece of this vocabulary until the config names it."""
    spec = json.loads(backends["gemma"].to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] != "<end_of_turn>"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    folder = save_tokenizer(backend, tmp_path, eos_token="<end_of_turn>", bos_token="<bos>")
    mine, reference = load_both(folder)
    ids = mine.encode("good<end_of_turn>", add_special_tokens=False)
    assert ids == reference("good<end_of_turn>", add_special_tokens=False)["input_ids"]
    assert ids[-1] == mine.eos_ids[0]
    assert mine.decode(ids) == "good"


def test_a_stop_token_never_shows_in_the_text(backends, save_tokenizer, tmp_path):
    """A fine-tuner's added token that ends turns and was not marked as special."""
    backend = tokenizers.Tokenizer.from_str(backends["byte_level"].to_str())
    backend.add_tokens([AddedToken("<|done|>", special=False)])
    done = backend.token_to_id("<|done|>")
    folder = save_tokenizer(backend, tmp_path, eos_token="<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": done}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.decode([*tokenizer.encode("good", add_special_tokens=False), done]) == "good"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": [1, 5]}, "config.json": {"eos_token_id": 1}}, (1, 5)),
        ({"generation_config.json": {"eos_token_id": 5}}, (5,)),
        ({"generation_config.json": {"eos_token_id": None}, "config.json": {"eos_token_id": [5, 1, 5]}}, (5, 1)),
        ({"config.json": {"eos_token_id": 5, "text_config": {"eos_token_id": 3}}}, (5,)),
        ({"config.json": {"text_config": {"eos_token_id": [5]}}}, (5,)),
        ({"config.json": {}}, (1,)),
        ({}, (1,)),
    ],
)
def test_where_stop_ids_come_from(backends, save_tokenizer, tmp_path, files, expected):
    folder = save_tokenizer(backends["gemma"], tmp_path, eos_token="<eos>")
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == expected
    assert tokenizer.pad_id == expected[0], "no pad token is named, so a stop id fills up"


def test_older_folders_name_their_tokens_in_a_file_of_their_own(backends, save_tokenizer, tmp_path):
    folder = save_tokenizer(backends["gemma"], tmp_path)
    names = {"eos_token": {"content": "<eos>"}, "bos_token": "<bos>", "pad_token": "<not in the vocabulary>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.load(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (2, (1,), 1)


def test_no_truncation_and_no_padding_from_the_file(backends, save_tokenizer, tmp_path):
    backend = tokenizers.Tokenizer.from_str(backends["gemma"].to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.load(save_tokenizer(backend, tmp_path, eos_token="<eos>"))
    text = "The translation of this sentence is good"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=True)) == text
    assert tokenizer.pad_id not in tokenizer.encode(text, add_special_tokens=True)


def cut_off(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-20])

    return damage


def write(name, content):
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "names", "says"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), {}, "there is no tokenizer.json"),
        (lambda folder: [f.unlink() for f in folder.iterdir()] + [folder.rmdir()], {}, "there is no such folder"),
        (cut_off("tokenizer.json"), {}, "tokenizer.json: not a tokenizer"),
        (write("tokenizer_config.json", "{"), {}, "tokenizer_config.json: not valid JSON"),
        (write("generation_config.json", "[]"), {}, "generation_config.json: must hold one JSON object, not a list"),
        (write("generation_config.json", '{"eos_token_id": "2"}'), {}, "eos_token_id is '2'; it must be an id"),
        (write("generation_config.json", '{"eos_token_id": [1, true]}'), {}, "eos_token_id is [1, True]"),
        (lambda folder: None, {"bos_token": "<bos>"}, "nothing says which token ends a completion"),
        (write("chat_template.jinja", "{% for %}"), {}, "chat_template.jinja: the chat template is broken at"),
        (lambda folder: None, {"eos_token": "<eos>", "chat_template": [{"name": "tool", "template": ""}]}, "['tool']"),
    ],
)
def test_an_unusable_folder_is_one_message_and_exit_code_2(
    backends, save_tokenizer, tmp_path, capsys, damage, names, says
):
    folder = save_tokenizer(backends["gemma"], tmp_path / "model", **(names or {"eos_token": "<eos>"}))
    damage(folder)
    assert main_guard(lambda: Tokenizer.load(folder) and None) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and says in message and str(folder) in message
    assert message.count("\n") == 1 and "Traceback" not in message


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content.source_lang_code.upper() }}", "source_lang_code"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content + 1 }}", "str"),
    ],
)
def test_a_template_that_refuses_says_why(backends, save_tokenizer, tmp_path, template, says):
    tokenizer = Tokenizer.load(save_tokenizer(backends["gemma"], tmp_path, eos_token="<eos>", chat_template=template))
    with pytest.raises(TokenizerError, match=says):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


def test_no_template(folders):
    tokenizer = Tokenizer.load(folders["gemma"])
    assert not tokenizer.has_chat_template
    with pytest.raises(TokenizerError, match="no chat template"):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])


def test_loading_needs_neither_transformers_nor_torch_nor_jax(folders):
    code = (
        "import sys; from jax_rl.tokens.tokenizer import Tokenizer; import jax_rl.tokens.offsets, jax_rl.data.prompts;"
        f"Tokenizer.load({str(folders['gemma'])!r});"
        "print(sorted({'transformers', 'torch', 'jax', 'datasets', 'grain'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
