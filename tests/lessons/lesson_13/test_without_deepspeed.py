"""Lesson 13 where DeepSpeed is not installed: every cell runs on recorded results, and one sentence says so."""

import json
import subprocess
import sys

import jupytext
import pytest

from course_utils.lessons.lesson_13 import diagrams, figures, runs
from course_utils.parallel import equality
from tests.test_readme import ROOT

SOURCE = ROOT / "notebooks" / "source" / "13_deepspeed.py"
HIDE = "import sys; sys.modules['deepspeed'] = None\n"


def test_every_cell_runs_without_deepspeed(tmp_path):
    cells = [cell.source for cell in jupytext.read(SOURCE).cells if cell.cell_type == "code"]
    program = tmp_path / "lesson.py"
    program.write_text(HIDE + "\n\n".join(cells))
    found = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "DeepSpeed is not installed here" in found.stdout


def test_a_call_that_was_not_recorded_says_so(monkeypatch):
    monkeypatch.setattr(runs.deepspeed_runs, "is_available", lambda: False)
    with pytest.raises(LookupError, match="was not recorded"):
        runs.LessonRanks()(runs.predicted, stage=7)


def test_recorded_results_are_of_two_ranks():
    recorded = json.loads(runs.RECORDED.read_text())
    assert all(len(found) == 2 for found in recorded.values())
    engines = [found for key, found in recorded.items() if key.startswith("train_engine")]
    assert len(engines) > 8 and all(rank["wrapper"] == "DeepSpeedEngine" for pair in engines for rank in pair)
    assert sum(key.startswith("run_row") for key in recorded) >= len(equality.ROWS)


def test_predicted_bytes_are_the_planners():
    for stage in (0, 1, 2, 3):
        assert runs.planned(stage) == runs.predicted(119_232, 2, stage)


def test_every_figure_has_its_words():
    held = {name: runs.predicted(1000, 2, stage) for stage, name in runs.NAMES.items()}
    counts = {500: {"ZeRO-2": 1, "ZeRO-3": 1}, 5: {"ZeRO-2": 9, "ZeRO-3": 8}}
    made = [
        figures.flow(),
        figures.gathering(),
        figures.annotated(runs.LARGER),
        figures.bytes_per_rank(held, held),
        figures.distances([("one", 0.0, 1e-5), ("two", 1e-2, 1e-3)]),
        figures.buckets(counts),
        figures.rates({"a": [1.0, 0.0], "b": [1.0, 0.0], "c": [1.0, 0.0]}),
        figures.volumes({"DDP": {"all-reduce": 2.0}}),
        figures.offload({"ZeRO-3": (90.0, 0.0), "offload": (10.0, 500.0)}, 80, 1000),
        figures.filled({"a": "auto", "b": {"c": "auto"}}, {"Trainer": {"a": 1, "b": {"c": 2}}, "Accelerate": {"a": 1}}),
        figures.by_size(runs.plans_by_size()),
    ]
    assert all(len(figure.alternative_text) > 60 for figure in made)
    assert diagrams.flat({"a": 1, "b": {"c": 2}}) == {"a": 1, "b.c": 2}
