"""Figures of lesson 14 from measured values: scenes with heat maps, accuracy by kind, budgets, paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.data.visual_questions import GRID, SIDE, SIZE
from course_utils.lessons.lesson_14.diagrams import flow, stages, tokens
from course_utils.teach.charts import grouped_bars
from course_utils.teach.figure import COLORS, describe, new_figure
from course_utils.training.paired import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.training.intervals import Interval

__all__ = [
    "accuracy",
    "budget",
    "differences",
    "flow",
    "heat_maps",
    "scenes",
    "stages",
    "tokens",
    "weights",
]


def _scene(axis: Axes, image: Sequence, title: str, names: bool) -> None:
    axis.imshow(np.asarray(image).reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
    edges = [SIZE * number - 0.5 for number in range(1, GRID)]
    axis.hlines(edges, -0.5, SIDE - 0.5, color="#BBBBBB", linewidth=0.8)
    axis.vlines(edges, -0.5, SIDE - 0.5, color="#BBBBBB", linewidth=0.8)
    middles = [SIZE * number + SIZE / 2 - 0.5 for number in range(GRID)]
    axis.set_xticks(middles, list("ABCD") if names else [""] * GRID, fontsize=9)
    axis.set_yticks(middles, ["first", "second", "third", "fourth"] if names else [""] * GRID, fontsize=9)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.set_title(title, fontsize=9.5, loc="left", fontweight="normal")


def _lines(text: str, width: int = 26) -> str:
    """Cut at ``width`` characters, keeping the lines that are there."""
    import textwrap

    kept = text.replace(" ?", "\u00a0?").split("\n")  # the question mark never stands alone
    return "\n".join(part for line in kept for part in textwrap.wrap(line, width))


def _wrong(judged: Sequence[str]) -> str:
    """Which of "word (right word)" are wrong, as a sentence for the alt text."""
    pairs = [text.replace("(", " ").replace(")", " ").split() for text in judged]
    places = [str(number) for number, (word, right) in enumerate(pairs, 1) if word != right]
    return f" Wrong: scene {' and '.join(places)} from the left." if places else " All are right."


def scenes(images: Sequence, questions: Sequence[str], answers: Sequence[str], judged: bool = False) -> Figure:
    """Scenes in a row, each with its question and answer.

    Args:
        images: n scenes, (1, 32, 32) each.
        questions, answers: n texts.
        judged: the answers are a model's, with the right ones in brackets.
    """
    what = f"a model's answer, with the right one in brackets.{_wrong(answers)}" if judged else "the answer."
    figure, axes = new_figure(
        1,
        len(images),
        height=2.9,
        alt="Scenes of four by four cells. Some cells hold a handwritten digit, the others grey pixels in disorder. "
        f"Above each scene stand a question about it and {what}",
    )
    for number, axis in enumerate(np.atleast_1d(axes)):
        _scene(axis, images[number], f"{_lines(questions[number])}\n→ {answers[number]}", names=number == 0)
    return figure


def heat_maps(
    images: Sequence, maps: Sequence, titles: Sequence[str], what: str, second: Sequence | None = None
) -> Figure:
    """Scenes with a colour over each patch; a second row shows other maps of the same scenes.

    Args:
        images: n scenes.
        maps, second: n times 16 numbers >= 0; each map is scaled to its largest.
        titles: n texts.
        what: what the colour means, with the second row's meaning behind a "/".
    """
    rows = [maps] if second is None else [maps, second]
    meanings = [part.strip() for part in what.split("/")]
    alt = (
        f"Scenes with a colour over each patch: {meanings[0]}. For a question about a place the colour lies on one "
        "patch; for the largest digit on one or two; for a count all patches are coloured, those of noise too."
    )
    if any("(" in title for title in titles):
        alt += f" The right answers stand in brackets.{_wrong([title.split('→')[-1] for title in titles])}"
    if second is not None:
        alt += f" A second row shows the {meanings[1]}: strongest on the same patches, for a count on a few only."
    figure, axes = new_figure(len(rows), len(images), height=2.75 if second is None else 2.45, alt=alt, squeeze=False)
    for row, values in enumerate(rows):
        for number, axis in enumerate(axes[row]):
            _scene(axis, images[number], _lines(titles[number]) if row == 0 else "", names=number == 0)
            heat = np.asarray(values[number], dtype=float).reshape(GRID, GRID)
            extent = (-0.5, SIDE - 0.5, SIDE - 0.5, -0.5)
            axis.imshow(heat / heat.max(), cmap="Oranges", alpha=0.55, vmin=0, vmax=1, extent=extent)
        axes[row][0].set_ylabel(meanings[row], fontsize=10)
    return figure


def accuracy(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Accuracy by kind of question, a bar a model.

    Args:
        table: model -> {kind: accuracy}.
    """
    kinds = list(next(iter(table.values())))
    figure = grouped_bars({kind: {name: found[kind] for name, found in table.items()} for kind in kinds}, "accuracy")
    figure.axes[0].set_ylim(0, 1.25)  # room for the legend
    figure.axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
    return describe(
        figure,
        "Bars of accuracy for all questions and for each kind. The two rules that see no image stay low everywhere, "
        "except for the largest digit, where both are right about every second time. The model is near one where a "
        "place is asked, high for the largest digit, and low for the count.",
    )


