"""The look at the machines: each fault is one sentence that names the machine; rehearsed with two gloo ranks."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore

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


def test_a_slow_rank_is_found_and_stops_the_run(tmp_path):
    """Two gloo ranks, the second one slowed."""
    program = Path(__file__).with_name("slow_preflight.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program]
    command += ["--mode=stop", f"--output_dir={tmp_path / 'runs'}", "--timeout=60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode != 0
    found = json.loads((tmp_path / "runs" / "preflight.json").read_text())
    assert [rank["device"] for rank in found["ranks"]] == ["cpu", "cpu"]
    (sentence,) = found["problems"]
    assert sentence.startswith(f"rank 1 on {found['ranks'][0]['host']} is slow: ")
    assert f"preflight: {sentence}" in done.stderr
    assert set(found["ranks"][0]["bandwidth"]) == {"65536", "1048576", "4194304"}
    assert min(found["ranks"][0]["bandwidth"].values()) > 0
    assert "preflight: 2 ranks on 1 machines; all-reduce" in done.stdout
