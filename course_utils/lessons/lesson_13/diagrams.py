"""Drawings of lesson 13: the engine and what it exchanges, an annotated JSON, who fills in "auto", tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.teach.drawing import canvas
from course_utils.teach.figure import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALE = {"blue": "#E3EFF7", "orange": "#FBEBC8", "green": "#DDF1EA", "red": "#F8DDCC", "grey": "#F1F1F1"}
# What a line of the JSON does; the key is its path.
MEANING = {
    "train_batch_size": "rows of an optimizer step on all ranks",
    "train_micro_batch_size_per_gpu": "rows a rank takes at once",
    "gradient_accumulation_steps": "micro-batches of a step",
    "gradient_clipping": "largest gradient norm; 0.0: none; do not leave out",
    "zero_allow_untested_optimizer": "admits an optimizer that is not DeepSpeed's",
    "zero_force_ds_cpu_optimizer": "admits it while offloading, too",
    "bf16.enabled": "16-bit weights, fp32 copies for the update",
    "zero_optimization.stage": "cuts 1: optimizer; 2: + gradients; 3: + weights",
    "zero_optimization.reduce_bucket_size": "gradients exchanged at a time, elements",
    "zero_optimization.stage3_param_persistence_threshold": "tensors up to this size stay whole (the default)",
    "zero_optimization.offload_optimizer": "optimizer state and copies wait in host memory",
    "zero_optimization.offload_param": "slices of the weights wait there too",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "Trainer's save_model gathers the weights",
}


def _box(axis: Axes, x: float, y: float, w: float, h: float, text: str, color: str, size: float = 10) -> None:
    from matplotlib.patches import FancyBboxPatch

    shape = FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=1", facecolor=color, edgecolor="#6B6B6B")
    axis.add_patch(shape)
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.6})


def flow() -> Figure:
    """What goes into the engine, and what it does in the loop's three calls, with shapes and exchanges."""
    alt = (
        "From left to right: model, optimizer and JSON lead to deepspeed.initialize, and that to three columns, the "
        "loop's calls engine(batch), engine.backward and engine.step. Below each call stand what it gives and what the "
        "ranks exchange: in the forward pass stage 3 gathers weights; in the backward pass stages 0 to 2 all-reduce "
        "gradients, and stage 3 gathers freed weights again and reduce-scatters gradients; in the step, which updates "
        "a slice of P/N numbers and in stage 0 all P, stages 1 and 2 gather the updated slices."
    )
    figure, axis = canvas(3.9, alt, 100, 46)
    for y, text, color in ((36, "model\n(P weights)", "blue"), (25, "optimizer", "green"), (14, "JSON", "orange")):
        _box(axis, 0, y, 15, 9, text, PALE[color])
        _arrow(axis, (15, y + 4.5), (20, 29.5))
    _box(axis, 20, 22, 17, 15, "deepspeed.\ninitialize", PALE["grey"])
    _arrow(axis, (37, 29.5), (42, 29.5))
    calls = (
        ("engine(batch)", "loss of this\nrank's rows", "stage 3: all-gather\nweights, (P,)"),
        ("engine.backward", "gradients\n(P,)", "0 to 2: all-reduce\n3: all-gather again,\nreduce-scatter\n(P,)"),
        (
            "engine.step",
            "clip; update slice\n(P/N,), in stage 0\nall (P,); zero",
            "1, 2: all-gather\nfresh slices, (P,)",
        ),
    )
    for index, (call, does, moves) in enumerate(calls):
        x = 42 + 20 * index
        _box(axis, x, 34, 18, 8, call, PALE["blue"], 10.5)
        _box(axis, x, 22, 18, 10, does, "#FFFFFF", 9.5)
        _box(axis, x, 6, 18, 13, moves, PALE["green"], 9.5)
        if index:
            _arrow(axis, (x - 2, 38), (x, 38))
    axis.text(71, 2.2, "what N ranks exchange", ha="center", fontsize=10, color="#444444")
    return figure


def annotated(config: Mapping[str, Any]) -> Figure:
    """The JSON as it is written, and beside each line what it does."""
    lines = list(_lines(config))
    alt = (
        "A DeepSpeed JSON, line by line, with the meaning of each setting beside it: three batch numbers, clipping, "
        "two permissions for torch's optimizer, bf16, then the block zero_optimization: stage, bucket size, "
        "persistence threshold, gathering on save, and the devices where optimizer and parameters wait."
    )
    figure, axis = canvas(0.35 + 0.27 * len(lines), alt, 100, len(lines))
    for place, (text, meaning) in enumerate(lines):
        y = len(lines) - place - 0.5
        if place % 2:
            axis.axhspan(y - 0.5, y + 0.5, color="#F6F6F6", linewidth=0)
        axis.text(0, y, text, fontsize=9.3, family="monospace", va="center")
        axis.text(58, y, meaning, fontsize=9.5, va="center", color="#333333")
    return figure


