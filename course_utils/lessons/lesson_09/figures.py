"""Figures of lesson 09 from measured values: the ladder, a trace, memory, gradients in fp16, stalls, the trade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course_utils.lessons.lesson_09.diagrams import formats, queue, step
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from course_utils.lessons.lesson_09.experiments import Division, Kept, ScalerRun
    from course_utils.training.profile import Trace

__all__ = [
    "counted",
    "copies",
    "formats",
    "ladder",
    "memory",
    "operators",
    "queue",
    "recompiles",
    "scaler",
    "stall",
    "step",
    "timeline",
    "trade",
    "underflow",
]
MIB = 2**20


def ladder(report: Mapping[str, Any]) -> Figure:
    """``bench/results/ladder.json``: each rung's speed against the naive step, with its interval.

    A rung whose interval against the rung below it includes 1 is grey: no gain that the rounds can tell.
    """
    ran = [row for row in report["rungs"] if "ratio" in row]
    naive = ran[0]["useful_per_second"]
    others = [{"ratio": row["useful_per_second"] / naive, "low": None} | row for row in report["trl"]]
    figure, axis = new_figure(
        height=0.9 + 0.33 * (len(ran) + len(others)),
        alt="Bars of useful tokens a second against the naive step, one for each rung from top to bottom. "
        "Padding less, by grouping and packing, gains much, and 16-bit products more. Grey rungs have no clear gain "
        "over the rung above them on this machine. Below stand two orange bars for TRL, shorter than the best rung.",
    )
    for place, row in enumerate([*ran, *others]):
        against = row.get("against_the_rung_below")
        gains = against is not None and against["low"] > 1
        color = COLORS["orange"] if row in others else COLORS["blue"] if gains or place == 0 else "#BDBDBD"
        axis.barh(-place, row["ratio"], height=0.68, color=color)
        if row["low"] is not None:
            axis.plot([row["low"], row["high"]], [-place, -place], color="#222222", linewidth=2)
        ink = "white" if color == COLORS["blue"] else "black"
        axis.text(0.08, -place, f"{row['ratio']:.2f}", va="center", fontsize=10.5, color=ink)
    names = [row["name"] if not place else f"+ {row['name']}" for place, row in enumerate(ran)]
    names += [row["name"].replace("packing_strategy=", "").replace("'", "") for row in others]
    axis.set_yticks([-place for place in range(len(names))], names, fontsize=10.5)
    axis.set(xlabel="useful tokens per second / the naive step's", xlim=(0, 1.13 * max(r["high"] for r in ran)))
    axis.grid(visible=False, axis="y")
    axis.set_title("The ladder; grey: no gain that these rounds can tell, orange: TRL", fontsize=12)
    return figure


def counted(rates: Mapping[str, tuple[float, float]]) -> Figure:
    """Tokens per second of each rung, all positions and useful ones.

    Args:
        rates: rung -> (positions a second, useful tokens a second).
    """
    figure, axis = new_figure(
        height=2.9,
        alt="For each rung two bars: positions per second and useful tokens per second. Positions per second are "
        "similar for all rungs; useful tokens per second rise from padding to the maximum to packing.",
    )
    places = np.arange(len(rates))
    positions, useful = zip(*rates.values(), strict=True)
    axis.bar(places - 0.2, positions, 0.38, color="#C9C9C9", label="all positions, padding included")
    axis.bar(places + 0.2, useful, 0.38, color=COLORS["blue"], label="useful tokens")
    axis.set_xticks(places, list(rates), fontsize=10.5)
    axis.set(ylabel="per CPU second", title="Padding is fast too")
    axis.set_ylim(0, max(positions) * 1.35)
    axis.legend(loc="upper center", ncols=2, fontsize=10.5)
    axis.grid(visible=False, axis="x")
    return figure


def operators(trace: Trace, most: int = 9) -> Figure:
    """The operators that take most time themselves, as shares of all operators' time."""
    figure, axis = new_figure(
        height=3.1,
        alt="Bars of the operators that take most time, as a share of all operators' time. Matrix products, mm "
        "and bmm, come first; operators that only read and write many numbers follow.",
    )
    own = [one for one in trace.operators if one.name.startswith("aten::")]
    total = sum(one.seconds for one in trace.operators)
    top = own[:most]
    for place, one in enumerate(top):
        product = any(word in one.name for word in ("mm", "attention", "bmm"))
        axis.barh(-place, one.seconds / total, color=COLORS["blue" if product else "orange"], height=0.7)
        axis.text(one.seconds / total + 0.005, -place, f"called {one.calls}x", va="center", fontsize=9.5)
    axis.set_yticks([-place for place in range(len(top))], [one.name.removeprefix("aten::") for one in top])
    axis.set(xlabel="share of all operators' own time", title="Top operators (blue: matrix products)")
    axis.set_xlim(0, 1.18 * top[0].seconds / total)
    axis.grid(visible=False, axis="y")
    return figure


