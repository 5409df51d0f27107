"""What DeepSpeed writes to disk, and how it becomes a Hugging Face folder (lesson 13).

``engine.save_checkpoint`` writes one file of optimizer state a rank and, with ZeRO-3, one of weights a rank, in pickle,
which nothing but DeepSpeed reads. ``zero_to_fp32``, which lies beside them, puts the pieces together.

Source: https://www.deepspeed.ai/tutorials/zero ("Extracting weights"), deepspeed/utils/zero_to_fp32.py of 0.19.8.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_utils.data.batches import Batch
from course_utils.parallel import reference
from course_utils.parallel.deepspeed_runs import BATCH, begin, ds_config, new_engine, run_batches, whole_weights


def save_and_convert(stage: int, folder: str, steps: int = 10, seed: int = 0, source: str = "local") -> dict[str, Any]:
    """Train, save a checkpoint under ``folder``/checkpoint, convert it to ``folder``/model, load it, and compare.

    Returns:
        ``files`` of the checkpoint -> bytes; on rank 0 also those of the ``model``, ``weights_apart`` and
        ``logits_apart`` between the engine and ``from_pretrained`` on the folder, ``refuses_tied``, and ``unseen``: the
        mean loss on rows that were not trained on, of the new model and of the loaded one.
    """
    begin()
    ranks = dist.get_world_size()
    model = reference.new_model(seed)
    engine = new_engine(ds_config(stage, ranks), model)

    def step(shares: list[Batch], targets: int, is_last: bool) -> Tensor:
        loss = reference.summed_loss(engine, shares[0]) / targets * ranks
        engine.backward(loss)
        engine.step()
        return loss.detach() / ranks

    run_batches(step, steps, 1, engine.device, {}, seed, source)
    checkpoint, out = Path(folder) / "checkpoint", Path(folder) / "model"
    if dist.get_rank() == 0:
        for path in (checkpoint, out):
            shutil.rmtree(path, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(str(checkpoint), tag=f"step-{steps}")
    weights = whole_weights(model)
    batch = reference.share(reference.global_batches(1, BATCH, seed, source)[0], 0, BATCH)
    ids = batch["input_ids"].to(engine.device)
    engine.eval()
    with torch.no_grad():
        logits = engine(input_ids=ids).logits.float().cpu()  # every rank: ZeRO-3 gathers layer by layer
    dist.barrier()
    found: dict[str, Any] = {"files": sizes(checkpoint)}
    if dist.get_rank() == 0:
        found["model"] = to_folder(checkpoint, out, model.config)
        found["refuses_tied"] = refuses_tied(checkpoint, Path(folder) / "script")
        loaded = type(model).from_pretrained(out).eval()
        with torch.no_grad():
            found["logits_apart"] = (loaded(input_ids=ids.cpu()).logits - logits).abs().max().item()
        found["weights_apart"] = (reference.flat_weights(loaded) - weights).abs().max().item()
        unseen = reference.global_batches(steps + 4, BATCH, seed, source)[steps:]
        found["unseen"] = [mean_loss(one, unseen) for one in (reference.new_model(seed), loaded)]
    dist.barrier()
    return found


def to_folder(checkpoint: Path, out: Path, config: Any) -> dict[str, int]:
    """The checkpoint's fp32 weights as a Hugging Face folder: files of ``out`` -> bytes.

    ``zero_to_fp32.py . out --safe_serialization`` itself writes no config.json, and refuses a model with tied weights
    (``refuses_tied``). The state dict that it puts together goes through the model's own ``save_pretrained`` instead.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint)))
    model.save_pretrained(out)
    return sizes(out)


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[Batch]) -> float:
    """Cross entropy per target over ``batches``, in nats."""
    total = sum(reference.summed_loss(model, batch).item() for batch in batches)
    return total / sum(map(reference.count_targets, batches))


def refuses_tied(checkpoint: Path, out: Path) -> bool:
    """Whether ``zero_to_fp32 --safe_serialization`` raises because two names share one tensor."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    try:
        convert_zero_checkpoint_to_fp32_state_dict(str(checkpoint), str(out), safe_serialization=True)
    except RuntimeError as error:
        return "share memory" in str(error)
    return False


def sizes(folder: Path) -> dict[str, int]:
    """Files under ``folder`` -> bytes."""
    return {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
