"""Rehearsal on the CPU: with this folder first on PYTHONPATH, an unchanged program shards on CPU processes.

Python imports ``sitecustomize`` at every start. Accelerate and DeepSpeed shard on GPUs only: asked to on a CPU they
train as DDP, or every process alone, without a word. Each function below repairs one place, right after the library
that holds it is imported (nothing is imported here, so an ordinary Python start costs nothing):

* accelerate: a CPU run is labelled MULTI_CPU, and FSDP and DeepSpeed are considered for other labels only;
* FSDP1: gathering a full state dict moves parameters to the CPU, and fails where they already are;
* FSDP2: offloading pins host memory, which needs a GPU's driver;
* DeepSpeed: looks for C++ operators to build (a minute of g++ for shared memory), and counts one rank before its
  own ``init_distributed``.

What is rehearsed is the wiring: which wrapper, which shards, which batches, the same losses. Not speed, not memory.
"""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def accelerate_state(module):
    """Every process of a launcher is a gloo rank, and FSDP and DeepSpeed are considered."""
    partial_init, state_init = module.PartialState.__init__, module.AcceleratorState.__init__

    def init_ranks(self, cpu=False, **options):
        partial_init(self, cpu=cpu or "LOCAL_RANK" in os.environ, **options)

    def init_strategy(self, mixed_precision=None, cpu=False, *arguments, **options):
        ranks = module.PartialState(cpu=True)
        kinds, shared = module.DistributedType, module.PartialState._shared_state
        wants_fsdp = options.get("fsdp_plugin") is not None or flag("ACCELERATE_USE_FSDP")
        if wants_fsdp and ranks.distributed_type == kinds.MULTI_CPU:
            shared["distributed_type"] = kinds.MULTI_GPU  # a label: the device stays the CPU, the backend gloo
            shared["device"] = module.torch.device("cpu")  # not "cpu:0", which FSDP1 takes for another device
        cpu_flag = os.environ.pop("ACCELERATE_USE_CPU", None)  # it would rule DeepSpeed out
        try:
            state_init(self, mixed_precision, cpu and not flag("ACCELERATE_USE_DEEPSPEED"), *arguments, **options)
        finally:
            if cpu_flag is not None:
                os.environ["ACCELERATE_USE_CPU"] = cpu_flag

    module.PartialState.__init__, module.AcceleratorState.__init__ = init_ranks, init_strategy


def flag(name):
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def fsdp1_flat_parameter(module):
    """``to_cpu`` of a parameter that is on the CPU: nothing to do. Offloading has no meaning there, and is refused."""
    from contextlib import nullcontext

    handle = module.FlatParamHandle
    move, set_up = handle.to_cpu, handle.init_flat_param_attributes

    def to_cpu(self):
        return nullcontext() if self.flat_param.device.type == "cpu" else move(self)

    def set_up_or_refuse(self):
        if self._offload_params:  # it runs once pinning is left out, but from the second step on with wrong gradients
            raise RuntimeError("FSDP1 with offloading cannot be rehearsed on the CPU; allowed: no offloading, or FSDP2")
        set_up(self)

    handle.to_cpu, handle.init_flat_param_attributes = to_cpu, set_up_or_refuse


def fsdp2_offload(module):
    """``CPUOffloadPolicy()`` without pinned memory."""
    module.CPUOffloadPolicy.__init__.__defaults__ = (False,)


def deepspeed_operators(module):
    """No C++ operator can be had: DeepSpeed then uses torch's collectives, and builds nothing."""
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    module.__compatible_ops__ = dict.fromkeys([*ALL_OPS, "deepspeed_not_implemented"], False)


def deepspeed_zero3(module):
    """``zero.Init`` (a model loaded in pieces) reads the number of ranks: they must have met before."""
    init = module.Init.__init__

    def init_after_ranks(self, *arguments, **options):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
        init(self, *arguments, **options)

    module.Init.__init__ = init_after_ranks


def transformers_trainer(module):
    """No repair but a witness: every Trainer leaves ``run.json``, so that a rehearsal can be judged from inside."""
    from functools import wraps

    train = module.Trainer.train

    @wraps(train)
    def train_and_report(self, *arguments, **options):
        from course_utils.parallel.what_ran import WriteRun

        if not any(isinstance(callback, WriteRun) for callback in self.callback_handler.callbacks):
            self.add_callback(WriteRun(self))
        return train(self, *arguments, **options)

    module.Trainer.train = train_and_report


REPAIRS = {
    "accelerate.state": accelerate_state,
    "torch.distributed.fsdp._flat_param": fsdp1_flat_parameter,
    "torch.distributed.fsdp._fully_shard._fsdp_api": fsdp2_offload,
    "deepspeed.ops": deepspeed_operators,
    "deepspeed.runtime.zero.partition_parameters": deepspeed_zero3,
    "transformers.trainer": transformers_trainer,
}


class RepairAfterImport:
    """A finder (PEP 451) that lets the ordinary one find a module, and repairs the module once it has run."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        repair = REPAIRS.get(name)
        spec = repair and importlib.machinery.PathFinder.find_spec(name, path, target)
        if not spec or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_repair(module):
            execute(module)
            repair(module)

        spec.loader.exec_module = execute_and_repair
        return spec


def run_next_sitecustomize():
    """Python imports the first ``sitecustomize`` on its path only, and that is this one: import the next as well."""
    others = [folder for folder in sys.path if os.path.abspath(folder or ".") != HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would take a GPU where there is one
sys.meta_path.insert(0, RepairAfterImport)
run_next_sitecustomize()
