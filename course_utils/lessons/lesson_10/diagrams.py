"""The diagrams of lesson 10: phases, tokens with labels, an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.teach.figure import COLORS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#D6E8F5", "orange": "#FBE9C6", "green": "#CFEBE1", "red": "#F8DCCB", "grey": "#ECECEC"}


def _box(axis: Axes, x: float, y: float, width: float, height: float, text: str, color: str, size: float = 11) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0.02,rounding_size=0.08"
    edge = COLORS[color] if color != "grey" else "#777777"
    axis.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=PALE[color], edgecolor=edge))
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6})


def _empty(axis: Axes, width: float, height: float) -> None:
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")


def phases() -> Figure:
    """The seven phases of a fine-tuning run, with what goes from one to the next."""
    figure, axis = new_figure(
        height=4.0,
        alt="Seven boxes in a row of four and a row of three, joined by arrows: launch, settings, data, "
        "model, trainer, "
        "train, and after training. Under each stands what it hands on, from a command line to scored answers.",
    )
    _empty(axis, 12.4, 6)
    steps = [
        ("1 launch", "torchrun, accelerate:\nwho are the ranks", "grey"),
        ("2 settings", "flags or YAML ->\ntyped objects", "grey"),
        ("3 data", "rank 0 writes once:\ntrain.jsonl, DONE.json", "orange"),
        ("4 model", "base, dtype,\nLoRA or full", "blue"),
        ("5 Trainer", "collator, callbacks,\nsave the best", "blue"),
        ("6 train", "loss on answers,\ncheckpoints", "blue"),
        ("7 after", "merge, generate,\nscore", "green"),
    ]
    places = [(0.1 + 3.1 * i, 3.3) for i in range(4)] + [(0.1 + 3.1 * i, 0.3) for i in (3, 2, 1)]
    for (name, text, color), (x, y) in zip(steps, places, strict=True):
        _box(axis, x, y, 2.6, 2.0, f"{name}\n\n{text}", color, 10)
    for (x, y), (u, v) in zip(places, places[1:], strict=False):
        if y == v:
            side = 2.65 if u > x else -0.05
            _arrow(axis, (x + side, y + 1), (u + (-0.05 if u > x else 2.65), v + 1))
        else:
            _arrow(axis, (x + 1.3, y - 0.05), (u + 1.3, v + 2.05))
    _arrow(axis, (places[-1][0] - 0.05, 1.3), (2.2, 1.3))
    axis.text(1.15, 1.3, "answers\nand scores", ha="center", va="center", fontsize=10.5)
    return figure


def token_strip(
    rows: Mapping[str, tuple[Sequence[str], Sequence[bool]]],
    note: str = "orange: learnt, grey: label -100",
) -> Figure:
    """Tokens in boxes, orange where they are learnt.

    Args:
        rows: title -> (the tokens' texts, whether each is learnt).
    """
    figure, axis = new_figure(
        height=0.55 + 0.95 * len(rows),
        alt=f"Rows of boxes, one for each token; orange ones are learnt, grey ones have no label. {_told(rows)}",
    )
    widths = {title: [max(0.62, 0.30 + 0.155 * len(t)) for t in texts] for title, (texts, _) in rows.items()}
    total = max(sum(w) for w in widths.values())
    _empty(axis, total + 0.2, 1.3 * len(rows))
    for place, (title, (texts, learnt)) in enumerate(reversed(rows.items())):
        x, y = 0.1, 1.3 * place + 0.1
        for text, is_learnt, width in zip(texts, learnt, widths[title], strict=True):
            size = min(10.5, 10.5 * 15 / total)
            _box(axis, x + 0.03, y, width - 0.06, 0.6, text, "orange" if is_learnt else "grey", size)
            x += width
        axis.text(0.1, y + 0.82, title, fontsize=11, fontweight="bold")
    axis.set_title(note, fontsize=10.5, fontweight="normal", loc="right")
    return figure


def _told(rows: Mapping[str, tuple[Sequence[str], Sequence[bool]]]) -> str:
    """For the alt text: how many tokens each row has and which of them are learnt."""
    parts = []
    for title, (texts, learnt) in rows.items():
        kept = [text for text, is_learnt in zip(texts, learnt, strict=True) if is_learnt]
        parts.append(f"{title}: {len(texts)} tokens, learnt are {', '.join(kept) or 'none'}.")
    told = " ".join(parts).replace("<|im_end|>", "the end token")
    return told.replace("'", "").replace("␣", "").replace("\\n", "a line break")


def marked(tokenizer, example: Mapping[str, Sequence[int]]) -> tuple[list[str], list[bool]]:
    """An encoded example as ``token_strip`` takes it: the tokens' texts, and which of them have a label."""
    return visible(tokenizer, example["input_ids"]), [label != -100 for label in example["labels"]]


def visible(tokenizer, ids: Sequence[int]) -> list[str]:
    """Token texts for a figure: a space as a low bar, a line break as an arrow."""
    texts = [tokenizer.decode([i]) for i in ids]
    return [text.replace(" ", "␣").replace("\n", "\\n").replace("$", r"\$") for text in texts]


def adapter() -> Figure:
    """A linear layer with its low-rank update, with shapes."""
    figure, axis = new_figure(
        height=3.5,
        alt="A vector x goes two ways: through the frozen square matrix W, and through a flat matrix A "
        "down to r numbers "
        "and a tall matrix B up again, scaled by alpha over r. The two results are added.",
    )
    _empty(axis, 12, 5)
    _box(axis, 0.2, 2.0, 1.3, 1.0, "x\n(B, T, in)", "grey", 10.5)
    _box(axis, 3.6, 2.9, 3.4, 1.8, "W, frozen\n(out, in)\nno gradient, no moments", "grey", 10.5)
    _box(axis, 3.0, 0.5, 1.6, 1.1, "A\n(r, in)", "orange", 10.5)
    _box(axis, 5.1, 0.2, 1.2, 1.7, "B\n(out, r)\nstarts at 0", "orange", 10)
    _box(axis, 7.0, 0.5, 1.4, 1.1, "× α / r", "grey", 10.5)
    _box(axis, 9.2, 2.0, 0.9, 1.0, "+", "blue", 14)
    _box(axis, 10.6, 2.0, 1.3, 1.0, "y\n(B, T, out)", "grey", 10)
    for start, end in (
        ((1.55, 2.8), (3.55, 3.8)),
        ((1.55, 2.2), (2.95, 1.1)),
        ((4.65, 1.05), (5.05, 1.05)),
        ((6.35, 1.05), (6.95, 1.05)),
        ((7.05, 3.8), (9.15, 2.8)),
        ((8.45, 1.05), (9.15, 2.2)),
        ((10.15, 2.5), (10.55, 2.5)),
    ):
        _arrow(axis, start, end)
    return figure
