"""Which specs make no sense, and the sentence for each."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from course_utils.errors import SpecError, out_of_range
from course_utils.gpus import GPUS
from course_utils.launch.spec import overrides

if TYPE_CHECKING:
    from course_utils.launch.spec.spec import Spec

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
INTERFACE = re.compile(r"([=^]{0,2}[A-Za-z0-9][A-Za-z0-9_.:,-]{0,100})?")  # as NCCL_SOCKET_IFNAME takes it
DEVICE = re.compile(r"[a-z0-9][a-z0-9.-]{0,100}/[A-Za-z0-9][A-Za-z0-9._-]{0,60}=[1-9][0-9]{0,3}")  # Kubernetes
CLUSTER_WORD = re.compile(r"[A-Za-z0-9_.,@:/-]{0,200}")
MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def check(spec: Spec) -> None:
    """Raise ``SpecError`` with one sentence for the first contradiction found."""
    for rule in (_numbers, _texts, overrides.check, _strategy, _parallel_sizes, _batches, _precision):
        rule(spec)


def _numbers(spec: Spec) -> None:
    for field in ("gpu_memory", "network", "host_memory", "price", "mfu", "learning_rate", "storage", "gpu_mtbf"):
        value = getattr(spec, field)
        if value is not None and not math.isfinite(value):
            raise out_of_range(field, value, "a finite number")


def _texts(spec: Spec) -> None:
    for field in ("name", "program", "output_dir", "log_dir", "arguments", "hosts", "model"):
        value = getattr(spec, field)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if "\0" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
                raise SpecError(f"{field}={text!r} cannot be an argument of a program; allowed: text without NUL")
    patterns = {"name": JOB_NAME, "partition": CLUSTER_WORD, "account": CLUSTER_WORD, "image": CLUSTER_WORD}
    patterns["interface"] = INTERFACE
    for field, pattern in patterns.items():
        if not pattern.fullmatch(getattr(spec, field)):
            raise SpecError(f"{field}={getattr(spec, field)!r} is not allowed; allowed: {pattern.pattern}")
    for device in spec.network_devices:
        if not DEVICE.fullmatch(device):
            raise SpecError(f"network_devices={device!r} is not allowed; allowed: such as vpc.amazonaws.com/efa=32")
    if spec.container != "none" and not spec.image:
        raise SpecError(f"container={spec.container!r} needs image, which is empty; allowed: an image, or 'none'")
    for host in spec.hosts:
        if not HOST.fullmatch(host):
            raise SpecError(f"hosts={host!r} is not allowed; allowed: host names such as gpu-07.cluster")
    if spec.hosts and len(set(spec.hosts)) != spec.nodes:
        raise out_of_range("hosts", list(spec.hosts), f"{spec.nodes} different names, one per node")
    if spec.program_is_module and not MODULE.fullmatch(spec.program):
        raise SpecError(f"program={spec.program!r} is not known; allowed: a path that ends in .py, or a module name")
    if not spec.output_dir or not spec.program:
        raise SpecError("output_dir='' is empty; allowed: a folder")
    for field in ("output_dir", "model"):
        if getattr(spec, field) == "--":  # as a flag's value argparse drops it: the program would get a list
            raise SpecError(f"{field}='--' is not allowed; allowed: a name other than the end-of-options mark")
    if spec.log_dir.startswith("~"):
        raise SpecError(f"log_dir={spec.log_dir!r} would be a folder called '~'; allowed: a path without '~'")
    if spec.output_dir.startswith("~") and spec.output_dir[1:2] not in ("", "/"):
        # Python finds another user's home, the job script does not: what was saved would not be seen there.
        raise SpecError(
            f"output_dir={spec.output_dir!r} is another home folder; allowed: '~/...', or a path without '~'"
        )


def _strategy(spec: Spec) -> None:
    allowed = {
        "ddp": ("none",),
        "fsdp1": ("none", "all"),
        "fsdp2": ("none", "all"),
        "zero1": ("none", "optimizer"),
        "zero2": ("none", "optimizer"),
        "zero3": ("none", "optimizer", "all"),
    }[spec.strategy]
    if spec.offload not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise SpecError(f"offload={spec.offload!r} does not exist for strategy={spec.strategy!r}; allowed: {options}")
    if not spec.reshard_after_forward and not spec.is_fsdp:
        raise SpecError(f"reshard_after_forward=False belongs to FSDP; allowed with strategy={spec.strategy!r}: True")
    if spec.state_dict == "full" and not spec.is_fsdp:
        raise SpecError(f"state_dict='full' belongs to FSDP; allowed with strategy={spec.strategy!r}: 'sharded'")
    if spec.warmup_steps is not None and spec.warmup_steps > spec.max_steps:
        raise out_of_range("warmup_steps", spec.warmup_steps, f"at most max_steps={spec.max_steps}")
    if spec.warning >= spec.time_limit * 60:
        raise out_of_range("warning", spec.warning, f"seconds below the time limit of {spec.time_limit} minutes")


def _parallel_sizes(spec: Spec) -> None:
    for field in ("replicas", "context_parallel", "tensor_parallel"):
        size = getattr(spec, field)
        strategies = {"replicas": ("fsdp1", "fsdp2"), "context_parallel": ("fsdp2",), "tensor_parallel": ("fsdp2",)}[
            field
        ]
        if size > 1 and spec.strategy not in strategies:
            names = " or ".join(repr(name) for name in strategies)
            raise SpecError(f"{field}={size} needs strategy={names}; allowed with {spec.strategy!r}: 1")
    product = spec.replicas * spec.tensor_parallel * spec.context_parallel
    if spec.world_size % product:
        sizes = f"replicas x tensor_parallel x context_parallel = {product}"
        raise SpecError(f"{sizes} does not divide nodes x gpus_per_node = {spec.world_size}; allowed: a divisor")
    shards = spec.world_size // product * (1 if spec.replicas > 1 else spec.context_parallel)
    if product > 1 and spec.strategy == "fsdp2" and shards < 2:  # ParallelismConfig would raise on the cluster
        raise SpecError(
            f"replicas x tensor_parallel x context_parallel = {product} leaves no GPUs to shard over; "
            f"allowed: at most half of nodes x gpus_per_node = {spec.world_size}"
        )
    if spec.gpus_per_node % spec.tensor_parallel:
        raise out_of_range("tensor_parallel", spec.tensor_parallel, f"a divisor of gpus_per_node={spec.gpus_per_node}")
    if spec.strategy == "fsdp1" and spec.replicas not in (1, spec.nodes) and spec.device == "cuda":
        raise out_of_range("replicas", spec.replicas, f"1 or nodes={spec.nodes} (FSDP1 shards inside a machine)")
    if spec.context_parallel > 1 and spec.sequence_length % (2 * spec.context_parallel):
        raise out_of_range("sequence_length", spec.sequence_length, f"a multiple of {2 * spec.context_parallel}")
    if spec.tensor_parallel > 1 and spec.lora_rank:
        raise SpecError(
            f"lora_rank={spec.lora_rank} does not work with tensor_parallel={spec.tensor_parallel}; allowed: 0"
        )


def _batches(spec: Spec) -> None:
    if spec.global_batch is None:
        return
    one_pass = spec.micro_batch * spec.data_parallel_size
    if spec.global_batch % one_pass:
        raise out_of_range("global_batch", spec.global_batch, f"a multiple of micro_batch x GPUs = {one_pass}")
    if spec.accumulation is not None and spec.accumulation * one_pass != spec.global_batch:
        raise SpecError(
            f"global_batch={spec.global_batch} contradicts micro_batch x accumulation x GPUs = "
            f"{spec.accumulation * one_pass}; allowed: leave one of accumulation and global_batch out"
        )


def _precision(spec: Spec) -> None:
    if spec.precision == "bf16_weights" and spec.is_deepspeed and spec.offload != "none":
        raise SpecError(
            f"offload={spec.offload!r} updates fp32 weights only; allowed with precision='bf16_weights' and "
            f"strategy={spec.strategy!r}: 'none'"
        )
    if spec.device == "cpu":
        if spec.precision == "fp16":
            raise SpecError(
                "precision='fp16' is ignored on the CPU; allowed with device='cpu': 'fp32', 'bf16', 'bf16_weights'"
            )
        if spec.context_parallel > 1:
            raise SpecError(f"context_parallel={spec.context_parallel} does not run on the CPU; allowed: 1")
        if spec.strategy == "fsdp1" and spec.offload != "none":  # measured: other losses than DDP's from step 3 on
            raise SpecError(f"offload={spec.offload!r} has wrong gradients with FSDP1 on the CPU; allowed: 'none'")
    elif spec.precision.startswith("bf16") and not GPUS[spec.gpu].bf16:
        raise SpecError(f"precision={spec.precision!r} needs a GPU with bf16; allowed on {spec.gpu}: 'fp16', 'fp32'")
