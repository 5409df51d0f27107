"""Figures of lesson 05: a steered run, plateaus, stopping rules, a hidden NaN, waits, what a model wrote; diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.lessons.lesson_05.diagrams import PALE, flow, timeline, when_best_changes
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


__all__ = ["creep", "flow", "hidden_nan", "loss_curve", "paired", "rules", "steered_run", "timeline", "waits"]
__all__ += ["when_best_changes", "written"]


def _points(history: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    found = [(entry["step"], entry[key]) for entry in history if key in entry]
    return [step for step, _ in found], [value for _, value in found]


def steered_run(
    history: Sequence[Mapping[str, float]], best_step: int, stop_step: int, max_steps: int, metric: str
) -> Figure:
    """Losses on the left, the metric on the right; where the best checkpoint lies and where the run was stopped.

    Args:
        history: ``trainer.state.log_history``.
        metric: key of the evaluation's metric.
    """
    figure, axes = new_figure(
        1,
        2,
        height=3.5,
        alt="Two panels over optimizer steps. Left: the training loss falls throughout; the validation loss falls, "
        "then rises a little and moves about. Right: macro-F1 on the validation rows is still rising where the run "
        "stops. A dashed line marks the one "
        "checkpoint that was kept, a grey area the steps that were asked for and never made.",
    )
    for axis in axes:
        if stop_step < max_steps:
            axis.axvspan(stop_step, max_steps, color=PALE)
            axis.text((stop_step + max_steps) / 2, 0.5, "not run", transform=axis.get_xaxis_transform(), rotation=90,
                      ha="center", va="center", color=COLORS["grey"])  # fmt: skip
        axis.axvline(best_step, color=COLORS["black"], linestyle="--", linewidth=1.2, label="kept checkpoint")
        axis.axvline(stop_step, color=COLORS["red"], linewidth=1.6, label="stopped")
        axis.set(xlabel="optimizer step", xlim=(0, max_steps))
    axes[0].plot(*_points(history, "loss"), color=COLORS["sky"], label="training loss")
    axes[0].plot(*_points(history, "eval_loss"), "o-", color=COLORS["blue"], label="validation loss")
    axes[1].plot(*_points(history, metric), "o-", color=COLORS["green"], label="validation macro-F1")
    axes[0].set(title="Losses", ylabel="nats")
    axes[1].set(title="Metric", ylabel="share (0 to 1)")
    for axis in axes:
        axis.legend(fontsize=9.5, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2)
    return figure


def creep(values: Sequence[float], min_delta: float, patience: int = 3) -> Figure:
    """A slow, steady gain as two stopping rules see it: what each compares with at every evaluation.

    Args:
        values: the metric at each evaluation.
        min_delta: the gain that counts.
        patience: evaluations in a row that do not clear the bar and end the run; the first is the reference.
    """
    best, references = [values[0]], [values[0]]  # what EarlyStopping and PlateauStop compare with
    for value in values[:-1]:
        best.append(max(best[-1], value))
        references.append(value if value > references[-1] + min_delta else references[-1])
    figure, axes = new_figure(
        1,
        2,
        height=3.2,
        sharey=True,
        alt="Two panels with the same slowly rising metric. Left: the bar to clear moves up with every small gain, "
        "no point ever clears it, and a line marks the early stop. Right: the bar stays at the last gain that counted, "
        "and every few evaluations a point clears it.",
    )
    evaluations = range(1, len(values) + 1)
    names = ("EarlyStopping: best so far", "PlateauStop: last gain that counted")
    for axis, line, title in zip(axes, (best, references), names, strict=True):
        bar = [value + min_delta for value in line]
        axis.step(evaluations, bar, where="mid", color=COLORS["red"], label="bar to clear")
        clears = [value > height for value, height in zip(values, bar, strict=True)]
        colors = [COLORS["green"] if clear else COLORS["grey"] for clear in clears]
        axis.scatter(evaluations, values, color=colors, zorder=3, label="metric (green: clears it)")
        misses = 0
        for place, clear in enumerate(clears[1:], 2):
            misses = 0 if clear else misses + 1
            if misses == patience:
                axis.axvline(place, color=COLORS["black"], linestyle="--", linewidth=1.4, label="stops here")
                break
        axis.set_title(title, fontsize=11.5)
        axis.set(xlabel="evaluation")
        axis.legend(fontsize=9.5, loc="lower right")
    axes[0].set(ylabel="metric", ylim=(min(values) - 2.5 * min_delta, max(values) + 1.5 * min_delta))
    return figure


def rules(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """What each stopping rule costs and gives: steps, test loss, test macro-F1; a dot a seed, the bar is the mean.

    Args:
        scores: rule -> one ``{"steps": ..., "loss": ..., "macro_f1": ...}`` per seed.
    """
    figure, axes = new_figure(
        1,
        3,
        height=2.6,
        sharey=True,
        alt="Three panels, one bar per rule with a dot per seed: optimizer steps made, loss and macro-F1 on the test "
        "split. Stopping by the validation loss takes the fewest steps and gives the lowest test loss, and on "
        "the mean a lower macro-F1 than the others.",
    )
    names = list(scores)[::-1]
    titles = {"steps": "Steps made", "loss": "Test loss", "macro_f1": "Test macro-F1"}
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        runs = [[run[key] for run in scores[name]] for name in names]
        means = [sum(values) / len(values) for values in runs]
        axis.barh(names, means, height=0.7, color=COLORS["sky"])
        for place, values in enumerate(runs):
            heights = [place + 0.2 * (1 - seed) for seed in range(len(values))]  # seed 0 on top
            axis.plot(values, heights, "o", color=COLORS["black"], markersize=4.5)
        axis.set_title(title)
        axis.grid(axis="y", visible=False)
    return figure


def paired(differences: Mapping[str, tuple[float, float, float]], label: str) -> Figure:
    """Mean difference per comparison with its interval; a panel for each quantity, zero is marked.

    Args:
        differences: "QUANTITY, COMPARISON" -> (low, mean, high); smaller is better where "loss" is in the quantity.
    """
    quantities = list(dict.fromkeys(name.split(", ")[0] for name in differences))
    names = list(dict.fromkeys(name.split(", ", 1)[1] for name in differences))[::-1]
    figure, axes = new_figure(
        1,
        len(quantities),
        height=1.3 + 0.5 * len(names),
        sharey=True,
        alt="A panel for the test loss and one for macro-F1, with an arrow to the better side: mean differences "
        "between stopping rules with their intervals, and a line at zero. Only the loss, stopped by loss, lies clear "
        "of zero.",
    )
    for axis, quantity in zip(axes, quantities, strict=True):
        for place, name in enumerate(names):
            low, mean, high = differences[f"{quantity}, {name}"]
            axis.plot([low, high], [place, place], color=COLORS["blue"], linewidth=3)
            axis.plot(mean, place, "o", color=COLORS["blue"], markersize=8)
        axis.axvline(0, color=COLORS["black"], linewidth=1.2)
        axis.set_title(f"{quantity}  " + ("(← better)" if "loss" in quantity else "(better →)"))
        axis.set(ylim=(-0.6, len(names) - 0.4))
        axis.set_yticks(range(len(names)), names)
    figure.supxlabel(label, fontsize=11)
    return figure


def hidden_nan(
    hidden: Sequence[Mapping[str, float]], skipped: Sequence[Mapping[str, float]], bad_step: int, metric: str
) -> Figure:
    """A run that a NaN destroyed as its log shows it, and the same run with the bad step skipped."""
    figure, axes = new_figure(
        1,
        2,
        height=3.2,
        alt="Two panels over optimizer steps. Left: after the step with a NaN the logged loss of the unwatched "
        "run drops to zero and stays there, as if training had succeeded; the watched run's loss rises a "
        "little, then falls on. Right: macro-F1 of the unwatched run falls to almost zero, because every row gets "
        "class 0; the watched run's rises.",
    )
    for history, name, color, style in (
        (hidden, "not watched", COLORS["red"], "s--"),
        (skipped, "bad step skipped", COLORS["blue"], "o-"),
    ):
        axes[0].plot(*_points(history, "loss"), style, color=color, label=name, markersize=4)
        axes[1].plot(*_points(history, metric), style, color=color, label=name, markersize=5)
    for axis in axes:
        axis.axvline(bad_step, color=COLORS["black"], linestyle=":", linewidth=1.4, label="one empty row")
        axis.set(xlabel="optimizer step")
    axes[0].set(title="Logged training loss", ylabel="nats", ylim=(-0.1, None))
    axes[1].set(title="Validation macro-F1", ylabel="share (0 to 1)", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=10, loc="outside lower center", ncols=3)
    return figure


def loss_curve(history: Sequence[Mapping[str, float]]) -> Figure:
    """Training and validation loss against the step: what a live plot draws again and again."""
    figure, axis = new_figure(
        height=2.9, alt="Training and validation loss against the optimizer step: both fall steeply, then flatten."
    )
    axis.plot(*_points(history, "loss"), color=COLORS["sky"], label="training")
    axis.plot(*_points(history, "eval_loss"), "o-", color=COLORS["blue"], label="validation")
    axis.set(xlabel="optimizer step", ylabel="cross entropy (nats)", title="Loss", ylim=(0, None))
    axis.legend()
    return figure


def waits(per_step: Mapping[str, float]) -> Figure:
    """How often a step waits for the device, per set of callbacks."""
    figure, axis = new_figure(
        height=0.9 + 0.5 * len(per_step),
        alt="Bars: waits per optimizer step. The Trainer alone waits a few times, without its NaN filter about "
        "once; a watcher that reads every norm at every step several times more; the course's watcher adds nothing "
        "when it records, and one wait when it skips.",
    )
    names = list(per_step)[::-1]
    bars = axis.barh(names, [per_step[name] for name in names], height=0.6, color=COLORS["blue"])
    axis.bar_label(bars, fmt="%.1f", padding=4)
    axis.set(xlabel="waits for the device per optimizer step", xlim=(0, 1.15 * max(per_step.values())))
    axis.grid(axis="y", visible=False)
    return figure


def written(samples: Sequence[tuple[int, Sequence[str]]], prompts: Sequence[object], right: Sequence[str]) -> Figure:
    """What a model wrote at each evaluation, a column a prompt; right answers are green."""
    figure, axis = new_figure(
        height=0.7 + 0.42 * (len(samples) + 2),
        alt="A table: a column for each prompt, a row for each evaluation. At first everything is wrong; more and more "
        "cells turn green. The last row holds the right answers.",
    )
    rows = [("step", *prompts), *((step, *texts) for step, texts in samples), ("right", *right)]
    for y, row in enumerate(rows):
        for x, text in enumerate(row):
            is_answer = 0 < y < len(rows) - 1 and x > 0
            color = COLORS["green"] if is_answer and text == right[x - 1] else COLORS["black"]
            weight = "bold" if y in (0, len(rows) - 1) or x == 0 else "normal"
            place = 0.0 if x == 0 else 0.75 + 1.9 * (x - 1)
            axis.text(place, y, str(text), color=color, weight=weight, fontsize=10, family="monospace", va="center")
    axis.axhline(0.5, color=COLORS["grey"], linewidth=1)
    axis.axhline(len(rows) - 1.5, color=COLORS["grey"], linewidth=1)
    axis.set(xlim=(-0.1, 0.75 + 1.9 * len(prompts)), ylim=(len(rows) - 0.4, -0.6))
    axis.set_axis_off()
    return figure
