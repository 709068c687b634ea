"""The report at the end of a run: readable with and without colour."""

from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jax_rl.runlog.tables import Evaluated, before_after, mark_spans, print_report


def span(start: int, end: int, severity: str = "MAJOR") -> dict:
    return {"start": start, "end": end, "severity": severity, "confidence": 0.5, "text": ""}


@pytest.mark.parametrize(
    ("spans", "plain"),
    [
        ([], "나는 학교에 간다"),
        ([span(3, 5)], "나는 [M:학교]에 간다"),
        ([span(0, 2, "minor"), span(7, 9, "CRITICAL")], "[m:나는] 학교에 [C:간다]"),
        ([span(0, 6, "MINOR"), span(3, 5, "CRITICAL")], "[m:나는 ][C:학교][m:에] 간다"),
        ([span(3, 5, "CRITICAL"), span(0, 6, "MINOR")], "[m:나는 ][C:학교][m:에] 간다"),
        ([span(7, 99), span(-3, 1), span(4, 4), span(6, 5)], "[M:나]는 학교에 [M:간다]"),
        ([span(3, 5, "odd")], "나는 [?:학교]에 간다"),
    ],
)
def test_spans_are_bracketed_with_their_severity(spans: list[dict], plain: str) -> None:
    assert mark_spans("나는 학교에 간다", spans).plain == plain


@given(st.text(alphabet="ab가 "), st.lists(st.tuples(st.integers(-2, 9), st.integers(-2, 9))))
def test_no_character_is_lost(text: str, ranges: list[tuple[int, int]]) -> None:
    marked = mark_spans(text, [span(start, end) for start, end in ranges])
    assert marked.plain.replace("[M:", "").replace("]", "") == text


def test_colours_tell_the_severities_apart() -> None:
    marked = mark_spans("abc", [span(0, 1, "MINOR"), span(1, 2, "MAJOR"), span(2, 3, "CRITICAL")])
    assert len({str(piece.style) for piece in marked.spans}) == 3


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    assert mark_spans("a\x1b[31mb\nc\td", [span(5, 6)]).plain == "a\ufffd[31[M:m]b\u23cec d"


def evaluation_row(reward: float, **more: object) -> dict:
    return {
        "metricx_reward_mean": reward, "metricx_reward_ci95": [reward - 0.25, reward + 0.25],
        "sampled_metricx_reward_mean": reward - 1, "sampled_metricx_reward_ci95": [reward - 2, reward],
        "xcomet_score_mean": None, "spans_mean": 1.5, "corpus_chrf++": 30.0 + reward,
        "corpus_chrf++_signature": "nrefs:1|case:mixed", **more,
    }  # fmt: skip


def output(text: str, spans: list[dict] | None = None, key: str = "e1") -> dict:
    return {"example_id": key, "src_text": "I go to school", "ref_text": "나는 학교에 간다", "completion_text": text,
            "scores": {"metricx": 2.5, "mqm": None}, "spans": spans or []}  # fmt: skip


CHANGE = {"metricx_reward_diff": 0.5, "metricx_reward_diff_ci95": [0.125, 0.875],
          "sampled_metricx_reward_diff": 0.25, "sampled_metricx_reward_diff_ci95": [-0.5, 1.0]}  # fmt: skip
COLDER = {"colder_metricx_reward_mean": 2.25, "colder_metricx_reward_ci95": [2.0, 2.5]}
BEFORE = Evaluated(0, evaluation_row(2.0, **COLDER), [output("나는 간다", [span(0, 2, "CRITICAL")])])
AFTER = Evaluated(12, evaluation_row(2.5, **CHANGE), [output("나는 학교에 간다"), output("", key="e2")])


def shown(before: Evaluated | None, after: Evaluated) -> list[str]:
    out = StringIO()
    print_report(before, after, Console(file=out, width=80))
    assert "\x1b" not in out.getvalue()
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_table_holds_means_intervals_and_paired_differences() -> None:
    lines = shown(BEFORE, AFTER)
    greedy, sampled = [line.split() for line in lines if line.strip().startswith("MetricX reward")]
    assert " ".join(greedy) == "MetricX reward 2.000 [1.750, 2.250] 2.500 [2.250, 2.750] +0.500 [+0.125, +0.875]"
    assert " ".join(sampled) == (
        "MetricX reward 1.000 [0.000, 2.000] 2.250 [2.000, 2.500] 1.500 [0.500, 2.500] +0.250 [-0.500, +1.000]"
    )
    (chrf,) = [line.split() for line in lines if line.strip().startswith("corpus chrF++ ")]
    assert chrf[2:] == ["32.00", "32.50", "+0.50"]
    assert any("nrefs:1|case:mixed" in line for line in lines)
    assert not any("XCOMET" in line for line in lines)  # nothing scored: no row of dashes


def test_bleu_of_several_languages_stands_language_by_language() -> None:
    by_language = {"corpus_bleu_de": 20.0, "corpus_bleu_de_signature": "tok:13a"}
    by_language |= {"corpus_bleu_ko": 10.0, "corpus_bleu_ko_signature": "tok:char"}
    before, after = (Evaluated(n, evaluation_row(2.0, **by_language), [output("x")]) for n in (0, 5))
    lines = shown(before, after)
    rows = [line.split() for line in lines if line.strip().startswith("corpus BLEU ")]
    assert ["corpus", "BLEU", "de", "20.00", "20.00", "+0.00"] in rows
    assert ["corpus", "BLEU", "ko:", "tok:char"] in rows


def test_a_difference_clear_of_zero_is_bold() -> None:
    out = StringIO()
    Console(file=out, width=200, force_terminal=True, color_system="standard").print(before_after(BEFORE, AFTER))
    assert "\x1b[1m+0.500 [+0.125, +0.875]" in out.getvalue()
    assert "\x1b[1m+0.250 [-0.500, +1.000]" not in out.getvalue()


def test_translations_stand_before_and_after_with_spans() -> None:
    lines = shown(BEFORE, AFTER)
    assert "error spans: [m:minor] [M:major] [C:critical]" in lines
    start = lines.index("example e1")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == ["source", "reference", "before", "after"]
    assert lines[start + 3].split(maxsplit=1)[1] == "[C:나는] 간다   (metricx 2.50, mqm -)"
    assert lines[start + 4].split(maxsplit=1)[1] == "나는 학교에 간다   (metricx 2.50, mqm -)"
    second = lines[lines.index("example e2") :]
    assert any(line.startswith("after") and "(empty)" in line for line in second)


def test_without_a_first_evaluation_there_is_no_before() -> None:
    lines = shown(None, AFTER)
    assert not any("before" in line for line in lines)
    assert any("2.500 [2.250, 2.750]" in line for line in lines)


def test_five_at_most() -> None:
    after = Evaluated(1, evaluation_row(1.0), [output("x", key=f"e{i}") for i in range(9)])
    assert sum(line.startswith("example ") for line in shown(None, after)) == 5
