"""``train_with_accelerate``: ``train_by_hand`` plus marked lines; the same run alone, the same result in two ranks."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from course_utils.parallel import RanksFailed, run_launched
from course_utils.recipes import train_by_hand, train_with_accelerate
from tests.marked_lines import differences, unmarked

STEPS = 20
TINY = ["--hidden_size=32", "--num_hidden_layers=1", "--max_length=16", f"--max_steps={STEPS}", "--save_every=10"]
RECIPES = Path(train_by_hand.__file__).parent
SOURCES = [(RECIPES / name).read_text() for name in ("train_by_hand.py", "train_with_accelerate.py")]


def test_every_line_that_differs_is_marked():
    assert unmarked(*SOURCES) == []
    gone, added = differences(*SOURCES)
    assert len(gone) <= 16 and len(added) <= 45  # a few lines: of 150


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (lambda new: new.replace("optimizer = Foreach", "optimiser = Foreach"), "not marked: optimiser"),
        (lambda new: new.replace("    lengths = [len", "    # lengths = [len"), "not marked: # lengths"),
        (lambda new: new.replace("    torch.manual_seed(settings.seed)\n\n", "\n"), "gone without a marked line"),
        (
            lambda new: new.replace("step_scheduler_with_optimizer=False,  # NEW", "step_scheduler=0,  #"),
            "not marked: step_",
        ),
    ],
)
def test_a_planted_difference_is_noticed(plant, complaint):
    old, new = SOURCES
    found = unmarked(old, plant(new))
    assert complaint in " ".join(found)


def weights(folder):
    return load_file(folder / f"step-{STEPS:08d}" / "model.safetensors")


def farthest(first, second):
    first, second = weights(first), weights(second)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_one_process_is_the_run_by_hand_bitwise(tmp_path):
    """Dropout included: the same batches, the same masks, the same order of operations."""
    arguments = [*TINY, "--batch_size=8", "--accumulation=2"]
    by_hand = train_by_hand.main([f"--folder={tmp_path / 'hand'}", *arguments])
    found = train_with_accelerate.main([f"--folder={tmp_path / 'one'}", *arguments])
    assert found == by_hand == json.loads((tmp_path / "one" / "result.json").read_text())
    assert farthest(tmp_path / "hand", tmp_path / "one") == 0
    settings = [json.loads((tmp_path / name / "settings.json").read_text()) for name in ("hand", "one")]
    assert settings[0] == settings[1]


def test_two_processes_are_one_at_the_same_effective_batch(tmp_path):
    """8 x 2 x 2 = 8 x 1 x 4 rows a step, the same ones. Each rank adds up its half first and the halves are averaged:
    float32 sums in another order, 1e-7 a step; AdamW divides by the root of a tiny v at first and makes 1e-5 of it."""
    from tests.recipes import without_dropout

    program = Path(without_dropout.__file__)
    one = without_dropout.recipe.main([f"--folder={tmp_path / 'one'}", *TINY, "--batch_size=8", "--accumulation=4"])
    arguments = [f"--folder={tmp_path / 'two'}", *TINY, "--batch_size=8", "--accumulation=2"]
    lines = []
    two = run_launched(program, "accelerate", 2, arguments, echo=lines.append, on_cpu=True)
    for rank in two:
        assert (rank["world_size"], rank["distributed_type"]) == (2, "MULTI_CPU")
        assert rank["wrapper"] == "DistributedDataParallel"
        assert rank["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert (rank["accuracy"], rank["macro_f1"]) == pytest.approx((one["accuracy"], one["macro_f1"]), abs=2e-3)
    assert farthest(tmp_path / "one", tmp_path / "two") < 1e-4
    assert "[rank 0] effective batch = 8 x 2 devices x 2 accumulation" in lines
    assert not [line for line in lines if line.startswith("[rank 1] step")]


def test_refuses_processes_that_did_not_meet(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # of a launcher whose other variables got lost
    alone = SimpleNamespace(num_processes=1, is_main_process=True)
    monkeypatch.setattr(train_with_accelerate, "Accelerator", lambda **_: alone)
    with pytest.raises(SystemExit) as ended:
        train_with_accelerate.main([f"--folder={tmp_path}"])
    assert ended.value.code == 2 and "started 2 processes, but each would train alone" in capsys.readouterr().err


def test_a_bad_flag_is_one_sentence_from_rank_0(tmp_path):
    with pytest.raises(RanksFailed, match="argument --max_steps: '0' is out of range"):
        run_launched(
            train_with_accelerate.__file__, "torchrun", 1, [f"--folder={tmp_path}", "--max_steps=0"], echo=None
        )
