"""Metric-only evaluation: greedy translations and samples of fixed prompts, with intervals.

Every mean comes with a 95 % bootstrap interval over the examples, and with the paired difference to a baseline report
(update 0) and its interval.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from jax_rl.config.schema import Config
from jax_rl.credit import to_translations
from jax_rl.data.prompts import Prompt
from jax_rl.figures import completion_figures, mean_and_std, output_row, scoring_figures
from jax_rl.rewards.scoring import CompletionScores, metric_weights, weighted_sum
from jax_rl.rewards.shared import AnyScorer
from jax_rl.rewards.text import normalized
from jax_rl.rollout.collect import RolloutBatch, concatenate, generate_rollouts, in_order
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import EVAL_STREAM
from jax_rl.setup import evaluation_sampling
from jax_rl.tokens.tokenizer import Tokenizer

log = logging.getLogger(__name__)

Figures = dict[str, list[float | None]]  # name -> one value per example


@dataclass(frozen=True)
class EvalReport:
    """Per-example figures of one evaluation; small, and plain enough to live in a checkpoint's meta.json."""

    figures: dict[str, Figures]  # by decoding: greedy; sampled (the mean over each example's samples); and colder,
    # the same at eval.baseline_temperature, which shows what sharpening alone would give
    scoring: dict[str, float | None]  # what was missing or unknown
    corpus: dict[str, float | str]  # chrF++ and BLEU of the greedy translations, with sacrebleu's signatures
    outputs: list[dict]  # one row per greedy completion, as in eval_outputs.jsonl
    sampled_outputs: list[dict] = field(default_factory=list, compare=False)  # likewise; not kept in a checkpoint

    def to_json(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name != "sampled_outputs"}

    def output_rows(self, update: int) -> list[dict]:
        """Rows of eval_outputs.jsonl: every greedy completion, then every sampled one."""
        return [{"type": "eval", "update": update, **row} for row in (*self.outputs, *self.sampled_outputs)]

    @classmethod
    def from_json(cls, data: dict) -> "EvalReport":
        return cls(**data)


def evaluate(
    engine: RolloutEngine,
    params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    scorer: AnyScorer,
    cfg: Config,
    *,
    with_baseline_temperature: bool = False,
) -> EvalReport:
    """Translates `prompts` and scores the translations; changes nothing.

    Greedy, one completion per example; with `eval.num_samples_per_prompt` > 1 also that many samples at
    `eval.temperature`, always with the same keys, so that reports of different updates are paired.
    """

    def run(temperature: float, group_size: int) -> tuple[RolloutBatch, list[CompletionScores]]:
        batches = generate_rollouts(
            engine,
            params,
            tokenizer,
            prompts,
            range(len(prompts)),
            group_size=group_size,
            sampling=evaluation_sampling(cfg, temperature),
            seed=cfg.misc.seed,
            stream=EVAL_STREAM,
            prompts_per_batch=cfg.generation.prompts_per_batch,
        )
        under_way = [(batch, scorer.submit(to_translations(batch))) for batch in batches]
        parts = [batch for batch, _ in under_way]
        return concatenate(parts, tokenizer.pad_id), in_order(parts, [future.result() for _, future in under_way])

    offset = cfg.reward.metricx.offset
    greedy = run(0.0, 1)
    outputs, sampled_outputs = _outputs("greedy", *greedy), []
    samples = cfg.eval.num_samples_per_prompt
    figures = {"greedy": _figures(*greedy, 1, offset)}
    if samples > 1:
        sampled = run(cfg.eval.temperature, samples)
        figures["sampled"] = _figures(*sampled, samples, offset)
        sampled_outputs = _outputs("sampled", *sampled)
        if with_baseline_temperature and cfg.eval.baseline_temperature is not None:
            figures["colder"] = _figures(*run(cfg.eval.baseline_temperature, samples), samples, offset)
    corpus = corpus_scores(outputs, [prompt.example.tgt_lang_code for prompt in prompts])
    return EvalReport(figures, scoring_figures(scorer.take_counts()), corpus, outputs, sampled_outputs)


def _outputs(decoding: str, batch: RolloutBatch, scores: list[CompletionScores]) -> list[dict]:
    return [{"decoding": decoding, **output_row(batch, row, s)} for row, s in enumerate(scores)]


def _figures(batch: RolloutBatch, scores: list[CompletionScores], group_size: int, offset: float) -> Figures:
    rows = [completion_figures(r, s, offset) for r, s in zip(batch.rollouts, scores)]
    names = rows[0]
    per_completion = {name: [row[name] for row in rows] for name in names}
    return {name: _group_means(values, group_size) for name, values in per_completion.items()}


def _group_means(values: list[float | None], group_size: int) -> list[float | None]:
    groups = [values[i : i + group_size] for i in range(0, len(values), group_size)]
    present = [[v for v in group if v is not None] for group in groups]
    return [float(np.mean(group)) if group else None for group in present]


