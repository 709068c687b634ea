"""Synthetic errors: spans and penalties say exactly what was done to the text. No model, no network."""

import random
from collections import Counter

import pytest

from reward_workers.toy import damage, errors
from reward_workers.toy.damage import EVALUATION_MIX, KINDS, Mix, Sample
from reward_workers.toy.errors import Noise
from reward_workers.toy.measure import Judged, character_f1, spearman
from reward_workers.toy.pairs import draw_pair

PAIRS = [
    ("Close all tabs", "모든 탭 닫기"),
    ("Save the current file", "현재 파일을 저장합니다"),
    ("Delete", "삭제"),
    ("Show the list of running kernels", "실행 중인 커널의 목록을 보여줍니다"),
    ("Open in new browser tab", "새 브라우저 탭에서 열기"),
    ("User settings", "사용자 설정"),
]
EVERYTHING = Mix(0.1, 0.4, dict.fromkeys(errors.LOCAL, 1.0), dict.fromkeys(errors.WHOLE, 1.0))


def words_with_marks(sample: Sample) -> list[tuple[str, bool]]:
    """Each word of the translation and whether a span covers it; a span that cuts a word is an error."""
    marked, position, words = {c for s in sample.spans for c in range(s.start, s.end)}, 0, []
    for word in sample.mt.split(" "):
        covered = {c in marked for c in range(position, position + len(word))}
        assert len(covered) == 1, sample
        words.append((word, covered.pop()))
        position += len(word) + 1
    return words


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def samples(kind: str, count: int = 60) -> list[Sample]:
    rng = random.Random(3)
    noise = Noise(PAIRS, rng)
    made = [damage.damage(*rng.choice(PAIRS), noise, kind) for _ in range(count)]
    return [sample for sample in made if sample]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_lie_in_the_text_and_what_is_unmarked_is_right(kind: str) -> None:
    made = samples(kind)
    assert len(made) > 20
    for s in made:
        ends = [0, *(x for span in s.spans for x in (span.start, span.end)), len(s.mt)]
        assert ends == sorted(ends)
        assert all(span.start < span.end for span in s.spans)
        assert is_subsequence([w for w, wrong in words_with_marks(s) if not wrong], s.ref.split()), s
        assert (s.mt == s.ref) == (kind == "clean") == (s.penalty == 0)
        assert kind in ("clean", "drop", "truncate") or s.spans, s
        assert 0 <= s.penalty <= errors.WORST


@pytest.mark.parametrize("kind", ["repeat", "insert", "loop", "double"])
def test_additions_are_marked_whole(kind: str) -> None:
    for s in samples(kind):
        kept = [w for w, wrong in words_with_marks(s) if not wrong]
        if kind == "loop":
            assert is_subsequence(kept, s.ref.split())
            assert {w for w, wrong in words_with_marks(s) if wrong} <= set(s.ref.split())
        else:
            assert " ".join(kept) == s.ref


def test_penalties_are_the_weights_of_the_spans() -> None:
    weigh = errors.WEIGHTS
    for kind in ("swap", "garble", "repeat", "insert"):
        for s in samples(kind):
            assert s.penalty == sum(weigh[span.severity] for span in s.spans), s
    assert {s.penalty for s in samples("drop")} == {5, 10}
    assert {s.penalty for kind in ("copy", "other", "english", "loop", "stub") for s in samples(kind)} == {25}
    assert all(s.mt == s.src for s in samples("copy"))
    for s in samples("truncate"):
        lost = 1 - len(s.mt.split()) / len(s.ref.split())
        assert s.penalty == (5 if lost < 0.34 else 10 if lost < 0.67 else 25)


def test_worse_means_more_penalty_never_above_25() -> None:
    rng = random.Random(0)
    noise = Noise(PAIRS, rng)
    made = [damage.draw(*draw_pair(PAIRS, rng, 0.5), noise, EVERYTHING) for _ in range(2000)]
    assert max(s.penalty for s in made) == errors.WORST
    for s in made:
        assert is_subsequence([w for w, wrong in words_with_marks(s) if not wrong], s.ref.split()), s
        if len(set(s.kind.split("+"))) > 1:  # several local errors: at least what the spans weigh
            assert s.penalty >= min(25, max((errors.WEIGHTS[x.severity] for x in s.spans), default=0)), s
    shares = Counter(s.kind == "clean" for s in made)
    assert 0.08 < shares[True] / len(made) < 0.2


def test_the_same_seed_makes_the_same_test_set() -> None:
    one, two, three = (damage.held_out(PAIRS, PAIRS, seed=s) for s in (1, 1, 2))
    assert one == two != three
    assert set(one) == {*KINDS, "mix"}
    assert len(one["mix"]) == len(one["clean"]) == len(PAIRS)
    assert EVALUATION_MIX.clean + EVALUATION_MIX.local == pytest.approx(0.7)


def test_character_f1_and_spearman_against_hand_counts() -> None:
    gold = Sample("s", "r", "abcdefghij", (damage.Span(0, 4, "major"),), 5, "x")
    judged = Judged(gold, 1.0, (damage.Span(2, 8, "minor"),))
    assert character_f1([judged]) == pytest.approx((2 / 6, 2 / 4, 0.4))
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)  # 1 - 6*2/(4*15)
    assert spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1.0)
