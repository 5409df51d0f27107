"""Figures of lesson 02 that draw measured scores: leakage, the pretraining run, what pretraining added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from course_utils.teach.charts import grouped_bars
from course_utils.teach.figure import COLORS, describe, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def leakage(scores: dict[str, dict[str, Sequence[float]]]) -> Figure:
    """Test accuracy of each model under both splits, a bar for the mean and a dot for each draw of the splits.

    Args:
        scores: model -> split -> accuracy of each draw.
    """
    means = {
        model: {split: float(np.mean(found)) for split, found in by_split.items()} for model, by_split in scores.items()
    }
    figure = describe(
        grouped_bars(means, "test accuracy"),
        "Test accuracy of two models under both splits, a dot for each draw. The split by row reports clearly more for "
        "both models and in every draw, most for the nearest neighbour.",
    )
    axis = figure.axes[0]
    for bars, split in zip(axis.containers, next(iter(means.values())), strict=True):
        for bar, by_split in zip(bars, scores.values(), strict=True):
            middle = bar.get_x() + bar.get_width() / 2
            spots = [middle + 0.06 * (n - (len(by_split[split]) - 1) / 2) for n in range(len(by_split[split]))]
            axis.plot(spots, by_split[split], "o", color=COLORS["black"], markersize=4)
    for text in axis.texts:
        text.set_position((0, 9))
    return figure


def masked_loss(losses: Sequence[float], guessing: float, frequencies: float, smooth: int = 25) -> Figure:
    """Loss of the pretraining run against the step, its running mean, what guesses cost, uniform and by frequency."""
    figure, axis = new_figure(
        height=3.1,
        alt="The loss starts at the line of a uniform guess, falls steeply to the lower line, that of knowing only the "
        "words' frequencies, stays there a while, then falls ever more slowly and ends clearly below, far above zero.",
    )
    axis.plot(losses, color=COLORS["sky"], alpha=0.4, linewidth=0.8)
    mean = np.convolve(losses, np.ones(smooth) / smooth, mode="valid") if len(losses) >= smooth else losses
    axis.plot(range(len(losses) - len(mean), len(losses)), mean, color=COLORS["blue"], label=f"mean of {smooth} steps")
    axis.axhline(guessing, color=COLORS["black"], linestyle=":", label="uniform guess over the vocabulary")
    axis.axhline(frequencies, color=COLORS["red"], linestyle="--", label="guess by frequency")
    axis.set(xlabel="optimizer step", ylabel="loss (nats)", title="Guessing hidden words", ylim=(0, None))
    axis.legend(loc="lower left")
    return figure


def paired_gains(gains: dict[str, tuple[Sequence[float], float, float]]) -> Figure:
    """What pretraining added, setting by setting: a dot for each seed, the mean with its interval.

    Args:
        gains: setting -> (gain of each seed, mean, half-width of the interval), as shares of the test rows.
    """
    figure, axis = new_figure(
        height=2.7,
        alt="Gain in accuracy with an interval for each setting, a dot for each seed. The linear probe lies far right "
        "of zero; both fine-tuning settings lie at zero, their intervals on both sides of it.",
    )
    for place, (values, mean, half) in enumerate(gains.values()):
        axis.errorbar(100 * mean, place, xerr=100 * half, fmt="s", color=COLORS["blue"], capsize=5, markersize=8)
        axis.plot(100 * np.asarray(values), [place + 0.22] * len(values), "o", color=COLORS["black"], markersize=5)
    axis.axvline(0, color=COLORS["red"], linestyle="--")
    axis.set_yticks(range(len(gains)), list(gains))
    axis.set(ylim=(len(gains) - 0.4, -0.5), xlabel="accuracy, pretrained minus random start (points)")
    axis.set_title("Pretraining helps the probe; dots are seeds")
    axis.grid(axis="y", visible=False)
    return figure
