"""English-Korean sentence pairs for the embedded default, from the gettext catalogues of two installed pip packages.

    python -m jax_rl.toy.text --out DIR        writes DIR/train.jsonl, DIR/eval.jsonl and DIR/test.jsonl

Interface text: mostly one to five words, translated by people. Both packages are BSD-licensed; their text is read from
the installation at set-up and is not part of this repository. Pairs that resemble each other (same words up to case and
punctuation, or half of their letter trigrams in common, on either side) stay in one split, so held-out figures
measure translation and not recall.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import random
import re
import struct
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACKAGES = ("jupyterlab-language-pack-ko-KR", "Django")
SPLITS = ("train", "eval", "test")
HELD_OUT_SHARE = 0.1  # of all pairs, for eval and for test each
MAX_HELD_OUT_CLUSTER = 4  # larger families of look-alikes are formulas; they go to train
NEAR_DUPLICATE = 0.5  # trigram Jaccard from which two texts count as the same

_MO_MAGIC = 0x950412DE
# placeholders, markup, paths, keyboard accelerators, URLs
_MARKUP = re.compile(r"[{}<>=_|\\`@#$^~*%&\[\]\n\t]|https?:|www\.|\.\.\.\S|\w/\w|--")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


class TextError(ValueError):
    """The pairs cannot be read."""


@dataclass(frozen=True)
class Pair:
    """One source with its one human translation, both NFC."""

    src: str
    ref: str
    package: str

    @property
    def id(self) -> str:
        """Depends on the source alone, so it survives a new release of the package."""
        return f"{self.package.split('-')[0].lower()}-{hashlib.sha1(self.src.encode()).hexdigest()[:10]}"


def read_catalogue(data: bytes) -> Iterator[tuple[str, str]]:
    """(message, translation) of a compiled gettext catalogue (.mo), contexts cut off, plural forms left out.

    Format: https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
    """
    if len(data) < 20 or struct.unpack_from("<I", data)[0] != _MO_MAGIC:
        raise TextError("not a little-endian gettext catalogue: its first four bytes should be de 12 04 95")
    count, originals, translations = struct.unpack_from("<3I", data, 8)
    for i in range(count):
        n, a = struct.unpack_from("<2I", data, originals + 8 * i)
        m, b = struct.unpack_from("<2I", data, translations + 8 * i)
        message, translation = data[a : a + n].decode("utf-8"), data[b : b + m].decode("utf-8")
        if message and translation and "\0" not in message:
            yield message.split("\x04")[-1], translation


def read_package(name: str) -> Iterator[tuple[str, str]]:
    """Every (message, translation) in the Korean catalogues of an installed package, in the order of file names."""
    try:
        files = importlib.metadata.files(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise TextError(f"the package {name} is not installed; pip install 'jax_rl[toy]' brings it") from error
    paths = sorted(str(f.locate()) for f in files or () if f.suffix == ".mo" and {"ko", "ko_KR"} & set(f.parts))
    if not paths:
        raise TextError(f"the installed package {name} holds no Korean catalogue (*/locale/ko*/**/*.mo)")
    for path in paths:
        yield from read_catalogue(Path(path).read_bytes())


def tidy(text: str) -> str:
    """NFC, one blank between words, three dots for an ellipsis."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\u2026", "...").split())


def fold(text: str) -> str:
    """The words alone: no case, punctuation or digits."""
    return re.sub(r"[\W\d_]+", " ", text.casefold()).strip()


def is_clean(src: str, ref: str) -> bool:
    """Whether this is a plain sentence with a plain Korean translation of plausible length."""
    if src == ref or _MARKUP.search(src) or _MARKUP.search(ref):
        return False
    if not src.isascii() or not re.search(r"[A-Za-z]{2}", src):
        return False
    if not (3 <= len(src) <= 160 and 2 <= len(ref) <= 120 and 0.15 <= len(ref) / len(src) <= 1.8):
        return False
    letters = [c for c in ref if c.isalpha()]
    hangul = sum(bool(_HANGUL.match(c)) for c in letters)
    return bool(letters) and hangul >= 0.5 * len(letters)  # less: it was left in English


def read_pairs() -> list[Pair]:
    """All clean pairs of the packages, one translation for each source up to case and punctuation (the first wins)."""
    pairs: dict[str, Pair] = {}
    for package in PACKAGES:
        for src, ref in read_package(package):
            src, ref = tidy(src), tidy(ref)
            if is_clean(src, ref):
                pairs.setdefault(fold(src), Pair(src, ref, package))
    return list(pairs.values())


def trigrams(text: str) -> set[str]:
    padded = f" {fold(text)} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def _near_duplicates(texts: list[str]) -> np.ndarray:
    """[N, 2] index pairs i < j whose trigram Jaccard similarity reaches NEAR_DUPLICATE."""
    sets = [trigrams(t) for t in texts]
    column = {g: c for c, g in enumerate(sorted(set().union(*sets)))}
    has = np.zeros((len(texts), len(column)), np.float32)
    for i, grams in enumerate(sets):
        has[i, [column[g] for g in grams]] = 1
    common, size = has @ has.T, has.sum(1)
    jaccard = common / np.maximum(size[:, None] + size[None] - common, 1)
    return np.argwhere(np.triu(jaccard >= NEAR_DUPLICATE, 1))


def cluster(pairs: list[Pair]) -> list[list[Pair]]:
    """Connected components of the near-duplicate relation over sources and over references."""
    parent = list(range(len(pairs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for texts in ([p.src for p in pairs], [p.ref for p in pairs]):
        for i, j in _near_duplicates(texts):
            parent[root(int(i))] = root(int(j))
    groups: dict[int, list[Pair]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(root(i), []).append(pair)
    return sorted(groups.values(), key=lambda group: group[0].src)


def split_pairs(pairs: list[Pair], seed: int = 0) -> dict[str, list[Pair]]:
    """Train, eval and test; whole clusters only. Held-out text is therefore less formulaic than train."""
    groups = cluster(pairs)
    random.Random(seed).shuffle(groups)
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for group in groups:
        wanted = [s for s in ("test", "eval") if len(splits[s]) < HELD_OUT_SHARE * len(pairs)]
        splits[wanted[0] if wanted and len(group) <= MAX_HELD_OUT_CLUSTER else "train"] += group
    return splits


def write_jsonl(path: Path, pairs: list[Pair]) -> None:
    """One row a pair, under the field names that `data` reads by default. The file appears whole or not at all."""
    languages = {"src_lang": "English", "tgt_lang": "Korean", "src_lang_code": "en", "tgt_lang_code": "ko"}
    rows = ({"id": p.id, "src_text": p.src, "ref_text": p.ref, **languages} for p in pairs)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the embedded default's English-Korean pairs as JSONL.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl, eval.jsonl and test.jsonl")
    out: Path = parser.parse_args().out
    try:
        splits = split_pairs(read_pairs())
    except TextError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        write_jsonl(out / f"{name}.jsonl", pairs)
    print(f"{out}: " + ", ".join(f"{len(pairs)} {name}" for name, pairs in splits.items()) + " pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
