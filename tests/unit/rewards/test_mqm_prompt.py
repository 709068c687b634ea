"""The judge's prompt: the gemba package's own messages, or a file's."""

import json
import subprocess
import sys

import pytest

from jax_rl.rewards.mqm_prompt import PromptError, fill_prompt, load_prompt

VALUES = {
    "source_lang": "English",
    "target_lang": "Korean",
    "source_seg": "Press {target_seg} or {0}, 100%",
    "target_seg": "누르세요 {source_lang} {",
    "reference_seg": "눌러요",
}

PACKAGE_MESSAGES = """
import json, sys
from gemba.gemba_mqm_utils import TEMPLATE_GEMBA_MQM, apply_template
json.dump(apply_template(TEMPLATE_GEMBA_MQM, json.load(sys.stdin)), open(sys.argv[1], "w"))
"""


def write_prompt(path, messages) -> str:
    path.write_text(json.dumps(messages), encoding="utf-8")
    return str(path)


def test_the_same_messages_as_the_package_makes(tmp_path):
    written = tmp_path / "messages.json"
    command = [sys.executable, "-c", PACKAGE_MESSAGES, str(written)]
    subprocess.run(command, input=json.dumps(VALUES), text=True, check=True, capture_output=True)

    messages = fill_prompt(load_prompt(None, False, tmp_path / "cache"), VALUES)
    assert messages == json.loads(written.read_text())
    assert [message["role"] for message in messages] == ["system"] + ["user", "assistant"] * 3 + ["user"]


def test_the_package_is_read_once_and_never_imported_here(tmp_path):
    first = load_prompt(None, False, tmp_path)
    (kept,) = tmp_path.iterdir()
    before = kept.stat()
    assert load_prompt(None, False, tmp_path) == first
    assert kept.stat() == before
    assert "gemba" not in sys.modules and "ipdb" not in sys.modules


def test_a_reference_is_shown_once_before_the_translation(tmp_path):
    plain = load_prompt(None, False, tmp_path)
    *examples, task = load_prompt(None, True, tmp_path)
    assert examples == plain[:-1]
    filled = fill_prompt([task], VALUES)[0]["content"]
    assert filled.count("Korean reference:\n```눌러요```\nKorean translation:\n```누르세요") == 1
    assert filled.replace("Korean reference:\n```눌러요```\n", "") == fill_prompt(plain, VALUES)[-1]["content"]


def test_a_file_replaces_the_package(tmp_path):
    messages = [{"role": "user", "content": 'Judge {source_seg} as {target_seg}. Answer {"errors": []}'}]
    prompt = load_prompt(write_prompt(tmp_path / "prompt.json", messages), False, tmp_path / "unused")
    values = VALUES | {"source_seg": "{target_seg}", "target_seg": "x"}
    assert fill_prompt(prompt, values)[0]["content"] == 'Judge {target_seg} as x. Answer {"errors": []}'
    assert not (tmp_path / "unused").exists()


TASK = {"role": "user", "content": "{source_seg} {target_seg}"}


@pytest.mark.parametrize(
    ("messages", "use_reference", "problem"),
    [
        ({"role": "user"}, False, "JSON list of messages, not dict"),
        ([], False, "JSON list of messages"),
        (["hello"], False, "message 1 must have the keys role and content"),
        ([TASK, {"role": "user", "text": "x"}], False, "message 2 must have the keys"),
        ([TASK, {"role": "tool", "content": "x"}], False, "message 2 needs text as content and a role of"),
        ([{"role": "user", "content": ["x"]}], False, "message 1 needs text"),
        ([{"role": "user", "content": "{source_seg}"}], False, "has no {target_seg}"),
        ([TASK], True, "has no {reference_seg}, but reward.mqm.use_reference is true"),
        ([TASK, {"role": "user", "content": "{reference_seg}"}], False, "has {reference_seg}, but .* is false"),
    ],
)
def test_a_bad_file_is_named_with_its_problem(tmp_path, messages, use_reference, problem):
    path = write_prompt(tmp_path / "prompt.json", messages)
    with pytest.raises(PromptError, match=f"prompt.json.*{problem}"):
        load_prompt(path, use_reference, tmp_path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(PromptError, match="nowhere.json"):
        load_prompt(str(tmp_path / "nowhere.json"), False, tmp_path)
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(PromptError, match="broken.json"):
        load_prompt(str(tmp_path / "broken.json"), False, tmp_path)
