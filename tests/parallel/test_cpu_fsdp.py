"""The rehearsal folder: what happens without it, what it repairs, and that it keeps out of the way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils.parallel import RanksFailed, cpu_site_folder, run_ranks

SITE = {"PYTHONPATH": str(cpu_site_folder())}
GUARD = Path(__file__).resolve().parents[1] / "guard"


def train_with_fsdp(version, offload=False, hsdp=False):
    """Three steps of a tiny model with accelerate's FSDP, asked for as a program would; what really ran."""
    import torch
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    options = {"reshard_after_forward": version == 2 or "FULL_SHARD", "cpu_offload": offload}
    if version == 1:  # else the optimizer, made before the model was wrapped, would train nothing
        options["use_orig_params"] = True
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="NO_WRAP", state_dict_type="FULL_STATE_DICT", **options
    )
    sizes = {"parallelism_config": ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)} if hsdp else {}
    accelerator = Accelerator(fsdp_plugin=plugin, **sizes)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for step in range(3):
        torch.manual_seed(10 * step + accelerator.process_index)
        accelerator.backward(model(torch.randn(4, 8)).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    whole = accelerator.get_state_dict(model)
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    return {
        "type": accelerator.distributed_type.name,
        "world": accelerator.num_processes,
        "wrapper": type(model).__name__,
        "held": held,
        "weights": {name: value.tolist() for name, value in whole.items()},
    }


def train_plainly():
    """The same three steps in one process on the rows of both ranks."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        rows = []
        for rank in range(2):
            torch.manual_seed(10 * step + rank)
            rows.append(torch.randn(4, 8))
        model(torch.cat(rows)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(("version", "wrapper"), [(1, "FullyShardedDataParallel"), (2, "FSDPSequential")])
def test_accelerates_fsdp_shards_on_the_cpu(version, wrapper):
    import torch

    zero, one = run_ranks(train_with_fsdp, 2, {"version": version}, environment=SITE)
    assert (zero["type"], zero["world"], zero["wrapper"]) == ("FSDP", 2, wrapper)
    assert zero["held"] + one["held"] == 8 * 16 + 16 + 16 * 8 + 8 and abs(zero["held"] - one["held"]) <= 1
    expected = train_plainly()
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(zero["weights"][name]), torch.tensor(value), rtol=0, atol=1e-6)


def test_without_the_folder_every_process_is_alone():
    """The claim of the docstring, and why ``check_ranks`` exists. Should it fail one day, the folder can go."""
    for rank in run_ranks(train_with_fsdp, 2, {"version": 2}):
        assert (rank["type"], rank["world"], rank["wrapper"]) == ("NO", 1, "Sequential")


def test_fsdp2_offloads():
    offloaded = run_ranks(train_with_fsdp, 2, {"version": 2, "offload": True}, environment=SITE)
    assert [rank["wrapper"] for rank in offloaded] == ["FSDPSequential"] * 2


@pytest.mark.long  # four ranks
def test_fsdp2_mixes_copies_with_shards():
    hybrid = run_ranks(train_with_fsdp, 4, {"version": 2, "hsdp": True}, environment=SITE)
    assert [rank["held"] for rank in hybrid] == [140] * 4


def test_fsdp1_offload_is_refused_and_not_rehearsed_wrongly():
    with pytest.raises(RanksFailed, match="FSDP1 with offloading cannot be rehearsed"):
        run_ranks(train_with_fsdp, 2, {"version": 1, "offload": True}, environment=SITE)


def python(code, *folders):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_the_next_sitecustomize_runs_as_well(tmp_path):
    code = "import sys, socket; print(any('cpu_site' in str(f) or 'Repair' in str(f) for f in sys.meta_path)); " + (
        "socket.create_connection(('192.0.2.1', 80), timeout=1)"
    )
    done = python(code, cpu_site_folder(), GUARD)
    assert done.stdout.strip() == "True"
    assert "OutgoingConnection" in done.stderr  # the guard's


def test_two_copies_on_the_path_do_not_call_each_other():
    done = python("print('started')", cpu_site_folder(), cpu_site_folder())
    assert (done.stdout, done.stderr, done.returncode) == ("started\n", "", 0)


def test_an_ordinary_start_imports_nothing():
    code = "import sys; print([m for m in ('torch', 'accelerate', 'course_utils', 'deepspeed') if m in sys.modules])"
    done = python(code, cpu_site_folder())
    assert done.stdout == "[]\n", done.stderr


def test_deepspeed_finds_no_operator_to_build():
    code = "import deepspeed; print(sorted(set(deepspeed.ops.__compatible_ops__.values())))"
    done = python(code, cpu_site_folder())
    assert done.stdout.splitlines()[-1:] == ["[False]"], done.stderr


def test_a_single_process_stays_single():
    code = "import accelerate; a = accelerate.Accelerator(); print(a.distributed_type.name, a.num_processes)"
    done = python(code, cpu_site_folder())
    assert done.stdout.splitlines()[-1:] == ["NO 1"], done.stderr
