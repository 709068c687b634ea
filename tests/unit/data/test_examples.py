"""Examples from every kind of source, what is left out, and which side of the split a row is on."""

import hashlib
import json
import logging
import random

import pytest

from jax_rl.config.schema import DataConfig
from jax_rl.data.examples import DataError, Example, load_examples


def ids(examples: list[Example]) -> list[str]:
    return [example.example_id for example in examples]


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_formats_give_the_same_examples(rows, write_rows, name):
    examples = load_examples(DataConfig(train_file=write_rows(rows, name)), "train")
    assert examples[3] == Example("r3", "Sentence 3.", "English", "Korean", "en", "ko", "문장 3.")
    assert ids(examples) == [row["id"] for row in rows]


def test_json_may_hold_its_rows_under_data(rows, tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 1, "data": rows}))
    assert len(load_examples(DataConfig(train_file=str(path)), "train")) == len(rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_with_data_files_is_a_data_set(rows, write_rows, tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_rows(rows[:15], "set/train.jsonl")
    write_rows(rows[15:], "set/validation.jsonl")
    cfg = DataConfig(hf_dataset_name=str(tmp_path / "set"), hf_eval_split="validation", hf_streaming=streaming)
    assert ids(load_examples(cfg, "train")) == [row["id"] for row in rows[:15]]
    assert ids(load_examples(cfg, "eval", 3)) == [row["id"] for row in rows[15:18]]


def test_a_saved_data_set(rows, tmp_path):
    import datasets

    saved = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "dev": datasets.Dataset.from_list(rows[:2])}
    )
    saved.save_to_disk(tmp_path / "both")
    cfg = DataConfig(hf_dataset_name=str(tmp_path / "both"), hf_eval_split="dev")
    assert (len(load_examples(cfg, "train")), len(load_examples(cfg, "eval"))) == (20, 2)
    with pytest.raises(DataError, match="no split 'test'; there are train, dev"):
        load_examples(DataConfig(hf_dataset_name=str(tmp_path / "both"), hf_train_split="test"), "train")


def test_a_stream_is_read_no_further_than_the_limit(rows, write_rows, tmp_path):
    (tmp_path / "set").mkdir()
    marks = [0] * 19 + [2]  # the last row is malformed
    write_rows([row | {"is_bad_source": mark} for row, mark in zip(rows, marks, strict=True)], "set/train.parquet")
    streamed = {"hf_dataset_name": str(tmp_path / "set"), "hf_streaming": True, "skip_bad_source": True}
    assert ids(load_examples(DataConfig(**streamed, limit=4), "train")) == ["r0", "r1", "r2", "r3"]
    with pytest.raises(DataError, match="row 19"):
        load_examples(DataConfig(**streamed), "train")


def test_fields_and_defaults_are_configurable(write_rows):
    row = {"segment": 7, "source": "Hi", "from": "German", "to": "", "fc": "de", "tc": None, "target": " "}
    cfg = DataConfig(
        train_file=write_rows([row]), id_field="segment", src_text_field="source", src_lang_field="from",
        tgt_lang_field="to", src_lang_code_field="fc", tgt_lang_code_field="tc", ref_text_field="target",
        default_tgt_lang="French", default_tgt_lang_code="fr",
    )  # fmt: skip
    assert load_examples(cfg, "train") == [Example("7", "Hi", "German", "French", "de", "fr", None)]


def test_a_missing_id_is_the_row_number_of_the_file(write_rows):
    """Counted over rows, before anything is left out; blank lines are not rows."""
    path = write_rows(
        [{"src_text": "a"}, "", {"src_text": " "}, {"src_text": "c", "id": None}, {"src_text": "d", "id": ""}]
    )
    assert ids(load_examples(DataConfig(train_file=path), "train")) == ["0", "2", "3"]


