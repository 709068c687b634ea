"""The kinds of synthetic translation error, each with its MQM penalty.

A translation is a list of words, each with the error that it belongs to, so spans follow by construction. Weights as
in MQM: minor 1, major 5, critical 10, a useless translation 25. Repetition is weighed harshly (major at the first
copy), because a policy that is rewarded for it ends in loops. An error that does not fit a translation gives None.
Standard library only.
"""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

WEIGHTS = {"minor": 1, "major": 5, "critical": 10}
WORST = 25
Pair = tuple[str, str]  # source, reference


class Word(NamedTuple):
    """A word of a translation; `severity` is None where it is right, `error` tells neighbouring errors apart."""

    text: str
    severity: str | None = None
    error: int = 0


class Noise:
    """Where wrong words come from: the words of other pairs, drawn by their frequency."""

    def __init__(self, pairs: Sequence[Pair], rng: random.Random) -> None:
        self.pairs, self.rng = pairs, rng
        self.target_words = [w for _, ref in pairs for w in ref.split()]
        self.source_words = [w for src, _ in pairs for w in src.split()]
        self._next_chars: dict[str, list[str]] = {}
        for word in self.target_words:
            for a, b in zip(f" {word}", f"{word} ", strict=True):
                self._next_chars.setdefault(a, []).append(b)

    def word(self, avoid: Sequence[str]) -> str:
        """A target-language word that is not one of `avoid`."""
        candidates = (self.rng.choice(self.target_words) for _ in range(1000))
        return next(w for w in candidates if w not in avoid)

    def invented_word(self) -> str:
        """Syllables that follow each other in real words; mostly no word at all. What a weak model babbles."""
        word = ""
        while len(word) < 8:
            char = self.rng.choice(self._next_chars[word[-1] if word else " "])
            if char == " ":
                break
            word += char
        return word

    def other(self, ref: str) -> Pair:
        """Another pair, with another translation."""
        candidates = (self.rng.choice(self.pairs) for _ in range(1000))
        return next(p for p in candidates if p[1] != ref)


Damaged = tuple[list[Word], float] | None  # None: the error does not fit this translation
Local = Callable[[list[Word], Noise, int], Damaged]
Whole = Callable[[str, list[str], Noise], Damaged]


def _free(words: list[Word]) -> list[int]:
    return [i for i, w in enumerate(words) if w.severity is None]


def _texts(words: list[Word]) -> list[str]:
    return [w.text for w in words]


def swap(words: list[Word], noise: Noise, error: int) -> Damaged:
    """Two neighbours change places."""
    free = set(_free(words))
    places = [i for i in free if i + 1 in free and words[i].text != words[i + 1].text]
    if not places:
        return None
    i = noise.rng.choice(sorted(places))
    swapped = [Word(words[i + 1].text, "minor", error), Word(words[i].text, "minor", error)]
    return words[:i] + swapped + words[i + 2 :], WEIGHTS["minor"]


def garble(words: list[Word], noise: Noise, error: int) -> Damaged:
    """One syllable of a word is lost, doubled or moved."""
    places = [i for i in _free(words) if len(words[i].text) >= 3]
    if not places:
        return None
    i = noise.rng.choice(places)
    w = words[i].text
    j = noise.rng.randrange(len(w) - 1)
    v = noise.rng.choice([w[:j] + w[j + 1 :], w[:j] + w[j] + w[j:], w[:j] + w[j + 1] + w[j] + w[j + 2 :]])
    if v == w:
        return None
    return words[:i] + [Word(v, "minor", error)] + words[i + 1 :], WEIGHTS["minor"]


def repeat(words: list[Word], noise: Noise, error: int) -> Damaged:
    """One to three further copies of a word."""
    free = _free(words)
    if not free:
        return None
    i = noise.rng.choice(free)
    copies = noise.rng.choice([1, 1, 1, 2, 3])
    severity = "major" if copies == 1 else "critical"
    return words[: i + 1] + [Word(words[i].text, severity, error)] * copies + words[i + 1 :], WEIGHTS[severity]


def drop(words: list[Word], noise: Noise, error: int) -> Damaged:
    """A word is missing; worse if it was a third of the translation."""
    free = _free(words)
    if len(words) < 2 or not free:
        return None
    i = noise.rng.choice(free)
    return words[:i] + words[i + 1 :], 5 if 1 / len(words) < 0.34 else 10


def insert(words: list[Word], noise: Noise, error: int) -> Damaged:
    """An unrelated word of the target language too many."""
    i = noise.rng.randrange(len(words) + 1)
    return words[:i] + [Word(noise.word(_texts(words)), "major", error)] + words[i:], WEIGHTS["major"]


def replace_word(words: list[Word], noise: Noise, error: int) -> Damaged:
    """An unrelated word instead of the right one."""
    free = _free(words)
    if not free:
        return None
    i = noise.rng.choice(free)
    wrong = Word(noise.word(_texts(words)), "major", error)
    return words[:i] + [wrong] + words[i + 1 :], WEIGHTS["major"] if len(words) > 1 else WORST