def budget(results: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]], kind: str = "all") -> Figure:
    """Accuracy against kept patches for four ways to choose them, with 95 % intervals over seeds.

    Args:
        results: for each seed: way -> kept patches -> {kind: accuracy}.
        kind: which accuracy.
    """
    figure, axis = new_figure(
        height=3.8,
        alt="Accuracy against the number of kept patches, from 1 to 16, with intervals. Learned and oracle relevance "
        "are high from the first patch on and stay there. Random and uniform choice start near a blind guess and rise "
        "slowly; with all 16 patches they are still far below.",
    )
    styles = {"oracle": ("green", "--"), "learned": ("blue", "-"), "random": ("orange", "-"), "uniform": ("grey", "-")}
    for number, (how, (color, line)) in enumerate(styles.items()):
        counts = list(results[0][how])
        found = [mean_interval([one[how][count][kind] for one in results]) for count in counts]
        places = np.array([int(count) for count in counts]) * 1.04 ** (number - 1.5)
        spread = [[max(0, one.value - one.low) for one in found], [max(0, one.high - one.value) for one in found]]
        values = [one.value for one in found]
        axis.errorbar(places, values, spread, color=COLORS[color], linestyle=line, marker="o", capsize=4, label=how)
    axis.set_xscale("log", base=2)
    axis.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axis.minorticks_off()
    axis.set(ylim=(0, 1), xlabel="kept patches of 16 = image tokens", ylabel=f"accuracy, {kind}")
    axis.set_title("Which patches become tokens")
    axis.legend(loc="lower right", fontsize=10.5, ncols=2)
    return figure


def differences(found: Mapping[str, Interval], pairs: Mapping[str, Sequence[float]], base: str, alt: str) -> Figure:
    """Paired differences of accuracy to a base run, with 95 % intervals and a dot for each seed.

    Args:
        found: run -> interval.
        pairs: run -> difference of each seed.
        base: what is subtracted, in words.
        alt: what comes out, in words.
    """
    figure, axis = new_figure(height=1.2 + 0.5 * len(found), alt=alt)
    for place, (name, (mean, low, high)) in enumerate(found.items()):
        color = COLORS["grey"] if low <= 0 <= high else COLORS["green"] if mean > 0 else COLORS["red"]
        axis.plot([low, high], [place, place], color=color, linewidth=4, solid_capstyle="butt")
        axis.plot(mean, place, "o", color=color, markersize=9)
        axis.plot(pairs[name], [place + 0.28] * len(pairs[name]), "o", color="#9A9A9A", markersize=3.5)
    axis.axvline(0, color=COLORS["black"], linewidth=1.2)
    axis.set_yticks(range(len(found)), list(found))
    axis.set_ylim(len(found) - 0.4, -0.6)
    axis.set_xlabel(f"accuracy minus that of {base}, same seed\n(grey: the interval holds 0)", fontsize=11)
    axis.grid(axis="y", visible=False)
    return figure


def weights(found: Mapping[str, Interval], pairs: Mapping[str, Sequence[float]]) -> Figure:
    """Weighted losses against equal weights; see ``differences``."""
    alt = (
        "Differences in accuracy to equal weights, with intervals over seeds. After a third of the steps known "
        "weights gain a great deal; after all steps the intervals hold zero, as do those of weights by frequency."
    )
    return differences(found, pairs, "equal weights", alt)
