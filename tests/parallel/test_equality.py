"""The one table: every way of training on two ranks against one process, and the counterexample."""

import pytest

from course_utils.parallel import deepspeed_runs, equality, shared_ranks

pytestmark = pytest.mark.xdist_group("deepspeed")
ROWS = [row for row in equality.ROWS if deepspeed_runs.is_available() or "deepspeed" not in row.module]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_equals_one_process(row):
    (found,) = equality.table(shared_ranks(2), steps=3, rows=[row])
    assert found["world_size"] == 2 and found["backend"] == "gloo" and found["holds"], found
    expected = "DeepSpeedEngine" if "deepspeed" in row.module else None
    assert found["wrapper"] == (expected or found["wrapper"])
    assert found["wrapper"] != "Qwen3ForCausalLM"  # a plain model would be two runs of one process


def test_a_wrong_run_does_not_hold():
    """The bounds can fail: another seed's run is far away."""
    row = equality.ROWS[0]

    def other_seed(function, **arguments):
        asked = arguments["arguments"] | {"seed": 1}
        return shared_ranks(2)(function, **(arguments | {"arguments": asked}))

    (found,) = equality.table(other_seed, steps=2, rows=[row])
    assert not found["holds"]
