"""Who prepares data: one process of the job where all machines see its folder, else one of each machine."""

from pathlib import Path

import pytest

from course_utils.parallel.nodes import run_on_nodes
from course_utils.parallel.rank_pool import shared_ranks
from course_utils.parallel.shared_folder import seen_by_all
from tests.launch.tiny_project import offline_project

PROGRAM = Path(__file__).with_name("prepare_once.py")


def look(place):
    import os

    from course_utils.parallel.sharded import join
    from course_utils.parallel.shared_folder import seen_by_all

    join()  # the ranks are shared with other tests, which may have met already
    own = f"{place}/of rank {os.environ['RANK']}"
    return [seen_by_all(f"{place}/same"), seen_by_all(own), seen_by_all("/proc/no folder")]


def test_two_ranks_see_the_same_folder_or_their_own(tmp_path):
    assert shared_ranks(2)(look, place=str(tmp_path)) == [[True, False, False]] * 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["of rank 0", "same"]  # no mark stays


def test_one_process_is_alone_with_its_folder(tmp_path):
    assert seen_by_all(tmp_path) and list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(("cache", "expected"), [("shared", [1, 0]), ("own", [1, 1])])
def test_finetune_prepares_once_a_job_on_a_shared_disk_and_once_a_machine_elsewhere(
    cache, expected, tmp_path_factory, monkeypatch
):
    """Two torchruns with a rank each, which are two machines; how often each read the file of rows."""
    with offline_project(tmp_path_factory, f"once {cache}") as project:
        place = tmp_path_factory.mktemp("place")
        arguments = [cache, str(place), "--task=causal_lm", f"--model_name_or_path={project.model}", "--use_cpu"]
        arguments += [f"--train_file={project.texts}/train.jsonl", "--max_steps=1", "--report_to=none"]
        arguments += ["--max_length=32", "--save_strategy=no", f"--output_dir={place / 'out'}", "--disable_tqdm=true"]
        assert [seen["read"] for seen in run_on_nodes(PROGRAM, nodes=2, arguments=arguments)] == expected
