"""Texts for the tiny models of the tests: an English source, a Korean candidate and a reference each."""

import random

_ENGLISH = "the a file folder open close server name user date image cell table cannot find save reset your".split()
_KOREAN = "파일을 폴더 열기 닫기 서버의 이름 사용자 날짜 그림 셀 표를 찾을 수 없습니다 저장 재설정 당신의".split()
POISON = "☢"  # the tiny models' embedding of this character is not a number


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    words = random.Random(seed)

    def sentence(vocabulary: list[str]) -> str:
        return " ".join(words.choices(vocabulary, k=words.randint(1, 14))) + words.choice(["", ".", "!", " (새)"])

    return [{"src": sentence(_ENGLISH), "mt": sentence(_KOREAN), "ref": sentence(_KOREAN)} for _ in range(count)]


def corpus() -> list[str]:
    return [text for pair in pairs(400, seed=1) for text in pair.values()] + [POISON] * 3


LONG_SOURCE = {"src": pairs(1, 7)[0]["src"] * 150, "mt": "파일을 찾을 수 없습니다", "ref": "파일이 없습니다"}
