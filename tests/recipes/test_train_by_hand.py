"""``course_utils.recipes.train_by_hand`` as its docstring promises it: stopped at any time, started again, exact."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys

import pytest

from course_utils.recipes import train_by_hand

STEPS, SAVE_EVERY = 40, 4
TINY = ["--hidden_size=32", "--num_hidden_layers=1", "--batch_size=8", "--max_length=16", "--log_every=1"]
LINE = [*TINY, f"--max_steps={STEPS}", f"--save_every={SAVE_EVERY}"]


def start(folder, *arguments):
    command = [sys.executable, "-m", "course_utils.recipes.train_by_hand", f"--folder={folder}", *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # another number of threads splits sums in another way
    return subprocess.Popen(command, env=one_thread, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop_early(process, number):
    """Send signal ``number`` when the process has reported enough steps to have saved one; all that it printed."""
    lines, reported = [], 0
    for line in process.stdout:
        lines.append(line)
        reported += line.startswith("step ")
        if reported == SAVE_EVERY + 2:  # far from the end: the signal may arrive some steps later
            process.send_signal(number)
    process.communicate()
    assert process.returncode == -number
    return "".join(lines)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of a run that nothing stopped and of one started three times, and what each start printed."""
    whole, stopped = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "stopped"))
    undisturbed = start(whole, *LINE)
    printed = [stop_early(start(stopped, *LINE), number) for number in (signal.SIGTERM, signal.SIGKILL)]
    for process in (start(stopped, *LINE), undisturbed):
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        printed.append(output)
    return whole, stopped, printed


def steps(output):
    """The printed lines of the steps, by number: loss and learning rate."""
    lines = [line.split(" ", 2) for line in output.splitlines() if line.startswith("step ")]
    return {int(number): rest for _, number, rest in lines}


def checkpoints(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def weights(checkpoint):
    return (checkpoint / "model.safetensors").read_bytes()


def test_a_run_writes_what_is_promised(runs):
    whole, _, (*_, output) = runs
    assert "effective batch = 8 x 1 device x 1 accumulation\n" in output
    assert list(steps(output)) == list(range(1, STEPS + 1))
    assert checkpoints(whole) == [f"step-{step:08d}" for step in range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)]
    assert {path.name for path in whole.iterdir() if path.is_file()} == {"result.json", "settings.json"}
    result = json.loads((whole / "result.json").read_text())
    assert result == json.loads(output.splitlines()[-1])
    assert set(result) == {"loss", "accuracy", "macro_f1", "max_steps", "steps_in_this_process"}
    assert result["max_steps"] == result["steps_in_this_process"] == STEPS
    assert 0 < result["loss"] < 5 and 0 <= result["macro_f1"] <= 1 and 0 < result["accuracy"] <= 1


def test_a_stopped_run_goes_on_to_the_same_end(runs):
    whole, stopped, (first, second, third, uninterrupted) = runs
    results = [json.loads((folder / "result.json").read_text()) for folder in (whole, stopped)]
    made = results[1].pop("steps_in_this_process")
    assert 0 < made < STEPS and results[0].pop("steps_in_this_process") == STEPS
    assert results[0] == results[1]  # loss and scores, to the last digit

    expected = steps(uninterrupted)
    begins = [min(steps(output)) for output in (first, second, third)]
    assert begins[0] == 1 < begins[1] < begins[2] == STEPS - made + 1  # each start goes on from a checkpoint
    for output in (first, second, third):
        assert steps(output).items() <= expected.items()

    assert checkpoints(stopped) == checkpoints(whole)
    for name in checkpoints(whole):
        assert weights(stopped / name) == weights(whole / name), name
    assert weights(whole / checkpoints(whole)[0]) != weights(whole / checkpoints(whole)[-1])


def test_the_same_line_on_a_finished_run_trains_no_further(runs):
    _, stopped, _ = runs
    before = json.loads((stopped / "result.json").read_text())
    again = train_by_hand.main([f"--folder={stopped}", *LINE])
    assert again.pop("steps_in_this_process") == 0 < before.pop("steps_in_this_process")
    assert again == pytest.approx(before)


@pytest.fixture
def no_work(monkeypatch):
    """Whatever comes after the flags fails."""

    def work(*arguments):
        raise AssertionError("work began")

    monkeypatch.setattr(train_by_hand, "load_classification", work)


