"""Published MFU: known GPUs, counted as the planner counts, and the range that the plan's text gives."""

import pytest

from course_utils.gpus import GPUS
from course_utils.launch.planner.mfu import MEASURED, measured_table, published_range
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.report import plan_table
from course_utils.launch.spec import Spec


def test_half_of_the_attention_by_hand():
    """MPT 7B at 8,192 tokens: 6 N = 39.96e9 and 12 L h T = 12.88e9 operations per token, of which half count."""
    (one,) = [m for m in MEASURED if (m.model, m.gpu, m.tokens) == ("MPT 7B", "H100", 8192)]
    assert one.share == pytest.approx(0.3714 * (39.96 + 12.885 / 2) / (39.96 + 12.885), rel=1e-3)


def test_every_measurement_is_of_a_gpu_the_planner_knows():
    kinds = {name.partition("-")[0] for name in GPUS}
    assert {one.gpu for one in MEASURED} <= kinds
    assert all(0 < one.share <= one.published < 1 and one.source for one in MEASURED)


def test_the_ranges_and_what_is_not_known():
    for gpu in ("H100-80GB", "A100-80GB", "A100-40GB"):
        least, most = published_range(gpu)
        assert 0.2 < least < 0.4 < most < 0.7, "the assumed 0.4 lies between them"
        assert len(measured_table(gpu).splitlines()) > 4
    assert published_range("L4-24GB") is None
    assert "not said" in measured_table("H100-80GB")


def test_the_plan_gives_hours_over_the_range():
    text = plan_table(plan(Spec(model="Qwen/Qwen3-8B", sequence_length=4096)))
    least, most = published_range("H100-80GB")
    assert f"at the published MFU of {least:.2f} to {most:.2f}" in text
    assert "no published MFU for this is known here" in plan_table(plan(Spec(gpu="L4-24GB", gpus_per_node=8)))
