"""Figures of lesson 04: scores with intervals, confusion matrix, generation curves, padded ranks, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.lessons.lesson_04.diagrams import flow, padded_ranks  # noqa: F401  the lesson calls them here
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from course_utils.training.intervals import Interval


def scores(table: Mapping[str, Mapping[str, Interval]], title: str = "Each score with its 95% interval") -> Figure:
    """``table[model][metric]`` is an interval; a panel a metric, a row a model."""
    models, metrics = list(table)[::-1], list(next(iter(table.values())))
    figure, axes = new_figure(
        1,
        len(metrics),
        height=0.55 * len(models) + 1.5,
        sharey=True,
        squeeze=False,
        alt=f"One panel a metric ({', '.join(metrics)}), one row a model ({', '.join(models[::-1])}): a dot for the "
        "score and a bar for its interval.",
    )
    palette = [COLORS[c] for c in ("grey", "orange", "blue", "green", "purple")][: len(models)][::-1]
    for axis, metric in zip(axes[0], metrics, strict=True):
        found = [table[model][metric] for model in models]
        for place, (interval, color) in enumerate(zip(found, palette, strict=True)):
            axis.plot([interval.low, interval.high], [place, place], color=color, linewidth=9, solid_capstyle="butt")
            axis.plot(interval.value, place, "o", color=COLORS["black"], markersize=3.5)
            axis.annotate(
                f"{interval.value:.2f}", (interval.value, place), (0, 9), textcoords="offset points", ha="center"
            )
        lowest = min(0.0, *(interval.low for interval in found))
        axis.set(xlim=(lowest - 0.05, max(i.high for i in found) * 1.15 + 0.03), ylim=(-0.5, len(models) - 0.3))
        axis.set_title(metric, fontsize=12)
        axis.set_yticks(range(len(models)), models)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Counts in the cells, colour by share of the row; rows are the true classes.

    Args:
        matrix: (C, C), ``matrix[i, j]`` rows of class i that were given class j.
    """
    figure, axis = new_figure(
        height=6.0,
        alt="Confusion matrix, true classes in rows, given classes in columns. The diagonal is dark for the frequent "
        "classes and pale for the rare ones, whose rows lie mostly in the columns of frequent classes.",
    )
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                color = "white" if share[i, j] > 0.55 else "black"
                axis.text(j, i, str(int(count)), ha="center", va="center", fontsize=10, color=color)
    labels = [f"{name} ({int(total)})" for name, total in zip(names, matrix.sum(1), strict=True)]
    axis.set_yticks(range(len(names)), labels)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axis.set(xlabel="class that was given", ylabel="true class (rows)", title=title)
    axis.grid(visible=False)
    return figure


def classes(names: Sequence[str], sizes: Sequence[int], f1: Mapping[str, Sequence[float]]) -> Figure:
    """F1 of every class, rarest first, a marker a model."""
    order = np.argsort(sizes)
    figure, axis = new_figure(
        height=3.6,
        alt="F1 of each class for several models, rarest class on the left. The majority is zero everywhere but for "
        "the largest class; the two others mostly rise with the size of the class.",
    )
    for (model, values), marker, color in zip(f1.items(), "sod^", ("grey", "orange", "blue", "green"), strict=False):
        axis.plot(np.asarray(values)[order], marker, color=COLORS[color], label=model, markersize=8, linestyle="")
    axis.set_xticks(range(len(names)), [f"{names[i]}\n{sizes[i]}" for i in order], fontsize=9, rotation=30)
    axis.set(ylabel="F1", ylim=(-0.04, 1.0), title="F1 by class, rarest first (rows below the name)")
    axis.legend(ncols=len(f1), loc="upper left")
    return figure


def widths(rows: Sequence[int], measured: Sequence[float]) -> Figure:
    """Width of the interval against the number of rows, beside 1 / sqrt(rows)."""
    figure, axis = new_figure(
        height=3.2,
        alt="Width of the interval against the number of rows, both axes logarithmic: the points lie close to a line "
        "that falls with the square root of the rows.",
    )
    axis.loglog(rows, measured, "o", color=COLORS["blue"], markersize=8, label="measured")
    line = measured[-1] * np.sqrt(rows[-1] / np.asarray(rows))
    axis.loglog(rows, line, "--", color=COLORS["grey"], label=r"falls with $\sqrt{\mathrm{rows}}$")
    axis.set_xticks(rows, [str(n) for n in rows])
    ticks = [0.02, 0.05, 0.1, 0.2]
    axis.set_yticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set(
        xlabel="rows in the evaluation set", ylabel="width of the 95% interval", title="4x the rows: half the width"
    )
    axis.legend()
    return figure


def counts_boxes(wanted: np.ndarray, predicted: np.ndarray, mean: float) -> Figure:
    """Distribution of the predictions for each true number of parameters; black: perfect, grey: the training mean."""
    most = 8
    figure, axis = new_figure(
        height=3.6,
        alt="Predicted against true number of parameters, a box and whiskers each: the boxes rise over the first few "
        "numbers and are flat after them, far below the diagonal.",
    )
    groups = [predicted[wanted == n] for n in range(most + 1)]
    boxes = axis.boxplot(groups, positions=range(most + 1), widths=0.6, showfliers=False, patch_artist=True)
    for box in boxes["boxes"]:
        box.set(facecolor=COLORS["sky"], alpha=0.6)
    for line in boxes["medians"]:
        line.set(color=COLORS["blue"], linewidth=2.2)
    axis.plot([0, most], [0, most], color=COLORS["black"], linewidth=1.2, linestyle=":", label="perfect")
    axis.axhline(mean, color=COLORS["grey"], linestyle="--", label="always the mean")
    axis.set(
        xlabel=f"true number of parameters (above {most}: not shown)",
        ylabel="predicted",
        title="Rises up to 3, then flat",
    )
    axis.legend(loc="upper left")
    return figure


