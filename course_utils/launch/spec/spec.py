"""What a run should be, in one typed and validated object: ``Spec`` (lesson 15).

Everything else in ``course_utils.launch`` reads a spec: the plan (does it fit, how fast, at what cost), the launch
files, and the check that the files resolve to what the spec asked for.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from course_utils.errors import SpecError, sentence
from course_utils.gpus import Gpu
from course_utils.launch.spec import rules
from course_utils.models.shapes import ModelShape

Strategy = Literal["ddp", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"]
Precision = Literal["fp32", "bf16", "fp16", "bf16_weights"]
# A list from YAML or JSON becomes a tuple; everything else is taken strictly, so that True is not a number of nodes.
Texts = Annotated[tuple[str, ...], Field(strict=False)]


def _shape_or_name(value: Any) -> str | ModelShape:
    if isinstance(value, str | ModelShape):
        return value
    if isinstance(value, dict):
        return ModelShape(**value)
    raise ValueError(f"model={value!r} has the wrong type; allowed: a name, a path, or a mapping of sizes")


Model = Annotated[str | ModelShape, BeforeValidator(_shape_or_name)]


def of(default: Any, meaning: str, unit: str = "", **limits: Any) -> Any:
    """A field with its default, meaning and unit: what ``--help`` and the lesson's table print."""
    return Field(default, description=meaning, json_schema_extra={"unit": unit}, **limits)


