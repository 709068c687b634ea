"""A judge's answer in the form of GEMBA-MQM (Kocmi and Federmann 2023): from its lines to errors, a score and spans.

    Critical:
    no-error
    Major:
    accuracy/mistranslation - "involvement"
    Minor:
    fluency/register - "dir"

Lines are read as the gemba package's `parse_mqm_answer` reads them, so both give the same score, with one exception:
an answer without a recognisable verdict is 0 there (a perfect translation) and None here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from jax_rl.rewards.types import ErrorSpan

POINTS = {"CRITICAL": 25, "MAJOR": 5, "MINOR": 1}  # in the order in which errors count
MAX_ERRORS = 5
MAX_POINTS = 25

_HEADERS = {f"{severity.lower()}:": severity for severity in POINTS}
_BARE_NO_ERROR = re.compile(r"\W*no[- ]errors?\W*", re.IGNORECASE)
_QUOTED = re.compile(r'"([^"]+)"|[“”„]([^“”„]+)[“”]|«([^«»]+)»|「([^「」]+)」|『([^『』]+)』|`([^`]+)`')
_OUTER_QUOTES = re.compile(r'"(.+)"')


@dataclass(frozen=True)
class MQMError:
    """One error line of the answer; a non-translation is CRITICAL wherever it stands."""

    severity: str
    line: str


@dataclass(frozen=True)
class Verdict:
    """The errors that count: at most five, the most severe first."""

    errors: tuple[MQMError, ...]

    @property
    def score(self) -> float:
        """0 (no error) down to -25."""
        return -float(min(MAX_POINTS, sum(POINTS[error.severity] for error in self.errors)))


def parse_answer(answer: str, cut: bool = False) -> Verdict | None:
    """The verdict in `answer`; None where there is none.

    A verdict is a severity header with something under it, or all three headers, or an answer that says no-error and
    nothing else. `cut` says that the answer was stopped at the token limit: its last line is then left out, and the
    verdict holds only if more lines of its last section could not change the score.
    """
    answer = answer.rpartition("</think>")[2]  # a server without a reasoning parser leaves the thoughts in
    if "<think>" in answer:
        return None
    lines = [line.strip() for line in answer.split("\n")]
    if cut:
        lines = lines[:-1]
    errors: list[MQMError] = []
    headers: list[str] = []
    something_under_header = False
    for line in filter(None, lines):
        lower = line.lower()
        if "no-error" in lower or "no error" in lower:
            something_under_header |= bool(headers)
        elif lower in _HEADERS:
            headers.append(_HEADERS[lower])
        elif headers:
            something_under_header = True
            errors.append(MQMError("CRITICAL" if "non-translation" in lower else headers[-1], line))

    counted = sorted(errors, key=lambda error: -POINTS[error.severity])[:MAX_ERRORS]  # stable: the answer's order
    verdict = Verdict(tuple(counted))
    if cut:
        return verdict if _is_settled(verdict, headers) else None
    only_no_error = any(lines) and all(_BARE_NO_ERROR.fullmatch(line) for line in lines if line)
    recognised = something_under_header or set(headers) == set(POINTS) or only_no_error
    return verdict if recognised else None


def locate_errors(mt: str, errors: Iterable[MQMError]) -> tuple[ErrorSpan, ...]:
    """Spans in `mt` of those errors that quote a piece of it: found exactly, else in another letter case.

    An occurrence that no earlier error took comes first, so the same word quoted twice marks two places.
    """
    spans: list[ErrorSpan] = []
    taken: set[tuple[int, int]] = set()
    for error in errors:
        place = _first_place(mt, _quoted_texts(error.line), taken)
        if place is not None:
            taken.add(place)
            spans.append(ErrorSpan(*place, severity=error.severity, confidence=None, text=mt[slice(*place)]))
    return tuple(spans)


def _is_settled(verdict: Verdict, headers: list[str]) -> bool:
    """The floor is reached, or the last section is open (a judge may loop in it) and five errors are there."""
    full_last_section = headers == list(POINTS) and len(verdict.errors) == MAX_ERRORS
    return full_last_section or verdict.score == -MAX_POINTS


def _quoted_texts(line: str) -> list[str]:
    """What the line quotes, first what stands between its outermost quotes (an error text may hold quotes itself)."""
    outer = _OUTER_QUOTES.search(line)
    texts = [outer.group(1)] if outer else []
    texts += [next(filter(None, groups)) for groups in _QUOTED.findall(line)]
    return [text.strip() for text in texts if text.strip()]


def _first_place(mt: str, texts: list[str], taken: set[tuple[int, int]]) -> tuple[int, int] | None:
    for text in texts:
        for flags in (re.NOFLAG, re.IGNORECASE):
            # a lookahead, so that occurrences may overlap
            found = [match.span(1) for match in re.finditer(f"(?=({re.escape(text)}))", mt, flags)]
            if found:
                return next((place for place in found if place not in taken), found[0])
    return None
