"""The planner beside the estimators that come with accelerate and DeepSpeed, on the same run (lesson 15)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from course_utils.launch.planner.memory import GIB
from course_utils.launch.planner.plan import Plan, plan
from course_utils.launch.spec import Spec
from course_utils.models.shapes import linears


class Estimate(NamedTuple):
    """One tool's answer: bytes on a GPU, bytes in a machine's memory (None: not said), and what it leaves out."""

    tool: str
    gpu: int
    host: int | None
    leaves_out: str


def compare_estimators(spec: Spec) -> list[Estimate]:
    """What each tool says about the memory of this run.

    ``accelerate estimate-memory`` (``accelerate.commands.estimate.estimate_training_usage``, the number its command
    prints as "Training using Adam") knows neither strategies nor batches. DeepSpeed's
    ``estimate_zero{2,3}_model_states_mem_needs`` answer for ZeRO-2 and ZeRO-3 only. For other strategies the list is
    shorter.

    Raises:
        SpecError: the model is not known.
    """
    ours = plan(spec)
    states = sum(ours.moments["step"][name] for name in ("weights", "gradients", "optimizer", "master copies"))
    rows = [
        Estimate("this planner", ours.total, ours.host_total, "nothing known to it"),
        Estimate("this planner, states at the update", states, ours.host_total, "buffers, activations, logits, margin"),
        Estimate("accelerate estimate-memory", _accelerate(ours), None, "strategy, activations, logits"),
    ]
    if spec.strategy in ("zero2", "zero3"):
        host, gpu = _deepspeed(ours)
        rows.append(Estimate("DeepSpeed's estimator", gpu, host, "activations, logits, buckets, LoRA"))
    return rows


def _accelerate(ours: Plan) -> int:
    from accelerate.commands.estimate import estimate_training_usage

    kind = {"fp32": "float32", "fp16": "float16"}.get(ours.spec.precision, "bfloat16")
    return int(max(estimate_training_usage(4 * ours.parameters, kind).values()))


def _deepspeed(ours: Plan) -> tuple[int, int]:
    """Bytes of a machine's memory and of a GPU."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    spec, shape = ours.spec, ours.shape
    machines = {"num_gpus_per_node": spec.gpus_per_node, "num_nodes": spec.nodes, "cpu_offload": spec.offload != "none"}
    if spec.strategy == "zero2":
        return estimate_zero2_model_states_mem_needs(ours.parameters, **machines)
    # Its model_to_params takes the module that owns most weights itself: one matrix, never a whole layer.
    matrices = (inputs * outputs for inputs, outputs in linears(shape))
    largest = max(shape.vocab_size * shape.hidden_size, *matrices)
    found = estimate_zero3_model_states_mem_needs(
        ours.parameters, largest, **machines, cpu_offload_params=spec.offload == "all"
    )
    return found[0], found[1]


def comparison_table(rows: Sequence[Estimate]) -> str:
    """Text for a terminal, in GiB."""
    lines = [f"{'estimator':37}{'GPU GiB':>9}{'host GiB':>10}  leaves out"]
    for row in rows:
        host = "-" if row.host is None else f"{row.host / GIB:.1f}"
        lines.append(f"{row.tool:37}{row.gpu / GIB:9.1f}{host:>10}  {row.leaves_out}")
    return "\n".join(lines)