def timeline(trace: Trace) -> Figure:
    """One step over time: the marked parts, the operators in them, and where no operator ran."""
    from course_utils.training.profile import gaps

    figure, axis = new_figure(
        height=2.7,
        alt="A timeline of one step. The first row shows forward, backward, clip and optimizer one after the other, "
        "backward the longest. The second row shows the operators that take 0.1 ms or more, the third the gaps in "
        "which no operator runs.",
    )
    colors = {"forward": "sky", "backward": "blue", "clip": "purple", "optimizer": "green"}
    spans = [one for one in trace.spans() if one.name in colors]
    first, last = min(s.start for s in spans), max(s.end for s in spans)
    for span in spans:
        axis.barh(2, 1e3 * span.seconds, left=1e3 * (span.start - first), color=COLORS[colors[span.name]], height=0.7)
        if span.seconds > 0.12 * (last - first):
            middle = 1e3 * (span.start - first + span.seconds / 2)
            axis.text(middle, 2, span.name, ha="center", va="center", fontsize=11)
    work = [e for e in trace.events if e.kind == "operator" and e.start >= first and e.seconds > 1e-4]
    for event in work:
        product = any(word in event.name for word in ("mm", "attention"))
        if event.name.startswith("aten::"):
            color = COLORS["blue" if product else "orange"]
            axis.barh(1, 1e3 * event.seconds, left=1e3 * (event.start - first), color=color, height=0.7)
    for start, end in gaps(trace.events, first, last):
        axis.barh(0, 1e3 * (end - start), left=1e3 * (start - first), color=COLORS["red"], height=0.7)
    axis.set_yticks([2, 1, 0], ["part", "operators", "gaps"])
    axis.set(xlabel="ms; purple: clip, green: optimizer", xlim=(0, 1e3 * (last - first)))
    axis.set_title("One step (operators from 0.1 ms on; blue: matrix products)")
    axis.grid(visible=False)
    return figure


