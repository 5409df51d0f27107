"""Drawings of lesson 08: what flows between ranks, the difference of two programs, wrapped objects, dealt rows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.drawing import canvas
from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RANK_COLORS = (COLORS["sky"], COLORS["orange"])
PALE = {"blue": "#E3EFF7", "orange": "#FBEBC8", "green": "#DDF1EA", "red": "#F8DDCC", "grey": "#F1F1F1"}


def _box(axis: Axes, x: float, y: float, w: float, h: float, text: str, color: str, size: float = 10.5) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=1", facecolor=color, edgecolor="#6B6B6B")
    axis.add_patch(shape)
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "#444444") -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 1.6})


def flow() -> Figure:
    """One step of data parallel training on two ranks, with shapes."""
    alt = (
        "Two rows of boxes, one a rank. Each rank takes 16 rows of its own, runs its copy of the model forward and "
        "backward and has a gradient. The two gradients are averaged; both ranks take the same optimizer step."
    )
    figure, axis = canvas(3.3, alt, 100, 38)
    for rank, y in ((0, 22), (1, 4)):
        color = (PALE["blue"], PALE["orange"])[rank]
        axis.text(0, y + 5, f"rank {rank}", fontsize=12, fontweight="bold", va="center")
        _box(axis, 9, y, 14, 10, "its rows\n(16, T)", color)
        _box(axis, 28, y, 16, 10, "copy of\nthe model\n(P weights)", color)
        _box(axis, 49, y, 13, 10, "gradient\n(P,)", color)
        _box(axis, 84, y, 15, 10, "same step,\nsame weights\n(P,)", color)
        for a, b in ((23, 28), (44, 49)):
            _arrow(axis, (a, y + 5), (b, y + 5))
        _arrow(axis, (62, y + 5), (67, 20 if rank == 0 else 16))
        _arrow(axis, (79, 20 if rank == 0 else 16), (84, y + 5))
    _box(axis, 67, 13, 12, 10, "average\n(P,)", PALE["green"])
    axis.text(73, 8, "all-reduce", ha="center", fontsize=10, color="#444444")
    axis.text(46.5, 35, "forward, backward", ha="center", fontsize=10, color="#444444")
    axis.text(16, 35, "prepare deals", ha="center", fontsize=10, color="#444444")
    return figure


def difference(old: Callable, new: Callable, context: int = 1) -> Figure:
    """Two functions as a diff: lines that go, lines that come, ``context`` equal lines around them.

    Docstrings are left out. Comments ``# NEW`` are not shown: the colour says it.
    """
    lines = _difference_lines(_source(old), _source(new), context)
    gone, added = (sum(mark == sign for mark, _ in lines) for sign in "-+")
    alt = (
        f"The difference between {old.__name__} and its version for several processes: a few lines change, each of "
        "them a call of the accelerator or a prepared object; everything else is equal."
    )
    figure, axis = canvas(0.45 + 0.2 * len(lines), alt, 100, len(lines))
    for place, (mark, text) in enumerate(lines):
        y = len(lines) - place - 0.5
        color = {"-": PALE["red"], "+": PALE["green"]}.get(mark)
        if color:
            axis.axhspan(y - 0.5, y + 0.5, color=color, linewidth=0)
        shade = "#8A8A8A" if mark == "…" else "#111111"
        for x, part, hue in ((0.5, mark, "#444444"), (2.5, text, shade)):
            written = axis.text(x, y, part, family="monospace", fontsize=8.4, va="center", color=hue)
            written.set_in_layout(False)  # a long line must not make the axis, and its colours, narrower
    axis.set_title(f"{gone} lines go, {added} come", fontsize=12)
    return figure


def _source(function: Callable) -> list[str]:
    source = inspect.getsource(function)
    documented = inspect.getdoc(function)
    lines = source.splitlines()
    if documented:
        marks = [number for number, line in enumerate(lines) if '"""' in line]
        lines = lines[: marks[0]] + lines[marks[-1] + 1 :]
    return [line for line in lines if line.strip()]


def _difference_lines(old: list[str], new: list[str], context: int) -> list[tuple[str, str]]:
    bare = [line.partition("  # NEW")[0] for line in new]
    steps = difflib.SequenceMatcher(None, old, bare, autojunk=False).get_opcodes()
    found: list[tuple[str, str]] = []
    for number, (tag, a, b, c, d) in enumerate(steps):
        if tag != "equal":
            found += [("-", line) for line in old[a:b]] + [("+", line) for line in bare[c:d]]
            continue
        head = context if number else 0
        tail = context if number < len(steps) - 1 else 0
        if b - a <= head + tail + 1:
            found += [(" ", line) for line in old[a:b]]
        else:
            found += [(" ", line) for line in old[a : a + head]]
            found += [("…", f"({b - a - head - tail} equal lines)")]
            found += [(" ", line) for line in old[b - tail : b]]
    return found