def _lines(config: Mapping[str, Any], path: str = "", depth: int = 0) -> list[tuple[str, str]]:
    found = [] if depth else [("{", "")]
    for place, (name, value) in enumerate(config.items(), 1):
        key, indent, comma = f"{path}{name}", "  " * (depth + 1), "," * (place < len(config))
        if isinstance(value, Mapping) and key not in MEANING:
            found += [(f'{indent}"{name}": {{', ""), *_lines(value, f"{key}.", depth + 1), (f"{indent}}}{comma}", "")]
        else:
            found.append((f'{indent}"{name}": {json.dumps(value)}{comma}', MEANING.get(key, "")))
    return found + ([] if depth else [("}", "")])


def flat(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{path}{name}.") if isinstance(value, Mapping) else {f"{path}{name}": value}
    return found


def filled(before: Mapping[str, Any], resolved: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every ``"auto"`` of ``before``, and what each tool put there.

    Args:
        resolved: tool -> its resolved JSON.
    """
    asked = [name for name, value in flat(before).items() if value == "auto"]
    tools = {tool: flat(config) for tool, config in resolved.items()}
    rows = [[name.removeprefix("zero_optimization."), *(str(tools[t].get(name, "-")) for t in tools)] for name in asked]
    alt = (
        f"A table: each setting that was auto, and what stands in its place; columns {', '.join(tools)}. For the same "
        "model the Trainer and Accelerate agree in all but clipping. A wider model gets larger values in the three "
        "settings of buckets and threshold, and the same ones elsewhere."
    )
    return table(["was auto", *tools], rows, alt, widths=(43, *[57 / len(tools)] * len(tools)))


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], alt: str, widths: Sequence[float], size: float = 10
) -> Figure:
    """A plain table; ``widths`` of the columns add up to 100."""
    figure, axis = canvas(0.5 + 0.3 * (len(rows) + 1), alt, 100, len(rows) + 1)
    starts = [sum(widths[:i]) for i in range(len(widths))]
    for place, row in enumerate([heads, *rows]):
        y = len(rows) + 0.5 - place
        if place == 0:
            axis.plot([0, 100], [y - 0.5, y - 0.5], color="#444444", linewidth=1.2)
        elif place % 2 == 0:
            axis.axhspan(y - 0.5, y + 0.5, color="#F6F6F6", linewidth=0)
        for start, cell in zip(starts, row, strict=True):
            axis.text(start + 0.5, y, cell, fontsize=size, va="center", fontweight="bold" if place == 0 else "normal")
    return figure


def gathering() -> Figure:
    """ZeRO-3's life of a model that is built after the JSON, and before it."""
    alt = (
        "Two rows of three boxes, time running to the right. Above, TrainingArguments reads the JSON first: "
        "from_pretrained then cuts each tensor as it is made, and the engine has P / N on each rank. Below, "
        "from_pretrained comes first and puts all P weights on each rank; then the JSON is read, and only the engine "
        "cuts the model to P / N."
    )
    figure, axis = canvas(2.7, alt, 100, 30)
    for y, name, first, color in ((17, "JSON first", True, "green"), (2, "model first", False, "red")):
        axis.text(0, y + 5, name, fontsize=11, fontweight="bold", va="center")
        boxes = (
            "TrainingArguments\nreads the JSON",
            "from_pretrained:\neach tensor is cut\nas it is made",
            "engine: P / N\non each rank",
        )
        if not first:
            boxes = (
                "from_pretrained:\nP on each rank",
                "TrainingArguments\nreads the JSON",
                "engine cuts it:\nP / N on each rank",
            )
        for index, text in enumerate(boxes):
            fill = PALE[color] if ("tensor" in text or "P on" in text) else PALE["grey"]
            _box(axis, 16 + 29 * index, y, 25, 10, text, fill, 9.8)
            if index:
                _arrow(axis, (12 + 29 * index, y + 5), (16 + 29 * index, y + 5))
    axis.text(0, 28.5, "time runs to the right", fontsize=9.5, color=COLORS["grey"])
    return figure
