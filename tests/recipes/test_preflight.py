"""The look at the machines: each fault is one sentence that names the machine; rehearsed with gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

from course_utils.parallel import what_ran
from course_utils.parallel.processes import free_ports
from course_utils.recipes import preflight

# As NCCL 2.27 writes with NCCL_DEBUG=INFO, NCCL_DEBUG_SUBSYS=INIT,NET: shape of the lines as in NVIDIA/nccl's issues
# 302, 676, 952 and 1053; names and addresses are ours.
INFINIBAND = """\
gpu-1:70:70 [0] NCCL INFO Bootstrap: Using eth0:10.1.0.7<0>
gpu-1:70:70 [0] NCCL INFO NET/Plugin: Could not find: libnccl-net.so
gpu-1:70:91 [0] NCCL INFO NCCL_IB_DISABLE set by environment to 0.
gpu-1:70:91 [0] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.1.0.7<0>
gpu-1:70:91 [0] NCCL INFO Using network IB
gpu-1:70:91 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0/GDRDMA
"""
SOCKETS = """\
gpu-2:11:11 [3] NCCL INFO Bootstrap: Using ens3:172.31.0.11<0>
gpu-2:11:40 [3] NCCL INFO NET/IB : No device found.
gpu-2:11:40 [3] NCCL INFO NET/Socket : Using [0]ens3:172.31.0.11<0> [1]virbr0:192.168.122.1<0>
gpu-2:11:40 [3] NCCL INFO Using network Socket
"""
EFA = """\
ip-10-0-0-1:8:8 [0] NCCL INFO NET/OFI Initializing aws-ofi-nccl 1.14.0
ip-10-0-0-1:8:8 [0] NCCL INFO NET/OFI Selected provider is efa, fabric is efa (found 32 nics)
ip-10-0-0-1:8:8 [0] NCCL INFO Using network Libfabric
"""
OLD_SOCKETS = (
    "ip-172:45384:45384 [0] NCCL INFO NET/IB : No device found.\nh:1:1 [0] NCCL INFO NET/Socket : Using [0]ens3:1<0>\n"
)
SIZES = {"65536": 1.0, "1048576": 10.0, "4194304": 100.0}


@pytest.mark.parametrize(
    ("log", "network", "devices"),
    [
        (INFINIBAND, "IB", ["mlx5_0:1/IB", "mlx5_1:1/RoCE"]),
        (SOCKETS, "Socket", ["ens3", "virbr0"]),
        (EFA, "Libfabric", []),
        (OLD_SOCKETS, "Socket", ["ens3"]),
        ("", None, []),
        ("gpu-1:70:91 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM", None, []),
    ],
)
def test_the_network_is_read_from_nccls_log(log, network, devices):
    assert preflight.transport(log) == {"network": network, "devices": devices}


def facts(**changes):
    """Of four ranks on two machines; ``changes`` are those of the second machine."""
    one = {
        "host": "gpu-1",
        "machine": 0,
        "versions": {"torch": "2.13.0", "nccl": "2.27.5"},
        "clock": 1000.0,
        "disk": 900.0,
        "gpus": 2,
        "device": "cuda",
        "work": 0.01,
        "bandwidth": SIZES,
        "transport": {"network": "IB", "devices": ["mlx5_0:1/IB"]},
    }
    return [one, one, one | {"host": "gpu-2"}, one | {"host": "gpu-2"} | changes]


def options(**more):
    given = {"gpus": 2, "output_dir": "runs", "disk": 100, "network": "infiniband", "expect": 100}
    return SimpleNamespace(**(given | more))


def test_nothing_is_said_about_machines_that_are_well():
    assert preflight.problems(facts(), options()) == []


@pytest.mark.parametrize(
    ("changes", "asked", "sentence"),
    [
        ({"versions": {"torch": "2.12.0", "nccl": "2.27.5"}}, {}, "gpu-2 has torch 2.12.0, the others 2.13.0"),
        ({"versions": {"torch": "2.13.0"}}, {}, "gpu-2 has nccl none, the others 2.27.5"),
        ({"clock": 1060.0}, {}, "the clock of gpu-2 is +60 s off"),
        ({"work": 0.02}, {}, "rank 3 on gpu-2 is slow: 2.0 times the others' time for the same matrix products"),
    ],
)
def test_what_is_wrong_on_one_machine_is_one_sentence(changes, asked, sentence):
    assert preflight.problems(facts(**changes), options(**asked)) == [sentence]


@pytest.mark.parametrize(
    ("changes", "asked", "sentence"),
    [
        ({"gpus": 1}, {}, "gpu-1 shows 1 GPUs, 2 were asked for"),
        ({"disk": 50.0}, {}, "gpu-1 has 50 GB free for runs, the checkpoints need 100"),
        ({"disk": None}, {}, "gpu-1 cannot write to runs"),
        (
            {"transport": preflight.transport(SOCKETS)},
            {},
            "gpu-1 talks over sockets (ens3, virbr0), infiniband was asked for",
        ),
        ({}, {"expect": 400}, "all-reduce reaches 100.0 GB/s from gpu-1 to gpu-1, and the plan assumes 400"),
    ],
)
def test_what_is_wrong_of_a_whole_machine(changes, asked, sentence):
    assert preflight.problems([facts()[0] | changes], options(**asked)) == [sentence]


def test_sockets_are_fine_where_nothing_else_was_asked():
    assert preflight.problems([facts()[0] | {"transport": preflight.transport(SOCKETS)}], options(network="any")) == []


def test_a_rank_without_a_word_is_missing():
    store = HashStore()
    for rank in (0, 1, 3):
        store.set(f"here/{rank}", "x")
    assert preflight.missing_ranks(store, 4, 0.1) == [2]
    store.set("here/2", "x")
    assert preflight.missing_ranks(store, 4, 0.1) == []


def test_the_programs_own_arguments_are_not_its_own():
    words = ["--gpus=2", "--output_dir=a", "--program", "--mode=7", "--gpu", "x", "--output_dir", "b", "--network=?"]
    found = preflight.read_options(words)
    assert (found.gpus, found.output_dir, found.mode, found.network) == (2, "b", "warn", "any")
    assert preflight.read_options(words[:4]).output_dir == "a"


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    assert preflight.free_disk(tmp_path / "not" / "yet") > 0
    monkeypatch.setattr(preflight.os, "access", lambda place, how: False)
    assert preflight.free_disk(tmp_path) is None


def test_a_machine_that_shows_too_few_gpus_says_so_before_it_waits_for_others(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name in ("NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"):
        monkeypatch.setenv(name, "")  # main sets them: afterwards as before
    assert preflight.main(["--gpus=2"]) == 3
    assert capsys.readouterr().err.endswith("shows 1 GPUs, 2 were asked for\n")


def test_a_slow_rank_and_its_slow_link_are_found_and_stop_the_run(tmp_path):
    """Three gloo ranks, each a machine of its own by torchrun's numbers; the one in the middle is slowed."""
    program = Path(__file__).with_name("slow_preflight.py")
    command = [sys.executable, program, "--mode=stop", f"--output_dir={tmp_path / 'runs'}", "--timeout=60"]
    (port,) = free_ports(1)
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}
    meet |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    ranks = [
        subprocess.Popen(command, env=os.environ | meet | {"RANK": rank, "GROUP_RANK": rank}, **pipes) for rank in "012"
    ]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [3, 3, 3], said
    found = json.loads((tmp_path / "runs" / "preflight.json").read_text())
    assert [(rank["device"], rank["machine"]) for rank in found["ranks"]] == [("cpu", 0), ("cpu", 1), ("cpu", 2)]
    host = found["ranks"][0]["host"]
    slow_rank, slow_link = found["problems"]
    assert slow_rank.startswith(f"rank 1 on {host} is slow: ")
    assert slow_link.startswith(f"machine 1, {host} has a slow link: 0.0")
    assert [f"preflight: {one}" for one in found["problems"]] == said[0][1].splitlines()[-2:]
    assert [set(rank["links"]) for rank in found["ranks"]] == [{"1", "2"}, {"0", "2"}, {"0", "1"}]
    assert set(found["ranks"][0]["bandwidth"]) == {"65536", "1048576", "4194304"}
    assert min(found["ranks"][0]["bandwidth"].values()) > 0
    assert "preflight: 3 ranks on 3 machines; all-reduce" in said[0][0]
    in_run = what_ran.preflight(tmp_path / "runs")["preflight"]  # as run.json will have it
    assert (in_run["at"], in_run["problems"], in_run["network"]) == (found["at"], found["problems"], None)
    assert in_run["bandwidth"] == found["ranks"][0]["bandwidth"] and in_run["links"][0] < 0.1 * in_run["links"][1]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"ranks": []}', '{"at": 1, "problems": [], "ranks": [{}]}'])
