"""The user's rows as translation examples: which rows are for training and which for evaluation, checked one by one."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jax_rl.config.schema import DataConfig
from jax_rl.data.sources import DataError, Row, describe, read_dataset, read_file
from jax_rl.data.split import held_out_ids

__all__ = ["DataError", "Example", "Split", "load_examples"]

log = logging.getLogger(__name__)

Split = Literal["train", "eval"]


@dataclass(frozen=True)
class Example:
    example_id: str
    src_text: str
    src_lang: str
    tgt_lang: str
    src_lang_code: str
    tgt_lang_code: str
    ref_text: str | None  # None where the row has no reference


def load_examples(cfg: DataConfig, split: Split, limit: int | None = None) -> list[Example]:
    """One side of the data, in the order of its source.

    Where the evaluation side comes from, the first that is set: `eval_file`; `hf_eval_split`; the rows whose
    `split_field` is `eval_split`; the rows held out by `eval_sampling_count` or `_ratio` (`split.py`); else the
    training rows themselves, with a warning. Rows without source text, and those marked `is_bad_source` where that is
    asked for, are left out and counted in a warning.

    Args:
        limit: the first examples to keep, beside `cfg.limit` or `cfg.eval_limit`; the smaller counts.

    Raises:
        DataError: names the file and line, and what is wrong there.
    """
    if split not in ("train", "eval"):
        raise ValueError(f"split is {split!r}; it must be train or eval")
    training, evaluation = _training_side(cfg), _evaluation_side(cfg)
    holds_out = _holds_out(cfg, training, evaluation)
    side = training if split == "train" else evaluation
    if split == "eval" and evaluation == training and not holds_out:
        log.warning("evaluation runs on the training rows; set data.eval_file or data.eval_sampling_count")
    limits = [limit, cfg.limit if split == "train" else cfg.eval_limit]
    most = min((n for n in limits if n is not None), default=None)
    # a stream is read no further than needed; a file is read whole, so that its last line is checked too
    enough = most if cfg.hf_streaming and side.path is None and not holds_out else None
    examples = _read_examples(cfg, side, enough)
    rows_of = Counter(example.example_id for example in examples)
    repeated = {example_id: n for example_id, n in rows_of.items() if n > 1}
    if repeated:
        log.warning(
            "%s: %d rows share an id with another (%d ids, the first %r); rows with one id stay on one side of a split",
            side.describe(cfg), sum(repeated.values()), len(repeated), next(iter(repeated)),
        )  # fmt: skip
    if holds_out:
        held_out = held_out_ids(
            [example.example_id for example in examples],
            count=cfg.eval_sampling_count,
            ratio=cfg.eval_sampling_ratio,
            seed=cfg.eval_sampling_seed,
            min_samples=cfg.eval_sampling_min_samples,
        )
        examples = [example for example in examples if (example.example_id in held_out) == (split == "eval")]
    return examples[:most]


@dataclass(frozen=True)
class _Side:
    """Where the rows of one side come from: a file or a split of the data set, and there perhaps only some rows."""

    path: str | None
    hf_split: str | None
    value: str | None  # of split_field; None = all rows

    def describe(self, cfg: DataConfig) -> str:
        source = self.path or f"{cfg.hf_dataset_name}, split {self.hf_split}"
        return f"{source}, {cfg.split_field} = {self.value}" if self.value is not None else source


def _training_side(cfg: DataConfig) -> _Side:
    value = cfg.train_split if cfg.split_field else None
    return _Side(cfg.train_file, None if cfg.train_file else cfg.hf_train_split, value)


def _evaluation_side(cfg: DataConfig) -> _Side:
    value = cfg.eval_split if cfg.split_field else None
    if _samples(cfg) and not (cfg.eval_file or cfg.hf_eval_split or value):
        return _training_side(cfg)
    if cfg.eval_file:
        return _Side(cfg.eval_file, None, value)
    if cfg.train_file:
        return _Side(cfg.train_file, None, value)
    return _Side(None, cfg.hf_eval_split or cfg.hf_train_split, value)


def _samples(cfg: DataConfig) -> bool:
    return cfg.eval_sampling_count is not None or cfg.eval_sampling_ratio is not None


def _holds_out(cfg: DataConfig, training: _Side, evaluation: _Side) -> bool:
    """Whether the evaluation rows are sampled from the training source."""
    if not _samples(cfg) or cfg.eval_file:
        return False  # the file is the evaluation side, as the contract has it
    if evaluation != training:
        raise DataError(
            "data.eval_sampling_count or _ratio is set, and so is data.eval_split or data.hf_eval_split; "
            "each names the evaluation rows, so drop one of them"
        )
    return True


def _rows(cfg: DataConfig, side: _Side) -> Iterator[Row]:
    if side.path is not None:
        return read_file(side.path)
    if not cfg.hf_dataset_name or side.hf_split is None:
        raise DataError("there is no data to read; set data.train_file or data.hf_dataset_name")
    name, config = cfg.hf_dataset_name, cfg.hf_dataset_config_name
    return read_dataset(name, config, side.hf_split, cfg.hf_revision, cfg.hf_streaming)


def _read_examples(cfg: DataConfig, side: _Side, enough: int | None) -> list[Example]:
    """The side's usable rows, at least one; with `enough`, no more are read than give that many."""
    examples: list[Example] = []
    empty = bad = 0
    values: set[str] = set()
    for row in _rows(cfg, side):
        if side.value is not None:
            value = _label(row, cfg.split_field or "")
            values.add(value)
            if value != side.value:
                continue
        if cfg.skip_bad_source and _flag(row, cfg.is_bad_source_field):
            bad += 1
            continue
        example = _to_example(row, cfg)
        if example is None:
            empty += 1
            continue
        examples.append(example)
        if len(examples) == enough:
            break
    if side.value is not None and side.value not in values:
        seen = ", ".join(sorted(values)[:10]) or "no rows at all"
        raise DataError(f"{side.describe(cfg)}: no row has that value; there are: {seen}")
    left_out = f"{empty} rows with an empty source and {bad} marked as bad are left out"
    if not examples:
        raise DataError(f"{side.describe(cfg)}: there is no row that can be used; {left_out}")
    if empty or bad:
        log.warning("%s: %s", side.describe(cfg), left_out)
    return examples


