"""Pictures of predictions in TensorBoard's files, at every evaluation, by rank 0 only."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from course_utils.training.callbacks import PredictionImages


def draw(model):
    from matplotlib.figure import Figure

    assert not model.training
    return Figure(figsize=(1, 1))


def test_a_picture_at_each_evaluation_of_rank_0(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback, model = PredictionImages(draw, tmp_path), nn.Linear(1, 1).train()
    args = SimpleNamespace(report_to=["tensorboard"])
    for step, is_zero in ((5, True), (10, True), (15, False)):
        state = SimpleNamespace(is_world_process_zero=is_zero, global_step=step)
        callback.on_evaluate(args, state, None, model=model)
    assert model.training
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("predictions")] == [5, 10]