def wrapped(types: Sequence[Sequence[str]]) -> Figure:
    """What ``prepare`` put around each object.

    Args:
        types: ``[type before, type after]`` of model, optimizer, scheduler, loader and something it does not know.
    """
    alt = (
        "Five boxes. Around the model is DistributedDataParallel, around the optimizer AcceleratedOptimizer, around "
        "the scheduler AcceleratedScheduler, around the data loader DataLoaderShard; around the list is nothing."
    )
    figure, axis = canvas(3.0, alt, 100, 30)
    does = (
        "averages gradients\nin backward",
        "skips steps inside\na window",
        "skips, and steps once\nper rank",
        "this rank's batches,\non its device",
        "unchanged:\nevery rank gets all",
    )
    for place, ((before, after), text) in enumerate(zip(types, does, strict=True)):
        x = 20 * place + 0.7
        known = before != after
        if known:
            _box(axis, x, 9, 18.6, 18, "", PALE["green"])
            axis.text(x + 9.3, 24.6, _short(after), ha="center", va="center", fontsize=9, fontweight="bold")
        _box(axis, x + 1.8, 11, 15, 10.5, _short(before), "white" if known else PALE["red"], 9)
        axis.text(x + 9.3, 4.5, text, ha="center", va="center", fontsize=9.2)
    return figure


def _short(name: str) -> str:
    """A long class name in two or three lines."""
    parts, line = [""], ""
    for word in _words(name):
        if len(line + word) > 14 and line:
            parts.append("")
            line = ""
        line += word
        parts[-1] = line
    return "\n".join(parts)


def _words(name: str) -> list[str]:
    words = [""]
    for letter in name:
        if letter.isupper() and words[-1] and not words[-1][-1].isupper():
            words.append("")
        words[-1] += letter
    return words


def who_gets_what(dealt: Mapping[str, Sequence[Sequence[Sequence[int]]]], count: int) -> Figure:
    """Which rank gets which rows at which step; rows that are dealt a second time are marked.

    Args:
        dealt: setting -> for each rank its batches of row numbers.
        count: rows of the data set.
    """
    alt = (
        f"{count} rows dealt to two ranks in three ways. By default the ranks take whole batches in turn and the end "
        "is filled with a row from the beginning. With split_batches each batch is cut in two. With even_batches off "
        "nothing is repeated and the last batch of one rank is short."
    )
    figure, axes = new_figure(1, len(dealt), height=2.5, alt=alt, squeeze=False)
    for axis, (setting, ranks) in zip(axes.flat, dealt.items(), strict=True):
        seen: set[int] = set()
        for step in range(max(map(len, ranks))):
            for rank, batches in enumerate(ranks):
                for place, row in enumerate(batches[step] if step < len(batches) else ()):
                    again = row in seen
                    seen.add(row)
                    x, y = step * 2.5 + place, 1 - rank
                    _cell(axis, x, y, str(row), RANK_COLORS[rank], again)
        steps = max(map(len, ranks))
        axis.set(xlim=(-0.15, 7.4), ylim=(-0.45, 2.05), title=setting)
        axis.set_xticks([2.5 * step + 0.9 for step in range(steps)], [f"{step + 1}" for step in range(steps)])
        axis.set_yticks([0.42, 1.42], ["rank 1", "rank 0"])
        axis.set_xlabel("step", fontsize=10)
        axis.set_title(setting, fontsize=10.5)
        axis.tick_params(labelsize=10, length=0)
        axis.grid(visible=False)
        axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def _cell(axis: Axes, x: float, y: float, text: str, color: str, again: bool) -> None:
    from matplotlib.patches import Rectangle

    edge = COLORS["red"] if again else "white"
    axis.add_patch(Rectangle((x, y), 0.92, 0.84, facecolor=color, edgecolor=edge, linewidth=3 if again else 1))
    axis.text(x + 0.46, y + 0.42, text, ha="center", va="center", fontsize=11, fontweight="bold" if again else None)


def gathered(order: Sequence[int], count: int, batch_size: int, ranks: int = 2) -> Figure:
    """The rows that ``gather`` returns, in their order; ``gather_for_metrics`` drops those marked.

    Args:
        order: row numbers as gathered.
        count: rows of the data set.
        batch_size: of one rank.
    """
    alt = (
        "Rows in the order in which gather returns them, coloured by rank: batch after batch in the data set's order, "
        "and at the end rows 0, 1, 2 ... a second time, marked. gather_for_metrics cuts these off."
    )
    figure, axis = new_figure(height=1.75, alt=alt)
    for place, row in enumerate(order):
        rank = place // batch_size % ranks
        _cell(axis, place, 0, str(row), RANK_COLORS[rank], place >= count)
    axis.axvline(count - 0.04, ymin=0.05, ymax=0.9, color=COLORS["red"], linewidth=2)
    axis.text(count + 0.1, 1.05, "repeated", fontsize=11, color=COLORS["red"])
    for rank in range(ranks):
        axis.text(rank * batch_size, 1.05, f"rank {rank}", fontsize=11)
    axis.text(2 * ranks * batch_size - 6, 1.05, "...", fontsize=11)
    axis.set(xlim=(-0.2, len(order) + 0.1), ylim=(-0.1, 1.5))
    axis.set_axis_off()
    return figure
