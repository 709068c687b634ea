import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_rl.rewards.text import is_blank, normalize, normalized

COMBINING = "".join(chr(code) for code in range(0x20000) if unicodedata.combining(chr(code)))
DECOMPOSING = "".join(chr(code) for code in range(0x3100) if unicodedata.decomposition(chr(code)))
JAMO = "".join(map(chr, range(0x1100, 0x1200)))
ODD_TEXT = st.text(st.sampled_from(JAMO + "가각뷁ẛñé" + "ab 👍🏽" + DECOMPOSING + COMBINING), max_size=12)


@given(st.one_of(st.text(), ODD_TEXT, ODD_TEXT.map(lambda text: unicodedata.normalize("NFD", text))))
def test_the_text_is_nfc_and_each_character_knows_where_it_came_from(text):
    result = normalize(text)
    clean = "".join("\ufffd" if unicodedata.category(char) == "Cs" else char for char in text)
    assert result.text == unicodedata.normalize("NFC", clean) == normalized(text)
    assert len(result.text) == len(result.starts) == len(result.ends)
    result.text.encode()  # no lone surrogate is left
    for start in range(len(result.text)):
        begin, end = result.original_range(start, start + 1)
        assert begin < end
        assert result.text[start] in unicodedata.normalize("NFC", clean[begin:end])
    assert result.original_range(0, len(result.text)) == (0, len(text))


@given(st.lists(st.sampled_from(["한국어", "문장을", "번역했다.", "Größe", "café", "ㄱ", "뷁"]), min_size=1), st.data())
def test_a_word_of_composed_text_is_that_word_of_the_decomposed_one(words, data):
    text = unicodedata.normalize("NFD", " ".join(words))
    result = normalize(text)
    index = data.draw(st.integers(0, len(words) - 1))
    start = len(" ".join([*words[:index], ""]))
    begin, end = result.original_range(start, start + len(words[index]))
    assert text[begin:end] == unicodedata.normalize("NFD", words[index])


def test_ranges_outside_the_text_are_cut():
    assert normalize("ab").original_range(-3, 9) == (0, 2)
    assert normalize("ab").original_range(2, 5) == (0, 0)
    assert normalize("").original_range(0, 1) == (0, 0)


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t\r", "\u3000\u00a0", "\u200b\u200d\ufeff", "\u3164", "\u2800 \u115f", "\ufe0f"]
)
def test_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", ".", " 가 ", "\u200b-", "é", "👍", "\ud800", "0"])
def test_not_blank(text):
    assert not is_blank(text)
