"""Character ranges: against the library's decoding of prefixes, its own encode offsets, and hand-made hard cases."""

import json
import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jax_rl.tokens.decoders import byte_level_alphabet, decode_utf8_lossy
from jax_rl.tokens.offsets import OffsetError, compute_token_char_offsets
from jax_rl.tokens.tokenizer import Tokenizer, TokenizerError

KINDS = ("byte_level_nfc", "byte_level", "gemma", "llama", "unigram")
CASES = 250
SCRIPTS = [(0x20, 0x7F)] * 4 + [(0xAC00, 0xD7A4)] * 4 + [
    (0x4E00, 0x9FFF), (0x400, 0x460), (0x3040, 0x30FF), (0x1F600, 0x1F650), (0x1100, 0x1113), (0x300, 0x340),
    (0xE0, 0x250), (0x0, 0x20), (0x600, 0x6FF), (0xFE00, 0xFE10),
]  # fmt: skip
HARD = ["   ", "▁", "\n", "\u200d", "\u00a0", "👩\u200d👩\u200d👧", "🇰🇷", "e\u0301", "<0x41>", "\ufffd", "\U0010fffd"]


@pytest.fixture(scope="module")
def loaded(folders) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.load(folder) for kind, folder in folders.items()}


def random_text(rng: random.Random) -> str:
    def piece() -> str:
        return rng.choice(HARD) if rng.random() < 0.3 else chr(rng.randrange(*rng.choice(SCRIPTS)))

    return "".join(piece() for _ in range(rng.randint(0, 25)))


def random_ids(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """An encoded text, the same with added tokens thrown in, or any ids at all (broken UTF-8, no piece)."""
    kind = rng.randrange(3)
    if kind == 2:
        return [rng.randrange(tokenizer.vocab_size + 2) for _ in range(rng.randint(0, 30))]
    ids = tokenizer.encode(random_text(rng), add_special_tokens=False)
    added = sorted(tokenizer.backend.get_added_tokens_decoder())
    for _ in range(kind * rng.randint(0, 3)):
        ids.insert(rng.randint(0, len(ids)), rng.choice(added))
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_librarys_and_every_character_has_a_token(loaded, kind):
    tokenizer, rng = loaded[kind], random.Random(f"cover {kind}")
    shared = broken = 0
    for _ in range(CASES):
        ids = random_ids(rng, tokenizer)
        text, ranges = compute_token_char_offsets(tokenizer, ids)
        assert text == tokenizer.backend.decode(ids, skip_special_tokens=True).strip()
        assert len(ranges) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in ranges)
        assert all(s == e for i, (s, e) in zip(ids, ranges, strict=True) if i in tokenizer.special_ids)
        written = [r for r in ranges if r[0] < r[1]]
        for (start, end), (next_start, next_end) in zip(written, written[1:], strict=False):
            assert start <= next_start and end <= next_end and next_start - end in (0, -1), (ids, ranges)
        owners = [sum(start <= c < end for start, end in ranges) for c in range(len(text))]
        assert all(owners), (ids, ranges)
        shared += sum(n > 1 for n in owners)
        broken += text.count("\ufffd")
    assert shared > 100 and broken > 100, "the cases hold no split characters, or no broken ones"


@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_decoding_prefixes(loaded, kind):
    """Where neither prefix ends in a broken character, what a token adds to the decoded text is what it wrote."""
    tokenizer, rng = loaded[kind], random.Random(f"prefix {kind}")
    decode, checked = tokenizer.backend.decode, 0
    for _ in range(CASES):
        ids = random_ids(rng, tokenizer)
        whole = decode(ids)
        cut = len(whole) - len(whole.lstrip())
        text, ranges = compute_token_char_offsets(tokenizer, ids)
        prefixes = [decode(ids[:n]) for n in range(len(ids) + 1)]
        for n, (before, after) in enumerate(zip(prefixes, prefixes[1:], strict=False)):
            if not (whole.startswith(before) and whole.startswith(after)) or (before + after).count("\ufffd"):
                continue
            expected = tuple(min(max(len(part) - cut, 0), len(text)) for part in (before, after))
            if expected[0] < expected[1]:
                assert ranges[n] == expected, (ids, n)
                checked += 1
    assert checked > 500


@pytest.mark.parametrize("kind", ["byte_level", "gemma"])
def test_agrees_with_the_librarys_encode_offsets(loaded, kind):
    """For canonical ids of texts that survive the round trip, encoding has already said which characters are whose."""
    tokenizer, rng = loaded[kind], random.Random(f"encode {kind}")
    checked = 0
    for _ in range(CASES):
        text = random_text(rng)
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        if tokenizer.backend.decode(encoding.ids) != text or text != text.strip():
            continue
        assert compute_token_char_offsets(tokenizer, encoding.ids) == (text, encoding.offsets)
        checked += len(encoding.ids)
    assert checked > 1000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("character", ["뷁", "🤯", "👍", "𓀀", "ж"])
