"""``Ranks``: one start for many calls, a notebook's functions with what they use, failures that name their cause."""

import os
import runpy
import signal
import subprocess
import sys
import time

import psutil
import pytest

from course_utils.parallel import RanksFailed
from course_utils.parallel.rank_pool import Ranks, portable_source

NOTEBOOK = """
import json as notation
import os
from collections import Counter
from pathlib import Path

scale, unused = 3, object()
count = imag = ["not an attribute's value"]


def double(x):
    return 2 * x * scale


def add(x):
    return double(x) + 1


def uses_the_notebook(x):
    rank = int(os.environ["RANK"])
    counted = [Counter("aab").most_common(1)[0][1] for _ in range(1)]
    return [rank, double(x), add(x), counted, notation.dumps(str(Path("a") / "b"))]


def has_attributes(x):
    class Inside:
        factor = scale

    return Inside.factor * "aab".count("a") + int((1j * x).imag)


def again(x):
    return again(x - 1) if x else os.getpid()
"""


def meet(value):
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    total = torch.tensor(float(value * (dist.get_rank() + 1)))
    dist.all_reduce(total)
    return total.item()


def fails_on_one():
    if os.environ["RANK"] == "1":
        raise KeyError("the reason")
    time.sleep(300)


def exits():
    os._exit(3)


def sleeps():
    subprocess.Popen(["sleep", "657"])
    time.sleep(300)


@pytest.fixture(scope="module")
def ranks():
    pool = Ranks(2)
    yield pool
    pool.close()


@pytest.fixture
def notebook(tmp_path):
    file = tmp_path / "cells.py"
    file.write_text(NOTEBOOK)
    return runpy.run_path(str(file), run_name="__main__")


def test_calls_share_their_processes_and_the_process_group(ranks):
    assert ranks(meet, value=1) == [3.0, 3.0]
    assert ranks(meet, value=10) == [30.0, 30.0]
    assert len(set(ranks(os.getpid))) == 2 and ranks(os.getpid) == ranks(os.getpid)


def test_a_notebooks_function_takes_along_what_it_uses(ranks, notebook):
    assert ranks(notebook["uses_the_notebook"], x=1) == [[rank, 6, 7, [2], '"a/b"'] for rank in (0, 1)]
    assert ranks(notebook["again"], x=2) == ranks(os.getpid)
    assert "unused" not in portable_source(notebook["uses_the_notebook"])


def test_attributes_are_no_names_of_the_notebook(ranks, notebook):
    source = portable_source(notebook["has_attributes"])
    assert "scale = 3" in source and "not an attribute" not in source
    assert ranks(notebook["has_attributes"], x=5) == [11, 11]


def test_each_call_may_ask_for_another_accelerator(ranks):
    def ask(steps, precision):
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=steps, mixed_precision=precision)
        kind = accelerator.distributed_type.name
        return [accelerator.num_processes, kind, accelerator.gradient_accumulation_steps, accelerator.mixed_precision]

    assert ranks(ask, steps=1, precision="no") == [[2, "MULTI_CPU", 1, "no"]] * 2
    assert ranks(ask, steps=4, precision="bf16") == [[2, "MULTI_CPU", 4, "bf16"]] * 2


def test_a_call_may_leave_the_process_group(ranks):
    def leave():
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        accelerator.end_training()
        return accelerator.num_processes

    assert ranks(leave) == ranks(leave) == [2, 2]
    assert ranks(meet, value=1) == [3.0, 3.0]


def test_failures_name_their_rank_and_the_next_call_works(ranks):
    began = time.monotonic()
    with pytest.raises(
        RanksFailed, match=r"rank 1 of 2 failed first:\n(.|\n)*fails_on_one(.|\n)*KeyError: 'the reason'"
    ):
        ranks(fails_on_one)
    assert time.monotonic() - began < 60
    with pytest.raises(RanksFailed, match=r"rank \d of 2 ended"):
        ranks(exits)
    ranks.timeout = 4
    with pytest.raises(RanksFailed, match="rank 0 of 2 had no result after 4 s"):
        ranks(sleeps)
    ranks.timeout = 120
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "657"]]
    assert len(set(ranks(os.getpid))) == 2


def test_bad_input_is_one_sentence():
    hidden = 1
    for call, words in [
        (lambda: Ranks(0), "processes=0"),
        (lambda: portable_source(lambda: hidden), "uses hidden of a function around it"),
        (lambda: portable_source(eval("lambda: 1")), "has no source to copy"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value) and "allowed" in str(caught.value)


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    code = (
        "import os, time\nfrom course_utils.parallel.rank_pool import Ranks\n"
        "print(*Ranks(2)(os.getpid), flush=True)\ntime.sleep(300)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in caller.stdout.readline().split()]
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    deadline = time.monotonic() + 20
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, pids))
