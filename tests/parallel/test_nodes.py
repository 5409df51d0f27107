"""Two torchruns on this machine meet and are one run; what fails is named and nothing is left."""

from __future__ import annotations

import pytest

from course_utils.parallel import RanksFailed
from course_utils.parallel.nodes import node_options, run_on_nodes

OPENING = "import os\nfrom course_utils.parallel import report\n"
NAMES = "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"


def test_two_nodes_are_one_run(tmp_path):
    program = tmp_path / "who.py"
    program.write_text(OPENING + f"report([int(os.environ[name]) for name in {NAMES}])\n")
    assert run_on_nodes(program, nodes=2, processes=1) == [[0, 0, 2, 0, 2], [1, 0, 2, 1, 2]]


def test_a_rank_that_fails_is_named(tmp_path):
    program = tmp_path / "fails.py"
    program.write_text(OPENING + "import time\nif os.environ['RANK'] == '1': raise KeyError('why')\ntime.sleep(60)\n")
    with pytest.raises(RanksFailed, match=r"rank 1 of 2 failed first(.|\n)*KeyError: 'why'"):
        run_on_nodes(program)


def test_options_and_bad_input():
    assert node_options(2, 8, "first:29500", "job")[:2] == ["--nnodes=2", "--nproc-per-node=8"]
    with pytest.raises(ValueError, match=r"program=.*no such\.py' is no such file"):
        run_on_nodes("no such.py")
