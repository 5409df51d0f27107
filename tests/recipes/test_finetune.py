"""``course_utils.recipes.finetune`` in one process (and two for its loss); strategies are test_run_here.py's."""

import json
import os
import signal

import pytest
from safetensors.torch import load_file

from course_utils.launch import Spec
from course_utils.launch.run_here import run_here
from course_utils.launch.spec.arguments import program_arguments
from course_utils.parallel.what_ran import WrongRun, check_ranks
from course_utils.recipes import finetune
from course_utils.recipes.finetune_data import tokenize
from course_utils.training.resume import COMPLETE, last_complete_checkpoint
from tests.recipes.conftest import QUIET
from tests.recipes.refused import refusal


def test_launch_files_ask_for_the_planned_task_and_length():
    spec = Spec(strategy="ddp", device="cpu", precision="fp32", sequence_length=48)
    config, _ = finetune.read_settings(program_arguments(spec))
    assert (config.task, config.max_length, config.model_name_or_path) == ("causal_lm", 48, spec.model)
    assert (config.train_file, config.dataset_name) == (None, None)


def losses(report):
    return [loss for _, loss in report["losses"]]


def test_classifier_learns_and_keeps_the_names_of_its_classes(run, tmp_path):
    arguments = ["--max_steps=30", "--per_device_train_batch_size=16", "--save_strategy=no"]
    trainer, report = run(*arguments, task="classification")
    assert sum(losses(report)[-5:]) < 0.5 * sum(losses(report)[:5])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "long", "1": "short"}
    assert (report["strategy"], report["state"], report["rows_seen"]) == ("single", "finished", 480)


def test_classifiers_loss_is_the_windows_mean_however_it_is_cut(run, project, tmp_path):
    """8 rows at once, in 4 micro-batches, and on 2 processes in 2 micro-batches each: the same losses and weights."""
    steps = ["--max_steps=4", "--train_sampling_strategy=sequential"]
    _, once = run("--per_device_train_batch_size=8", *steps, task="classification", output="once")
    cut = ["--per_device_train_batch_size=2", "--gradient_accumulation_steps=4"]
    _, four = run(*cut, *steps, task="classification", output="four")
    arguments = ("--task=classification", f"--train_file={project.classes}", *QUIET[1:], *steps)
    sizes = {"micro_batch": 2, "accumulation": 2, "max_steps": 4, "sequence_length": 32, "precision": "fp32"}
    spec = Spec(strategy="ddp", model=str(project.encoder), arguments=arguments, output_dir="two", **sizes)
    two = run_here(spec, folder=tmp_path)
    assert once["effective_batch"] == four["effective_batch"] == two["effective_batch"] == 8
    assert losses(four) == pytest.approx(losses(once), abs=1e-5)
    assert losses(two) == pytest.approx(losses(once), abs=1e-5)
    reference = load_file(tmp_path / "once" / "model.safetensors")
    for other in ("four", "two"):
        found = load_file(tmp_path / other / "model.safetensors")
        assert max((found[name] - reference[name]).abs().max() for name in reference) < 1e-5


def test_evaluation_scores_a_file(run, project):
    evaluation = [f"--eval_file={project.classes}", "--eval_strategy=steps", "--eval_steps=30"]
    arguments = ["--max_steps=30", "--per_device_train_batch_size=16", "--save_strategy=no"]
    trainer, _ = run(*arguments, *evaluation, task="classification")
    scores = next(entry for entry in trainer.state.log_history if "eval_accuracy" in entry)
    assert scores["eval_accuracy"] > 0.8 and scores["eval_macro_f1"] > 0.8 and scores["eval_loss"] < 0.6


def test_lora_trains_adapters_only_and_saves_them(run, tmp_path):
    _, report = run("--use_peft", "--lora_r=4", "--max_steps=4", "--save_strategy=no")
    linear_layers = 2 * [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]  # q k v o, the MLP
    adapters = sum(4 * (rows + columns) for rows, columns in linear_layers)
    assert report["optimizer_held"] == [adapters]
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert sum(value.numel() for value in saved.values()) == adapters
    assert losses(report)[-1] < losses(report)[0]