def test_each_token_of_a_split_character_carries_it_whole(loaded, kind, character):
    tokenizer = loaded[kind]
    ids = tokenizer.encode(f"a{character}b", add_special_tokens=False)
    text, ranges = compute_token_char_offsets(tokenizer, ids)
    position = text.index(character)
    assert text == f"a{character}b"
    carriers = [r for r in ranges if r[0] <= position < r[1]]
    assert carriers
    if character in "뷁🤯𓀀":  # not in the training text, so written in bytes
        assert len(carriers) > 1 and set(carriers) == {(position, position + 1)}


def test_special_tokens_and_stripped_white_space_are_empty(loaded):
    tokenizer = loaded["byte_level"]
    end = tokenizer.eos_ids[0]
    lead, word, trail = (tokenizer.encode(t, add_special_tokens=False) for t in ("\n\n", "안녕", "\n"))
    text, ranges = compute_token_char_offsets(tokenizer, [*lead, end, *word, *trail, end])
    assert text == "안녕"
    assert all(r == (0, 0) for r in ranges[: len(lead) + 1])
    assert all(r == (2, 2) for r in ranges[-len(trail) - 1 :])
    covered = {c for start, stop in ranges for c in range(start, stop)}
    assert covered == {0, 1}


def test_a_special_token_inside_a_split_character(loaded):
    """Decoding leaves the special token out first, so the bytes around it still make one character."""
    tokenizer = loaded["gemma"]
    first, *rest = (tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "뷁".encode())
    text, ranges = compute_token_char_offsets(tokenizer, [first, tokenizer.bos_id, *rest])
    assert text == "뷁"
    assert ranges[0] == ranges[2] == ranges[3] == (0, 1)
    assert ranges[1] == (1, 1)


def test_broken_bytes_of_a_sentencepiece_run_are_one_character_each(loaded):
    """A completion cut off inside a character: the library gives up the whole run of byte tokens."""
    tokenizer = loaded["gemma"]
    ids = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in "뷁뷁".encode()[:-1]]
    assert compute_token_char_offsets(tokenizer, ids) == ("\ufffd" * 5, [(n, n + 1) for n in range(5)])


def test_no_tokens(loaded):
    assert compute_token_char_offsets(loaded["gemma"], []) == ("", [])
    assert compute_token_char_offsets(loaded["byte_level"], []) == ("", [])
    assert compute_token_char_offsets(loaded["llama"], list(loaded["llama"].eos_ids)) == ("", [(0, 0)])


def test_invalid_utf8_is_read_as_rust_reads_it():
    alphabet = byte_level_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    ids = {byte: n for n, byte in enumerate(alphabet.values())}
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    for _ in range(10_000):
        kinds = [rng.randrange(256), rng.choice([0xE0, 0xED, 0xF0, 0xF4, 0xC2, 0xEA]), rng.randrange(0x80, 0xC0)]
        data = bytes(rng.choice(kinds) for _ in range(rng.randint(0, 8)))
        text, owner = decode_utf8_lossy(data)
        assert text == backend.decode([ids[byte] for byte in data])
        assert len(owner) == len(data) and set(owner.tolist()) == set(range(len(text)))


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (None, "none"),
        (decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]), "Strip"),
        (decoders.Sequence([decoders.Replace(tokenizers.Regex("▁+"), " "), decoders.Fuse()]), "Regex"),
    ],
)
def test_an_unknown_decoder_is_refused_by_name(backends, save_tokenizer, tmp_path, decoder, named):
    backend = tokenizers.Tokenizer.from_str(backends["gemma"].to_str())
    spec = json.loads(backend.to_str()) | {"decoder": json.loads(decoder.__getstate__()) if decoder else None}
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    tokenizer = Tokenizer.load(save_tokenizer(backend, tmp_path, eos_token="<eos>"))
    with pytest.raises(TokenizerError, match=named):
        compute_token_char_offsets(tokenizer, [10, 11])


def test_a_disagreement_with_the_library_is_an_error_not_a_guess(backends, save_tokenizer, tmp_path):
    """Rust reads "<0x+A>" as a byte, this module does not: ranges for it would be wrong."""
    spec = json.loads(backends["gemma"].to_str())
    spec["model"]["vocab"]["<0x+A>"] = odd = max(spec["model"]["vocab"].values()) + 1
    folder = save_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)), tmp_path, eos_token="<eos>")
    tokenizer = Tokenizer.load(folder)
    word = tokenizer.encode("good", add_special_tokens=False)
    with pytest.raises(OffsetError, match=str(odd)):
        compute_token_char_offsets(tokenizer, [*word, odd, *word])
