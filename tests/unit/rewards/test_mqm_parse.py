"""GEMBA-MQM answers: the same scores as the gemba package's own parser, verdicts told from chatter, quotes located."""

import json
import random
import subprocess
import sys

import pytest

from jax_rl.rewards.mqm_parse import MQMError, locate_errors, parse_answer

NO_ERROR = "Critical:\nno-error\nMajor:\nno-error\nMinor:\nno-error\n"

CATEGORIES = ["accuracy/mistranslation", "fluency/grammar", "Style/awkward", "non-translation", "other"]
HEADERS = ["Critical:", "Major:", "Minor:", "CRITICAL:", "  major: ", "minor:\r"]
FILLER = ["", "no-error", "No error", "No-error.", "   "]
CHATTER = ["Here is my analysis.", "**Major:**", "The major issue: style", "critical", "no errors at all", "Minor: x"]

# reads answers (JSON list) from stdin, writes the package's scores to the file argv[1]; its prints go to stdout
PACKAGE_PARSER = """
import json, sys
from gemba.gemba_mqm_utils import parse_mqm_answer
scores = [parse_mqm_answer(answer, normalize=False) for answer in json.load(sys.stdin)]
json.dump(scores, open(sys.argv[1], "w"))
"""


def generated_answer(rng: random.Random) -> str:
    """Sections in any order and number, with errors, no-error lines and chatter anywhere."""
    lines = rng.choices(CHATTER + FILLER, k=rng.choice([0, 0, 1]))
    sections = HEADERS[:3] if rng.random() < 0.5 else rng.choices(HEADERS, k=rng.randint(1, 5))
    for header in sections:
        lines.append(header)
        for _ in range(rng.choice([0, 1, 1, 2, 4])):
            error = f'{rng.choice(CATEGORIES)} - "{rng.choice(["Wäre", "İstanbul", "dir", "σΣ"])}"'
            lines.append(rng.choices([error, rng.choice(FILLER), rng.choice(CHATTER)], weights=[6, 3, 1])[0])
    return "\n".join(lines)


def test_scores_agree_with_the_gemba_package(tmp_path):
    rng = random.Random(0)
    answers = [generated_answer(rng) for _ in range(5000)]
    scores_file = tmp_path / "scores.json"
    command = [sys.executable, "-c", PACKAGE_PARSER, str(scores_file)]
    subprocess.run(command, input=json.dumps(answers), text=True, check=True, capture_output=True)
    expected = json.loads(scores_file.read_text())

    verdicts = [parse_answer(answer) for answer in answers]
    differing = [
        (answer, verdict.score, score)
        for answer, verdict, score in zip(answers, verdicts, expected, strict=True)
        if verdict is not None and verdict.score != score
    ]
    assert differing == []
    # what only the package scores, it scores as perfect: nothing but empty headers and chatter outside of them
    assert {score for verdict, score in zip(verdicts, expected, strict=True) if verdict is None} == {0}
    assert sum(verdict is None for verdict in verdicts) < 0.1 * len(answers)
    assert len(set(expected)) > 15


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (NO_ERROR, 0),
        ("no-error", 0),
        ("No errors.\n", 0),
        ("Critical:\nMajor:\nMinor:", 0),
        ('Minor:\nstyle/awkward - "etc."', -1),
        ('Critical:\nno-error\nMajor:\naccuracy/omission - "a"\nMinor:\nfluency/grammar - "b"', -6),
        ("Minor:\n" + 'fluency/spelling - "x"\n' * 9, -5),  # the first five errors count
        ("Minor:\n" + 'fluency/spelling - "x"\n' * 4 + "Major:\n" + 'fluency/grammar - "y"\n' * 4, -21),
        ("Major:\n" + 'fluency/grammar - "x"\n' * 9, -25),
        ("Critical:\na\nb\nc\n", -25),  # the floor
        ("Minor:\nnon-translation", -25),  # critical wherever it stands
        ("<think>\nMajor:\nmaybe - \"x\"\n</think>\n" + NO_ERROR, 0),
    ],
)  # fmt: skip
def test_scores(answer, score):
    assert parse_answer(answer).score == score


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\n \n",
        "I am sorry, I cannot help with that.",
        "The translation is perfect.",
        "There is no error in this translation, but it is a non-translation.",
        "Major:",
        "Critical:\nMajor:\n",
        '**Critical:**\naccuracy/omission - "a"\n**Minor:**\nno-error',
        "no-error\naccuracy/omission",
        '{"score": -5}',
        "<think>\nCritical:\nno-error\nMajor:\nno-error\nMinor:\nno-error",
    ],
)
def test_no_verdict_is_not_a_perfect_score(answer):
    assert parse_answer(answer) is None


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Critical:\nno-error\nMajor:\naccuracy/omis", None),
        (NO_ERROR.rstrip(), None),  # an error may have been about to follow
        ('Critical:\naccuracy/omission - "a"\nMajor:\naccu', -25),
        ('Critical:\naccuracy/omission - "a', None),  # the only error is itself cut
        ("Critical:\nno-error\nMajor:\nno-error\nMinor:\n" + 'style/awkward - "x"\n' * 7 + "style", -5),
        ("Minor:\n" + 'style/awkward - "x"\n' * 7, None),  # the worse sections have not come
    ],
)
def test_a_cut_answer_counts_only_when_the_score_is_settled(answer, score):
    verdict = parse_answer(answer, cut=True)
    assert (verdict and verdict.score) == score


