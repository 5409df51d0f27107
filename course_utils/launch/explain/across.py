"""Several files of one run: "auto" filled in, contradictions, the batch that comes out, and what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from course_utils.launch.explain.reading import Fact, Open, Reading, number

COMPARED = {
    *("nodes", "world_size", "processes_per_node", "gpus_per_node", "micro_batch", "accumulation", "precision"),
    *("max_grad_norm", "learning_rate", "strategy", "offload", "reshard_after_forward", "checkpointing"),
}
WINNERS = {("world_size", "accelerate configuration"): "; the command line's flag wins"}
CHARGED = ("micro_batch", "accumulation", "world_size")


def join(readings: list[Reading], asked: Mapping[str, str]) -> Reading:
    """What only all files together can say, as a reading of its own."""
    together = Reading("all files", "together")
    facts = [fact for reading in readings for fact in reading.facts]
    for name in sorted(COMPARED):
        _compare(together, readings, [fact for fact in facts if fact.name == name])
    _fill_auto(readings, facts)
    for reading in readings:  # one file's gap that another one fills
        if any(fact.name == "world_size" and fact.file != reading.file for fact in facts):
            reading.findings = [finding for finding in reading.findings if finding.name != "yaml-no-processes"]
    _batch(together, facts)
    for name, value in asked.items():
        _asked(together, readings, facts, name, value)
    return together


def same(one: Any, other: Any) -> bool:
    """Whether two values say the same, be they numbers, truths or text."""
    first, second = number(one, float), number(other, float)
    if first is not None and second is not None:
        return first == second
    return str(one).strip().lower() == str(other).strip().lower()


def _compare(together: Reading, readings: list[Reading], facts: list[Fact]) -> None:
    """The first pair of different values; of several runs in one script only what all of them share counts."""
    single = [fact for fact in facts if not fact.run]
    for place, first in enumerate(single):
        for second in single[place + 1 :]:
            if not same(first.value, second.value):
                kinds = {reading.file: reading.kind for reading in readings}
                winner = "".join({WINNERS.get((first.name, kinds[fact.file]), "") for fact in (first, second)})
                details = {"first": f"{first.value} ({first.setting})", "second": f"{second.value} ({second.setting})"}
                files = {"first_file": first.file, "second_file": second.file}
                together.find("contradiction", name=first.name, winner=winner, **details, **files)
                return


def _one(facts: list[Fact], name: str) -> Fact | None:
    found = [fact for fact in facts if fact.name == name and not fact.run]
    return found[0] if found else None


def _fill_auto(readings: list[Reading], facts: list[Fact]) -> None:
    """Put into the table what the Trainer will put in for "auto", where another file says it."""
    sources = {
        "train_micro_batch_size_per_gpu": "micro_batch",
        "gradient_accumulation_steps": "accumulation",
        "gradient_clipping": "max_grad_norm",
        "optimizer.params.lr": "learning_rate",
        "scheduler.params.warmup_max_lr": "learning_rate",
        "scheduler.params.total_num_steps": "max_steps",
    }
    for reading in readings:
        for place, setting in enumerate(reading.settings):
            if not isinstance(setting.resolved, Open) or setting.written != "auto":
                continue
            if fact := _one(facts, sources.get(setting.name, "")):
                reading.settings[place] = setting._replace(resolved=fact.value, tool=f"transformers, from {fact.file}")
            precision = _one(facts, "precision")
            if setting.name in ("bf16.enabled", "fp16.enabled") and precision:
                on = precision.value == setting.name.split(".")[0]
                reading.settings[place] = setting._replace(resolved=on, tool=f"transformers, from {precision.file}")


def _batch(together: Reading, facts: list[Fact]) -> None:
    micro, accumulation, world = (_one(facts, name) for name in CHARGED)
    if not micro or not world:
        return
    steps = accumulation.value if accumulation else 1
    numbers = [number(value) for value in (micro.value, steps, world.value)]
    if not all(isinstance(value, int) for value in numbers):
        return
    product = numbers[0] * numbers[1] * numbers[2]
    written = f"{numbers[0]} x {numbers[1]} x {numbers[2]} ranks"
    together.set("effective batch", written, product, "micro-batch x accumulation x ranks")
    together.know("global_batch", product, "micro-batch x accumulation x ranks")
    batch = _one(facts, "global_batch")
    if batch and batch.value != product:
        details = {"micro": numbers[0], "accumulation": numbers[1], "world": f"{numbers[2]} ranks"}
        together.find("deepspeed-batch-product", batch=batch.value, product=product, **details)


def _asked(together: Reading, readings: list[Reading], facts: list[Fact], name: str, value: str) -> None:
    """Compare with a fact, or with any setting of that name as it was resolved."""
    facts = [*facts, *together.facts]
    found = [(fact.file, fact.value) for fact in facts if fact.name == name]
    if not found:
        settings = [setting for reading in readings for setting in reading.settings]
        found = [
            (setting.file, setting.resolved)
            for setting in settings
            if name in (setting.name, setting.name.rpartition(".")[2], setting.name.rpartition("--")[2])
        ]
    if not found:
        together.find("not-said", name=name, asked=value)
    for file, resolved in found:
        if not same(resolved, value):
            together.find("not-as-asked", name=name, asked=value, found=resolved, file=file)