def foreign(words: list[Word], noise: Noise, error: int) -> Damaged:
    """A word of the source language, beside or instead of the right one."""
    free = _free(words)
    if not free:
        return None
    i = noise.rng.choice(free)
    wrong = Word(noise.rng.choice(noise.source_words), "critical", error)
    if noise.rng.random() < 0.5:
        return words[:i] + [wrong] + words[i:], WEIGHTS["critical"]
    return words[:i] + [wrong] + words[i + 1 :], WEIGHTS["critical"] if len(words) > 1 else WORST


def right_words(texts: Sequence[str]) -> list[Word]:
    return [Word(t) for t in texts]


def wrong_words(texts: Sequence[str]) -> list[Word]:
    return [Word(t, "critical", 1) for t in texts]


def truncate(src: str, ref: list[str], noise: Noise) -> Damaged:
    """The translation stops early."""
    if len(ref) < 2:
        return None
    kept = noise.rng.randrange(1, len(ref))
    lost = 1 - kept / len(ref)
    return right_words(ref[:kept]), 5 if lost < 0.34 else 10 if lost < 0.67 else WORST


def splice(src: str, ref: list[str], noise: Noise) -> Damaged:
    """A right start, then the tail of another sentence."""
    tail = noise.other(" ".join(ref))[1].split()
    if len(ref) < 2 or len(tail) < 2:
        return None
    kept = noise.rng.randrange(1, len(ref))
    if noise.rng.random() < 0.7:
        tail = tail[noise.rng.randrange(1, len(tail)) :]
    return right_words(ref[:kept]) + wrong_words(tail), 10 if kept >= len(ref) / 2 else WORST


def loop(src: str, ref: list[str], noise: Noise) -> Damaged:
    """A right start that never ends, or one phrase for ever."""
    size = noise.rng.randrange(1, min(3, len(ref)) + 1)
    at = noise.rng.randrange(len(ref) - size + 1)
    phrase = ref[at : at + size]
    head = ref[: at + size] if noise.rng.random() < 0.5 else phrase
    return right_words(head) + wrong_words(phrase * noise.rng.randrange(3, 8)), WORST


def double(src: str, ref: list[str], noise: Noise) -> Damaged:
    """The whole translation again, once or more."""
    copies = noise.rng.choice([1, 1, 2, 3])
    return right_words(ref) + wrong_words(ref * copies), WEIGHTS["critical"] if copies == 1 else WORST


def mash(src: str, ref: list[str], noise: Noise) -> Damaged:
    """Each word is wrong with the same chance."""
    share = noise.rng.uniform(0.2, 1)
    hit = [noise.rng.random() < share for _ in ref]
    words = [Word(noise.word(ref), "major", i + 1) if hit[i] else Word(t) for i, t in enumerate(ref)]
    wrong = sum(hit)
    if not wrong:
        return None
    if wrong == len(words):
        return wrong_words(_texts(words)), WORST
    return words, WEIGHTS["major"] * wrong


def other(src: str, ref: list[str], noise: Noise) -> Damaged:
    """The translation of another sentence."""
    return wrong_words(noise.other(" ".join(ref))[1].split()), WORST


def copy(src: str, ref: list[str], noise: Noise) -> Damaged:
    """The source, untranslated."""
    return wrong_words(src.split()), WORST


def english(src: str, ref: list[str], noise: Noise) -> Damaged:
    """Another source."""
    return wrong_words(noise.other(" ".join(ref))[0].split()), WORST


def babble(src: str, ref: list[str], noise: Noise) -> Damaged:
    """Words and near-words that have nothing to do with the source, perhaps after a right start."""
    kept = noise.rng.randrange(len(ref)) if noise.rng.random() < 0.4 else 0
    count = max(1, len(ref) - kept + noise.rng.randrange(-1, 3))
    real = noise.rng.choice([0.0, 0.5, 1.0])
    texts = [noise.word(ref) if noise.rng.random() < real else noise.invented_word() for _ in range(count)]
    return right_words(ref[:kept]) + wrong_words(texts), 10 if kept > len(ref) / 2 else WORST


def stub(src: str, ref: list[str], noise: Noise) -> Damaged:
    """Almost nothing: punctuation or one syllable."""
    syllable = noise.rng.choice(noise.rng.choice(noise.target_words))
    return wrong_words([noise.rng.choice([".", "...", "!", "-", ":", ". .", syllable, syllable])]), WORST


LOCAL: dict[str, Local] = {
    "swap": swap, "garble": garble, "repeat": repeat, "drop": drop, "insert": insert, "replace": replace_word,
    "foreign": foreign,
}  # fmt: skip
WHOLE: dict[str, Whole] = {
    "truncate": truncate, "splice": splice, "loop": loop, "mash": mash, "other": other, "copy": copy,
    "english": english, "double": double, "babble": babble, "stub": stub,
}  # fmt: skip
