"""What a plan says, as text for a terminal: memory by component, speed, a table of strategies, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from course_utils.launch.planner import activations, memory, mfu, speed
from course_utils.launch.planner.changes import cheapest_change
from course_utils.launch.planner.plan import GIB, Plan, plan


def plan_table(one: Plan) -> str:
    """Memory by component at every moment, speed, and the verdict."""
    return "\n".join([_heading(one), "", *_memory_lines(one), "", *_speed_lines(one), "", verdict(one)])


def verdict(one: Plan) -> str:
    """One sentence: it fits, or what it lacks and the cheapest change that makes it fit (which is searched for)."""
    need = f"needs {one.total / GIB:.1f} GiB of a GPU's {one.limit / GIB:.1f} GiB"
    if one.host_total:
        known = one.spec.host_memory
        need += f" and {one.host_total / GIB:.1f} GiB of a machine's memory" + (f" of {known:g} GiB" if known else "")
    if one.fits:
        return f"{one.name} fits: it {need}."
    if one.pipeline:
        return f"{one.name} does not fit: it {need}; `--layouts` compares other ways to divide the GPUs."
    found = cheapest_change(one.spec, one.shape)
    advice = found.sentence if found else "no change known to this planner makes it fit."
    return f"{one.name} does not fit: it {need}; {advice}"


def strategies_table(plans: Sequence[Plan]) -> str:
    """One line per plan."""
    width = max(len(one.name) for one in plans) + 2
    paid = any(one.speed.cost is not None for one in plans)
    cost = f"{'cost $':>10}" if paid else ""
    lines = [
        f"{'strategy':{width}}{'fits':>5}{'GPU GiB':>9}{'host GiB':>10}{'s/step':>9}{'tokens/s':>11}{'hours':>9}{cost}"
    ]
    for one in plans:
        fast = one.speed
        memory_of = f"{one.total / GIB:9.1f}{one.host_total / GIB:10.1f}"
        cost = f"{fast.cost:10,.0f}" if fast.cost is not None else ""
        times = f"{fast.step:9.3f}{fast.tokens_per_second:11,.0f}{fast.hours:9.2f}"
        lines.append(f"{one.name:{width}}{'yes' if one.fits else 'no':>5}{memory_of}{times}{cost}")
    return "\n".join(lines)


def _heading(one: Plan) -> str:
    spec = one.spec
    model = spec.model if isinstance(spec.model, str) else "a model"
    trained = "" if one.trained == one.parameters else f", {one.trained / 1e6:,.1f} M trained"
    machines = f"{spec.nodes * one.stages} x {spec.gpus_per_node} {spec.gpu}"
    return (
        f"{model}: {one.parameters / 1e9:.3f} B parameters{trained}; {one.name} on {machines}; "
        f"{spec.effective_batch} sequences of {spec.sequence_length} tokens a step"
    )


def _memory_lines(one: Plan) -> list[str]:
    """GiB by component and moment; components that are nowhere are left out."""
    lines = [f"{'GiB per GPU':18}" + "".join(f"{moment:>13}" for moment in one.moments)]
    for component in memory.COMPONENTS:
        sizes = [found[component] / GIB for found in one.moments.values()]
        if any(sizes):
            lines.append(f"{component:18}" + "".join(f"{size:13.2f}" for size in sizes))
    sums = [sum(found.values()) / GIB for found in one.moments.values()]
    lines.append(f"{'total':18}" + "".join(f"{size:13.2f}" for size in sums) + f"   limit {one.limit / GIB:.1f}")
    host = ", ".join(f"{name} {size / GIB:.1f}" for name, size in one.host.items())
    return lines + ([f"GiB per machine:  {host}"] if host else []) + _pipeline_lines(one) + _attention_lines(one)


def _pipeline_lines(one: Plan) -> list[str]:
    """What the stages hold, what passes between them, and how long they wait for each other."""
    if not one.pipeline:
        return []
    stages, number = one.pipeline.stages, one.pipeline.micro_batches
    tightest, layers = one.pipeline.tightest, sorted({stage.layers for stage in stages})
    passed = 2 * number * one.pipeline.passed / GIB  # forward, and its gradient back
    return [
        f"a pipeline, planned only: {len(stages)} stages of {' or '.join(map(str, layers))} layers on "
        f"{one.spec.nodes} x {one.spec.gpus_per_node} GPUs each; above is stage {tightest + 1}, with "
        f"{stages[tightest].in_flight} of {number} micro-batches in flight",
        f"between two stages {passed:.2f} GiB a step pass on each GPU; the bubble is {one.pipeline.bubble:.0%}",
    ]


def _attention_lines(one: Plan) -> list[str]:
    """What a model costs that transformers does not give fused attention."""
    if one.shape.attention == "sdpa":
        return []
    heads, length = one.shape.num_attention_heads, one.spec.sequence_length
    size = activations.tokens(one.spec) * activations.scores(one.spec, one.shape) / GIB
    return [
        f"attention is not fused for this model: each layer's {heads} x {length:,} x {length:,} scores are tensors, "
        f"{size:.2f} GiB a layer"
    ]


def _speed_lines(one: Plan) -> list[str]:
    fast = one.speed
    parts = (
        f"computing {fast.compute:.3f}, waiting for communication {fast.exposed:.3f}, for offload {fast.offload:.3f}"
    )
    parts += f", for other stages {fast.bubble:.3f}" if one.pipeline else ""
    factor = speed.recompute_factor(one.spec, one.shape)
    recomputing = f", of which recomputation leaves {one.spec.mfu / factor:.2f}" if factor > 1 else ""
    lines = [
        f"a step: {fast.step:.3f} s ({parts}); a GPU sends {fast.volume / GIB:.2f} GiB",
        f"{fast.tokens_per_second:,.0f} tokens/s at MFU {one.spec.mfu:g}{recomputing}",
        f"{one.spec.max_steps:,} steps: {fast.hours:.2f} h{_hours_range(one)}",
    ]
    return lines + ([f"cost: ${fast.cost:,.2f}"] if fast.cost is not None else [])


def _hours_range(one: Plan) -> str:
    """The hours at the lowest and the highest MFU that was published for this kind of GPU."""
    found = mfu.published_range(one.spec.gpu)
    if found is None or one.spec.precision == "fp32":
        return "; no published MFU for this is known here: measure yours"
    least, most = (plan(one.spec.but(mfu=round(share, 2)), one.shape, one.reduction, one.stages) for share in found)
    span = f"{most.speed.hours:.2f} to {least.speed.hours:.2f} h"
    return f"; {span} at the published MFU of {least.spec.mfu:g} to {most.spec.mfu:g}"


def traffic_table(plans: Sequence[Plan]) -> str:
    """What one GPU sends in a step, in bytes per trained parameter: gathering, reducing, when each can hide, GiB.

    An all-reduce counts twice: it is a reduce-scatter and an all-gather. The ring's (n-1)/n is left out of the bytes
    per parameter and counted in the GiB.
    """
    width = max(len(one.name) for one in plans) + 2
    lines = [f"{'strategy':{width}}" + "".join(f"{name:>{len(name) + 2}}" for name in speed.WINDOWS) + "    sum    GiB"]
    for one in plans:
        count = memory.parameters(one.spec, one.shape)
        sent = dict.fromkeys(speed.WINDOWS, 0.0)
        for message in speed.messages(one.spec, one.shape, count, one.reduction):
            if message.window and message.ranks > 1:
                sent[message.window] += message.passes * message.data / count.trained
        cells = "".join(f"{size:{len(name) + 2}.1f}" for name, size in sent.items())
        lines.append(f"{one.name:{width}}{cells}{sum(sent.values()):7.1f}{one.speed.volume / GIB:7.1f}")
    return "\n".join(lines)