def refusal(arguments, capsys):
    """The one sentence with which the program refuses ``arguments``."""
    with pytest.raises(SystemExit) as caught:
        train_by_hand.main(arguments)
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and not output
    assert errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    ("flag", "values", "allowed"),
    [
        ("batch_size", ["0", "-1", "2.5", "many"], "a whole number >= 1"),
        ("accumulation", ["0"], "a whole number >= 1"),
        ("max_length", ["0", "2"], "a whole number >= 3"),
        ("hidden_size", ["0", "9" * 20], "a whole number from 8 to 8192"),
        ("hidden_size", ["12", "33"], "a multiple of 8"),
        ("num_hidden_layers", ["0"], "a whole number from 1 to 512"),
        ("batch_size", ["99999999999999999999", "1" + "0" * 400], "a whole number >= 1 and <= 2147483647"),
        ("max_steps", ["0", "ten", ""], "a whole number >= 1"),
        ("learning_rate", ["-1", "nan", "inf", "fast"], "a number >= 0"),
        ("weight_decay", ["-0.1", "nan"], "a number >= 0"),
        ("warmup_share", ["1.5", "-1", "nan"], "a number from 0 to 1"),
        ("max_grad_norm", ["-1", "nan"], "a number >= 0"),
        ("save_every", ["-1"], "a whole number >= 0"),
        ("log_every", ["0"], "a whole number >= 1"),
        ("seed", ["-1", "4294967296"], "a whole number from 0 to 4294967295"),
        ("schedule", ["step"], "'linear', 'cosine', 'constant'"),
        ("source", ["web"], "'local', 'hub'"),
    ],
)
def test_a_bad_flag_is_one_sentence_before_any_work(flag, values, allowed, no_work, tmp_path, capsys):
    for value in values:
        sentence = refusal([f"--folder={tmp_path / 'run'}", f"--{flag}={value}"], capsys)
        assert f"argument --{flag}: " in sentence and value in sentence and allowed in sentence
    assert not (tmp_path / "run").exists()


def test_other_bad_lines_are_one_sentence_too(no_work, tmp_path, capsys):
    here = f"--folder={tmp_path}"
    assert "--folder" in refusal([], capsys)
    assert "--max_step=5" in refusal([here, "--max_step=5"], capsys)  # no abbreviations: a typing error is said
    assert "--source hub" in refusal([here, "--source=hub", "--hidden_size=32"], capsys)
    (tmp_path / "file").touch()
    assert "is a file; allowed: a folder" in refusal([f"--folder={tmp_path / 'file'}"], capsys)


def test_flags_that_contradict_the_folders_checkpoints_are_refused(runs, no_work, capsys):
    whole, *_ = runs
    for flag, value, began in (("learning_rate", 0.5, 0.001), ("seed", 1, 0), ("max_steps", 50, STEPS)):
        sentence = refusal([f"--folder={whole}", *LINE, f"--{flag}={value}"], capsys)
        assert f"argument --{flag}: {value} contradicts" in sentence and f"made with {began};" in sentence
    with pytest.raises(AssertionError, match="work began"):  # these two do not touch the weights
        train_by_hand.main([f"--folder={whole}", *LINE, "--save_every=5", "--log_every=2"])


def test_a_damaged_checkpoint_is_refused_before_any_work(runs, no_work, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    newest, older = (folder / name for name in reversed(checkpoints(folder)[-2:]))
    (newest / "state.pt").write_bytes(b"")
    done = refusal_of_the_program(folder, capsys)
    assert f"{newest} is damaged: state.pt differs from its manifest; " in done and f"resume from {older.name}," in done


def refusal_of_the_program(folder, capsys):
    """The sentence of the program's last lines, which refuse what ``main`` raises."""
    with pytest.raises(SystemExit) as caught, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_by_hand", f"--folder={folder}", *LINE])
        runpy.run_module("course_utils.recipes.train_by_hand", run_name="__main__")
    output, errors = capsys.readouterr()
    assert caught.value.code == 2 and not output and errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is missing"),
        ("{", "cannot be read"),
        ("[1]", "does not hold this program's flags"),
        ('{"seed": 0}', "does not hold this program's flags"),
    ],
)
def test_checkpoints_whose_settings_are_lost_are_not_mixed_with_others(text, reason, runs, no_work, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    file = folder / "settings.json"
    file.unlink() if text is None else file.write_text(text)
    sentence = refusal([f"--folder={folder}", *LINE, "--learning_rate=0.5"], capsys)
    assert f"{file} {reason}" in sentence and "allowed: another --folder" in sentence
    assert not file.exists() if text is None else file.read_text() == text


def test_flags_may_change_until_there_is_a_checkpoint(no_work, tmp_path):
    for seed in ("1", "2"):
        (tmp_path / "settings.json").write_text("{")  # killed while it was being written
        with pytest.raises(AssertionError, match="work began"):
            train_by_hand.main([f"--folder={tmp_path}", f"--seed={seed}"])
        assert json.loads((tmp_path / "settings.json").read_text())["seed"] == int(seed)


def test_as_a_program_it_refuses_and_helps(tmp_path):
    file = tmp_path / "file"
    file.touch()
    refused, unusable, helped = start(tmp_path, "--max_steps=0"), start(file / "run"), start(tmp_path, "--help")
    assert refused.communicate()[1] == (
        "error: argument --max_steps: '0' is out of range; allowed: a whole number >= 1\n"
    )
    assert refused.returncode == 2
    errors = unusable.communicate()[1]
    assert unusable.returncode == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and "file" in errors
    output, _ = helped.communicate()
    assert helped.returncode == 0
    for name in vars(train_by_hand.read_settings(["--folder=x"])):
        assert f"\n  --{name} " in output
