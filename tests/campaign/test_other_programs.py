"""Campaign: bad arguments and rows for the programs beside finetune: one sentence, exit code 2, nothing written."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from course_utils.recipes import (
    convert,
    generate,
    prepare_data,
    train_by_hand,
    train_vision_language,
    train_with_accelerate,
)
from course_utils.recipes.command_line import LARGEST
from course_utils.recipes.finetune_ranges import RANGES
from course_utils.recipes.train_vision_language import OWN_RANGES
from tests.campaign.tally import Tally, ended, sentence_of, tree
from tests.campaign.test_arguments_and_data import NUMBERS, SIZES, VALUES, draw_bad_row, random_of

NO_PLACES = ["", " ", "{file}/below", "{file}/a/b", "x\0y", "n" * 300]
NO_FOLDERS = [*NO_PLACES, "{file}"]
NO_MODELS = ["", " ", "./nowhere", "/nowhere/at/all", "~/nowhere", "{folder}", "{file}", "x\0y"]
NO_ROWS = ["", "{folder}", "{folder}/none.jsonl", "{folder}/*.jsonl", "{file}", "~/rows.jsonl", "x\0y.jsonl"]
NO_TEMPLATES = ["", "no field", "{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!z}", "{a:q}", "{a:{b}}", "{a} {}"]


@dataclass
class Program:
    """``always`` is a line that would start; ``bad`` says for each flag what it must not be, ``{file}`` filled in."""

    main: Callable
    always: dict[str, str]
    bad: dict[str, list[str]]
    numbers: dict[str, Callable[[str], bool]] = field(default_factory=dict)


def at_least(lowest, kind=int, highest=float("inf")):
    """Whether a text is a number that a flag may have."""

    def allows(text):
        try:
            value = kind(text)
        except ValueError:
            return False
        return lowest <= value <= (LARGEST[kind] if highest == float("inf") else highest)

    return allows


def within(allowed):
    def allows(text):
        try:
            return (int(text) if allowed.whole else float(text)) in allowed
        except ValueError:
            return False

    return allows


LOOP_BAD = {"folder": NO_FOLDERS, "source": ["", "web"], "schedule": ["", "step"], "hidden_size": ["12"]}
LOOP_NUMBERS = {name: at_least(1) for name in ("batch_size", "accumulation", "max_steps", "log_every")}
LOOP_NUMBERS |= {name: at_least(0, float) for name in ("learning_rate", "weight_decay", "max_grad_norm")}
LOOP_NUMBERS |= {"max_length": at_least(3), "save_every": at_least(0), "warmup_share": at_least(0, float, 1)}
LOOP_NUMBERS |= {"hidden_size": at_least(8, int, 8192), "num_hidden_layers": at_least(1, int, 512)}
LOOP_NUMBERS |= {"seed": at_least(0, int, 2**32 - 1)}
PROGRAMS = {
    "prepare_data": Program(
        prepare_data.main,
        {"folder": "{folder}/out"},
        {
            "folder": NO_FOLDERS,
            "source": ["", "web"],
            "dataset_name": ["", " ", "./nowhere", "/nowhere", "~/x", "{file}/x", "data/*", "a[1]", "x\0y"],
            "prompt": [*NO_TEMPLATES, "{instruction} "],
            "answer": NO_TEMPLATES,
            "fields": ["", "=", "a", "a=", "=b", "nobody=b"],
        },
        {"timeout": at_least(0, float)},
    ),
    "generate": Program(
        generate.main,
        {"model": "{model}", "file": "{rows}", "out": "{folder}/out.jsonl"},
        {
            "model": NO_MODELS,
            "adapter": [*NO_MODELS, "somebody/something"],
            "file": NO_ROWS,
            "out": [*NO_PLACES, "{folder}"],
            "engine": ["", "onnx"],
            "stop": [""],
            "bert_score_model": NO_MODELS,
        },
        {"batch_size": at_least(1), "max_new_tokens": at_least(1), "temperature": at_least(0, float)},
    ),
    "convert": Program(
        convert.main,
        {"": "{folder}", "model": "{model}", "out": "{folder}/out"},
        {
            "model": NO_MODELS,
            "out": NO_FOLDERS,
            "adapter": ["", "both"],
            "architecture": ["", " "],
            "dtype": ["", "int8", "float64"],
            "max_shard_size": [*NUMBERS, "GB", "5 XB", "-1GB", "0GB", "0.5KB", "nanGB", "infGB", "1e3GB"],
        },
        {"num_labels": at_least(1)},
    ),
    **{
        by.__name__.rpartition(".")[2]: Program(by.main, {"folder": "{folder}/out"}, LOOP_BAD, LOOP_NUMBERS)
        for by in (train_by_hand, train_with_accelerate)
    },
    "train_vision_language": Program(
        train_vision_language.main,
        {"output_dir": "{folder}/out", "use_cpu": "true", "max_steps": "1", "scenes": "1", "report_to": "none"},
        {
            "output_dir": ["", " ", "{file}", "{file}/below"],
            "fp16": ["true"],
            "do_predict": ["true"],
            "label_smoothing_factor": ["0.1"],
            "filler_weight": ["0.5"],
            "metric_for_best_model": ["bleu", "accuracy"],
            "report_to": ["nobody"],
            "remove_unused_columns": ["perhaps"],
        },
        {name: within(allowed) for name, allowed in (RANGES | OWN_RANGES).items() if name != "local_rank"},
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What ``{file}`` and the others are; the model's folder holds nothing that could be loaded."""
    folder = tmp_path_factory.mktemp("place")
    names = {"folder": folder, "file": folder / "file", "model": folder / "model", "rows": folder / "rows.jsonl"}
    names["file"].write_text("no folder")
    names["model"].mkdir()
    (names["model"] / "config.json").write_text("{}")
    names["rows"].write_text('{"prompt": "a", "completion": " b"}\n')
    return names