def test_without_a_readable_preflight_run_json_says_nothing_of_it(text, tmp_path):
    if text is not None:
        (tmp_path / "preflight.json").write_text(text)
    assert what_ran.preflight(tmp_path) == {}


def test_what_it_found_is_in_run_json(run, tmp_path):
    """A whole finetune in a folder where the preflight was: this is how the launch scripts start both."""
    options = preflight.read_options([f"--output_dir={tmp_path / 'out'}", "--expect=400"])
    seen = on_four_machines((2, 3))
    preflight.report(seen, options, preflight.problems(seen, options))
    _, report = run("--max_steps=1", "--save_strategy=no", task="classification")
    assert report["state"] == "finished"
    assert report["preflight"]["problems"] == preflight.problems(seen, options)
    assert (report["preflight"]["links"], report["preflight"]["network"]) == ([5.0, 45.0], "IB")


@pytest.mark.parametrize("machines", [2, 3, 4, 5, 512])
def test_every_link_of_the_ring_is_measured_in_a_round_of_its_own(machines):
    rounds = preflight.rounds(machines)
    assert all(len({one for pair in pairs for one in pair}) == 2 * len(pairs) for pairs in rounds)  # no one twice
    links = [tuple(sorted(pair)) for pairs in rounds for pair in pairs]
    assert len(rounds) <= 3 and sorted(links) == sorted(
        {tuple(sorted((n, (n + 1) % machines))) for n in range(machines)}
    )