def test_texts_are_kept_as_they_are(tmp_path):
    path = tmp_path / "a.jsonl"
    text = " two  blanks\u2028one\x85line \u1112\u1161\u11ab\n"
    line = json.dumps({"src_text": text}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n" + line.encode())
    assert [e.src_text for e in load_examples(DataConfig(train_file=str(path)), "train")] == [text, text]


def test_empty_sources_are_left_out_and_counted(rows, write_rows, caplog):
    rows[2]["src_text"], rows[5]["src_text"], rows[7]["src_text"] = "", " \n", None
    examples = load_examples(DataConfig(train_file=write_rows(rows)), "train")
    assert len(examples) == 17 and not {"r2", "r5", "r7"} & set(ids(examples))
    (warning,) = warnings_of(caplog)
    assert "3 rows with an empty source" in warning and "data.jsonl" in warning


def test_bad_sources_are_left_out_where_that_is_asked_for(rows, write_rows, caplog):
    rows[0]["is_bad_source"], rows[1]["is_bad_source"], rows[2]["is_bad_source"] = True, False, 1
    path = write_rows(rows)
    assert len(load_examples(DataConfig(train_file=path), "train")) == 20
    assert not warnings_of(caplog)
    assert ids(load_examples(DataConfig(train_file=path, skip_bad_source=True), "train"))[:2] == ["r1", "r3"]
    assert "2 marked as bad" in warnings_of(caplog)[0]


def test_limits(rows, write_rows):
    path = write_rows(rows)
    cfg = DataConfig(train_file=path, eval_file=path, limit=5, eval_limit=3)
    assert ids(load_examples(cfg, "train")) == ["r0", "r1", "r2", "r3", "r4"]
    assert ids(load_examples(cfg, "train", 2)) == ["r0", "r1"]
    assert len(load_examples(cfg, "train", 9)) == 5
    assert len(load_examples(cfg, "eval", 64)) == 3


def test_a_column_names_the_split(rows, write_rows, caplog):
    for n, row in enumerate(rows):
        row["part"] = ("train", "dev", "test")[n % 3]
    cfg = DataConfig(train_file=write_rows(rows), split_field="part", train_split="train", eval_split="dev")
    assert ids(load_examples(cfg, "train")) == [row["id"] for row in rows[::3]]
    assert ids(load_examples(cfg, "eval")) == [row["id"] for row in rows[1::3]]
    assert not warnings_of(caplog)


def test_evaluation_rows_are_held_out_of_the_rows_of_one_value(rows, write_rows):
    for n, row in enumerate(rows):
        row["part"] = ("train", "test")[n % 2]
    cfg = DataConfig(train_file=write_rows(rows), split_field="part", train_split="train", eval_sampling_count=3)
    train, held_out = sides(cfg)
    assert len(held_out) == 3 and set(train) | set(held_out) == {row["id"] for row in rows[::2]}
    assert not set(train) & set(held_out)


def test_a_column_value_that_no_row_has(rows, write_rows):
    for row in rows:
        row["part"] = "train"
    cfg = DataConfig(train_file=write_rows(rows), split_field="part", train_split="train", eval_split="dev")
    with pytest.raises(DataError, match="part = dev: no row has that value; there are: train"):
        load_examples(cfg, "eval")


def test_evaluation_on_the_training_rows_warns(rows, write_rows, caplog):
    path = write_rows(rows)
    assert load_examples(DataConfig(train_file=path), "train") and not warnings_of(caplog)
    for cfg in (DataConfig(train_file=path), DataConfig(train_file=path, eval_file=path)):
        caplog.clear()
        assert len(load_examples(cfg, "eval")) == 20
        (warning,) = warnings_of(caplog)
        assert "on the training rows" in warning


# --- the split by hash


def sides(cfg: DataConfig) -> tuple[list[str], list[str]]:
    return ids(load_examples(cfg, "train")), ids(load_examples(cfg, "eval"))


def test_the_first_rows_by_hash_are_held_out(rows, write_rows, caplog):
    train, held_out = sides(DataConfig(train_file=write_rows(rows), eval_sampling_count=6, eval_sampling_seed=7))
    by_hash = sorted((row["id"] for row in rows), key=lambda i: hashlib.sha1(f"7:{i}".encode()).hexdigest())
    assert set(held_out) == set(by_hash[:6]) and set(train) == set(by_hash[6:])
    assert held_out == [row["id"] for row in rows if row["id"] in held_out], "each side keeps the order of the file"
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"eval_sampling_count": 3, "eval_sampling_ratio": 0.9}, 3),
        ({"eval_sampling_ratio": 0.3}, 6),
        ({"eval_sampling_ratio": 0.01}, 1),
        ({"eval_sampling_ratio": 0.01, "eval_sampling_min_samples": 5}, 5),
        ({"eval_sampling_count": 100}, 19),
        ({"eval_sampling_ratio": 0.999}, 19),
        ({"eval_sampling_ratio": 0.1, "eval_sampling_min_samples": 100}, 19),
    ],
)
def test_how_many_are_held_out(rows, write_rows, sampling, expected):
    train, held_out = sides(DataConfig(train_file=write_rows(rows), **sampling))
    assert len(held_out) == expected and len(train) == 20 - expected