class Spec(BaseModel):
    """One training run on ``nodes`` x ``gpus_per_node`` GPUs. Immutable; ``spec.but(nodes=2)`` gives a changed one.

    Raises:
        SpecError: a field is unknown, of the wrong type or out of range, or two fields contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # the program
    name: str = of("finetune", "name of the job: letters, digits, '-', '_', '.'; at most 63")
    program: str = of("course_utils.recipes.finetune", "a path that ends in .py, or a dotted module name")
    arguments: Texts = of((), "arguments of the program, passed on unchanged")
    trainer_flags: bool = of(True, "the program takes TrainingArguments' flags: add those that this spec decides")
    output_dir: str = of("runs/finetune", "where the program saves, seen from the folder the files are started in")
    # the model
    model: Model = of("Qwen/Qwen3-0.6B", "a hub name, a folder or file with config.json, or a shape")
    lora_rank: int = of(0, "rank of LoRA adapters on all linear layers; 0 trains every weight", ge=0, le=4096)
    # the strategy
    strategy: Strategy = of("fsdp2", "how the training state is spread over the GPUs")
    offload: Literal["none", "optimizer", "all"] = of("none", "what waits in host memory between its uses")
    reshard_after_forward: bool = of(True, "FSDP: free the gathered weights after the forward pass (ZeRO-3 memory)")
    replicas: int = of(1, "FSDP: copies of the sharded model (HSDP); 1 shards over all GPUs", ge=1)
    tensor_parallel: int = of(1, "GPUs that share each matrix multiplication, if the program can", "GPUs", ge=1)
    context_parallel: int = of(1, "GPUs that share each sequence", "GPUs", ge=1)
    # the machines
    nodes: int = of(1, "machines", ge=1, le=4096)
    gpus_per_node: int = of(8, "processes per machine, one per GPU", "GPUs", ge=1, le=64)
    gpu: Gpu = of("H100-80GB", "kind of GPU: its memory, speed and links")
    gpu_memory: float | None = of(None, "memory of one GPU, where it differs from the kind's", "GiB", gt=0)
    cpus_per_gpu: int = of(4, "processor cores per process: its own and its data loader's", "cores", ge=1, le=256)
    network: float | None = of(None, "bandwidth between machines; None: usual for the GPU", "GB/s per machine", gt=0)
    network_kind: Literal["any", "ethernet", "infiniband", "roce", "efa"] = of(
        "any", "what it is; any: whatever NCCL finds, sockets included"
    )
    interface: str = of("", "network interface of sockets, such as eth0; empty: NCCL and gloo choose")
    network_devices: Texts = of((), "what a pod must ask for to use it, such as vpc.amazonaws.com/efa=32 (Kubernetes)")
    host_memory: float | None = of(None, "memory of one machine; None: not checked", "GiB", gt=0)
    numa: Literal["", "node", "socket", "exclusive", "core-complex"] = of(
        "", "bind each process to cores near its GPU, as torchrun's --numa-binding names it; needs numactl"
    )
    device: Literal["cuda", "cpu"] = of("cuda", "cpu starts the same run on processor cores with gloo: a rehearsal")
    # the numbers
    precision: Precision = of("bf16", "bf16, fp16: autocast over fp32 weights; bf16_weights: bf16 throughout")
    micro_batch: int = of(1, "sequences per GPU and forward pass", "sequences", ge=1)
    accumulation: int | None = of(None, "forward passes per optimizer step; None: from global_batch, else 1", ge=1)
    global_batch: int | None = of(None, "sequences per optimizer step over all GPUs", "sequences", ge=1)
    sequence_length: int = of(2048, "tokens of one sequence", "tokens", ge=1)
    checkpointing: bool = of(False, "recompute activations in the backward pass")
    max_steps: int = of(1000, "optimizer steps of the whole run", "steps", ge=1)
    save_every: int = of(100, "optimizer steps between checkpoints", "steps", ge=1)
    save_total_limit: int | None = of(None, "how many checkpoints stay on the disk; None: all", ge=1)
    state_dict: Literal["sharded", "full"] = of(
        "sharded", "FSDP's checkpoints: a part from each rank, or all of it gathered and written by rank 0"
    )
    logging_steps: int | None = of(None, "optimizer steps between logged losses; None: 10", "steps", ge=1)
    learning_rate: float | None = of(None, "the highest of the run; None: the program's own", gt=0)
    warmup_steps: int | None = of(None, "steps until it is reached; None: the program's own", "steps", ge=0)
    seed: int | None = of(None, "of weights, dropout and the order of rows; None: the program's own", ge=0, lt=2**32)
    tracker: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] | None = of(
        None, "where losses are reported besides the log; None: the program's own"
    )
    # the stay on the cluster
    time_limit: int = of(24 * 60, "longest stay of one job", "minutes", ge=5)
    warning: int = of(120, "how long before the time limit the program is told to save and stop", "seconds", ge=30)
    ddp_timeout: int = of(1800, "how long a rank waits for the others, for rank 0's data, too", "seconds", ge=60)
    max_restarts: int = of(0, "how often a crashed run goes on by itself from its last checkpoint", ge=0, le=100)
    log_dir: str = of("", "folder for a log and an error file of each rank, seen as output_dir; empty: none")
    hosts: Texts = of((), "machine names for the hostfile, one per node; empty: node1, node2, ...")
    port: int = of(29500, "TCP port of the rendezvous on the first machine", ge=1024, le=65535)
    partition: str = of("", "SLURM partition; empty: the cluster's default")
    account: str = of("", "SLURM account; empty: yours")
    exclusive: bool = of(False, "SLURM: no other job on the machines, and all their cores")
    image: str = of("pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime", "container image (Kubernetes, SkyPilot, SLURM)")
    container: Literal["none", "pyxis", "apptainer"] = of(
        "none", "how SLURM starts the image: srun's plugin pyxis with enroot, or apptainer; none: without it"
    )
    preflight: Literal["warn", "stop", "off"] = of(
        "warn", "look at machines, network and disk before training; stop: do not train if anything is wrong"
    )
    # the bill
    price: float | None = of(None, "price of one GPU for an hour; None: no cost is computed", "$/hour", ge=0)
    mfu: float = of(0.4, "assumed share of the GPU's peak (MFU), without counting recomputation", gt=0, le=1)
    # failures: assumptions of the plan
    storage: float = of(2.0, "assumed bandwidth at which all machines together write a checkpoint", "GB/s", gt=0)
    gpu_mtbf: float = of(50_000, "assumed mean time between failures of one GPU and all it needs", "hours", gt=0)
    restart: int = of(600, "assumed time from a failure until training goes on", "seconds", ge=0)

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(sentence(error)) from None

    @model_validator(mode="after")
    def _no_contradictions(self) -> Spec:
        rules.check(self)
        return self

    def but(self, **changes: Any) -> Spec:
        """The same spec with some fields changed, validated again."""
        return Spec(**({name: getattr(self, name) for name in type(self).model_fields} | changes))

    def on_cpu(self, processes: int = 2) -> Spec:
        """The same run as a rehearsal: one machine, ``processes`` CPU processes, no clock to beat."""
        is_hybrid = self.strategy == "fsdp2" and processes % (2 * self.replicas) == 0  # at least two shards a copy
        return self.but(
            device="cpu",
            nodes=1,
            gpus_per_node=processes,
            hosts=(),
            replicas=self.replicas if is_hybrid else 1,
            offload="none" if self.strategy == "fsdp1" else self.offload,  # FSDP1 cannot do it on the CPU
            tensor_parallel=1,
            context_parallel=1,
            preflight="off",
            max_restarts=0,
            global_batch=None,
            accumulation=self.accumulation_steps,
            precision="fp32" if self.precision == "fp16" else self.precision,
        )

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.gpus_per_node

    @property
    def data_parallel_size(self) -> int:
        """How many different micro-batches are in the works at once; tensor and context parallel ranks share one."""
        return self.world_size // (self.tensor_parallel * self.context_parallel)

    @property
    def accumulation_steps(self) -> int:
        """Forward passes per optimizer step, given or derived from ``global_batch``."""
        if self.accumulation is not None:
            return self.accumulation
        if self.global_batch is not None:
            return self.global_batch // (self.micro_batch * self.data_parallel_size)
        return 1

    @property
    def effective_batch(self) -> int:
        """Sequences per optimizer step: ``micro_batch`` x ``accumulation_steps`` x ``data_parallel_size``."""
        return self.micro_batch * self.accumulation_steps * self.data_parallel_size

    @property
    def is_fsdp(self) -> bool:
        return self.strategy in ("fsdp1", "fsdp2")

    @property
    def is_deepspeed(self) -> bool:
        return self.strategy in ("zero1", "zero2", "zero3")

    @property
    def program_is_module(self) -> bool:
        return not self.program.endswith(".py")

    @property
    def host_names(self) -> tuple[str, ...]:
        """One name per node; ``hosts`` or placeholders to be edited."""
        return self.hosts or tuple(f"node{rank + 1}" for rank in range(self.nodes))
