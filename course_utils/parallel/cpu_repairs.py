"""Six repairs that let accelerate, FSDP and DeepSpeed be rehearsed on CPU processes, and when they are made.

They shard on GPUs only: asked to on a CPU they train as DDP, or every process alone, without a word, or they fail in
code that nobody runs without a GPU. ``cpu_site/sitecustomize.py`` installs ``RepairAfterImport`` in every Python that
starts with that folder on PYTHONPATH; each repair then changes one module right after the module was imported. The
faults are those of accelerate 1.15, torch 2.13, DeepSpeed 0.19.8 and transformers 5.23
(``tests/parallel/test_cpu_repairs.py`` shows each one with and without its repair: one that has gone can go here too).

Only the standard library is imported at the top: this file runs at every start of Python.
"""

import importlib.machinery
import os


def accelerate_state(module):
    """Every process of a launcher becomes a gloo rank, and FSDP and DeepSpeed are considered.

    Without it (accelerate/state.py): ``PartialState._prepare_backend`` looks for a device's backend when LOCAL_RANK is
    set, finds none and says NO, one process, unless it was told ``cpu=True``. Told so, it says MULTI_CPU, and
    ``AcceleratorState.__init__`` turns FSDP on for MULTI_GPU and its kind only, DeepSpeed only ``and not cpu``: the run
    is DDP.

    Options that a program has for the process group (``InitProcessGroupKwargs``: a timeout) are not taken over.
    """
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
    """True where the environment variable ``name`` says yes, in one of the words accelerate takes for it."""
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def fsdp1_flat_parameter(module):
    """A full state dict can be gathered, and offloading is refused in a sentence.

    Without it (torch/distributed/fsdp/_flat_param.py): ``FlatParamHandle.to_cpu``, entered for every full state dict
    that is to lie on the CPU, copies the gathered parameter there and frees the original. On the CPU the copy is the
    original, so the parameter's storage is empty ("setStorage: ... out of bounds for storage of size 0").

    Offloading fails as well: ``init_flat_param_attributes`` pins host memory, and ``_post_backward_final_callback``
    (_runtime_utils.py) synchronizes a stream that the CPU has not. Both can be left out, but the gradients of all
    steps so far are then added up: ``prepare_gradient_for_backward`` knows an offloaded gradient by its device, which
    here is the computing one, and keeps it to accumulate on.
    """
    from contextlib import nullcontext

    handle = module.FlatParamHandle
    move, set_up = handle.to_cpu, handle.init_flat_param_attributes

    def to_cpu(self):
        return nullcontext() if self.flat_param.device.type == "cpu" else move(self)

    def set_up_or_refuse(self):
        if self._offload_params:
            raise RuntimeError("FSDP1 with offloading cannot be rehearsed on the CPU; allowed: no offloading, or FSDP2")
        set_up(self)

    handle.to_cpu, handle.init_flat_param_attributes = to_cpu, set_up_or_refuse


def fsdp2_offload(module):
    """``CPUOffloadPolicy()`` does not pin memory, unless it is told to.

    Without it (torch/distributed/fsdp/_fully_shard/_fsdp_api.py): its default ``pin_memory=True`` makes
    ``FSDPParam._init_sharded_param`` (_fsdp_param.py) pin host memory, which is done by a GPU's driver ("Cannot access
    accelerator device when none is available").
    """
    module.CPUOffloadPolicy.__init__.__defaults__ = (False,)


def deepspeed_operators(module):
    """No C++ operator can be had: DeepSpeed then uses torch's collectives, and builds nothing.

    Without it (deepspeed/ops/__init__.py): ``__compatible_ops__`` says that a CPU can have ``deepspeed_shm_comm``, and
    ``build_shm_op`` (comm/torch.py) builds it with g++ when the ranks meet: one to two minutes (105 s on two cores) on
    every new machine, and a failure where there is no compiler. The dict is filled when it is first asked for, so
    what is set here comes first.
    """
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    module.__compatible_ops__ = dict.fromkeys([*ALL_OPS, "deepspeed_not_implemented"], False)


def deepspeed_zero3(module):
    """``zero.Init``, under which a model is built in pieces, counts all ranks.

    Without it (deepspeed/runtime/zero/partition_parameters.py): ``Init.__init__`` makes a ``DeepSpeedConfig`` first and
    calls ``init_distributed`` after that. The config (runtime/config.py) takes ranks that DeepSpeed does not know of
    for one, and a batch size that counts them contradicts it ("train_batch_size is not equal to ..."). On GPUs
    accelerate has called ``init_distributed`` by then, but not for ``cpu=True``, which ``accelerate_state`` sets.
    """
    init = module.Init.__init__

    def init_after_ranks(self, *arguments, **options):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
        init(self, *arguments, **options)

    module.Init.__init__ = init_after_ranks


def transformers_trainer(module):
    """No repair but a witness: every Trainer leaves ``run.json``, so that a rehearsal can be judged from inside.

    Without it (transformers/trainer.py): a program that is not the course's, such as TRL's SFT script, ends with code 0
    and says nothing about its ranks and shards, whether it sharded or not. One that has ``WriteRun`` keeps its own.
    """
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
        """The module's ordinary spec, its loader followed by the repair; None for a module that is not in REPAIRS."""
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