def on_four_machines(slow, speed=5.0, usual=45.0):
    """Facts of 4 x 2 ranks, of which the ranks ``slow`` have slow links."""
    found = []
    for rank in range(8):
        machine = rank // 2
        others = [((machine + way) % 4) * 2 + rank % 2 for way in (-1, 1)]  # their ranks
        links = {str(other // 2): speed if {rank, other} & set(slow) else usual for other in others}
        found.append(facts()[0] | {"host": f"gpu-{machine}", "machine": machine, "links": links})
    return found


@pytest.mark.parametrize(
    ("slow", "sentences"),
    [
        ((), []),
        ((2, 3), ["machine 1, gpu-1 has a slow link: 5.00 GB/s with its neighbours, usual is 45.00"]),
        ((7,), ["machine 3, gpu-3, rank 7, has a slow link: 5.00 GB/s with its neighbours, usual is 45.00"]),
    ],
    ids=["none", "a machine", "one card"],
)
def test_a_slow_link_is_found_among_many_and_its_neighbours_are_not_blamed(slow, sentences):
    assert preflight.problems(on_four_machines(slow), options()) == sentences


def test_two_machines_have_one_link_and_both_are_named():
    found = [one | {"links": {"0": 5.0 if number % 2 else 45.0}} for number, one in enumerate(facts())]
    found = [one | {"machine": number // 2} for number, one in enumerate(found)]
    assert [sentence.split(" has")[0] for sentence in preflight.problems(found, options())] == [
        "machine 0, gpu-1, rank 1,",
        "machine 1, gpu-2, rank 3,",
    ]
