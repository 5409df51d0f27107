"""One row per GPU: nothing missing, nothing known elsewhere."""

import re
import subprocess
from typing import get_args

import pytest

from course_utils.gpus import GPUS, Gpu, GpuKind
from course_utils.launch.files import cloud
from course_utils.launch.planner.plan import plan
from course_utils.launch.planner.speed import link
from course_utils.launch.spec import Spec
from tests.test_repository import ROOT


@pytest.mark.parametrize("name", GPUS)
def test_a_row_is_complete(name):
    row = GPUS[name]
    numbers = (row.memory, row.peak, row.peak_fp32, row.bandwidth, row.link, row.network)
    assert all(number > 0 for number in numbers) and row.peak_fp32 < row.peak
    assert row.instances and all(1 <= count <= 8 for count in row.instances)
    assert all(re.fullmatch(r"ml\.[a-z0-9]+\.\d*xlarge", instance) for instance in row.instances.values())
    assert re.fullmatch(r"[A-Z0-9]+(-\d+GB)?", row.accelerator)


@pytest.mark.parametrize("missing", GpuKind._fields)
def test_a_row_without_an_entry_is_an_error_at_once(missing):
    fields = {name: value for name, value in GPUS["T4-16GB"]._asdict().items() if name != missing}
    with pytest.raises(TypeError, match=missing):
        GpuKind(**fields)


@pytest.mark.parametrize("name", GPUS)
def test_every_part_of_launch_takes_its_numbers_from_the_row(name):
    assert name in get_args(Gpu)
    row, spec = GPUS[name], Spec(gpu=name, precision="fp16", gpus_per_node=max(GPUS[name].instances), nodes=2)
    assert plan(spec).limit == int(row.memory * 2**30)
    assert link(spec, ranks=spec.gpus_per_node, gap=1)[1] == row.link * 1e9
    assert link(spec, ranks=spec.world_size, gap=1)[1] == min(row.link, row.network) * 1e9
    slower = plan(spec.but(precision="fp32")).speed.compute / plan(spec).speed.compute
    assert slower == pytest.approx(row.peak / row.peak_fp32)
    assert cloud.instance_type(spec) == row.instances[spec.gpus_per_node]
    assert cloud.skypilot_values(spec, "launch")["accelerator"] == row.accelerator


def test_no_other_module_names_a_kind_of_gpu():
    """A GPU that is added or renamed needs one edit; the spec's default is the one name that stands elsewhere."""
    command = ["git", "grep", "-nE", "|".join(f'"{name}"' for name in GPUS), "--", "course_utils"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    in_code = [line for line in found if "``" not in line]  # a docstring may give an example
    places = {line.split(":")[0] for line in in_code} - {"course_utils/gpus.py", "course_utils/launch/spec/spec.py"}
    assert {place for place in places if not place.startswith("course_utils/lessons/")} == set()