def test_the_split_depends_on_ids_and_seed_alone(rows, write_rows):
    first = sides(DataConfig(train_file=write_rows(rows, "a.jsonl"), eval_sampling_count=6))
    shuffled = [row | {"src_text": "other words"} for row in rows]
    random.Random(0).shuffle(shuffled)
    second = sides(DataConfig(train_file=write_rows(shuffled, "b.parquet"), eval_sampling_count=6))
    assert [sorted(side) for side in first] == [sorted(side) for side in second]
    other = sides(DataConfig(train_file=write_rows(rows), eval_sampling_count=6, eval_sampling_seed=1))
    assert set(other[1]) != set(first[1])


def test_rows_with_one_id_stay_together_and_are_counted_once(rows, write_rows, caplog):
    repeated = [row | {"src_text": f"again {n}"} for n, row in enumerate(rows[:5])]
    orders = ([*rows, *repeated], [*reversed(repeated), *reversed(rows)])
    for count in range(1, 26):
        results = []
        for n, order in enumerate(orders):
            cfg = DataConfig(train_file=write_rows(order, f"{n}.jsonl"), eval_sampling_count=count)
            caplog.clear()
            train = ids(load_examples(cfg, "train"))
            warnings = [text for text in warnings_of(caplog) if "share an id" in text]
            assert len(warnings) == 1 and "10 rows share an id with another (5 ids" in warnings[0]
            held_out = ids(load_examples(cfg, "eval"))
            assert not set(train) & set(held_out) and len(train) + len(held_out) == 25
            assert train and len(held_out) >= min(count, 23)
            results.append((sorted(train), sorted(held_out)))
        assert results[0] == results[1]


def test_one_id_cannot_be_split(write_rows):
    path = write_rows([{"id": "a", "src_text": "x"}, {"id": "a", "src_text": "y"}])
    with pytest.raises(DataError, match="2 rows with 1 different ids"):
        load_examples(DataConfig(train_file=path, eval_sampling_count=1), "eval")


def test_an_evaluation_file_wins_over_sampling(rows, write_rows):
    cfg = DataConfig(
        train_file=write_rows(rows, "a.jsonl"), eval_file=write_rows(rows[:2], "b.jsonl"), eval_sampling_count=5
    )
    train, held_out = sides(cfg)
    assert len(train) == 20 and held_out == ["r0", "r1"]


def test_two_ways_to_name_the_evaluation_rows_are_one_too_many(rows, write_rows):
    cfg = DataConfig(
        train_file=write_rows(rows), split_field="p", train_split="a", eval_split="b", eval_sampling_count=2
    )
    with pytest.raises(DataError, match="drop one of them"):
        load_examples(cfg, "train")
