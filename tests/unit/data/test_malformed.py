"""Input that cannot be used, as the user sees it: exit code 2 and one line that says where and what."""

import pytest

from jax_rl.cli import main_guard
from jax_rl.config.schema import DataConfig
from jax_rl.data.examples import load_examples

GOOD = '{"id": 1, "src_text": "fine"}'


def message_of(capsys, cfg: DataConfig, split="train") -> str:
    assert main_guard(lambda: load_examples(cfg, split) and None) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert lines[-1].startswith("error: ")
    assert len(lines) == 1 or cfg.hf_dataset_name, "one line; `datasets` has its own progress bars"
    return lines[-1]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"src_text": "a"', "broken JSON at column"),
        ('{"src_text": "a"} {"src_text": "b"}', "broken JSON at column 19: Extra data"),
        ("not json", "broken JSON at column 1"),
        ("[1, 2]", "must be a JSON object with one field per column, not a list"),
        ('"text"', 'not the text "text"'),
        ("null", "not null"),
        ('{"id": 1}', "there is no field 'src_text' (data.src_text_field); its fields are id"),
        ("{}", "its fields are none"),
        ('{"src_text": 3.5}', "field 'src_text' must be text, not the number 3.5"),
        ('{"src_text": ["a"]}', "field 'src_text' must be text, not a list"),
        ('{"src_text": {"en": "a"}}', "field 'src_text' must be text, not an object"),
        ('{"src_text": true}', "field 'src_text' must be text, not true"),
        ('{"src_text": "a", "ref_text": 1}', "field 'ref_text' must be text, not the number 1"),
        ('{"src_text": "a", "tgt_lang": ["Korean"]}', "field 'tgt_lang' must be text, not a list"),
        ('{"src_text": "a", "id": 1.5}', "field 'id' must be text or a whole number, not the number 1.5"),
        ('{"src_text": "a", "id": NaN}', "field 'id' must be text or a whole number, not the number NaN"),
        ('{"src_text": "a", "id": {"n": 1}}', "field 'id' must be text or a whole number, not an object"),
        ('{"src_text": "a", "id": false}', "field 'id' must be text or a whole number, not false"),
        (
            '{"src_text": "a", "is_bad_source": "no"}',
            "field 'is_bad_source' must be true or false, not the text \"no\"",
        ),
        ('{"src_text": "a", "is_bad_source": 2}', "field 'is_bad_source' must be true or false, not the number 2"),
        ('{"src_text": "a", "is_bad_source": []}', "field 'is_bad_source' must be true or false, not a list"),
        ('{"src_text": "\\ud83d"}', "field 'src_text' holds half of a surrogate pair"),
        ('{"src_text": "a", "id": "\\ud83d"}', "field 'id' holds half of a surrogate pair"),
        ('{"src_text": "a", "id": ' + "9" * 5000 + "}", "JSON that cannot be read"),
        ("[" * 100_000, "JSON that cannot be read"),
    ],
)
def test_a_malformed_line_names_file_and_line(write_rows, capsys, line, says):
    path = write_rows([GOOD, "", line, GOOD])
    message = message_of(capsys, DataConfig(train_file=path, skip_bad_source=True))
    assert f"{path}, line 3: " in message and says in message


def test_the_last_line_is_checked_though_the_limit_is_small(write_rows, capsys):
    path = write_rows([GOOD, GOOD, '{"src_text": "cut o'])
    assert "line 3" in message_of(capsys, DataConfig(train_file=path, limit=1))


def test_bytes_that_are_not_utf8(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"src_text": "caf\xe9"}\n')
    assert f"{path}, line 2: not UTF-8 at byte 17" in message_of(capsys, DataConfig(train_file=str(path)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", '[{"src_text": "a"},\n {"src_text": b}]', "a.json: broken JSON at line 2, column 15"),
        ("a.json", '{"rows": []}', 'must hold a list of rows, or {"data": [rows]}, not null'),
        ("a.json", '{"data": {"src_text": "a"}}', "not an object"),
        ("a.json", '[{"src_text": "a"}, 5]', "a.json, row 1 (from 0): must be a JSON object"),
        ("a.json", "[]", "there is no row that can be used"),
        ("a.jsonl", "", "there is no row that can be used"),
        ("a.jsonl", '{"src_text": " "}\n', "1 rows with an empty source"),
        ("a.parquet", "PAR1 and no more", "a.parquet: not a whole Parquet file"),
        ("a.parquet", "", "a.parquet: not a whole Parquet file"),
        ("a.csv", "src_text\n", "cannot read .csv; there are .jsonl, .json, .parquet"),
        ("data", "", "cannot read a file without suffix"),
    ],
)
def test_a_file_that_is_not_what_it_should_be(tmp_path, capsys, name, content, says):
    path = tmp_path / name
    path.write_text(content)
    message = message_of(capsys, DataConfig(train_file=str(path)))
    assert str(path) in message and says in message


def test_a_parquet_row_of_the_wrong_type_is_named(write_rows, capsys):
    path = write_rows([{"src_text": 1}, {"src_text": 2}], "a.parquet")
    assert f"{path}, row 0 (from 0): field 'src_text' must be text, not the number 1" in message_of(
        capsys, DataConfig(train_file=path)
    )


def test_files_that_are_not_there(tmp_path, capsys):
    path = tmp_path / "none.jsonl"
    assert f"{path}: there is no such file" in message_of(capsys, DataConfig(train_file=str(path)))
    path.mkdir()
    assert f"{path}: is a folder, not a file" in message_of(capsys, DataConfig(eval_file=str(path)), "eval")
    assert "set data.train_file or data.hf_dataset_name" in message_of(capsys, DataConfig())


def test_a_data_set_that_cannot_be_loaded(tmp_path, capsys):
    name = str(tmp_path / "nothing")
    assert f"data.hf_dataset_name {name!r}, split 'train': " in message_of(capsys, DataConfig(hf_dataset_name=name))


def test_a_data_set_whose_rows_are_broken(write_rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_rows([GOOD, "not json"], "set/train.jsonl")
    message = message_of(capsys, DataConfig(hf_dataset_name=str(tmp_path / "set")))
    assert str(tmp_path / "set") in message and "JSON parse error" in message


def test_a_split_that_the_data_set_lacks(write_rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    write_rows([GOOD], "set/train.jsonl")
    cfg = DataConfig(hf_dataset_name=str(tmp_path / "set"), hf_eval_split="dev")
    assert "Unknown split \"dev\". Should be one of ['train']" in message_of(capsys, cfg, "eval")
