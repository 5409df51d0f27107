"""Figures of lesson 07: clouds, pooling, rate and distortion, the coder's tables, the operator.

Drawings without data are in ``diagrams``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

import numpy as np

from course_utils.lessons.lesson_07.diagrams import architecture, contract, two_optimizers
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from course_utils.models.codec import Codec
    from course_utils.models.soft_threshold import Denoiser

__all__ = ["architecture", "contract", "two_optimizers"]
STUDENT_3 = 4.303 / 3**0.5  # half a 95 % interval of a mean of three, in standard deviations


def clouds(rows: Sequence[Mapping], predicted: Sequence[int], kept: Sequence | None = None) -> Figure:
    """Up to ten clouds with what the model says; ``kept``: indices of the points to draw large, the others are pale.

    Args:
        rows: each with ``points`` (N, 3), x, y and ink, and ``label``.
        predicted: one label a row.
    """
    points, labels = [row["points"] for row in rows], [int(row["label"]) for row in rows]
    predicted = [int(label) for label in predicted]
    alt = "Ten point clouds that look like handwritten digits. Above each stands the digit that the model sees, "
    alt += "all of them right." if labels == predicted else "in red with the true one where it is wrong."
    if kept is None:
        alt += " Darker points have more ink."
    else:
        alt += " Large points are those that gave a maximum: the small pale ones play no part in the result."
    columns = (len(points) + 1) // 2
    figure, axes = new_figure(2, columns, height=1.95, alt=alt)
    for i, (axis, cloud) in enumerate(zip(np.ravel(axes), points, strict=False)):
        cloud = np.asarray(cloud)
        axis.set_axis_off()
        axis.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")
        if kept is None:
            axis.scatter(cloud[:, 0], cloud[:, 1], c=cloud[:, 2], cmap="Blues", vmin=-0.4, vmax=1, s=16)
        else:
            axis.scatter(cloud[:, 0], cloud[:, 1], color="#C9C9C9", s=9)
            axis.scatter(cloud[kept[i], 0], cloud[kept[i], 1], color=COLORS["blue"], s=20)
        right = labels[i] == predicted[i]
        text = f"{predicted[i]}" if right else f"{predicted[i]}, is {labels[i]}"
        axis.set_title(text, loc="center", color=COLORS["green"] if right else COLORS["red"])
    return figure


def pooling(scores: Mapping[str, Sequence[float]]) -> Figure:
    """Accuracy of three runs of each way to join the points: dots, their mean and its 95 % interval."""
    figure, axis = new_figure(
        height=2.5,
        alt="Accuracy of the maximum and of the mean over the points, three runs each. All runs with the maximum lie "
        "far right of all runs with the mean, and the intervals do not overlap.",
    )
    for row, ((_, values), color) in enumerate(zip(scores.items(), ("blue", "orange"), strict=False)):
        half = STUDENT_3 * stdev(values)
        axis.errorbar(mean(values), row, xerr=half, fmt="|", color=COLORS[color], capsize=6, markersize=18)
        places = row + np.linspace(-0.15, 0.15, len(values))  # beside each other: equal runs stay visible
        axis.plot(values, places, "o", color=COLORS[color], alpha=0.6)
    axis.set_yticks(range(len(scores)), list(scores))
    axis.set(xlabel="validation accuracy", ylim=(len(scores) - 0.4, -0.6), xlim=(0.6, 1))
    axis.set_title("What joins the points? Dots: runs; bar: 95 % interval of the mean")
    return figure


def rate_distortion(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Quality (PSNR, dB) against bits per pixel; ``curves``: method -> ``(bits, dB)`` points, the codec first."""
    figure, axis = new_figure(
        height=3.8,
        alt="Quality against bits per pixel. All three curves rise. At few bits the learned codec lies clearly above "
        "grey levels and cosine waves; with more bits the curve of grey levels comes up to it.",
    )
    styles = (("blue", "o-"), ("orange", "s--"), ("grey", "^:"))
    for (name, points), (color, style) in zip(curves.items(), styles, strict=False):
        ordered = sorted(points)
        axis.plot([b for b, _ in ordered], [q for _, q in ordered], style, color=COLORS[color], label=name)
    axis.set(xlabel="bits per pixel (test images)", ylabel="PSNR (dB), higher is better", title="Rate and distortion")
    axis.legend(loc="lower right")
    return figure


