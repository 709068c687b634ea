"""The embedded default's text: the filter, the catalogue reader, and a split that nothing leaks across."""

import gettext
import importlib.metadata
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_rl.toy import text


@pytest.fixture(scope="module")
def splits() -> dict[str, list[text.Pair]]:
    return text.split_pairs(text.read_pairs())


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def test_reader_agrees_with_the_standard_library() -> None:
    files = importlib.metadata.files("Django") or ()
    path = next(f.locate() for f in files if str(f).endswith("auth/locale/ko/LC_MESSAGES/django.mo"))
    data = Path(str(path)).read_bytes()
    catalogue = gettext.GNUTranslations(io.BytesIO(data))
    ours = list(text.read_catalogue(data))
    assert len(ours) > 20
    assert all(catalogue.gettext(src) == ref for src, ref in ours)


def test_reader_refuses_what_is_not_a_catalogue() -> None:
    with pytest.raises(text.TextError, match="gettext catalogue"):
        list(text.read_catalogue(b'msgid "Close"\nmsgstr ".."\n'))


def test_missing_package_is_named() -> None:
    with pytest.raises(text.TextError, match="no-such-package-for-jax-rl"):
        list(text.read_package("no-such-package-for-jax-rl"))


@pytest.mark.parametrize(
    ("src", "ref", "clean"),
    [
        ("Close all tabs", "모든 탭 닫기", True),
        ("Close %s tabs", "%s 탭 닫기", False),
        ("Close {n} tabs", "{n} 탭 닫기", False),
        ("<b>Close</b>", "<b>닫기</b>", False),
        ("See https://example.org", "참고 사이트", False),
        ("Close", "Close", False),
        ("Close tab", "Close 탭", False),  # mostly left in English
        ("Café menu", "카페 메뉴", False),  # the source must be plain English
        ("OK", "확인", False),  # too short
        ("Go", "가" * 30, False),
    ],
)
def test_filter(src: str, ref: str, clean: bool) -> None:
    assert text.is_clean(src, ref) is clean


def test_pairs_are_clean_and_unique(splits: dict[str, list[text.Pair]]) -> None:
    pairs = [p for part in splits.values() for p in part]
    assert len(pairs) > 2000
    assert {p.package for p in pairs} == set(text.PACKAGES)
    for p in pairs:
        assert not re.search(r"%|[{}<>]|\\", p.src + p.ref), p
        assert p.src == " ".join(p.src.split()) and p.ref == " ".join(p.ref.split())
    assert len({text.fold(p.src) for p in pairs}) == len(pairs)  # one target per source
    assert len({p.id for p in pairs}) == len(pairs)


def test_no_near_duplicate_crosses_the_split(splits: dict[str, list[text.Pair]]) -> None:
    assert all(len(splits[name]) >= 200 for name in text.SPLITS)
    grams = {name: [(text.trigrams(p.src), text.trigrams(p.ref), p) for p in part] for name, part in splits.items()}
    for a, b in itertools.combinations(text.SPLITS, 2):
        for (src_a, ref_a, x), (src_b, ref_b, y) in itertools.product(grams[a], grams[b]):
            assert jaccard(src_a, src_b) < text.NEAR_DUPLICATE, (x, y)
            assert jaccard(ref_a, ref_b) < text.NEAR_DUPLICATE, (x, y)


def test_command_writes_the_same_files_each_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jax_rl.toy.text", "--out"]
    for name in ("one", "two"):
        subprocess.run([*command, str(tmp_path / name)], check=True, capture_output=True, timeout=60)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == ["eval.jsonl", "test.jsonl", "train.jsonl"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    row = json.loads((tmp_path / "one" / "eval.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert set(row) == {"id", "src_text", "ref_text", "src_lang", "tgt_lang", "src_lang_code", "tgt_lang_code"}
    assert (row["src_lang_code"], row["tgt_lang_code"]) == ("en", "ko")
