"""Diagrams of lesson 03, drawn without measuring: what you give a Trainer and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#D6E8F4", "orange": "#FBE9C6", "green": "#D3EFE5", "grey": "#EEEEEE"}


def _box(axis: Axes, x: float, y: float, text: str, color: str, width: float, height: float, size: float = 10) -> None:
    """A box with its centre at (x, y)."""
    from matplotlib.patches import FancyBboxPatch

    corner, edge = (x - width / 2, y - height / 2), COLORS[color]
    axis.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0.02", fc=PALE[color], ec=edge, linewidth=1.6)
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], dashed: bool = False) -> None:
    style = {"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", end, start, arrowprops=style | {"linestyle": "--" if dashed else "-"})


def flow() -> Figure:
    """Rows, collator, model and settings go into the Trainer; logs, checkpoints and a model come out."""
    alt = (
        "On the left what you give: rows, which are dictionaries of lists; a collator, which makes a batch of tensors "
        "of shape B by T; a model, which returns a loss and logits of shape B by C; settings, which are "
        "TrainingArguments; evaluation rows and a metric function, both optional. In the middle the Trainer repeats: "
        "batch, forward, backward, optimizer step; now and then it logs, evaluates and saves. On the right what comes "
        "back: a log history, metrics of all evaluation rows, checkpoint folders, and the trained model or the best "
        "one."
    )
    figure, axis = new_figure(height=4.2, alt=alt)
    axis.set(xlim=(0, 12), ylim=(0, 6.2))
    axis.set_axis_off()
    for x, text in ((1.75, "you give"), (6.35, "Trainer"), (10.6, "you get")):
        axis.text(x, 5.95, text, ha="center", va="center", fontsize=12, fontweight="bold")
    given = (
        (5.1, "train rows: dictionaries\ninput_ids (T,), label", "blue"),
        (4.0, "collator: rows to a batch\ninput_ids (B, T), labels (B,)", "blue"),
        (2.9, "model: batch to loss,\nlogits (B, C)", "blue"),
        (1.8, "TrainingArguments:\nover a hundred settings", "orange"),
        (0.7, "evaluation rows and\ncompute_metrics (optional)", "green"),
    )
    for y, text, color in given:
        _box(axis, 1.75, y, text, color, 3.3, 0.86)
        _arrow(axis, (3.45, y), (4.25, y))
    from matplotlib.patches import Rectangle

    axis.add_patch(Rectangle((4.3, 0.2), 4.1, 5.4, fc="white", ec=COLORS["grey"], linewidth=1.6))
    steps = ((5.05, "micro-batches of a step"), (4.25, "forward, loss, backward"), (3.45, "clip, step, schedule, zero"))
    for y, text in steps:
        _box(axis, 6.35, y, text, "grey", 3.3, 0.5)
    for (upper, _), (lower, _) in zip(steps, steps[1:], strict=False):
        _arrow(axis, (6.35, upper - 0.28), (6.35, lower + 0.28))
    axis.annotate(
        "", (8.05, 5.05), (8.05, 3.45),
        arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6, "connectionstyle": "arc3,rad=0.25"},
    )  # fmt: skip
    axis.text(6.35, 2.82, "every so many steps:", ha="center", va="center", fontsize=10, color="#444444")
    for y, text, color in ((2.3, "log", "grey"), (1.5, "evaluate", "green"), (0.7, "save", "grey")):
        _box(axis, 6.35, y, text, color, 3.3, 0.5)
    results = (
        (2.3, "state.log_history:\na list of dictionaries"),
        (1.5, "metrics of all\nevaluation rows"),
        (0.7, "checkpoint folders"),
        (4.25, "the trained model,\nor the best one"),
    )
    for y, text in results:
        _box(axis, 10.6, y, text, "grey", 2.6, 0.66)
        _arrow(axis, (8.45, y), (9.25, y))
    return figure
