"""Which characters of a completion each of its tokens wrote.

A token owns every character to which it gave at least one byte, so the tokens that share a Hangul syllable or an emoji
each carry the whole character. The text is never tokenised again: sampled ids need not be the canonical encoding, and
a normaliser (Qwen: NFC) may change the text. The tokenizer's decoder is followed instead (`decoders.py`), and the
result is compared with what the library itself decodes.
"""

import json
from collections.abc import Sequence
from functools import lru_cache

from jax_rl.tokens.decoders import Ranges, UnsupportedDecoder, build_decoder, cut_ranges
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError


class OffsetError(RuntimeError):
    """The decoder that was followed and the library disagree: character ranges would be wrong, so there are none."""


def compute_token_char_offsets(tokenizer: Tokenizer, token_ids: Sequence[int]) -> tuple[str, Ranges]:
    """The completion's text and the characters that each token wrote.

    Returns:
        text: decoded without special tokens, stripped at both ends.
        ranges: one (start, end) per id, end exclusive, in characters of `text`. What writes nothing there (special
            tokens, stripped white space, ids without a piece) has an empty range.

    Raises:
        TokenizerError: the tokenizer's decoder is of a kind that is not known here.
        OffsetError: the text is not what the library decodes.
    """
    follower = _follower_of(tokenizer)
    ids = [int(i) for i in token_ids]
    tokens = [follower.token_of(i) for i in ids]
    text, ranges = follower.decoder.run([token for token in tokens if token is not None])
    expected = tokenizer.decode(ids)
    if text != expected:
        raise OffsetError(f"{tokenizer.folder}: followed to {text!r}, decoded to {expected!r}, for the ids {ids}")
    stripped = text.strip()
    if len(stripped) < len(text):
        start = len(text) - len(text.lstrip())
        ranges = cut_ranges(ranges, start, start + len(stripped))
    return stripped, _with_silent_tokens(tokens, ranges)


class _Follower:
    """A tokenizer's decoder and its tokens by id, each looked up once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spec = tokenizer.backend.decoder
        try:
            # a decoder's pickled state is its JSON description; the whole tokenizer's would take seconds to write
            self.decoder = build_decoder(json.loads(spec.__getstate__()) if spec else None)
        except UnsupportedDecoder as error:
            raise TokenizerError(f"{tokenizer.folder}: {error}") from error
        self._backend = tokenizer.backend
        self._tokens: dict[int, str | None] = dict.fromkeys(tokenizer.special_ids)

    def token_of(self, token_id: int) -> str | None:
        """None where the id writes nothing: a special token, or a row of the embedding without a piece."""
        if token_id not in self._tokens:
            self._tokens[token_id] = self._backend.id_to_token(token_id)
        return self._tokens[token_id]


@lru_cache(maxsize=4)
def _follower_of(tokenizer: Tokenizer) -> _Follower:
    return _Follower(tokenizer)


def _with_silent_tokens(tokens: Sequence[str | None], ranges: Ranges) -> Ranges:
    """Puts the tokens that write nothing back in, each an empty range at the end of what was written before it."""
    written = iter(ranges)
    position, placed = 0, []
    for token in tokens:
        start, end = (position, position) if token is None else next(written)
        position = max(position, end)
        placed.append((start, end))
    return placed