def _to_example(row: Row, cfg: DataConfig) -> Example | None:
    """None where the source text is empty."""
    if cfg.src_text_field not in row.fields:
        fields = ", ".join(row.fields) or "none"
        raise DataError(
            f"{row.where}: there is no field {cfg.src_text_field!r} (data.src_text_field); its fields are {fields}"
        )
    source = _text(row, cfg.src_text_field)
    if source is None:
        return None
    return Example(
        example_id=_identity(row, cfg.id_field),
        src_text=source,
        src_lang=_text(row, cfg.src_lang_field) or cfg.default_src_lang,
        tgt_lang=_text(row, cfg.tgt_lang_field) or cfg.default_tgt_lang,
        src_lang_code=_text(row, cfg.src_lang_code_field) or cfg.default_src_lang_code,
        tgt_lang_code=_text(row, cfg.tgt_lang_code_field) or cfg.default_tgt_lang_code,
        ref_text=_text(row, cfg.ref_text_field),
    )


def _text(row: Row, field: str) -> str | None:
    """None where the field is absent, null or blank."""
    value = row.fields.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(row, field, "must be text", value)
    _check_characters(row, field, value)
    return value if value.strip() else None


def _identity(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if value is None or value == "":
        return str(row.number)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise _wrong(row, field, "must be text or a whole number", value)
    _check_characters(row, field, str(value))
    return str(value)


def _flag(row: Row, field: str) -> bool:
    value = row.fields.get(field)
    if value is None:
        return False
    if value not in (0, 1) or isinstance(value, float):
        raise _wrong(row, field, "must be true or false", value)
    return bool(value)


def _label(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if not isinstance(value, (str, int)):
        wanted = "must be text, one of data.train_split and data.eval_split"
        raise _wrong(row, field, wanted, value)
    return str(value)


def _check_characters(row: Row, field: str, value: str) -> None:
    """JSON can spell half of a surrogate pair (\\ud83d), which no tokenizer, hash or file takes."""
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{row.where}: field {field!r} holds half of a surrogate pair, which is not a character")


def _wrong(row: Row, field: str, wanted: str, value: Any) -> DataError:
    return DataError(f"{row.where}: field {field!r} {wanted}, not {describe(value)}")