def corpus_scores(outputs: Sequence[dict], language_codes: Sequence[str]) -> dict[str, float | str]:
    """Corpus chrF++ and BLEU over the examples that have a reference, in NFC; empty where none has.

    BLEU counts words, or characters, as the target language has it; where the languages differ in that, it is given for
    each of them as `corpus_bleu_<code>`.
    """
    pairs = [
        (normalized(o["completion_text"]), normalized(o["ref_text"]), code)
        for o, code in zip(outputs, language_codes, strict=True)
        if o["ref_text"]
    ]
    if not pairs:
        return {}
    from sacrebleu.metrics import BLEU, CHRF

    codes = sorted({code for _, _, code in pairs})
    one = len({bleu_tokenizer(code) for code in codes}) == 1
    parts = {"corpus_bleu": pairs} if one else {f"corpus_bleu_{c}": [p for p in pairs if p[2] == c] for c in codes}
    metrics = {"corpus_chrf++": (CHRF(word_order=2), pairs)} | {
        name: (BLEU(tokenize=bleu_tokenizer(part[0][2]), effective_order=True), part) for name, part in parts.items()
    }
    row: dict[str, float | str] = {"corpus_references": len(pairs)}
    for name, (metric, part) in metrics.items():
        hypotheses, references = [p[0] for p in part], [p[1] for p in part]
        row[name] = metric.corpus_score(hypotheses, [references]).score
        row[f"{name}_signature"] = str(metric.get_signature())
    return row


def bleu_tokenizer(language_code: str) -> str:
    """sacrebleu's tokenizer for a target language that needs no extra package."""
    code = language_code.lower().replace("_", "-").split("-")[0]
    return {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}.get(code, "13a")


def summarize(report: EvalReport, baseline: EvalReport | None, cfg: Config) -> dict:
    """The `eval` row of train_log.jsonl: means, stds, intervals, differences, selection score.

    Greedy figures carry plain names, sampled ones the prefix `sampled_`, those of the colder baseline `colder_`.
    Differences are over the examples that both reports have, `examples_paired` of them.
    """
    row: dict = {"examples": len(report.outputs), "model_select_score": select_score(report.figures["greedy"], cfg)}
    pairs = [] if baseline is None else _common_examples(report, baseline)
    if baseline is not None:
        row["examples_paired"] = len(pairs)
        if len(pairs) < len(report.outputs):
            log.warning(
                "%d of the %d evaluated examples were also evaluated at update 0; differences are over these",
                len(pairs), len(report.outputs),
            )  # fmt: skip
    for decoding, figures in report.figures.items():
        before = baseline.figures.get(decoding, {}) if baseline is not None else {}
        for name, values in figures.items():
            key = name if decoding == "greedy" else f"{decoding}_{name}"
            row |= _describe(key, values, cfg.eval.bootstrap_resamples)
            if name in before:
                paired = [(values[now], before[name][then]) for now, then in pairs]
                row |= _describe_difference(key, paired, cfg.eval.bootstrap_resamples)
    return row | report.scoring | report.corpus


def _common_examples(report: EvalReport, baseline: EvalReport) -> list[tuple[int, int]]:
    """Where each example of `report` is, and where it was in `baseline`, if there."""
    earlier = _places(baseline)
    return [(now, earlier[example]) for example, now in _places(report).items() if example in earlier]


def _places(report: EvalReport) -> dict[tuple[str, str, int], int]:
    """Rows by id, source text and how many like them came before: ids need not be unique."""
    places: dict[tuple[str, str, int], int] = {}
    alike: Counter[tuple[str, str]] = Counter()
    for place, output in enumerate(report.outputs):
        example = (output["example_id"], output["src_text"])
        places[(*example, alike[example])] = place
        alike[example] += 1
    return places


def select_score(greedy: Figures, cfg: Config) -> float | None:
    """The weighted sum of the sequence reward, over the means; None while a weighted metric has no score at all."""
    reward = cfg.reward
    figures = {  # by metric: its figure, and whether it is on
        "metricx": ("metricx_score", reward.metricx.enabled),
        "xcomet": ("xcomet_score", reward.xcomet.enabled),
        "mqm": ("mqm_score", reward.mqm.enabled),
        "chrf": ("chrf", reward.chrf.enabled),
    }
    means = {}
    for name, weight in metric_weights(reward).items():
        figure, enabled = figures[name]
        if not (weight and enabled):
            continue
        mean, _ = mean_and_std(greedy[figure])
        if mean is None:
            return None
        means[name] = mean
    return weighted_sum(means, reward)


def _describe(key: str, values: list[float | None], resamples: int) -> dict:
    present = np.array([v for v in values if v is not None])
    if present.size == 0:
        return {f"{key}_mean": None, f"{key}_scored": 0}
    return {
        f"{key}_mean": float(present.mean()),
        f"{key}_std": float(present.std()),
        f"{key}_ci95": bootstrap_interval(present, resamples),
        f"{key}_scored": int(present.size),
    }


def _describe_difference(key: str, paired: list[tuple[float | None, float | None]], resamples: int) -> dict:
    differences = np.array([now - then for now, then in paired if now is not None and then is not None])
    if differences.size == 0:
        return {}
    return {
        f"{key}_diff": float(differences.mean()),
        f"{key}_diff_ci95": bootstrap_interval(differences, resamples),
    }


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int = 0) -> list[float]:
    """Percentile bootstrap 95 % interval of the mean (Efron & Tibshirani 1993, ch. 13), the same at every call."""
    draws = np.random.default_rng(seed).integers(0, values.size, (resamples, values.size))
    return [float(q) for q in np.quantile(values[draws].mean(axis=1), [0.025, 0.975])]
