"""LivePlot: one picture where nobody watches, pictures that replace each other where somebody does."""

from course_utils.training.callbacks import LivePlot
from tests.training.trainer_runs import make_trainer


class Shown:
    """Instead of a figure: how long the history was."""

    def __init__(self):
        self.lengths, self.shown = [], []

    def draw(self, history):
        from matplotlib.figure import Figure

        self.lengths.append(len(history))
        return Figure(figsize=(1, 1))


def test_one_picture_where_nobody_watches(tmp_path, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = Shown()
    plot = LivePlot(shown.draw, shown.shown.append)
    trainer = make_trainer(tmp_path, callbacks=[plot], max_steps=5)
    trainer.train()
    assert plot.live is False and len(shown.shown) == plot.pictures == 1
    assert shown.lengths == [6]


def test_live_pictures_replace_each_other(tmp_path, monkeypatch):
    from IPython import display

    monkeypatch.setenv("JPY_SESSION_NAME", "05_callbacks.ipynb")
    made = []

    class Handle:
        def update(self, picture):
            made.append("update")

    monkeypatch.setattr(display, "display", lambda picture, display_id: made.append("display") or Handle())
    plot = LivePlot(Shown().draw, seconds=0)
    make_trainer(tmp_path, callbacks=[plot], max_steps=5).train()
    assert made == ["display"] + ["update"] * 6 and plot.pictures == 7
    limited = LivePlot(Shown().draw, seconds=60)
    make_trainer(tmp_path, callbacks=[limited], max_steps=5).train()
    assert limited.pictures == 2  # the first log and the end
