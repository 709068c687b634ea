"""The MQM judge against a real HTTP server that delays, drops, rate-limits, refuses and answers nonsense."""

import logging
import sys
import threading
import time
import traceback
from dataclasses import replace

import pytest

from jax_rl.config.schema import MQMConfig
from jax_rl.rewards.judge_client import JudgeError, JudgeSetupError
from jax_rl.rewards.mqm_judge import MQMJudge
from jax_rl.rewards.types import ErrorSpan, Missing, Scored, Translation

KEY = "sk-do-not-show-8471"
NO_ERROR = "Critical:\nno-error\nMajor:\nno-error\nMinor:\nno-error"
PROMPT = '[{"role": "user", "content": "{source_lang} to {target_lang}: {source_seg} = {target_seg}"}]'


def translation(mt: str, **changes: str | None) -> Translation:
    return replace(Translation("Hello", mt, None, "English", "German"), **changes)


@pytest.fixture(scope="module")
def gemba_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("gemba")


@pytest.fixture
def open_judge(chat_server, tmp_path, gemba_cache):
    """Builds judges of `chat_server`, with a plain prompt and short pauses, and closes them."""
    judges = []

    def build(**changes) -> MQMJudge:
        (tmp_path / "prompt.json").write_text(PROMPT)
        cfg = MQMConfig(
            enabled=True,
            base_url=chat_server.base_url,
            model_name="tiny-judge",
            api_key=KEY,
            prompt_file=str(tmp_path / "prompt.json"),
            timeout_sec=5.0,
        )
        judges.append(MQMJudge(replace(cfg, **changes), gemba_cache, first_backoff_sec=0.01))
        return judges[-1]

    yield build
    for judge in judges:
        judge.close()


def test_an_answer_becomes_a_score_and_spans(chat_server, reply, open_judge):
    chat_server.play(reply.chat('Critical:\nno-error\nMajor:\nx - "HALLO"\nMinor:\ny - "Welt"\nz - "absent"'))
    (score,) = open_judge().score([translation("Hallo Welt")])
    assert score == Scored(-7.0, (ErrorSpan(0, 5, "MAJOR", None, "Hallo"), ErrorSpan(6, 10, "MINOR", None, "Welt")))