def start(program, flags, place):
    """(exit code, stderr) of a start."""
    given = {name: filled(value, place) for name, value in (program.always | flags).items()}
    line = [value if name == "" else f"--{name}={value}" for name, value in given.items()]
    return ended(lambda: program.main(line))[:2]


def filled(value, place):
    for name, path in place.items():
        value = value.replace(f"{{{name}}}", str(path))
    return value


def cases(program, place):
    """Every (flag, value) of the grammar that must be refused."""
    found = [(name, value) for name, values in program.bad.items() for value in values]
    found += [(n, value) for n, allows in program.numbers.items() for value in NUMBERS if not allows(value)]
    return [(n, v) for n, v in found if not (n == "max_steps" and v == "-1")]  # "by epochs", to transformers


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_bad_arguments(name, count, place, monkeypatch):
    monkeypatch.setattr("course_utils.hub.require_hub", lambda: pytest.fail("the hub was asked"))
    program, tally = PROGRAMS[name], Tally()
    before, grammar = tree(place["folder"]), cases(program, place)
    for flag, value in grammar if count >= len(grammar) else random_of(count).sample(grammar, count):
        fault, sentence = sentence_of(*start(program, {flag: value}, place))
        if fault is None and flag not in sentence:
            fault = "the flag is not named"
        if fault is None and tree(place["folder"]) != before:
            fault = "something was written"
        tally.count(f"{name}: bad argument", fault and f"--{flag}={value}: {fault}: {sentence}")
    tally.check()