def underflow(gradients: Tensor, scale: float = 2.0**16) -> Figure:
    """Histogram of the gradient's size, as it is and times ``scale``, against what fp16 can hold.

    Args:
        gradients: (number,), none of them 0.
    """
    figure, axis = new_figure(
        height=3.3,
        alt="Two histograms over the size of gradients on a logarithmic axis. Unscaled, nearly two thirds of them "
        "are so small that they are 0 in fp16. Multiplied by the scale, the same shape lies well inside fp16's range.",
    )
    sizes = gradients.abs().double().log10().numpy()
    smallest, normal, largest = np.log10(2.0**-25), np.log10(2.0**-14), np.log10(65504)
    bins = np.linspace(-13, 5.5, 120)
    axis.axvspan(-13, smallest, color="#F8DFCF")
    axis.hist(sizes, bins, color=COLORS["red"], alpha=0.75, label="gradients as they are")
    axis.hist(sizes + np.log10(scale), bins, color=COLORS["green"], alpha=0.75, label="times the scale, $2^{16}$")
    top = axis.get_ylim()[1]
    axis.axvline(normal, color=COLORS["grey"], linestyle="--", linewidth=1.6, ymax=0.8)
    axis.axvline(largest, color=COLORS["black"], linewidth=1.6, ymax=0.8)
    axis.text(-12.8, top * 1.05, "0 in fp16", color=COLORS["red"], fontsize=11)
    axis.text(normal - 0.1, top * 1.05, "fewer digits", color="#666666", fontsize=11, ha="right")
    axis.text(largest - 0.1, top * 1.05, "full precision", fontsize=11, ha="right")
    axis.text(largest + 0.1, top * 1.05, "inf", fontsize=11)
    axis.set(xlim=(-13, 5.9), ylim=(0, top * 1.45), yticks=[])
    axis.set_xticks([-12, -9, -6, -3, 0, 3], ["1e-12", "1e-9", "1e-6", "1e-3", "1", "1000"])
    axis.set(xlabel="size of a logit's gradient", ylabel="how many")
    axis.legend(loc="upper left", fontsize=10.5, ncols=2)
    return figure


def scaler(runs: Mapping[str, ScalerRun]) -> Figure:
    """The scaler's factor after each step, by hand and torch's; skipped steps are marked."""
    figure, axis = new_figure(
        height=2.9,
        alt="The loss scale after each step, logarithmic. It starts too high, is halved at each of the first steps, "
        "all of which are skipped, then doubles after every few good steps until it overflows again. Both lines agree.",
    )
    for (name, run), style, width in zip(runs.items(), ("-", ":"), (5, 2.4), strict=True):
        color = COLORS["sky"] if style == "-" else COLORS["black"]
        axis.step(range(len(run.factors)), run.factors, style, where="mid", label=name, color=color, linewidth=width)
    run = next(iter(runs.values()))
    places = [number for number, skipped in enumerate(run.skipped) if skipped]
    axis.plot(places, [run.factors[n] for n in places], "x", color=COLORS["red"], markersize=8, mew=2, label="skipped")
    axis.set_yscale("log", base=2)
    axis.set(xlabel="step", ylabel="scale after the step", title="Halve on overflow, double after good steps")
    axis.legend(fontsize=10.5, loc="upper right")
    return figure


