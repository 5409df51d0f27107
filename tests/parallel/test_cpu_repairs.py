"""Each repair of ``cpu_repairs``: its fault is there without it (else it can go) and gone with it; and the finder.

Most run in one process that takes itself for rank 0 of 2: torch's "fake" process group moves nothing between ranks.
"""

import importlib
import os
import shutil
import sys

import pytest

from course_utils.parallel import cpu_repairs, cpu_site_folder, run_ranks
from course_utils.parallel.cpu_repairs import REPAIRS, RepairAfterImport
from tests.parallel.test_cpu_fsdp import python


def one_of_two(function):
    """What ``function`` of this file returns in a process of its own, as rank 0 of 2 that has met nobody yet."""
    (seen,) = run_ranks(function, 1, environment={"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"})
    return seen


def meet_nobody():
    """The "fake" process group: two ranks as far as anybody asks, collectives that do nothing."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)


def without_and_with(name, see):
    """What ``see()`` returns before and after the repair of module ``name``."""
    module = importlib.import_module(name)
    without = see()
    REPAIRS[name](module)
    return without, see()


def outcome(see):
    """What ``see()`` returns, or its error as text."""
    try:
        return see()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def strategies_of_accelerate():
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DeepSpeedPlugin

    def strategy(**options):
        AcceleratorState._reset_state(reset_partial_state=True)
        state = Accelerator(**options).state
        return [state.distributed_type.name, state.num_processes, str(state.device)]

    def see():
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # left by an Accelerator that was given a plugin
        seen = {"ddp": strategy()}
        AcceleratorState._reset_state(reset_partial_state=True)
        seen["ranks"] = [PartialState().distributed_type.name]  # TrainingArguments asks for no more than this
        fsdp = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP")
        seen |= {"fsdp": strategy(fsdp_plugin=fsdp), "fsdp, cpu": strategy(fsdp_plugin=fsdp, cpu=True)}
        with pytest.MonkeyPatch.context() as environment:  # as accelerate launch --cpu sets it
            environment.setenv("ACCELERATE_USE_DEEPSPEED", "true")
            environment.setenv("ACCELERATE_USE_CPU", "true")
            zero = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 2}}
            seen["deepspeed"] = strategy(cpu=True, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=zero))
            assert os.environ["ACCELERATE_USE_CPU"] == "true"
        return seen

    meet_nobody()
    return without_and_with("accelerate.state", see)


def test_accelerate_finds_the_ranks_and_the_strategy():
    without, repaired = one_of_two(strategies_of_accelerate)
    assert without["fsdp"] == without["ddp"] == ["NO", 1, "cpu"] and without["ranks"] == ["NO"]
    assert without["fsdp, cpu"] == without["deepspeed"] == ["MULTI_CPU", 2, "cpu:0"]
    assert repaired["fsdp"] == repaired["fsdp, cpu"] == ["FSDP", 2, "cpu"]
    assert repaired["deepspeed"][:2] == ["DEEPSPEED", 2] and repaired["ddp"][:2] == ["MULTI_CPU", 2]
    assert repaired["ranks"] == ["MULTI_CPU"]


def fsdp1_on_the_cpu():
    import torch
    from torch.distributed.fsdp import CPUOffload, FullStateDictConfig, StateDictType
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    def gather():
        model = FSDP(torch.nn.Linear(4, 4), device_id=torch.device("cpu"))
        with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT, FullStateDictConfig(offload_to_cpu=True)):
            return {name: list(value.shape) for name, value in model.state_dict().items()}

    def offload():
        model = FSDP(torch.nn.Linear(4, 4), device_id=torch.device("cpu"), cpu_offload=CPUOffload(True))
        return list(model(torch.ones(1, 4)).shape)

    meet_nobody()
    return without_and_with("torch.distributed.fsdp._flat_param", lambda: [outcome(gather), outcome(offload)])


def test_fsdp1_gathers_and_refuses_to_offload():
    without, repaired = one_of_two(fsdp1_on_the_cpu)
    assert "out of bounds for storage of size 0" in without[0] and "Cannot access accelerator device" in without[1]
    assert repaired[0] == {"weight": [4, 4], "bias": [4]}
    assert repaired[1].startswith("RuntimeError: FSDP1 with offloading cannot be rehearsed")


def fsdp1_gradients():
    """This rank's gradients of three equal steps, without and with offloading; what needs a GPU is left out."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel

    def train(offload):
        torch.manual_seed(0)
        options = {"device_id": torch.device("cpu"), "cpu_offload": CPUOffload(offload), "use_orig_params": True}
        model = FullyShardedDataParallel(torch.nn.Linear(4, 4), **options)
        sums = []
        for _ in range(3):
            model(torch.ones(4, 4)).square().mean().backward()
            sums.append(sum(p.grad.sum().item() for p in model.parameters() if p.grad is not None))
            model.zero_grad()
        return sums

    dist.init_process_group("gloo")
    torch.Tensor.pin_memory = lambda self: self
    torch.cpu.Stream.synchronize = lambda self: None
    return [train(False), train(True)]


def test_fsdp1_with_offloading_would_add_up_the_gradients_of_all_steps():
    """Why the repair refuses it and does not merely leave out the pinning. Two processes: gradients must be real."""
    for once_each, added_up in run_ranks(fsdp1_gradients, 2):
        first = once_each[0]
        assert abs(first) > 0.01 and once_each == pytest.approx([first] * 3)
        assert added_up == pytest.approx([first, 2 * first, 3 * first])


