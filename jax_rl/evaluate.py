"""Metric-only evaluation: greedy translations and samples of fixed prompts, with intervals.

Every mean comes with a 95 % bootstrap interval over the examples, and with the paired difference to a baseline report
(update 0) and its interval.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from jax_rl.config.schema import Config
from jax_rl.credit import to_translations
from jax_rl.data.prompts import Prompt
from jax_rl.figures import completion_figures, mean_and_std, output_row, scoring_figures
from jax_rl.rewards.scoring import CompletionScores, metric_weights, weighted_sum
from jax_rl.rewards.shared import AnyScorer
from jax_rl.rollout.collect import RolloutBatch, concatenate, generate_rollouts, in_order
from jax_rl.rollout.engine import RolloutEngine
from jax_rl.rollout.sampling import EVAL_STREAM
from jax_rl.setup import evaluation_sampling
from jax_rl.tokens.tokenizer import Tokenizer

Figures = dict[str, list[float | None]]  # name -> one value per example


@dataclass(frozen=True)
class EvalReport:
    """Per-example figures of one evaluation; small, and plain enough to live in a checkpoint's meta.json."""

    figures: dict[str, Figures]  # by decoding: greedy; sampled (the mean over each example's samples); and colder,
    # the same at eval.baseline_temperature, which shows what sharpening alone would give
    scoring: dict[str, float | None]  # what was missing or unknown
    corpus: dict[str, float | str]  # chrF++ and BLEU of the greedy translations, with sacrebleu's signatures
    outputs: list[dict]  # one row per greedy completion, as in eval_outputs.jsonl

    def to_json(self) -> dict:
        return asdict(self)

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
    samples = cfg.eval.num_samples_per_prompt
    figures = {"greedy": _figures(*greedy, 1, offset)}
    if samples > 1:
        figures["sampled"] = _figures(*run(cfg.eval.temperature, samples), samples, offset)
        if with_baseline_temperature and cfg.eval.baseline_temperature is not None:
            figures["colder"] = _figures(*run(cfg.eval.baseline_temperature, samples), samples, offset)
    outputs = [output_row(greedy[0], row, s) for row, s in enumerate(greedy[1])]
    return EvalReport(figures, scoring_figures(scorer.take_counts()), corpus_scores(outputs, cfg), outputs)


def _figures(batch: RolloutBatch, scores: list[CompletionScores], group_size: int, offset: float) -> Figures:
    rows = [completion_figures(r, s, offset) for r, s in zip(batch.rollouts, scores)]
    names = rows[0]
    per_completion = {name: [row[name] for row in rows] for name in names}
    return {name: _group_means(values, group_size) for name, values in per_completion.items()}


def _group_means(values: list[float | None], group_size: int) -> list[float | None]:
    groups = [values[i : i + group_size] for i in range(0, len(values), group_size)]
    present = [[v for v in group if v is not None] for group in groups]
    return [float(np.mean(group)) if group else None for group in present]


def corpus_scores(outputs: Sequence[dict], cfg: Config) -> dict[str, float | str]:
    """Corpus chrF++ and BLEU over the examples that have a reference; empty where none has."""
    pairs = [(o["completion_text"], o["ref_text"]) for o in outputs if o["ref_text"]]
    if not pairs:
        return {}
    from sacrebleu.metrics import BLEU, CHRF

    hypotheses, references = [list(side) for side in zip(*pairs)]
    chrf = CHRF(word_order=2)
    bleu = BLEU(tokenize=bleu_tokenizer(cfg.data.default_tgt_lang_code), effective_order=True)
    chrf_score, bleu_score = chrf.corpus_score(hypotheses, [references]), bleu.corpus_score(hypotheses, [references])
    return {
        "corpus_chrf++": chrf_score.score,
        "corpus_chrf++_signature": str(chrf.get_signature()),
        "corpus_bleu": bleu_score.score,
        "corpus_bleu_signature": str(bleu.get_signature()),
        "corpus_references": len(pairs),
    }


def bleu_tokenizer(language_code: str) -> str:
    """sacrebleu's tokenizer for a target language that needs no extra package."""
    code = language_code.lower().replace("_", "-").split("-")[0]
    return {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}.get(code, "13a")


def summarize(report: EvalReport, baseline: EvalReport | None, cfg: Config) -> dict:
    """The `eval` row of train_log.jsonl: means, stds, intervals, differences, selection score.

    Greedy figures carry plain names, sampled ones the prefix `sampled_`, those of the colder baseline `colder_`.
    """
    row: dict = {"examples": len(report.outputs), "model_select_score": select_score(report.figures["greedy"], cfg)}
    for decoding, figures in report.figures.items():
        before = baseline.figures.get(decoding) if baseline is not None else None
        for name, values in figures.items():
            key = name if decoding == "greedy" else f"{decoding}_{name}"
            row |= _describe(key, values, cfg.eval.bootstrap_resamples)
            if before is not None:
                row |= _describe_difference(key, values, before[name], cfg.eval.bootstrap_resamples)
    return row | report.scoring | report.corpus


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


def _describe_difference(key: str, values: list[float | None], before: list[float | None], resamples: int) -> dict:
    pairs = [(v, b) for v, b in zip(values, before, strict=True) if v is not None and b is not None]
    if not pairs:
        return {}
    differences = np.array([v - b for v, b in pairs])
    return {
        f"{key}_diff": float(differences.mean()),
        f"{key}_diff_ci95": bootstrap_interval(differences, resamples),
    }


def bootstrap_interval(values: np.ndarray, resamples: int, seed: int = 0) -> list[float]:
    """Percentile bootstrap 95 % interval of the mean (Efron & Tibshirani 1993, ch. 13), the same at every call."""
    draws = np.random.default_rng(seed).integers(0, values.size, (resamples, values.size))
    return [float(q) for q in np.quantile(values[draws].mean(axis=1), [0.025, 0.975])]
