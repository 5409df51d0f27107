"""Campaign: a grammar of bad arguments and files of rows. finetune says one sentence, exit code 2, writes nothing."""

import json
import os
import random

import pytest
from transformers import set_seed

from course_utils.recipes import finetune
from course_utils.recipes.finetune_ranges import OWN_RANGES, RANGES
from tests.campaign.tally import Tally, ended, sentence_of, tree
from tests.launch.tiny_project import offline_project

SIZES = [pytest.param(12, id="sample"), pytest.param(400, id="whole", marks=pytest.mark.long)]
NUMBERS = [
    "-1",
    "0",
    "-0.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "ten",
    "",
    "0x10",
    "1e-400",
    "-7",
    "99999999999999999999",
    "1" + "0" * 400,
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with offline_project(tmp_path_factory, "campaign") as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield made


def start(project, *arguments, task="classification"):
    """What a start with these arguments ends with: (exit code, stderr)."""
    model = project.encoder if task == "classification" else project.model
    always = [f"--task={task}", f"--model_name_or_path={model}", "--use_cpu", f"--output_dir={project.folder}/out"]
    always += ["--max_steps=1", "--max_length=16", "--save_strategy=no", "--disable_tqdm=true", "--report_to=none"]
    return ended(lambda: finetune.main([*always, *arguments]))[:2]


def is_allowed(name, text):
    """Whether ``text`` is a value that the flag may have; a flag is a whole number where its range is."""
    allowed = RANGES.get(name) or OWN_RANGES[name]
    try:
        value = int(text) if allowed.whole else float(text)
    except ValueError:
        return False
    return value in allowed or (name == "max_steps" and value == -1)


def random_of(count):
    """The same tries at each count, and others with another ``CAMPAIGN_SEED``."""
    return random.Random(count + 1000 * int(os.environ.get("CAMPAIGN_SEED", 0)))


def draw_argument(draw):
    name = draw.choice([*RANGES, *OWN_RANGES])
    value = draw.choice(NUMBERS)
    return None if is_allowed(name, value) or name == "local_rank" else f"--{name}={value}"


@pytest.mark.parametrize("count", SIZES)
def test_bad_numbers(count, project):
    draw, tally = random_of(count), Tally()
    before = tree(project.folder)
    rows = f"--train_file={project.classes}"
    for _ in range(count):
        while (argument := draw_argument(draw)) is None:
            pass
        fault, sentence = sentence_of(*start(project, rows, argument))
        name = argument[2:].partition("=")[0]
        if fault is None and name not in sentence:
            fault = "the flag is not named"
        tally.count("bad number", fault and f"{argument}: {fault}: {sentence}")
    tally.count("nothing written", None if tree(project.folder) == before else "files changed")
    tally.check()


VALUES = [None, 1, 0.5, True, [], ["a"], {}, {"a": 1}, "\ud800", -(10**400)]


def draw_bad_row(draw, good, columns):
    """(bytes of a line, how it is bad), out of a good row."""
    row, column = dict(good), draw.choice(columns)
    kind = draw.choice(["value", "missing", "renamed", "cut", "latin-1", "no object", "bytes", "utf-16"])
    if kind == "value":
        row[column] = draw.choice([v for v in VALUES if not (column == "label" and type(v) in (int, bool))])
    elif kind == "missing":
        del row[column]
    elif kind == "renamed":
        row[column.upper()] = row.pop(column)
    line = json.dumps(row).encode()
    if kind == "cut":
        line = line[: draw.randrange(1, len(line) - 1)]
    elif kind == "latin-1":
        line = json.dumps(row | {column: "naïve"}, ensure_ascii=False).encode("latin-1")
    elif kind == "no object":
        line = json.dumps(draw.choice(["text", 7, None, ["a"], [row]])).encode()
    elif kind == "bytes":
        line = bytes(draw.choices([*range(10), *range(11, 13), *range(128, 256)], k=20))
    elif kind == "utf-16":
        line = json.dumps(row).encode("utf-16")
    return line, kind


@pytest.mark.parametrize("count", SIZES)
def test_bad_rows(count, project, tmp_path):
    draw, tally = random_of(count), Tally()
    goods = {
        "classification": [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(6)],
        "causal_lm": [{"prompt": f"row {i}", "completion": " word"} for i in range(6)],
    }
    for number in range(count):
        task = draw.choice(list(goods))
        good = goods[task]
        line, kind = draw_bad_row(draw, good[0], list(good[0]))
        place = draw.randrange(1, 7)
        lines = [json.dumps(row).encode() for row in good]
        lines.insert(place - 1, line)
        # Names that a pattern, a shell or a URL would take apart; a good file stands where a pattern would lead.
        name = draw.choice(["rows.jsonl", "rows[1].jsonl", "*.jsonl", "a b'c.jsonl", "x::y.jsonl", "~root.jsonl"])
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(b"\n".join(lines))
        (folder / "rows1.jsonl").write_bytes(b"\n".join(json.dumps(row).encode() for row in good))
        flags = [f"--train_file={folder / name}"]
        role = draw.choice(["train_file", "eval_file"])
        if role == "eval_file":
            flags = [f"--train_file={folder}/rows1.jsonl", f"--eval_file={folder / name}"]
            flags += ["--eval_strategy=steps", "--eval_steps=1"]
        before = tree(project.folder) | tree(folder)
        fault, sentence = sentence_of(*start(project, *flags, task=task))
        wanted = f"error: {role}={str(folder / name)!r}, row {place} "
        if fault is None and not sentence.startswith(wanted):
            fault = f"file or row is not named ({wanted})"
        if fault is None and tree(project.folder) | tree(folder) != before:
            fault = "something was written"
        tally.count(f"bad row: {kind}", fault and f"{line[:80]!r} in {role}: {fault}: {sentence}")
    tally.check()


FOLDER_FAULTS = ["null", "missing", "renamed", "kind", "no rows", "cut", "bytes", "empty file", "other file"]


def draw_bad_folder(draw, folder, task):
    """Write a data set as ``datasets`` finds it, csv, JSON or parquet, with one fault; what was done, in words."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    kind, fault = draw.choice(["csv", "json", "jsonl", "parquet"]), draw.choice(FOLDER_FAULTS)
    columns = {"text": [f"row {i}" for i in range(6)], "label": list("ababab")}
    if task == "causal_lm":
        columns = {"prompt": columns["text"], "completion": [" word"] * 6}
    bad = draw.choice(list(columns))
    if fault == "null":
        columns[bad] = [*columns[bad][:5], None]
    elif fault == "missing":
        del columns[bad]
    elif fault == "renamed":
        columns[bad.upper()] = columns.pop(bad)
    elif fault == "kind":
        columns[bad] = [0.5] * 6
    elif fault == "no rows":
        columns = {name: [] for name in columns}
    table, file = pa.table(columns), folder / f"train.{kind}"
    if kind == "parquet":
        parquet.write_table(table, file)
    elif kind == "csv":
        csv.write_csv(table, file)
    else:
        lines = [json.dumps(row) for row in table.to_pylist()]
        file.write_text("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    content = file.read_bytes()
    if fault == "cut":  # in the middle of a word, of a row, of the footer
        middle = len(content) // 2
        end = content.index(b":", middle) + 1 if "json" in kind else middle  # between two rows it would be whole
        file.write_bytes(content[:end] + (b'"' if kind == "csv" else b""))
    elif fault == "bytes":
        file.write_bytes(bytes(draw.choices(range(128, 256), k=200)))
    elif fault == "empty file":
        file.write_bytes(b"")
    elif fault == "other file":
        file.rename(folder / "train.pickle")
    return f"{kind}, {fault} in {bad}"


@pytest.mark.parametrize("count", SIZES)
def test_bad_folders(count, project, tmp_path):
    """``--dataset_name`` of a folder: every format that ``datasets`` finds there, refused by name."""
    draw, tally = random_of(count), Tally()
    for number in range(count):
        task, folder = draw.choice(["classification", "causal_lm"]), tmp_path / str(number)
        folder.mkdir()
        what = draw_bad_folder(draw, folder, task)
        before = tree(project.folder) | tree(folder)
        fault, sentence = sentence_of(*start(project, f"--dataset_name={folder}", task=task))
        if fault is None and not ("the train split" in sentence or f"dataset_name={str(folder)!r}" in sentence):
            fault = "neither the folder nor the split is named"
        if fault is None and tree(project.folder) | tree(folder) != before:
            fault = "something was written"
        tally.count("bad folder of data", fault and f"{what}: {fault}: {sentence}")
    tally.check()


def test_the_grammar_knows_a_good_start(project):
    """Without a fault the same start trains: what is refused is refused for its fault."""
    code, errors = start(project, f"--train_file={project.classes}", f"--output_dir={project.folder}/good")
    assert code == 0, errors
    set_seed(0)