def before_after(original: Tensor, decoded: Mapping[str, Tensor]) -> Figure:
    """Rows of images: the originals (N, 8, 8), then what each codec makes of them; it may have decoded more."""
    rows = {"original": original, **{name: images[: len(original)] for name, images in decoded.items()}}
    figure, axes = new_figure(
        len(rows),
        len(original),
        height=0.95,
        alt="Rows of small digits: the originals, then what is decoded from fewer and from more bits per pixel. "
        "With the most bits they look like the originals; with the fewest, strokes are blurred and some digits cannot "
        "be read.",
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            _image(axis, image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    return figure


def _image(axis: Axes, image: Sequence, limit: float = 1.0) -> None:
    axis.imshow(np.asarray(image), cmap="Greys", vmin=0, vmax=limit)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def coder_tables(codecs: Mapping[str, Codec], images: Tensor) -> Figure:
    """How often each symbol of ``images`` occurs, and which of them the coder's tables have, all channels together.

    Args:
        codecs: what it is called -> a codec in evaluation mode.
    """
    figure, axes = new_figure(
        1,
        len(codecs),
        height=3.2,
        sharey=True,
        alt="Two histograms of symbols, by their distance from the edge of the coder's table, which is shaded. "
        "With one optimizer many "
        "symbols lie outside of the table, in red; with two optimizers all are inside, far from the edge.",
    )
    for axis, (name, codec) in zip(np.ravel(axes), codecs.items(), strict=True):
        symbols = codec.symbols(images).transpose(0, 1).flatten(1)
        beyond = []
        for values, (low, probabilities) in zip(symbols, codec.bottleneck.tables(), strict=True):
            beyond.append(np.maximum(low - values.numpy(), values.numpy() - (low + len(probabilities) - 1)))
        found, counts = np.unique(np.concatenate(beyond), return_counts=True)
        colors = [COLORS["red"] if distance > 0 else COLORS["blue"] for distance in found]
        axis.bar(found, 100 * counts / counts.sum(), color=colors, width=0.85)
        shade = axis.axvspan(-30, 0.5, color="#E4EFF6", zorder=0, label="the coder's table")
        axis.set(xlabel="steps beyond the table's edge", title=name, xlim=(-14, 6), xticks=range(-12, 7, 3))
    np.ravel(axes)[0].set_ylabel("symbols (%)")
    np.ravel(axes)[0].legend(handles=[shade], loc="upper left")
    return figure


def operator(x: Sequence[float], out: Sequence[float], by_x: Sequence[float], by_threshold: Sequence[float]) -> Figure:
    """The soft threshold, its derivative by x and by the threshold, against x."""
    figure, axes = new_figure(
        1,
        3,
        height=2.7,
        alt="Three curves against x. The soft threshold is flat at zero in the middle and rises outside. Its slope "
        "by x is zero in the middle and one outside. Its slope by the threshold is plus one on the left, zero in the "
        "middle and minus one on the right.",
    )
    titles = ("S(x, 1)", "by x", "by the threshold")
    for axis, values, title, color in zip(
        axes, (out, by_x, by_threshold), titles, ("blue", "green", "red"), strict=True
    ):
        axis.plot(x, values, color=COLORS[color])
        axis.set(xlabel="x", title=title)
    return figure


def denoised(images: Tensor, noisy: Tensor, model: Denoiser, count: int = 6) -> Figure:
    """The first ``count`` images clean, noisy (N, 8, 8) and denoised, and the threshold of each frequency."""
    clean, before = images[:count], noisy[:count]
    result, thresholds = model(before)["logits"].detach(), model.threshold.detach().clamp_min(0)
    figure, _ = new_figure(
        height=3.1,
        alt="Rows of digits: clean, with noise, and after the learned thresholds, which remove part of the grain "
        "and blur the strokes. On the right a map of the 64 thresholds: small for slow waves, large for fast ones.",
    )
    figure.clear()
    grid = figure.add_gridspec(3, count + 4)
    for row, (name, images) in enumerate((("clean", clean), ("noisy", before), ("denoised", result))):
        for column, image in enumerate(images):
            axis = figure.add_subplot(grid[row, column])
            _image(axis, image)
            if column == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    axis = figure.add_subplot(grid[:, count + 1 :])
    shown = axis.imshow(np.asarray(thresholds), cmap="Oranges")
    axis.grid(False)
    axis.set(xlabel="waves across", ylabel="waves down", xticks=range(0, 8, 2), yticks=range(0, 8, 2))
    axis.set_title("thresholds", fontsize=11)
    figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure
