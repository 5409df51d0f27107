"""``recipes/prepare_data`` with two processes, with a rank 0 that is killed, and with what does not fit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from course_utils.data.instructions import Template
from course_utils.recipes import prepare_data
from course_utils.recipes.prepare_data import MARKER, prepare, split_of
from tests.recipes.refused import refusal

ROWS = [{"instruction": f"question {i}", "input": "", "output": f"answer {i}"} for i in range(40)]
RANK = """
import os, sys, time
from course_utils.data.instructions import Template
from course_utils.recipes.prepare_data import prepare
folder, pause = sys.argv[1], float(sys.argv[2])
def rows():
    for i in range(40):
        time.sleep(pause)
        yield {"instruction": f"question {i}", "input": "", "output": f"answer {i}"}
def load():
    print("loading", flush=True)
    return {"train": rows(), "test": []}
files = prepare(folder, load, Template(), timeout=60)
print(len(files["train"].read_text().splitlines()), flush=True)
"""


def start(folder, rank, pause):
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(folder), str(pause)],
        env=os.environ | {"RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_rank_1_waits_for_rank_0_and_does_not_load(tmp_path):
    waiting, writing = start(tmp_path, 1, 0), start(tmp_path, 0, 0.02)
    outputs = [process.communicate(timeout=90) for process in (writing, waiting)]
    assert [process.returncode for process in (writing, waiting)] == [0, 0], outputs
    assert outputs[0][0].split() == ["loading", "40"] and outputs[1][0].split() == ["40"]


def test_a_killed_rank_0_leaves_no_marker_and_the_next_start_writes_anew(tmp_path):
    killed = start(tmp_path, 0, 0.5)
    assert killed.stdout.readline() == "loading\n"
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / MARKER).exists()
    with pytest.raises(TimeoutError, match="rank 1 waited 0.5 s"):
        prepare(tmp_path, dict, Template(), rank=1, timeout=0.5)
    files = prepare(tmp_path, lambda: {"train": ROWS, "test": []}, Template(), rank=0)
    assert len(files["train"].read_text().splitlines()) == 40


def test_it_is_written_once_and_again_where_settings_or_files_changed(tmp_path):
    calls = []

    def load():
        calls.append(1)
        return {"train": ROWS, "test": ROWS[:3]}

    first = prepare(tmp_path, load, Template(), rank=0)
    assert prepare(tmp_path, load, Template(), rank=0) == first and len(calls) == 1
    row = json.loads(first["train"].read_text().splitlines()[0])
    assert row == {"prompt": "question 0\n\nAnswer:", "completion": " answer 0"}
    prepare(tmp_path, load, Template("{instruction}\n\nReply:", " {output}"), rank=0)
    assert len(calls) == 2 and "Reply:" in first["train"].read_text()
    first["test"].write_text("half a li")
    prepare(tmp_path, load, Template("{instruction}\n\nReply:", " {output}"), rank=0)
    assert len(calls) == 3 and len(first["test"].read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARKER, "test.jsonl", "train.jsonl"]


def test_a_single_split_is_divided_and_equal_prompts_stay_together(tmp_path):
    files = prepare(tmp_path, lambda: {"train": ROWS + ROWS}, Template(), rank=0)
    prompts = {name: [json.loads(x)["prompt"] for x in f.read_text().splitlines()] for name, f in files.items()}
    assert set(prompts) == {"train", "validation", "test"} and sum(map(len, prompts.values())) == 80
    assert not set(prompts["train"]) & (set(prompts["validation"]) | set(prompts["test"]))
    counts = [split_of(f"row {i}") for i in range(2000)].count("train")
    assert 1500 < counts < 1700


def test_rows_without_an_answer_are_left_out_and_none_at_all_is_refused(tmp_path):
    rows = [{"instruction": "a", "input": "b", "output": ""}, ROWS[0]]
    assert len(prepare(tmp_path, lambda: {"train": rows, "test": []}, Template(), rank=0)["train"].read_text()) > 0
    with pytest.raises(ValueError, match="no row with an answer"):
        prepare(tmp_path / "none", lambda: {"train": rows[:1], "test": []}, Template(), rank=0)


def test_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare_data, "_load", lambda options: {"train": [{"q": "why", "r": "so"}] * 3, "test": []})
    line = [f"--folder={tmp_path}", "--prompt={question}:", "--answer= {reply}", "--fields", "question=q", "reply=r"]
    files = prepare_data.main(line)
    assert json.loads(files["train"].read_text().splitlines()[0]) == {"prompt": "why:", "completion": " so"}
    assert "3 rows" in capsys.readouterr().out
    assert "ends in a space" in refusal(capsys, lambda: prepare_data.main([*line, "--prompt={question}: "]))