def test_what_the_server_is_asked(chat_server, open_judge):
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 77, "stop": ("END",)}
    judge = open_judge(**sampling, chat_template_kwargs={"think": False})
    judge.score([translation("Hallo {source_seg}")])
    assert chat_server.requests == [
        {
            "model": "tiny-judge",
            "messages": [{"role": "user", "content": "English to German: Hello = Hallo {source_seg}"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 77,
            "stop": ["END"],
            "chat_template_kwargs": {"think": False},
        }
    ]
    assert chat_server.keys == [f"Bearer {KEY}"]


def test_what_is_not_set_is_not_sent_and_languages_may_be_fixed(chat_server, open_judge):
    judge = open_judge(chat_template_kwargs={}, source_lang="Scots", target_lang="Dutch")
    judge.score([translation("Hallo")])
    assert chat_server.requests[0].keys() == {"model", "messages", "temperature", "top_p", "max_tokens"}
    assert chat_server.requests[0]["messages"][0]["content"].startswith("Scots to Dutch")


def test_the_gemba_prompt_is_the_default(chat_server, open_judge):
    open_judge(prompt_file=None, use_reference=True).score([translation("Hallo", ref="Guten Tag")])
    messages = chat_server.requests[0]["messages"]
    assert len(messages) == 8
    assert "German reference:\n```Guten Tag```" in messages[-1]["content"]


def test_the_texts_are_sent_in_nfc_and_spans_count_the_original(chat_server, reply, open_judge):
    decomposed = "u\u0308ber Go\u0308tter"
    chat_server.play(reply.chat('Major:\nx - "Götter"'))
    (score,) = open_judge().score([translation(decomposed)])
    assert "über Götter" in chat_server.requests[0]["messages"][0]["content"]
    (span,) = score.spans
    assert decomposed[span.start : span.end] == span.text == "Go\u0308tter"


def test_a_blank_translation_is_the_worst_and_nobody_is_asked(chat_server, open_judge):
    judge = open_judge()
    assert judge.score([translation(""), translation(" \n\u200b")]) == [Scored(-25.0), Scored(-25.0)]
    assert chat_server.requests == []
    assert judge.pop_counts() == {"blank": 2, "cut": 0, "retries": 0}


def test_clipping_and_the_unit_interval(chat_server, reply, open_judge):
    chat_server.play(reply.chat('Major:\nx - "a"\nx - "b"'))
    batch = [translation("Hallo"), translation("")]
    assert [s.value for s in open_judge(score_min=-8.0).score(batch)] == [-8.0, -8.0]
    assert [s.value for s in open_judge(score_max=-12.0).score(batch)] == [-12.0, -25.0]
    assert [s.value for s in open_judge(scale_to_unit_interval=True).score(batch)] == [0.6, 0.0]


def test_no_reference_is_missing(chat_server, open_judge):
    judge = open_judge(prompt_file=None, use_reference=True)
    (score,) = judge.score([translation("Hallo")])
    assert isinstance(score, Missing) and "no reference" in score.reason
    assert chat_server.requests == []


@pytest.mark.parametrize(
    ("content", "finish_reason", "reason"),
    [
        ("I cannot judge this.", "stop", "has no verdict: 'I cannot judge this.'"),
        ("", "stop", "has no verdict: ''"),
        (None, "stop", "has no verdict"),
        ("Critical:\nno-error\nMajor:\nno-er", "length", "was cut off before its verdict"),
        (NO_ERROR, "length", "was cut off before its verdict"),
        (NO_ERROR, "content_filter", "was cut off before its verdict"),
    ],
)
def test_an_answer_without_a_verdict_is_missing(chat_server, reply, open_judge, content, finish_reason, reason):
    chat_server.play(reply.chat(content, finish_reason))
    (score,) = open_judge(error_policy="raise").score([translation("Hallo")])
    assert isinstance(score, Missing) and reason in score.reason
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize(
    "fault", ["408", "429", "500", "503", "drop at once", "drop in the body", "too slow", "trickle"]
)
def test_faults_that_pass_are_retried(chat_server, reply, open_judge, fault):
    fine = reply.chat(NO_ERROR)
    faults = {
        "drop at once": reply(drop="at once"),
        "drop in the body": replace(fine, drop="in the body"),
        "too slow": replace(fine, delay_sec=1.0),
        "trickle": replace(fine, drop="trickle"),
    }
    slow = fault in ("too slow", "trickle")
    chat_server.play(faults.get(fault) or reply(int(fault), '{"error": {"message": "wait"}}'), fine)
    judge = open_judge(timeout_sec=0.3 if slow else 5.0)
    assert judge.score([translation("Hallo")]) == [Scored(0.0)]
    assert len(chat_server.requests) == 2
    assert judge.pop_counts()["retries"] == 1


def test_retry_after_is_respected(chat_server, reply, open_judge):
    chat_server.play(reply(429, "{}", {"retry-after": "0.4"}), reply.chat(NO_ERROR))
    start = time.monotonic()
    assert open_judge().score([translation("Hallo")]) == [Scored(0.0)]
    assert time.monotonic() - start >= 0.4


def test_a_pause_of_hours_is_a_failure(chat_server, reply, open_judge):
    chat_server.play(reply(429, "{}", {"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}))
    with pytest.raises(JudgeError, match="HTTP 429.*asks for a pause"):
        open_judge().score([translation("Hallo")])
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_refusal_is_not_retried(chat_server, reply, open_judge, status):
    # the client of its own accord would retry 409, and anything that this header asks for
    chat_server.play(reply(status, '{"error": {"message": "no such model"}}', {"x-should-retry": "true"}))
    with pytest.raises(JudgeError, match=f"the judge tiny-judge at 127.0.0.1:.*HTTP {status}.*no such model"):
        open_judge().score([translation("Hallo")])
    assert len(chat_server.requests) == 1


NO_COMPLETIONS = [
    "",
    "{",
    "<html>login</html>",
    "[]",
    "{}",
    '{"choices": []}',
    '{"choices": [{}]}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"message": {"content": 5}}]}',
]


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_a_body_that_is_no_chat_completion_is_a_failure(chat_server, reply, open_judge, content_type):
    judge = open_judge()
    for body in NO_COMPLETIONS:
        chat_server.play(reply(200, body, {"content-type": content_type}))
        with pytest.raises(JudgeError, match="HTTP 200, but not a chat completion"):
            judge.score([translation("Hallo")])
    assert len(chat_server.requests) == len(NO_COMPLETIONS)


@pytest.mark.parametrize("max_retries", [0, 2])
def test_after_the_last_retry_it_raises_or_skips(chat_server, reply, open_judge, max_retries):
    chat_server.respond = lambda request: (
        reply.chat(NO_ERROR) if "good" in request["messages"][0]["content"] else reply(503, '{"error": "busy"}')
    )
    batch = [translation("good"), translation("bad"), translation("good too")]
    good, bad, good_too = open_judge(max_retries=max_retries, error_policy="skip").score(batch)
    assert good == good_too == Scored(0.0)
    assert isinstance(bad, Missing) and "HTTP 503" in bad.reason and "the last" in bad.reason
    assert len(chat_server.requests) == 3 + max_retries
    with pytest.raises(JudgeError, match="HTTP 503"):
        open_judge(max_retries=max_retries, error_policy="raise").score(batch)


def test_nobody_listens(open_judge):
    with pytest.raises(JudgeError, match="the judge tiny-judge at 127.0.0.1:9: .*attempt 2, the last"):
        open_judge(base_url="http://user:pw@127.0.0.1:9/v1", max_retries=1).score([translation("Hallo")])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_as_many_requests_under_way_as_configured_and_answers_in_order(chat_server, reply, open_judge, batch_size):
    def respond(request):
        number = int(request["messages"][0]["content"].rpartition(" ")[2])
        content = "Minor:\n" + 'x - "y"\n' * (number % 4) + "no-error"
        return reply.chat(content, until=lambda: chat_server.open_peak >= batch_size)

    chat_server.respond = respond
    scores = open_judge(batch_size=batch_size).score([translation(str(number)) for number in range(12)])
    assert [score.value for score in scores] == [-float(number % 4) for number in range(12)]
    assert chat_server.open_peak == batch_size


def test_the_first_failure_ends_the_requests_under_way(chat_server, reply, open_judge):
    def respond(request):
        if "slow" in request["messages"][0]["content"]:
            return reply.chat(NO_ERROR, until=lambda: False)  # ten seconds
        return reply(401, "{}", until=lambda: chat_server.open_now == 3)

    chat_server.respond = respond
    with pytest.raises(JudgeError, match="HTTP 401"):
        open_judge(batch_size=3, timeout_sec=60.0).score([translation(mt) for mt in ("slow 1", "slow 2", "fast")])
    assert chat_server.open_now >= 2


def test_closing_ends_a_request_under_way(chat_server, reply, tmp_path):
    asked = threading.Event()

    def respond(request):
        asked.set()
        return reply.chat(NO_ERROR, until=lambda: False)

    chat_server.respond = respond
    (tmp_path / "prompt.json").write_text(PROMPT)
    cfg = MQMConfig(base_url=chat_server.base_url, model_name="m", prompt_file=str(tmp_path / "prompt.json"))
    judge = MQMJudge(cfg, tmp_path)
    failures = []

    def score() -> None:
        try:
            judge.score([translation("Hallo")])
        except JudgeError as error:
            failures.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    assert asked.wait(10)
    judge.close()
    thread.join(5)
    assert failures == ["the judge was closed in the middle of a request"]


def test_the_key_shows_nowhere(chat_server, reply, open_judge, caplog, tmp_path):
    """The server quotes the key back at us, all loggers are at DEBUG, and the whole traceback is printed."""
    caplog.set_level(logging.DEBUG)
    told = f'{{"error": {{"message": "bad key {KEY}", "code": "{KEY}"}}}}'
    judge = open_judge(max_retries=1)
    shown = []
    for fault in (reply(401, told), reply(503, told), reply(200, told), reply(drop="at once")):
        chat_server.play(fault)
        with pytest.raises(JudgeError) as failure:
            judge.score([translation("Hallo")])
        shown.append("".join(traceback.format_exception(failure.value)) + repr(failure.value))
    skipping = open_judge(max_retries=0, error_policy="skip")
    chat_server.play(reply(401, told))
    shown += [str(skipping.score([translation("Hallo")])), skipping.identity, caplog.text]
    assert "HTTP 503" in caplog.text and "[key]" in shown[0]
    assert KEY not in "".join(shown)
    assert all(KEY not in path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert set(chat_server.keys) == {f"Bearer {KEY}"}


def test_a_missing_client_package_is_named(open_judge, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeSetupError, match="needs the package openai.*extra 'judge'"):
        open_judge()


def test_where_the_key_comes_from(chat_server, reply, open_judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", " from-env\n")
    open_judge(api_key=None, api_key_env="JUDGE_KEY").score([translation("Hallo")])
    open_judge(api_key_env="JUDGE_KEY").score([translation("Hallo")])
    assert chat_server.keys == ["Bearer from-env", f"Bearer {KEY}"]
    monkeypatch.delenv("JUDGE_KEY")
    chat_server.play(reply(401, "{}"))
    with pytest.raises(JudgeError, match="no key: the environment variable JUDGE_KEY is not set"):
        open_judge(api_key=None, api_key_env="JUDGE_KEY").score([translation("Hallo")])


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(open_judge):
    with pytest.raises(JudgeSetupError, match="characters that no header may hold") as failure:
        open_judge(api_key="sécret")
    assert "cret" not in str(failure.value)


def test_the_identity_is_what_the_score_depends_on(open_judge):
    judge = open_judge()
    same = open_judge(base_url="http://elsewhere/v1", api_key="other", timeout_sec=1.0, batch_size=7, max_retries=0)
    assert same.identity == judge.identity
    changes = [
        {"model_name": "other"}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 5}, {"stop": ("x",)},
        {"chat_template_kwargs": {}}, {"source_lang": "Scots"}, {"score_min": -10.0}, {"scale_to_unit_interval": True},
        {"prompt_file": None},
    ]  # fmt: skip
    assert len({open_judge(**change).identity for change in changes} | {judge.identity}) == len(changes) + 1