def fsdp2_on_the_cpu():
    import torch
    from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard

    def offload(**options):
        model = torch.nn.Linear(4, 4)
        fully_shard(model, offload_policy=CPUOffloadPolicy(**options))
        return list(model(torch.ones(1, 4)).shape)

    def see():
        return [outcome(offload), outcome(lambda: offload(pin_memory=True))]

    meet_nobody()
    return without_and_with("torch.distributed.fsdp._fully_shard._fsdp_api", see)


def test_fsdp2_offloads_unpinned_unless_told_to_pin():
    without, repaired = one_of_two(fsdp2_on_the_cpu)
    assert "Cannot access accelerator device" in without[0]
    assert repaired == [[1, 4], without[1]]


def deepspeeds_operators():
    import deepspeed.comm.torch  # noqa: F401 (deepspeed.comm also has torch itself under this name)
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder.load = lambda self: "built with g++"
    comm = sys.modules["deepspeed.comm.torch"]
    return without_and_with("deepspeed.ops", comm.build_shm_op)


def test_deepspeed_builds_nothing():
    assert one_of_two(deepspeeds_operators) == ["built with g++", None]


def shards_of_zero_init():
    import deepspeed
    import torch

    counted = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1}

    def see():
        with deepspeed.zero.Init(config_dict_or_path=counted | {"zero_optimization": {"stage": 3}}):
            return torch.nn.Linear(4, 4).weight.ds_tensor.numel()

    meet_nobody()  # accelerate has done so; DeepSpeed does not look
    REPAIRS["deepspeed.ops"](importlib.import_module("deepspeed.ops"))  # or it would build
    return without_and_with("deepspeed.runtime.zero.partition_parameters", lambda: outcome(see))


def test_zero_init_counts_all_ranks():
    without, repaired = one_of_two(shards_of_zero_init)
    assert "train_batch_size is not equal" in without and "4 != 2 * 1 * 1" in without
    assert repaired == 4 * 4 // 2


def a_foreign_trainers_report(folder):
    from pathlib import Path

    import torch
    from transformers import Trainer, TrainingArguments

    from course_utils.parallel import WriteRun

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x, labels):
            return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}

    def train(name, callbacks=()):
        always = {"max_steps": 1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
        args = TrainingArguments(output_dir=str(Path(folder, name)), **always)
        trainer = Trainer(Model(), args, train_dataset=[{"x": [1.0, 2.0], "labels": 1.0}] * 4)
        for callback in callbacks:
            trainer.add_callback(callback(trainer))
        trainer.train()
        writers = sum(isinstance(callback, WriteRun) for callback in trainer.callback_handler.callbacks)
        return [Path(args.output_dir, "run.json").exists(), writers]

    names = iter(("without", "with"))
    seen = without_and_with("transformers.trainer", lambda: train(next(names)))
    return [*seen, train("its own", [WriteRun]), Trainer.train.__name__]


def test_a_foreign_trainer_leaves_a_report(tmp_path):
    (seen,) = run_ranks(a_foreign_trainers_report, 1, {"folder": str(tmp_path)})
    assert seen == [[False, 0], [True, 1], [True, 1], "train"]


# The finder, and what every start of Python does


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules to import, of which the table names one, with the finder in place."""
    for name in ("in_the_table", "not_in_the_table"):
        (tmp_path / f"{name}.py").write_text("state = 'as written'\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(REPAIRS, "in_the_table", lambda module: setattr(module, "state", "repaired"))
    monkeypatch.setattr(sys, "meta_path", [RepairAfterImport, *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)


def test_only_what_the_table_names_is_repaired(modules):
    assert importlib.import_module("in_the_table").state == "repaired"
    other = importlib.import_module("not_in_the_table")
    assert other.state == "as written" and "exec_module" not in vars(other.__spec__.loader)
    assert RepairAfterImport.find_spec("json") is None


def test_a_library_that_is_not_installed_is_missing_as_ever(modules, monkeypatch):
    monkeypatch.setitem(REPAIRS, "nowhere_to_be_found", lambda module: None)
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        importlib.import_module("nowhere_to_be_found")


def test_an_ordinary_start_imports_the_standard_library_only():
    show = "import sys; print(*(name.partition('.')[0] for name in sys.modules))"
    plain, site = python(show), python(show, cpu_site_folder())
    assert (site.stderr, plain.stderr) == ("", "")
    more = set(site.stdout.split()) - set(plain.stdout.split())
    assert "sitecustomize" in more and more - {"sitecustomize"} <= sys.stdlib_module_names


def test_start_installs_this_files_finder_first_and_keeps_a_chosen_accelerator(monkeypatch):
    show = "import os, sys; print(sys.meta_path[0].find_spec.__code__.co_filename, os.environ['DS_ACCELERATOR'])"
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert python(show, cpu_site_folder()).stdout.split() == [cpu_repairs.__file__, "cpu"]
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    assert python(show, cpu_site_folder()).stdout.split() == [cpu_repairs.__file__, "cuda"]


def test_two_checkouts_and_a_foreign_sitecustomize_run_once_each(tmp_path):
    """Only the next one on the path is called: looking at the whole path, two checkouts called each other for ever."""
    other = tmp_path / "parallel"
    shutil.copytree(cpu_site_folder(), other / "cpu_site")
    shutil.copy(cpu_repairs.__file__, other)
    (tmp_path / "sitecustomize.py").write_text("print('the foreign one ran')\n")
    show = "import sys; print(sum('RepairAfterImport' in str(finder) for finder in sys.meta_path))"
    done = python(show, cpu_site_folder(), other / "cpu_site", tmp_path)
    assert (done.stdout, done.stderr) == ("the foreign one ran\n2\n", "")
