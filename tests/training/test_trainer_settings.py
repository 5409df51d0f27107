"""The table of settings agrees with the installed TrainingArguments; quiet_trainer is quiet and passes settings on."""

import dataclasses

import pytest
from transformers import TrainingArguments

from course_utils.teach.lesson import quieten
from course_utils.training import settings as module
from course_utils.training.settings import (
    BOOKKEEPING,
    GROUPS,
    MOST_USED,
    Setting,
    default_of,
    is_argument,
    logged,
    settings_table,
    typical_values,
)
from tests.training.trainer_runs import make_trainer

FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}


def test_every_name_exists_once():
    names = [setting.name for setting in MOST_USED]
    assert len(names) == len(set(names)) and set(names) <= FIELDS and BOOKKEEPING <= FIELDS


def test_groups_are_those_of_the_lesson():
    wanted = {"optimisation", "batch", "precision", "logging", "evaluation", "checkpoints", "reproducibility"}
    assert set(GROUPS) == wanted


def test_no_typical_value_breaks_an_exact_resume():
    typical = typical_values()
    assert typical["train_sampling_strategy"] == "random" and typical["save_only_model"] is False


def test_typical_values_are_one_valid_configuration(tmp_path):
    made = TrainingArguments(output_dir=str(tmp_path), **(typical_values() | {"use_cpu": True}))
    assert made.get_warmup_steps(1000) == 100


@pytest.mark.parametrize("setting", MOST_USED, ids=lambda setting: setting.name)
def test_default_is_what_an_instance_gets(setting, tmp_path):
    value = getattr(TrainingArguments(output_dir=str(tmp_path), report_to="none"), setting.name)
    resolved = {"report_to": [], "activation_checkpointing": False}  # "none" and None, after __post_init__
    assert getattr(value, "value", value) == resolved.get(setting.name, default_of(setting.name))


def test_bookkeeping_leaves_out_what_decides_the_weights_a_run_ends_with():
    assert not BOOKKEEPING & {"save_strategy", "save_steps", "load_best_model_at_end", "eval_steps", "seed"}


def test_table_holds_installed_defaults():
    table = settings_table("optimisation")
    assert "| optimisation | `learning_rate` | `5e-05` |" in table
    assert len(table.splitlines()) == 2 + sum(setting.group == "optimisation" for setting in MOST_USED)


def test_a_renamed_argument_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "MOST_USED", (Setting("batch", "evaluation_strategy", "no", "planted"),))
    with pytest.raises(ValueError, match="'evaluation_strategy' is no argument of TrainingArguments"):
        settings_table()


def test_unknown_group_is_one_sentence():
    with pytest.raises(ValueError, match="group='memory' is not known; allowed: 'optimisation', 'batch'"):
        typical_values("memory")


def test_old_spellings_are_gone():
    for old in ("evaluation_strategy", "warmup_ratio", "group_by_length", "no_cuda", "logging_dir"):
        assert not is_argument(old), old
    assert is_argument("eval_strategy")


def test_quiet_trainer_prints_nothing(tmp_path, capfd):
    quieten()  # as every lesson does: DeepSpeed prints a line when it is first imported
    trainer = make_trainer(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=1)
    trainer.train()
    printed = capfd.readouterr()
    assert printed.out == "" and "it/s" not in printed.err and "'loss'" not in printed.err
    assert [step for step, _ in logged(trainer, "loss")] == [1, 2, 3]
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_quiet_trainer_passes_settings_on(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", weight_decay=0.3)
    assert trainer.args.weight_decay == 0.3 and trainer.args.save_strategy == "steps"
    with pytest.raises(TypeError, match="learning_rat"):
        make_trainer(tmp_path, learning_rat=1.0)
