"""Sentence chrF against the reference (Popović 2015), by sacrebleu, in this process."""

from collections.abc import Sequence

import sacrebleu
from sacrebleu.metrics.chrf import CHRF

from jax_rl.rewards.text import is_blank, normalized
from jax_rl.rewards.types import Missing, Score, Scored, Translation


class ChrF:
    """chrF2 of one sentence with sacrebleu's defaults, in 0..1, higher is better."""

    name = "chrf"

    def __init__(self) -> None:
        self._chrf = CHRF()
        self.identity = f"sacrebleu {sacrebleu.__version__} chrF2"

    def score(self, batch: Sequence[Translation]) -> list[Score]:
        return [self._score_one(translation) for translation in batch]

    def close(self) -> None:
        pass

    def _score_one(self, translation: Translation) -> Score:
        if translation.ref is None or is_blank(translation.ref):
            return Missing("chrF needs a reference, and the example has none")
        if is_blank(translation.mt):
            return Scored(0.0)
        score = self._chrf.sentence_score(normalized(translation.mt), [normalized(translation.ref)])
        return Scored(score.score / 100)
