"""Campaign: a grammar of bad arguments and files of rows. finetune says one sentence, exit code 2, writes nothing."""

import json
import random

import pytest
from transformers import set_seed

from course_utils.recipes import finetune
from course_utils.recipes.finetune_ranges import OWN_RANGES, RANGES
from tests.campaign.tally import Tally, ended, sentence_of, tree
from tests.launch.tiny_project import offline_project

SIZES = [pytest.param(12, id="sample"), pytest.param(400, id="whole", marks=pytest.mark.long)]
NUMBERS = ["-1", "0", "-0.5", "nan", "inf", "-inf", "1e400", "ten", "", "0x10", "1e-400", "-7", "99999999999999999999"]


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


def draw_argument(draw):
    name = draw.choice([*RANGES, *OWN_RANGES])
    value = draw.choice(NUMBERS)
    return None if is_allowed(name, value) or name == "local_rank" else f"--{name}={value}"


@pytest.mark.parametrize("count", SIZES)
def test_bad_numbers(count, project):
    draw, tally = random.Random(count), Tally()
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
    draw, tally = random.Random(count), Tally()
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


def test_the_grammar_knows_a_good_start(project):
    """Without a fault the same start trains: what is refused is refused for its fault."""
    code, errors = start(project, f"--train_file={project.classes}", f"--output_dir={project.folder}/good")
    assert code == 0, errors
    set_seed(0)
