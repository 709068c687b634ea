"""The decoders of the `tokenizers` library, followed step by step so that each token's characters are known.

Two families, as that library defines them:
- ByteLevel (GPT-2's table; Qwen, Llama 3): tokens are bytes. All of them together are read as UTF-8, and each maximal
  invalid stretch becomes one U+FFFD.
- SentencePiece (Gemma, Llama 2): tokens are text after Replace or Metaspace. With ByteFallback a run of <0xNN> tokens
  is read as one, and where that is not UTF-8 each of its tokens becomes a U+FFFD.
Either may end with Strip, which cuts the whole text.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

Ranges = list[tuple[int, int]]  # start, end (exclusive) in characters
Step = dict[str, Any]  # one decoder as the library writes it: {"type": ..., its settings}

REPLACEMENT = "\ufffd"
BYTE_TOKENS = {f"<0x{byte:{form}}>": byte for byte in range(256) for form in ("02X", "02x")}


class UnsupportedDecoder(ValueError):
    """A decoder whose steps are not followed here."""


class Decoder(Protocol):
    def run(self, tokens: Sequence[str]) -> tuple[str, Ranges]:
        """The text and, for each token, the characters to which it gave at least one byte."""
        ...


def build_decoder(spec: Step | None) -> Decoder:
    """`spec` is the library's own description of a tokenizer's decoder. Raises UnsupportedDecoder."""
    steps = _flatten(spec)
    kinds = [step["type"] for step in steps]
    size = next((i for i, kind in enumerate(kinds) if kind in ("Fuse", "Strip")), len(kinds))
    body, tail = kinds[:size], kinds[size:]
    one_text = body == ["ByteLevel"] or tail[:1] == ["Fuse"]
    if not kinds or not set(tail) <= {"Fuse", "Strip"} or ("Strip" in tail and not one_text):
        raise UnsupportedDecoder(_unsupported(kinds))
    if body == ["ByteLevel"]:
        decoder: Decoder = ByteLevelDecoder()
    elif set(body) <= {"Replace", "Metaspace", "ByteFallback"} and body.count("ByteFallback") <= 1:
        decoder = SentencePieceDecoder(steps[:size])
    else:
        raise UnsupportedDecoder(_unsupported(kinds))
    strips = [step for step in steps if step["type"] == "Strip"]
    return StripDecoder(decoder, strips) if strips else decoder


class ByteLevelDecoder:
    def __init__(self) -> None:
        self._byte_of = byte_level_alphabet()
        self._pieces: dict[str, bytes] = {}

    def run(self, tokens: Sequence[str]) -> tuple[str, Ranges]:
        pieces = [self._bytes_of(token) for token in tokens]
        text, owner = decode_utf8_lossy(b"".join(pieces))
        stops = np.fromiter(accumulate(map(len, pieces)), np.int64, len(pieces))
        begins = np.concatenate([[0], stops])[:-1]
        ends = np.concatenate([[0], owner + 1])[stops]  # after the character of a token's last byte
        starts = np.where(stops > begins, np.concatenate([owner, [0]])[begins], ends)
        return text, list(zip(starts.tolist(), ends.tolist(), strict=True))

    def _bytes_of(self, token: str) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            known = all(character in self._byte_of for character in token)
            # an added token is written as it is, and may hold characters outside the table
            piece = bytes(self._byte_of[c] for c in token) if known else token.encode("utf-8")
            self._pieces[token] = piece
        return piece


class SentencePieceDecoder:
    def __init__(self, steps: Sequence[Step]) -> None:
        kinds = [step["type"] for step in steps]
        self._has_bytes = "ByteFallback" in kinds
        size = kinds.index("ByteFallback") if self._has_bytes else len(kinds)
        self._before, self._after = steps[:size], steps[size + 1 :]
        for step in steps:
            if step["type"] == "Replace" and "String" not in step["pattern"]:
                raise UnsupportedDecoder(f"a decoder that replaces the pattern {step['pattern']} is not supported")
        for step in self._after:
            if step["type"] == "Replace" and len(step["pattern"]["String"]) != 1:
                raise UnsupportedDecoder("a Replace of several characters after ByteFallback is not supported")
        self._texts: dict[tuple[str, bool], str] = {}

    def run(self, tokens: Sequence[str]) -> tuple[str, Ranges]:
        texts = [self._text_of(token, n == 0) for n, token in enumerate(tokens)]
        # one character or text per token; None = this token's byte goes on with the character of the token before
        parts: list[str | None] = [*texts]
        if self._has_bytes and any(text in BYTE_TOKENS for text in texts):
            parts = self._read_bytes(texts)
        elif self._after:
            parts = [_rewrite(text, self._after, n == 0) for n, text in enumerate(texts)]
        written = [part or "" for part in parts]
        ends = list(accumulate(map(len, written)))
        ranges = [(end - len(part), end) for end, part in zip(ends, written, strict=True)]
        for n, part in enumerate(parts):
            if part is None:
                ranges[n] = ranges[n - 1]
        return "".join(written), ranges

    def _text_of(self, token: str, first: bool) -> str:
        text = self._texts.get((token, first))
        if text is None:
            text = self._texts[token, first] = _rewrite(token, self._before, first)
        return text

    def _read_bytes(self, texts: Sequence[str]) -> list[str | None]:
        elements: list[list[str | None]] = []  # what the library's next step sees as one token each
        run = bytearray()
        for text in texts:
            byte = BYTE_TOKENS.get(text)
            if byte is not None:
                run.append(byte)
                continue
            elements += _read_run(bytes(run))
            elements.append([text])
            run.clear()
        elements += _read_run(bytes(run))
        return [
            part if part is None else _rewrite(part, self._after, n == 0)
            for n, element in enumerate(elements)
            for part in element
        ]


class StripDecoder:
    """Another decoder, and then up to `start` and `stop` characters `content` less at the ends of its text."""

    def __init__(self, decoder: Decoder, strips: Sequence[Step]) -> None:
        self._decoder = decoder
        self._strips = strips

    def run(self, tokens: Sequence[str]) -> tuple[str, Ranges]:
        text, ranges = self._decoder.run(tokens)
        for strip in self._strips:
            start, stop = 0, len(text)
            while start < min(strip["start"], len(text)) and text[start] == strip["content"]:
                start += 1
            while stop > max(len(text) - strip["stop"], start) and text[stop - 1] == strip["content"]:
                stop -= 1
            text, ranges = text[start:stop], cut_ranges(ranges, start, stop)
        return text, ranges


def cut_ranges(ranges: Ranges, start: int, stop: int) -> Ranges:
    """The ranges in text[start:stop]; what lies outside becomes empty."""
    length = stop - start
    return [(min(max(a - start, 0), length), min(max(b - start, 0), length)) for a, b in ranges]


def decode_utf8_lossy(data: bytes) -> tuple[str, np.ndarray]:
    """The text, one U+FFFD per maximal invalid stretch, and the index of each byte's character, [len(data)] int64.

    The stretches are those of Unicode 3.9 ("substitution of maximal subparts"), which Python and Rust both follow.
    """
    parts: list[str] = []
    owners: list[np.ndarray] = [np.zeros(0, np.int64)]
    done = characters = 0
    while done < len(data):
        valid, bad = data[done:], 0
        try:
            good = valid.decode("utf-8")
        except UnicodeDecodeError as error:
            valid, bad = valid[: error.start], error.end - error.start
            good = valid.decode("utf-8")
        begins = (np.frombuffer(valid, np.uint8) & 0xC0) != 0x80  # bytes that do not continue a character
        owners.append(characters - 1 + np.cumsum(begins))
        characters += len(good)
        parts.append(good)
        if bad:
            owners.append(np.full(bad, characters))
            characters += 1
            parts.append(REPLACEMENT)
        done += len(valid) + bad
    return "".join(parts), np.concatenate(owners)


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, GPT-2's table: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _read_run(run: bytes) -> list[list[str | None]]:
    """A run of byte tokens: one element of one part per token if it is UTF-8, else each token is a broken character."""
    try:
        characters = iter(run.decode("utf-8"))
    except UnicodeDecodeError:
        return [[REPLACEMENT] for _ in run]
    return [[None if byte & 0xC0 == 0x80 else next(characters) for byte in run]] if run else []


def _rewrite(text: str, steps: Sequence[Step], first: bool) -> str:
    """`first`: the text is that of the first token, whose Metaspace is the blank that encoding put there."""
    for step in steps:
        if step["type"] == "Replace":
            text = text.replace(step["pattern"]["String"], step["content"])
        else:
            prefixed = first and step["prepend_scheme"] != "never"
            text = text.replace(step["replacement"], "" if prefixed else " ")
    return text


def _flatten(spec: Step | None) -> list[Step]:
    if spec is None:
        return []
    if spec["type"] != "Sequence":
        return [spec]
    return [step for part in spec["decoders"] for step in _flatten(part)]


def _unsupported(kinds: Sequence[str]) -> str:
    return (
        f"a decoder of the steps {' + '.join(kinds) or '(none)'} is not supported; "
        f"there are ByteLevel, and Replace, Metaspace, ByteFallback, Fuse, Strip as SentencePiece models have them"
    )
