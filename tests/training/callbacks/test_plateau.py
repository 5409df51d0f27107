"""PlateauStop: the step computed by hand, EarlyStopping's step, resume, both strategies, wrong settings."""

import math

import pytest
from transformers import EarlyStoppingCallback

from course_utils.training.callbacks import PlateauStop, SaveBest
from course_utils.training.callbacks.monitored import is_better, is_greater_better
from tests.training.callbacks.runs import restored, scripted_trainer

HISTORIES = {
    "up, down": [0.5, 0.7, 0.6, 0.65, 0.9, 0.9],
    "ties": [0.5, 0.5, 0.5, 0.5],
    "nan first": [math.nan, 0.5, math.nan, math.nan, 0.6],
    "steady": [0.1, 0.2, 0.3, 0.4],
}


def by_hand(values, patience, min_delta=0.0, greater=True):
    """Step of the stop, or the last: written from the words in the docstring."""
    reference, waited = None, 0
    for step, value in enumerate(values, 1):
        gain = -math.inf if math.isnan(value) else math.inf if reference is None else value - reference
        if not greater and reference is not None and not math.isnan(value):
            gain = -gain
        if gain > min_delta:
            reference, waited = value, 0
        else:
            waited += 1
        if waited == patience:
            return step
    return len(values)


@pytest.mark.parametrize("values", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("greater", [True, False])
def test_stops_at_the_step_computed_by_hand(tmp_path, values, patience, greater):
    stop = PlateauStop(patience, greater_is_better=greater)
    trainer = scripted_trainer(tmp_path, values, [stop])
    trainer.train()
    assert trainer.state.global_step == by_hand(values, patience, greater=greater)


@pytest.mark.parametrize("name", ["up, down", "steady"])
@pytest.mark.parametrize("patience", [1, 2])
def test_without_min_delta_it_is_early_stopping(tmp_path, name, patience):
    trainer = scripted_trainer(tmp_path, HISTORIES[name], [EarlyStoppingCallback(patience)])
    trainer.train()
    assert trainer.state.global_step == by_hand(HISTORIES[name], patience)


def test_small_steps_add_up_here_and_not_in_early_stopping(tmp_path):
    values = [0.500 + 0.004 * step for step in range(10)]
    plateau = scripted_trainer(tmp_path, values, [PlateauStop(3, min_delta=0.01)])
    plateau.train()
    assert plateau.state.global_step == by_hand(values, 3, 0.01) == 10
    early = scripted_trainer(tmp_path, values, [EarlyStoppingCallback(3, 0.01)])
    early.train()
    assert early.state.global_step == 4


@pytest.mark.parametrize("flag", [True, False])
def test_resume(tmp_path, flag):
    values = [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8}
    first = scripted_trainer(tmp_path, values, [PlateauStop(3)], **settings)
    first.train()
    assert first.state.global_step == 5
    second = scripted_trainer(
        tmp_path, values, [PlateauStop(3)], done=4, restore_callback_states_from_checkpoint=flag, **settings
    )
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.state.global_step == (5 if flag else 8)
    assert restored(second, PlateauStop).stopped_at == (5 if flag else 8)


def test_epochs_and_a_second_run_starts_afresh(tmp_path):
    stop = PlateauStop(1)
    settings = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 4, "eval_steps": None}
    trainer = scripted_trainer(tmp_path, [0.5, 0.4, 0.3, 0.2], [stop], **settings)
    trainer.train()
    assert trainer.state.epoch == 2 and stop.stopped_at == 16
    trainer.compute_metrics.calls = 0
    trainer.train()
    assert trainer.state.epoch == 2 and stop.waited == 1


def test_evaluate_between_runs_is_not_counted(tmp_path):
    stop = PlateauStop(1)
    trainer = scripted_trainer(tmp_path, [0.9, 0.5, 0.4], [stop])
    trainer.evaluate()
    assert stop.reference is None and stop.waited == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"patience": 0}, "patience=0"), ({"min_delta": -1}, "min_delta=-1"), ({"min_delta": math.nan}, "nan")],
)
def test_wrong_settings_are_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        PlateauStop(**options)


def test_the_metric_and_its_direction_must_be_known(tmp_path):
    with pytest.raises(ValueError, match="metric=None and metric_for_best_model=None"):
        scripted_trainer(tmp_path, [1.0], [PlateauStop()], metric_for_best_model=None).train()
    with pytest.raises(ValueError, match="greater_is_better=None for metric 'eval_other'"):
        scripted_trainer(tmp_path, [1.0], [PlateauStop(metric="other")]).train()
    with pytest.raises(ValueError, match="'eval_other' is not among the evaluation's"):
        scripted_trainer(tmp_path, [1.0], [PlateauStop(metric="other", greater_is_better=True)]).train()


def test_direction_is_read_from_the_arguments(tmp_path):
    args = scripted_trainer(tmp_path, [1.0], name="perplexity").args
    assert args.greater_is_better is True  # the Trainer's guess for every name that does not end in "loss"
    assert is_greater_better(args, None, None) is True
    assert is_greater_better(args, "eval_perplexity", None) is True
    assert is_greater_better(args, "loss", None) is False
    assert is_greater_better(args, None, False) is False


def test_nan_is_never_better():
    assert not is_better(math.nan, None, True) and not is_better(math.nan, 0.1, False)
    assert is_better(0.2, None, True) and not is_better(0.2, 0.2, True)


def test_beside_save_best(tmp_path):
    values = [0.5, 0.9, 0.8, 0.7, 0.6]
    trainer = scripted_trainer(tmp_path, values, [SaveBest(), PlateauStop(2)])
    trainer.train()
    assert trainer.state.global_step == 4 and restored(trainer, SaveBest).best_step == 2
