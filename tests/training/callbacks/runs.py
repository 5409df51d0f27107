"""What the callback tests share: a Trainer whose metric follows a script, and what lies on the disk."""

from tests.training.trainer_runs import make_trainer


class Scripted:
    """``compute_metrics`` that returns the given values, one an evaluation."""

    def __init__(self, values, name="score"):
        self.values, self.name, self.calls = list(values), name, 0

    def __call__(self, prediction):
        value = self.values[self.calls]
        self.calls += 1
        return {self.name: value}


def scripted_trainer(folder, values, callbacks=(), done=0, name="score", **settings):
    """One evaluation a step; ``done``: evaluations of the run that is resumed."""
    metrics = Scripted(values[done:], name)
    defaults = {"max_steps": len(values), "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": name}
    return make_trainer(folder, compute_metrics=metrics, callbacks=list(callbacks), **(defaults | settings))


def on_disk(folder):
    """Steps of the checkpoints in ``folder``."""
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def restored(trainer, kind):
    """The callback of class ``kind`` that the trainer has now: a resume replaces the one it was given."""
    (found,) = [callback for callback in trainer.callback_handler.callbacks if type(callback) is kind]
    return found


RESTORE = {"restore_callback_states_from_checkpoint": True}


def entries(trainer, key):
    """``(step, value)`` of every entry of the log that has ``key``."""
    return [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]