def places(mt: str, *lines: str) -> list[str]:
    spans = locate_errors(mt, [MQMError("MAJOR", line) for line in lines])
    assert all(span.text == mt[span.start : span.end] and span.confidence is None for span in spans)
    return [f"{span.start}-{span.end}" for span in spans]


def test_a_quote_is_found_exactly_before_in_another_case():
    assert places("The cat. the Cat. THE CAT", 'x - "the Cat"') == ["9-16"]
    assert places("The cat. the Cat. THE CAT", 'x - "THE cat"') == ["0-7"]


def test_the_same_quote_twice_marks_two_places_and_a_third_time_the_first():
    assert places("du und du", 'x - "du"', 'x - "du"', 'x - "du"') == ["0-2", "7-9", "0-2"]


def test_letters_that_change_length_in_lower_case_do_not_shift_a_span():
    assert places("İİİ istanbul", 'x - "ISTANBUL"') == ["4-12"]


@pytest.mark.parametrize(
    "line",
    [
        'accuracy/mistranslation - "dir"',
        "accuracy/mistranslation - “dir”",
        "accuracy/mistranslation - „dir“",
        "accuracy/mistranslation - «dir»",
        "accuracy/mistranslation - 「dir」",
        "accuracy/mistranslation - `dir`",
        'accuracy/mistranslation - "dir" should be "Ihnen"',
        'accuracy/mistranslation - "yourself" became "dir"',
        'accuracy/mistranslation - " dir "',
    ],
)
def test_ways_to_quote(line):
    assert places("mit dir.", line) == ["4-7"]


def test_quotes_inside_a_quote():
    assert places('he said "no" to her', 'x - "said "no" to"') == ["3-15"]


@pytest.mark.parametrize("line", ["non-translation", 'x - "absent"', 'x - ""', 'x - "  "', 'x - "(.*"'])
def test_an_error_without_a_place_gives_no_span(line):
    assert places("some text", line) == []


def test_severities_and_only_errors_that_count():
    verdict = parse_answer('Minor:\nx - "a"\nx - "b"\nnon-translation - "c"\nMajor:\nx - "d"\nx - "e"\nx - "f"')
    spans = locate_errors("abcdef", verdict.errors)
    found = {span.text: span.severity for span in spans}
    assert found == {"c": "CRITICAL", "d": "MAJOR", "e": "MAJOR", "f": "MAJOR", "a": "MINOR"}
