"""``run_ranks``: ranks that find each other, results, failures that name their cause, and nothing left behind."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from course_utils.parallel import RanksFailed, processes, run_ranks
from course_utils.parallel.local_ranks import rank_variables
from course_utils.parallel.processes import free_ports, kill, last_lines, start, wait


def meet(scale):
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([scale * (dist.get_rank() + 1)])
    dist.all_reduce(total)
    return {"rank": dist.get_rank(), "world": dist.get_world_size(), "total": total.item()}


def variables():
    import os

    return {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MARK")}


def one_fails():
    import os
    import time

    if os.environ["RANK"] == "1":
        raise KeyError("the reason")
    time.sleep(600)


def hang():
    import subprocess
    import time

    subprocess.Popen(["sleep", "654"], start_new_session=True)
    time.sleep(600)


def abort_after_work():
    import os
    import threading
    import time

    threading.Thread(target=lambda: (time.sleep(0.5), os.abort()), daemon=False).start()
    return "done"


def test_ranks_meet_and_return_their_results():
    assert run_ranks(meet, 2, {"scale": 10.0}) == [
        {"rank": 0, "world": 2, "total": 30.0},
        {"rank": 1, "world": 2, "total": 30.0},
    ]


def test_function_may_be_named_or_have_only_a_source(tmp_path):
    file = tmp_path / "my ranks.py"
    file.write_text("import os\ndef rank(): return int(os.environ['RANK'])\n")
    assert run_ranks(f"{file}:rank", 3) == [0, 1, 2]
    assert run_ranks("os:getcwd", 1) == [os.getcwd()]

    def inside(x):  # as in a notebook: no module of its own to import it from
        return x + 1

    assert run_ranks(inside, 1, {"x": 1}) == [2]


def test_ranks_find_torchruns_variables_and_the_callers():
    found = run_ranks(variables, 2, environment={"MARK": "é $(x)"})
    assert [row["RANK"] for row in found] == ["0", "1"]
    assert all(row["WORLD_SIZE"] == "2" and row["MARK"] == "é $(x)" for row in found)


def test_rank_variables_are_those_of_torchrun(tmp_path):
    program = tmp_path / "show.py"
    program.write_text("import json, os\nprint(json.dumps(dict(os.environ)))")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", str(program)]
    shown = subprocess.run(torchrun, capture_output=True, text=True, check=True)
    real = json.loads(shown.stdout)
    ours = rank_variables(0, 1, 1234)
    told = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    assert {name: ours[name] for name in told} == {name: real[name] for name in told}
    assert {"MASTER_ADDR", "MASTER_PORT"} <= ours.keys() & real.keys()


def test_failure_names_the_rank_that_failed_and_why(tmp_path):
    began = time.monotonic()
    with pytest.raises(RanksFailed, match=r"rank 1 of 2 ended with code 1(.|\n)*KeyError: 'the reason'"):
        run_ranks(one_fails, 2, folder=tmp_path, timeout=100)
    assert time.monotonic() - began < 60  # rank 0 was not waited for
    assert "the reason" in (tmp_path / "rank-1.log").read_text()
    assert not _running_in(tmp_path)


def test_time_limit_ends_ranks_and_what_they_started(tmp_path):
    with pytest.raises(RanksFailed, match="had no result after 5 s"):
        run_ranks(hang, 2, folder=tmp_path, timeout=5)
    assert not _running_in(tmp_path)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "654"]]


def test_result_counts_when_a_rank_aborts_after_its_work():
    assert run_ranks(abort_after_work, 2) == ["done", "done"]


def test_bad_input_is_one_sentence(tmp_path):
    for call, words in [
        (lambda: run_ranks(meet, 0), "processes=0"),
        (lambda: run_ranks("meet"), "function='meet'"),
        (lambda: run_ranks(eval("lambda: 1")), "has no source"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value) and "allowed" in str(caught.value)


def test_stale_results_are_not_taken_for_new_ones(tmp_path):
    assert run_ranks("os:getpid", 1, folder=tmp_path) != [None]
    with pytest.raises(RanksFailed):
        run_ranks("os:no_such_function", 1, folder=tmp_path)


def test_kill_reaches_grandchildren_in_other_sessions(tmp_path):
    script = "setsid sleep 655 & setsid sh -c 'sleep 656; true' & wait"
    process = start(["bash", "-c", script], tmp_path / "log", dict(os.environ))
    assert wait([process], 1) is False
    kill([process])
    time.sleep(0.2)
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]
    assert ["sleep", "655"] not in left and ["sleep", "656"] not in left


def test_last_lines_show_a_progress_bar_once(tmp_path):
    log = tmp_path / "log"
    log.write_text("a\n\n10%|\r20%|\r30%|\nb\n")
    assert last_lines(log, 2) == "30%|\nb"
    assert last_lines(tmp_path / "none") == ""


def test_ports_are_different_and_below_those_that_systems_hand_out():
    ports = free_ports(3)
    assert len(set(ports)) == 3 and set(ports) <= set(processes.PORTS)
    assert processes.PORTS.stop <= 32_768  # ip(7): ip_local_port_range begins there


def test_a_port_in_use_is_passed_over(monkeypatch):
    (taken,) = free_ports(1)
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        monkeypatch.setattr(processes, "PORTS", range(taken, taken + 1))
        assert free_ports(1) == []


def _running_in(folder: Path):
    call = str(folder / "call.json")
    return [process for process in psutil.process_iter(["cmdline"]) if call in (process.info["cmdline"] or [])]