def generation(history: Sequence[Mapping[str, float]]) -> Figure:
    """Exact match, ROUGE-L and BLEU at each evaluation, and the loss beside them."""
    figure, (left, right) = new_figure(
        1,
        2,
        height=3.3,
        alt="Left: exact match stays near zero while ROUGE-L and BLEU already rise, then all three end high. "
        "Right: the evaluation loss falls smoothly all the time.",
    )
    steps = [entry["step"] for entry in history]
    for key, label, style in (
        ("rougeL", "ROUGE-L", "-s"),
        ("bleu", "BLEU", "-^"),
        ("exact_match", "exact match", "-o"),
    ):
        left.plot(steps, [entry[f"eval_{key}"] for entry in history], style, label=label)
    left.set(xlabel="optimizer step", ylim=(-0.03, 1.05), title="Free generation")
    left.legend()
    right.plot(steps, [entry["eval_loss"] for entry in history], "-o", color=COLORS["grey"])
    right.set(xlabel="optimizer step", ylabel="nats per token", title="Loss, given the true words")
    right.set_ylim(bottom=0)
    return figure


def ways(values: Mapping[str, float], right: float, label: str) -> Figure:
    """A score computed in several ways, as the distance from the right one."""
    figure, axis = new_figure(
        height=0.5 * len(values) + 1.4,
        alt="Bars that show how far each way of computing the score is from the right one: zero for the right ways, "
        "visibly off for local means and for duplicates counted twice.",
    )
    names = list(values)[::-1]
    off = [values[name] - right for name in names]
    colors = [COLORS["green"] if abs(x) < 1e-9 else COLORS["red"] for x in off]
    bars = axis.barh(names, off, color=colors, height=0.55)
    axis.bar_label(bars, [f"{values[name]:.4f}" for name in names], padding=6)
    reach = max(map(abs, off)) * 1.5 + 1e-6
    axis.axvline(0, color=COLORS["black"], linewidth=1.2)
    axis.set(
        xlim=(-reach, reach), xlabel=f"{label} minus the single-process value", title="Exactly right, or silently off"
    )
    axis.grid(axis="y", visible=False)
    return figure


def batch_means(sizes: Sequence[int], means: Sequence[float], right: float) -> Figure:
    """Mean of the batches' macro-F1 against the batch size."""
    figure, axis = new_figure(
        height=3.0,
        alt="The mean of the batches' macro-F1 against the batch size, on a logarithmic axis: far below the true "
        "value for small batches, rising towards it for large ones.",
    )
    axis.semilogx(sizes, means, "-o", color=COLORS["red"], label="mean of batch macro-F1")
    axis.axhline(right, color=COLORS["black"], linestyle="--", linewidth=1.5, label="macro-F1 of all rows")
    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set(xlabel="rows per batch", ylabel="macro-F1", title="A mean of batches depends on the batch size")
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right")
    return figure


def memory(mib: Mapping[str, float]) -> Figure:
    """Peak memory of an evaluation, a bar a way."""
    names = list(mib)[::-1]
    figure, axis = new_figure(
        height=0.6 * len(names) + 1.3,
        alt="Peak memory of an evaluation that collects all logits, and of one that keeps the argmax of each batch: "
        "the second is a small part of the first.",
    )
    bars = axis.barh(names, [mib[name] for name in names], color=COLORS["blue"], height=0.55)
    axis.bar_label(bars, fmt="%.0f", padding=5)
    axis.set(xlabel="MiB", xlim=(0, 1.15 * max(mib.values())), title="What has to lie in memory at once")
    axis.grid(axis="y", visible=False)
    return figure


def r_squared(values: Mapping[str, Sequence[float]]) -> Figure:
    """R2 of each model; several seeds show as dots on their mean."""
    names = list(values)[::-1]
    figure, axis = new_figure(
        height=0.55 * len(names) + 1.4,
        alt="Share of the variance explained: zero for the training mean; word weights and the encoder's seeds close "
        "together.",
    )
    means = [float(np.mean(values[name])) for name in names]
    colors = [COLORS["blue"] if len(values[name]) > 1 else COLORS["grey"] for name in names]
    axis.barh(names, means, color=colors, height=0.6)
    for place, name in enumerate(names):
        if len(values[name]) > 1:
            axis.plot(values[name], [place] * len(values[name]), "o", color=COLORS["black"], markersize=5)
        axis.text(
            max(*values[name], 0, *means[place : place + 1]) + 0.012,
            place,
            f"{means[place] if abs(means[place]) >= 0.005 else 0:.2f}",
            va="center",
        )
    lowest = min(0.0, *(value for runs in values.values() for value in runs))
    axis.set(xlabel=r"$R^2$ on the validation split", xlim=(lowest - 0.01, 1.2 * max(*means, 0.1)))
    axis.set_title("Parameters of a function from one sentence")
    axis.grid(axis="y", visible=False)
    return figure
