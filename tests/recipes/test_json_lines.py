"""Files of rows: names are names, every row is checked, and what is wrong is named by file, row and column."""

import errno
import json

import pytest

from course_utils.recipes import json_lines
from course_utils.recipes.finetune_data import COLUMNS
from course_utils.recipes.json_lines import read_table, rows_of

CLASSES, TEXTS = COLUMNS["classification"], COLUMNS["causal_lm"]
GOOD = b'{"text": "a", "label": "x"}\n'
BAD = {  # name: (bytes, columns, what the sentence says after the file's name)
    "cut": (GOOD + b'{"text": "b", "la', CLASSES, "row 2 is no JSON"),
    "latin-1": (GOOD + '{"text": "é", "label": "x"}'.encode("latin-1"), CLASSES, "row 2 is no UTF-8 (byte 10)"),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), TEXTS, "row 1 is no UTF-8"),
    "no label": (
        GOOD + b'\n{"text": "b"}',
        CLASSES,
        "row 3 has no label, but the columns ['text']; allowed: text + lab",
    ),
    "null label": (
        GOOD + b'{"text": "b", "label": null}',
        CLASSES,
        "row 2 has label=null; allowed: text or a whole nu",
    ),
    "float label": (b'{"text": "b", "label": 0.5}', CLASSES, "row 1 has label=0.5; allowed: text or a whole number"),
    "null text": (b'{"text": null, "label": "x"}', CLASSES, "row 1 has text=null; allowed: text"),
    "numeric text": (b'{"text": 7}', TEXTS, "row 1 has text=7; allowed: text"),
    "list": (b'{"text": ["a"]}', TEXTS, 'row 1 has text=["a"]; allowed: text'),
    "no object": (b'"text"', TEXTS, 'row 1 is "text"; allowed: an object with prompt + completion or text'),
    "an array first": (b'["a"]\n' + GOOD, CLASSES, 'row 1 is ["a"]; allowed: an object with text + label'),
    "an array cut off": (b'[{"text": "a"},\n{"text": "b"', TEXTS, "row 1 is no JSON"),
    "other columns": (b'{"txt": "a"}', TEXTS, "but the columns ['txt']; allowed:"),
    "half a pair": (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', TEXTS, "row 2 has no completion, but"),
    "mixed": (b'{"text": "a"}\n{"prompt": "a", "completion": "b"}', TEXTS, "row 2 has no text, but the columns"),
    "surrogate": (b'{"text": "\\ud800"}', TEXTS, "row 1 has half a character (a lone surrogate) in text"),
    "empty": (b"", TEXTS, "has no rows; allowed: at least one"),
    "blank": (b"\n \n", TEXTS, "has no rows; allowed: at least one"),
    "deep": (b'{"text": ' + b"[" * 100_000, TEXTS, "row 1 is no JSON"),
    "huge number": (b'{"text": ' + b"1" * 5_000 + b"}", TEXTS, "row 1 is no JSON"),
    "zeros": (b"\0" * 100, TEXTS, "row 1 is no JSON"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named(kind, tmp_path):
    content, columns, words = BAD[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read_table(path, "eval_file", columns)
    sentence = str(caught.value)
    assert sentence.startswith(f"eval_file='{path}'") and words in sentence
    assert "\n" not in sentence and len(sentence) < 400


def test_a_files_name_is_no_pattern(tmp_path):
    for name, text in (("data1.jsonl", "wrong"), ("data[1].jsonl", "right"), ("*.jsonl", "star"), ("~x.jsonl", "home")):
        (tmp_path / name).write_text(json.dumps({"text": text}))
    assert read_table(tmp_path / "data[1].jsonl", "train_file", TEXTS)["text"] == ["right"]
    assert read_table(tmp_path / "*.jsonl", "train_file", TEXTS)["text"] == ["star"]
    assert read_table(tmp_path / "~x.jsonl", "train_file", TEXTS)["text"] == ["home"]


def test_good_rows_come_as_they_are_and_changed_ones_anew(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"text": "é", "label": 1, "more": null}\n\n{"label": "x", "text": ""}\n', encoding="utf-8")
    assert list(read_table(path, "train_file", CLASSES)) == [{"label": "1", "text": "é"}, {"label": "x", "text": ""}]
    path.write_text('[{"text": "a"},\n {"text": "b"}]')  # an array, as pandas writes it
    assert read_table(path, "train_file", TEXTS)["text"] == ["a", "b"]
    path.write_text('{"prompt": "a", "completion": "b", "text": "c"}')
    assert list(read_table(path, "train_file", TEXTS)) == [{"completion": "b", "prompt": "a"}]


def test_a_long_line_is_read_at_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "word " * 6_000_000}))  # 30 MB
    (row,) = rows_of(path, "train_file", TEXTS)
    assert len(row["text"]) == 30_000_000


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    def closed(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}')
    monkeypatch.setattr("datasets.Dataset.from_generator", closed)
    assert json_lines.read_table(path, "train_file", TEXTS)["text"] == ["a"]
