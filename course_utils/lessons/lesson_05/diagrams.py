"""Diagrams of lesson 05: who sees what, events in order, when the best metric changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.training.callbacks.events import Event

PALE = "#F2F2F2"
KINDS = {
    "once": (COLORS["grey"], ("on_init_end", "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end")),
    "step": (
        COLORS["blue"],
        ("on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"),
    ),
    "report": (COLORS["orange"], ("on_log", "on_prediction_step", "on_evaluate", "on_save")),
}


def _box(axis: Axes, x: float, y: float, width: float, text: str, color: str, height: float = 0.62) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = "round,pad=0.02,rounding_size=0.08"
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=color + "22", edgecolor=color, linewidth=1.6)
    )
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10.5)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.6, "connectionstyle": f"arc3,rad={bend}"}
    axis.annotate("", xy=end, xytext=start, arrowprops=style)


def flow() -> Figure:
    """What the Trainer computes in a step, and what goes to a callback and back."""
    from matplotlib.patches import Rectangle

    figure, axis = new_figure(
        height=3.7,
        alt="Diagram. Top row, inside the Trainer: a batch of token ids of shape (B, T) goes through the model to "
        "logits (B, C) and a loss, then backward, clipping, the optimizer and the scheduler. Below, a list of "
        "callbacks. An arrow from the frame around the Trainer down to the list carries args, state, control, model, "
        "optimizer; an arrow up to the frame carries control back. "
        "The batch, the logits and the loss tensor stay inside the Trainer.",
    )
    blue, orange, grey = COLORS["blue"], COLORS["orange"], COLORS["grey"]
    parts = [
        ("batch\n(B, T)", 1.15, grey),
        ("model", 1.0, blue),
        ("logits (B, C)\nloss ()", 1.45, grey),
        ("backward", 1.15, blue),
        ("clip", 0.75, blue),
        ("optimizer,\nscheduler", 1.3, blue),
    ]
    axis.text(0.1, 4.2, "Trainer: one step", fontsize=12, weight="bold")
    axis.add_patch(Rectangle((0.0, 2.95), 9.15, 1.1, facecolor="none", edgecolor=grey, linewidth=1.2))
    x = 0.15
    for text, width, color in parts:
        _box(axis, x, 3.2, width, text, color)
        x += width + 0.38
        if text != parts[-1][0]:
            _arrow(axis, (x - 0.36, 3.51), (x - 0.04, 3.51), grey)
    axis.text(0.1, 0.1, "Callbacks, called one after the other at each event", fontsize=12, weight="bold")
    names = ["DefaultFlow\nsets the flags", "trackers", "yours, in the\norder you give", "progress bar\nor printer"]
    for place, name in enumerate(names):
        _box(axis, 0.1 + 2.33 * place, 0.65, 1.95, name, orange, 0.75)
    for place in range(3):
        _arrow(axis, (2.09 + 2.33 * place, 1.02), (2.39 + 2.33 * place, 1.02), orange)
    _arrow(axis, (1.1, 2.92), (1.1, 1.45), orange)
    axis.text(1.25, 2.2, "args, state, control,\nmodel, optimizer, logs, metrics", va="center", fontsize=10.5)
    _arrow(axis, (8.05, 1.45), (8.05, 2.92), orange)
    axis.text(7.9, 2.2, "control: log? evaluate?\nsave? stop?", va="center", ha="right", fontsize=10.5)
    axis.set(xlim=(-0.05, 9.2), ylim=(0, 4.45))
    axis.set_axis_off()
    return figure


def timeline(events: Sequence[Event], title: str) -> Figure:
    """One row per kind of event, in the order they first happen; one column per event."""
    kinds = {name: color for color, names in KINDS.values() for name in names}
    names = list(dict.fromkeys(event.name for event in events))
    figure, axis = new_figure(
        height=0.95 + 0.29 * len(names),
        alt="Timeline: a dot for each event, left to right in the order in which they happened, one row per kind. "
        "Step events repeat for each optimizer step; log, prediction and evaluate events follow on some steps only; "
        "save comes last.",
    )
    begins = [i for i, event in enumerate(events) if event.name == "on_step_begin"]
    ends = [*begins[1:], len(events)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        if number % 2 == 0:
            axis.axvspan(begin - 0.5, end - 0.5, color=PALE)
        axis.text(begin, -0.85, f"step {events[begin].step + 1}", fontsize=10, color=COLORS["grey"])
    for place, event in enumerate(events):
        axis.plot(place, names.index(event.name), "o", color=kinds.get(event.name, COLORS["black"]), markersize=7)
    axis.set_yticks(range(len(names)), names, fontfamily="monospace", fontsize=10)
    axis.set_xticks([])
    axis.set(title=title, ylim=(len(names) - 0.4, -1.5), xlim=(-0.7, len(events) - 0.3), xlabel="order of the events")
    axis.grid(visible=False)
    return figure


def when_best_changes(events: Sequence[Event]) -> Figure:
    """The events of one step in a row; grey ones see the old best metric, green ones the new."""
    figure, axis = new_figure(
        height=1.75,
        alt="The events of one step with an evaluation that is a new best, in a row: step end, log, evaluate are grey "
        "and see the old best metric; save is green and sees the new one.",
    )
    shown = [event for event in events if event.name != "on_prediction_step"]
    wanted = ("on_step_end", "on_log", "on_evaluate", "on_save", "on_step_begin")
    shown = [event for i, event in enumerate(shown) if event.name in wanted and event != shown[i - 1]]
    last = shown[-1].best_metric
    for place, event in enumerate(shown):
        color = COLORS["green"] if event.best_metric == last else COLORS["grey"]
        value = "None" if event.best_metric is None else f"{event.best_metric:.2f}"
        _box(axis, 1.6 * place, 0.2, 1.4, f"{event.name[3:]}\nsees {value}", color, 0.8)
    axis.set(xlim=(-0.1, 1.6 * len(shown)), ylim=(0, 1.3), title="state.best_metric at each event of one step")
    axis.set_axis_off()
    return figure
