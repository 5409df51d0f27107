"""What the cells of lesson 12 run: one step watched on a rank, settings resolved, a checkpoint's model judged."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils.models.peft_names import new_name
from course_utils.parallel import reference
from course_utils.parallel.held import Exchanged, gathered_bytes
from course_utils.parallel.sharded import join, my_rows, set_up

LAYERS = 6  # of the model whose gathered memory is drawn
YAML = """
distributed_type: FSDP
num_processes: 2
num_machines: 1
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: Qwen3DecoderLayer
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
""".lstrip()


class Watch(TorchDispatchMode):
    """``measure()`` after each operation inside the ``with`` block, as the list ``.seen``."""

    def __init__(self, measure: Any):
        super().__init__()
        self.measure, self.seen = measure, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.append(self.measure())
        return result


def gathered_over_a_step(layers: int, **options: Any) -> dict[str, Any]:
    """On a rank: bytes of gathered parameters after each operation of a forward and a backward pass of FSDP2.

    Args:
        layers: of the reference model.
        **options: for ``fsdp_runs.shard``.

    Returns:
        ``forward`` and ``backward``, lists of bytes; ``whole``: bytes of all parameters.
    """
    device = join()
    model, _, _, _ = set_up("fully_shard", reference.new_model(num_hidden_layers=layers).to(device), **options)
    batch = my_rows(reference.global_batches(1)[0], device)
    with Watch(lambda: gathered_bytes(model)) as forward:
        loss = reference.summed_loss(model, batch)
    with Watch(lambda: gathered_bytes(model)) as backward:
        loss.backward()
    return {"forward": forward.seen, "backward": backward.seen, "whole": sum(4 * p.numel() for p in model.parameters())}


def exchanged_in_a_step(kind: str, micro_batches: int = 1, **options: Any) -> dict[str, Any]:
    """On a rank: what the second step of the reference run exchanges; ``calls``, ``volume`` and ``parameters``.

    Args:
        micro_batches: backward passes before the step, on equal shares of the rank's rows; under DDP only the last one
            exchanges (``no_sync``).
    """
    device = join()
    model, _, step, _ = set_up(kind, reference.new_model().to(device), **options)
    for batch in reference.global_batches(2):
        mine = my_rows(batch, device)
        with Exchanged() as exchanged:
            for number in range(micro_batches):
                waits = kind == "ddp" and number < micro_batches - 1
                with model.no_sync() if waits else nullcontext():
                    reference.summed_loss(model, reference.share(mine, number, micro_batches)).backward()
            step()
    calls = [call for call in exchanged.calls if call[0] != "broadcast"]  # DDP's buffers: a few numbers
    volume = sum((2 if name == "all-reduce" else 1) * elements for name, elements in calls)
    return {"calls": calls, "volume": volume, "parameters": reference_parameters()}


def reference_parameters() -> int:
    """Parameters of the reference model."""
    return sum(p.numel() for p in reference.new_model().parameters())


def outer_parameters() -> int:
    """Parameters of the reference model that are in no layer: embedding and last norm."""
    model = reference.new_model()
    return reference_parameters() - sum(p.numel() for p in model.model.layers.parameters())


def planned(kind: str, reshard_after_forward: bool = True) -> tuple[dict[str, int], int]:
    """What lesson 15's planner counts for the reference run on two ranks: bytes by state, and of master copies.

    ``gathered`` is what it counts for the end of the forward pass. Its ZeRO is DeepSpeed's.
    """
    from course_utils.launch.planner import memory
    from course_utils.launch.spec import Spec
    from course_utils.models.configs import shape_of_model

    model = reference.new_model()
    shape, strategy = shape_of_model(model, model.config), "fsdp2" if kind == "fully_shard" else kind
    options = {"precision": "fp32", "reshard_after_forward": reshard_after_forward}
    spec = Spec(model=shape, strategy=strategy, gpus_per_node=2, **options)
    count = memory.parameters(spec, shape)
    states = {
        "parameters": memory.weights(spec, count),
        "gradients": memory.gradients(spec, count),
        "optimizer": memory.optimizer(spec, count),
        "gathered": memory.gathered(spec, shape, count, "loss"),
    }
    return states, memory.master_copies(spec, count)


def environment_of(text: str) -> dict[str, str]:
    """The FSDP variables that ``accelerate launch`` sets for its ranks when it reads the YAML file ``text``."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fsdp.yaml"
        file.write_text(text)
        arguments = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
        found = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    return {name: value for name, value in found.items() if name.startswith("FSDP_") or name == "ACCELERATE_USE_FSDP"}


def plugin_of(**config: Any) -> dict[str, Any]:
    """What ``TrainingArguments(fsdp=True, fsdp_config=config)`` hands to accelerate."""
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        return TrainingArguments(folder, use_cpu=True, fsdp=True, fsdp_config=dict(config)).fsdp_plugin_args


def loss_per_token(model: nn.Module, sentences: Sequence[str], source: str) -> list[float]:
    """Mean cross entropy per token, in nats, of each sentence under the reference run's tokens."""
    found = []
    for ids in reference.encode(list(sentences), source):
        row = torch.tensor([ids])
        batch = {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}
        with torch.no_grad():
            found.append(reference.summed_loss(model, batch).item() / (len(ids) - 1))
    return found


@contextmanager
def quietly():
    """Without two warnings: DCP's that there are no other ranks, and one of a name that PEFT still uses."""
    with warnings.catch_warnings(), new_name():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