@pytest.mark.parametrize("count", SIZES)
def test_bad_rows(count, place, tmp_path):
    """generate names file and row before it loads a model; the one here cannot be loaded."""
    draw, tally = random_of(count), Tally()
    good = [{"prompt": f"row {i}", "completion": " word"} for i in range(6)]
    for number in range(count):
        line, kind = draw_bad_row(draw, good[0], list(good[0]))
        at = draw.randrange(2, 7)
        lines = [json.dumps(row).encode() for row in good]
        lines.insert(at - 1, line)
        folder = tmp_path / str(number)
        folder.mkdir()
        file = folder / draw.choice(["rows.jsonl", "rows[1].jsonl", "*.jsonl", "a b'c.jsonl", "x::y.jsonl"])
        file.write_bytes(b"\n".join(lines))
        before = tree(folder)
        flags = {"file": str(file), "out": str(folder / "out.jsonl")}
        fault, sentence = sentence_of(*start(PROGRAMS["generate"], flags, place))
        if fault is None and not sentence.startswith(f"error: file={str(file)!r}, row {at} "):
            fault = "file or row is not named"
        if fault is None and tree(folder) != before:
            fault = "something was written"
        tally.count(f"generate: bad row: {kind}", fault and f"{line[:80]!r}: {fault}: {sentence}")
    tally.check()


@pytest.mark.parametrize("value", [value for value in VALUES if isinstance(value, (list, dict))] + [b"x", "\ud800"])
def test_bad_values_for_prepare_data(value, place, monkeypatch, tmp_path):
    """Split, row and column are named, and a folder that was whole stays so."""
    program, good = PROGRAMS["prepare_data"], {"instruction": "a", "input": "", "output": "b"}
    rows = {"train": [good] * 3, "test": [good, good]}
    monkeypatch.setattr(prepare_data, "_load", lambda options: rows)
    folder = tmp_path / "out"
    assert start(program, {"folder": str(folder)}, place)[0] == 0
    before, rows["test"] = tree(folder), [good, good | {"output": value}]
    flags = {"folder": str(folder), "prompt": "{instruction}:"}
    fault, sentence = sentence_of(*start(program, flags, place))
    assert fault is None and sentence.startswith("error: the test split, row 2, "), sentence
    assert ("output=" in sentence or "completion" in sentence) and tree(folder) == before
    fault, _ = sentence_of(*start(program, flags | {"folder": str(tmp_path / "new" / "deep")}, place))
    assert fault is None and not (tmp_path / "new").exists()


HUB = {  # a name on the hub for each flag that may have one
    "prepare_data": [{"dataset_name": "somebody/something"}, {"source": "hub"}],
    "generate": [{"model": "somebody/something"}, {"bert_score_model": "somebody/something"}],
    "convert": [{"model": "somebody/something"}],
}


@pytest.mark.parametrize(("name", "flags"), [(name, flags) for name, found in HUB.items() for flags in found])
def test_the_hub_is_probed_before_anything_is_fetched(name, flags, place, monkeypatch, tmp_path):
    import torch
    import torch.distributed.checkpoint as dcp

    def no_hub(*arguments):
        raise ConnectionError("no hub here")

    monkeypatch.setattr("course_utils.hub.require_hub", no_hub)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", lambda *a, **k: pytest.fail("fetched"))
    if name == "convert":
        dcp.save({"model": {"weight": torch.zeros(2)}}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
        flags = flags | {"": str(tmp_path / "checkpoint")}
    before = tree(place["folder"])
    fault, sentence = sentence_of(*start(PROGRAMS[name], flags, place))
    assert fault is None and "no hub here" in sentence, sentence
    assert tree(place["folder"]) == before


def test_the_grammar_knows_good_starts(place):
    """Without a fault the lines are read, as far as the model: what is refused is refused for its fault."""
    for name, words in (("generate", "cannot be loaded"), ("convert", "no sharded checkpoint")):
        fault, sentence = sentence_of(*start(PROGRAMS[name], {}, place))
        assert fault is None and words in sentence, sentence
    for name in ("prepare_data", "train_vision_language"):
        read = {"prepare_data": prepare_data.parse, "train_vision_language": train_vision_language.read_settings}[name]
        assert read([f"--{flag}={filled(value, place)}" for flag, value in PROGRAMS[name].always.items()])