def test_same_command_goes_on_and_ends_alike(run, tmp_path):
    """--max_steps decides the schedule, so the first half is a run that a signal stops."""
    _, whole = run("--max_steps=6", "--save_steps=2", output="whole")
    stop_at_step(3, lambda: run("--max_steps=6", "--save_steps=100", output="halves"))
    stopped = json.loads((tmp_path / "halves" / "run.json").read_text())
    assert (stopped["state"], stopped["steps"]) == ("stopped", 3)
    _, resumed = run("--max_steps=6", "--save_steps=100", output="halves")
    assert (resumed["state"], resumed["resumed_from"]) == ("finished", 3)
    assert resumed["losses"] == whole["losses"]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves"))
    assert all((first[name] == second[name]).all() for name in first)
    _, again = run("--max_steps=6", "--save_steps=100", output="halves")  # nothing is left to do
    assert (again["state"], again["resumed_from"], again["steps"]) == ("finished", 6, 6)
    third = load_file(tmp_path / "halves" / "model.safetensors")
    assert all((first[name] == third[name]).all() for name in first)


def stop_at_step(step, call):
    """SIGTERM to this very process while ``call`` is at ``step``."""
    from transformers import TrainerCallback

    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        made = finetune.MarkComplete
        patch.setattr(finetune, "MarkComplete", lambda facts: type("Both", (Signal, made), {})(facts))
        call()
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_complete_checkpoints_count(run, tmp_path):
    run("--max_steps=4", "--save_steps=2")
    out = tmp_path / "out"
    assert last_complete_checkpoint(out) == out / "checkpoint-4"
    (out / "checkpoint-4" / COMPLETE).unlink()  # killed while it was being written
    (out / "checkpoint-9").mkdir()
    (out / "checkpoint-x").mkdir()
    (out / "checkpoint-x" / COMPLETE).touch()
    assert last_complete_checkpoint(out) == out / "checkpoint-2"
    _, report = run("--max_steps=4", "--save_steps=2")
    assert report["resumed_from"] == 2


def test_resume_false_starts_anew_and_old_checkpoints_stay_out_of_the_way(run, tmp_path):
    run("--max_steps=4", "--save_steps=4")
    _, report = run("--max_steps=3", "--save_steps=3", "--resume=false")
    assert report["resumed_from"] == 0
    assert last_complete_checkpoint(tmp_path / "out") == tmp_path / "out" / "checkpoint-3"


def test_only_the_completion_is_learnt(project):
    from datasets import Dataset, DatasetDict
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(project.model)
    rows = [{"prompt": "the model", "completion": " loss"}, {"prompt": "a " * 40, "completion": "step"}]
    config = finetune.Config(task="causal_lm", max_length=12, model_name_or_path=str(project.model))
    done = tokenize(DatasetDict(train=Dataset.from_list(rows)), tokenizer, config)["train"]
    assert len(done) == 1  # the second prompt leaves no room for its completion
    prompt, answer = tokenizer("the model")["input_ids"][:-1], tokenizer("loss", add_special_tokens=False)["input_ids"]
    assert done[0]["input_ids"] == prompt + answer + [tokenizer.eos_token_id]  # the end token once, at the end
    assert done[0]["labels"] == [-100] * len(prompt) + answer + [tokenizer.eos_token_id]


def test_a_run_that_is_not_what_was_asked_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it; but no LOCAL_RANK: the ranks never meet
    sentence = refusal(capsys, lambda: run("--max_steps=1", "--use_cpu=false"))
    assert "started 2 processes, but each trains alone" in sentence


def test_tensor_parallelism_is_refused_and_not_ignored(run, monkeypatch, capsys):
    monkeypatch.setenv("PARALLELISM_CONFIG_TP_SIZE", "2")
    assert "tensor_parallel=2 needs a program that loads its model" in refusal(capsys, lambda: run("--max_steps=1"))


def test_a_strategy_that_is_not_in_use_is_refused(run, monkeypatch):
    trainer, _ = run("--max_steps=1", "--save_strategy=no")
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer.args.fsdp = True
    with pytest.raises(WrongRun, match="FSDP was asked for, but the run would be NO"):
        check_ranks(trainer)
