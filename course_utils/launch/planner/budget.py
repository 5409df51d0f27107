"""The budget of a long run as text: checkpoints, failures, goodput, days, cost; strategies compared on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from course_utils.launch.planner import goodput
from course_utils.launch.planner.goodput import Outlook
from course_utils.launch.planner.plan import Plan

FREQUENT = 0.05  # of the time spent saving: more is worth a sentence


def budget_table(one: Plan) -> str:
    """Size and time of a checkpoint, disk, failures, and both ways to save: goodput, days, cost; then advice."""
    ways = [goodput.outlook(one, saving) for saving in goodput.ways_to_save(one)]
    lines = [*_checkpoint_lines(one, ways[0]), *_failure_lines(one, ways[0]), "", *_ways(one, ways)]
    return "\n".join([*lines, *_advice(one, ways[0])])


def span(seconds: float) -> str:
    """A time as people say it: 12.3 s, 4.5 min, 6.7 h, 8.9 days."""
    for unit, size, enough in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < enough * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / goodput.DAY:,.1f} days"


def _checkpoint_lines(one: Plan, blocking: Outlook) -> list[str]:
    spec, size = one.spec, goodput.saved(one).size / 1e9
    number = math.ceil(spec.max_steps / spec.save_every)
    kept = min(number, spec.save_total_limit or number)
    limit = "" if spec.save_total_limit else ", as save_total_limit is not set"
    return [
        f"a checkpoint: {size:,.1f} GB, {span(blocking.saving.stall)} at {spec.storage:g} GB/s (storage, assumed); "
        f"one every {spec.save_every} steps, {span(blocking.interval)}",
        f"disk: {kept * size:,.0f} GB for {kept} of {number} checkpoints{limit}"
        + (f", and {size:,.0f} GB while the next one is written" if kept < number else ""),
    ]


def _failure_lines(one: Plan, blocking: Outlook) -> list[str]:
    spec, failures = one.spec, goodput.failures_of(one)
    expected = blocking.days * goodput.DAY / failures.mtbf
    return [
        f"failures: one in {span(failures.mtbf)} on {one.gpus:,} GPUs, {expected:,.1f} in this run "
        f"(gpu_mtbf={spec.gpu_mtbf:,.0f} h, assumed); each costs {span(blocking.lost)}, of which "
        f"{span(failures.restart)} to start again (assumed)",
    ]


def _ways(one: Plan, ways: Sequence[Outlook]) -> list[str]:
    cost = f"{'cost $':>13}" if one.speed.cost is not None else ""
    lines = [f"{'saved':24}{'steps':>9}{'every':>12}{'goodput':>9}{'takes':>12}{cost}"]
    for way in ways:
        for name, interval, share, days, cost in (
            ("as asked", way.interval, way.share, way.days, way.cost),
            ("at best", way.best, way.best_share, way.best_days, way.best_cost),
        ):
            steps = round(interval / one.speed.step)
            paid = "" if cost is None else f"{cost:13,.0f}"
            text = f"{way.saving.kind}, {name}"
            lines.append(f"{text:24}{steps:9,}{span(interval):>12}{share:9.3f}{span(days * goodput.DAY):>12}{paid}")
    return lines


def _advice(one: Plan, blocking: Outlook) -> list[str]:
    spec, failures, saving = one.spec, goodput.failures_of(one), blocking.saving
    estimates = [span(estimate(failures, saving)) for estimate in (goodput.young, goodput.daly)]
    found = [
        f"best for the Trainer, which blocks while it saves: save_every={round(blocking.best / one.speed.step)} "
        f"(Young's estimate: every {estimates[0]}, Daly's: {estimates[1]})"
    ]
    spent = saving.stall / (saving.stall + blocking.interval)
    if spent > FREQUENT:
        found.append(f"as asked, {spent:.0%} of the time between two failures is spent on saving")
    if spec.warning < saving.stall:
        found.append(f"`write` will refuse warning={spec.warning}: saving takes {saving.stall:,.0f} s")
    return found


def days_table(plans: Sequence[Plan], most: int | None = None) -> str:
    """One line per plan that fits: time without failures, then goodput, time and cost with them, saved at best.

    All of them save as the Trainer does. The cheapest first; those that do not fit are named below.

    Args:
        most: lines; the other plans are only counted.
    """
    rows = [(goodput.outlook(one, goodput.ways_to_save(one)[0]), one) for one in plans if one.fits]
    rows.sort(key=lambda row: row[0].best_days)
    width = max([len(one.name) for _, one in rows[:most]], default=8) + 2
    cost = f"{'cost $':>13}" if any(one.speed.cost is not None for one in plans) else ""
    lines = [f"{'strategy':{width}}{'save GB':>9}{'no failure':>12}{'goodput':>9}{'takes':>12}{cost}"]
    for found, one in rows[:most]:
        paid = "" if found.best_cost is None else f"{found.best_cost:13,.0f}"
        size, computing = goodput.saved(one).size / 1e9, span(one.speed.hours * 3600)
        takes = f"{found.best_share:9.3f}{span(found.best_days * goodput.DAY):>12}"
        lines.append(f"{one.name:{width}}{size:9,.1f}{computing:>12}{takes}{paid}")
    rest = [one.name for one in plans if not one.fits]
    if most is not None and len(plans) > most:
        return "\n".join([*lines, f"{len(plans)} ways to divide the GPUs, {len(rows)} of which fit"])
    return "\n".join(lines + ([f"do not fit: {', '.join(rest)}"] if rest else []))


def reported_table() -> str:
    """Published failures: what ``Spec.gpu_mtbf`` can be compared with."""
    lines = [f"{'run':32}{'GPUs':>8}{'failure every':>15}{'h for one GPU':>15}"]
    for one in goodput.REPORTED:
        lines.append(f"{one.run:32}{one.gpus:8,}{span(one.hours * 3600):>15}{one.gpu_mtbf:15,.0f}")
    return "\n".join(lines)