def stall(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Loss curves of each way to keep weights; a line a seed.

    Args:
        curves: way -> for each seed the loss of each step.
    """
    figure, axis = new_figure(
        height=3.2,
        alt="Loss against the step for four ways to keep weights, three seeds each. With bf16 weights the loss hardly "
        "falls. With fp32 weights, with an fp32 master copy, and with stochastic rounding it falls to nearly nothing, "
        "along the same curve.",
    )
    colors = ("black", "red", "blue", "orange")
    widths, styles = (5.0, 2.0, 2.0, 1.6), ("-", "-", "--", ":")
    for (name, runs), color, width, style in zip(curves.items(), colors, widths, styles, strict=True):
        for number, losses in enumerate(runs):
            smooth = np.convolve(losses, np.ones(16) / 16, mode="valid")
            alpha = 0.25 if width > 4 else 0.9
            label = name if number == 0 else None
            axis.plot(smooth, color=COLORS[color], linewidth=width, linestyle=style, alpha=alpha, label=label)
    axis.set(xlabel="step", ylabel="loss, mean of 16 steps", ylim=(0, None))
    axis.legend(fontsize=10.5, loc="center right")
    return figure


def recompiles(graphs: Mapping[str, Sequence[int]]) -> Figure:
    """Graphs compiled so far against the number of different shapes seen."""
    figure, axis = new_figure(
        height=2.8,
        alt="Compiled graphs against the number of shapes seen. With dynamic=False every new shape compiles until the "
        "limit is reached. By default the second shape compiles once more, then never. With dynamic=True there is one.",
    )
    for (name, counts), color in zip(graphs.items(), ("red", "blue", "green"), strict=True):
        axis.plot(range(1, len(counts) + 1), counts, "o-", color=COLORS[color], markersize=5)
        text = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "color": COLORS[color]}
        axis.annotate(name, (len(counts), counts[-1]), **text)
    counts = next(iter(graphs.values()))
    axis.set(xlabel="batches, each of another length", ylabel="graphs compiled", xlim=(0.5, 1.3 * len(counts)))
    axis.set_xticks(range(1, len(counts) + 1))
    axis.set_ylim(0, None)
    return figure


def memory(found: Mapping[str, Kept]) -> Figure:
    """Bytes kept for the backward pass: predicted (outline) and measured (filled), the logits' part apart."""
    figure, axis = new_figure(
        height=2.7,
        alt="Bars of memory kept for the backward pass, measured and predicted, with the logits' part. bf16 saves a "
        "little, checkpointing most of the layers' part; the logits' part is the same in all and at last the largest. "
        "Predictions end where the measured bars end, or slightly before.",
    )
    for place, one in enumerate(found.values()):
        axis.barh(-place, one.logits / MIB, color=COLORS["orange"], height=0.55)
        rest = (one.measured - one.logits) / MIB
        axis.barh(-place, rest, left=one.logits / MIB, color=COLORS["blue"], height=0.55)
        mark = one.predicted / MIB
        axis.plot([mark, mark], [-place - 0.4, -place + 0.4], color=COLORS["black"], linewidth=2.4)
    axis.plot([], [], color=COLORS["black"], linewidth=2.4, label="predicted")
    axis.bar(0, 0, color=COLORS["orange"], label="logits")
    axis.bar(0, 0, color=COLORS["blue"], label="layers")
    axis.set_yticks([-place for place in range(len(found))], list(found))
    axis.set(xlabel="MiB kept for the backward pass", ylim=(-len(found) + 0.4, 1.25))
    axis.legend(loc="upper right", ncols=3, fontsize=10.5)
    axis.grid(visible=False, axis="y")
    return figure


def trade(divisions: Sequence[Division]) -> Figure:
    """A step of fixed rows by the size of its micro-batches: time and memory."""
    figure, axes = new_figure(
        *(1, 2),
        height=2.9,
        alt="Two panels against the rows of a micro-batch. Left, time of the step: highest for one row, lowest at a "
        "medium size or at the largest. Right, memory kept: it doubles with the rows.",
    )
    sizes = [one.micro_batch for one in divisions]
    best = min(one.seconds for one in divisions)
    axes[0].plot(sizes, [one.seconds / best for one in divisions], "o-", color=COLORS["blue"])
    axes[0].set(ylabel="CPU time / fastest", ylim=(0, None), title="Time of the step, median of 3")
    axes[1].plot(sizes, [one.bytes / MIB for one in divisions], "o-", color=COLORS["orange"])
    axes[1].set(ylabel="MiB kept", ylim=(0, None), title="Memory")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        limits = {"xlim": (min(sizes) / 1.2, max(sizes) * 1.2), "ylim": (0, 1.05 * axis.get_ylim()[1])}
        axis.set(xlabel="rows of a micro-batch", **limits)
    return figure


def copies(growth: Mapping[str, Sequence[float]]) -> Figure:
    """Private memory of a loader worker while it reads a data set."""
    figure, axis = new_figure(
        height=2.7,
        alt="Memory that a worker has for itself against the share of the data set read. For lists of Python strings "
        "it rises in a straight line; for a tensor it rises far less.",
    )
    for (name, values), color in zip(growth.items(), ("red", "green"), strict=True):
        share = np.linspace(0, 1, len(values), endpoint=False)
        axis.plot(share, values, "o-", color=COLORS[color], label=name)
    axis.set(xlabel="share of the data set read", ylabel="MiB of its own", ylim=(-1, None))
    axis.legend(fontsize=10.5)
    return figure
