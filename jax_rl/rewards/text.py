"""The form in which texts reach the metrics (NFC, no lone surrogates), and the way back to the original characters."""

import functools
import unicodedata
from dataclasses import dataclass

_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"}
_INVISIBLE_LETTERS = set("\u115f\u1160\u2800\u3164\uffa0")  # Hangul fillers, the empty Braille pattern


def is_blank(text: str) -> bool:
    """Whether `text` shows nothing: no characters, or only white space, control, format and combining ones."""
    return all(char in _INVISIBLE_LETTERS or unicodedata.category(char) in _INVISIBLE_CATEGORIES for char in text)


@dataclass(frozen=True)
class NormalizedText:
    """`text` is what the metrics see; its character i is the original's `starts[i]..ends[i]` (end exclusive)."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def original_range(self, start: int, end: int) -> tuple[int, int]:
        """The original characters behind `start..end` of `text`; a letter and its combining marks stay together."""
        start, end = max(0, start), min(end, len(self.text))
        return (self.starts[start], self.ends[end - 1]) if start < end else (0, 0)


def normalize(text: str) -> NormalizedText:
    """NFC, with U+FFFD for each lone surrogate: no tokenizer takes those."""
    text = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    if unicodedata.is_normalized("NFC", text):
        return NormalizedText(text, tuple(range(len(text))), tuple(range(1, len(text) + 1)))
    composed: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _clusters(text):
        cluster = unicodedata.normalize("NFC", text[start:end])
        composed.append(cluster)
        starts += [start] * len(cluster)
        ends += [end] * len(cluster)
    return NormalizedText("".join(composed), tuple(starts), tuple(ends))


def normalized(text: str) -> str:
    """`normalize(text).text`, for those who need no way back."""
    return normalize(text).text


def _clusters(text: str) -> list[tuple[int, int]]:
    """Ranges that NFC composes independently: each begins at a character that joins nothing before it."""
    begins = [i for i, char in enumerate(text) if i == 0 or not _joins_before(char)]
    return list(zip(begins, [*begins[1:], len(text)], strict=True))


def _joins_before(char: str) -> bool:
    first = unicodedata.normalize("NFD", char)[0]
    return unicodedata.combining(first) > 0 or char in _composing_followers()


@functools.cache
def _composing_followers() -> frozenset[str]:
    """Characters of combining class 0 that compose with the one before: Hangul vowels and finals, some Indic signs."""
    hangul = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    parts = (unicodedata.decomposition(chr(code)).split() for code in range(0x20000))
    seconds = {chr(int(pair[1], 16)) for pair in parts if len(pair) == 2 and not pair[0].startswith("<")}
    return frozenset(hangul | {char for char in seconds if not unicodedata.combining(char)})
