"""Sharded checkpoints of ``finetune``, looked at before FSDP or DeepSpeed load them (lesson 15).

Both libraries unpickle what they find, with ``pickle.load`` (FSDP's ``.metadata``) and ``weights_only=False`` (its
settings of the optimizer, all of DeepSpeed's files): a stranger's file would run code. And some of what does not fit
they take without a word: a tensor with a piece missing, moments of an earlier step, a rank whose optimizer state is not
there. Here the files are read without running anything, on one rank; the others are told.

What no check can see is a shard of the right shape with other numbers in it, where the manifest was made to agree.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from course_utils.parallel.convert.deepspeed import LATEST, load_without_code
from course_utils.parallel.convert.fsdp import METADATA, read_metadata
from course_utils.training.checked_loading import sentence_about
from course_utils.training.optimizer_state import check_count, check_entry, check_latest

MODEL, OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"  # accelerate's names


def check_shards(checkpoint: Path, engine: str, step: int, processes: int, exact: bool) -> None:
    """Raise ``DoesNotFit`` unless the shards are readable, whole, and saved at ``step``.

    Args:
        engine: a ``DistributedType``'s name; anything but FSDP and DEEPSPEED has no shards.
        processes: of this run; DeepSpeed's files belong to a number of them.
        exact: see ``check_latest``.
    """
    if engine == "FSDP":
        for folder in (checkpoint / MODEL, checkpoint / OPTIMIZER):
            if folder.is_dir():  # FULL_STATE_DICT writes one file, which accelerate reads with weights_only
                _check_dcp(checkpoint, folder, step, exact)
    elif engine == "DEEPSPEED":
        with sentence_about(checkpoint, LATEST):
            if (tag := (checkpoint / LATEST).read_text().strip()) != f"global_step{step}":
                raise ValueError(f"it names {tag[:50]!r} in a checkpoint of step {step}")
        _check_zero(checkpoint, checkpoint / tag, step, processes, exact)


def _check_dcp(checkpoint: Path, folder: Path, step: int, exact: bool) -> None:
    """A folder of torch.distributed.checkpoint; shapes and missing names are the library's to compare."""
    with sentence_about(checkpoint, f"{folder.name}/{METADATA}"):
        metadata = read_metadata(folder)
        places = _places(folder, metadata)
    counts: list[float] = []
    for (name, _), place in places.items():
        of_tensor = hasattr(metadata.state_dict_metadata[name], "chunks")
        if of_tensor and not name.endswith(".step"):
            continue
        with sentence_about(checkpoint, f"{folder.name}/{place.relative_path}"):
            with (folder / place.relative_path).open("rb") as stream:
                stream.seek(place.offset)
                value = torch.load(io.BytesIO(stream.read(place.length)), map_location="cpu", weights_only=True)
            if of_tensor:
                counts.append(check_count(name, value))
            else:
                _check_setting(name, value)
    if folder.name == OPTIMIZER:
        with sentence_about(checkpoint, folder.name):
            check_latest(counts, step, exact)


def _places(folder: Path, metadata: Any) -> dict[tuple[str, tuple], Any]:
    """Name and offset -> where the bytes lie; every piece of every tensor is there, inside the folder."""
    places = {(index.fqn, tuple(index.offset or ())): place for index, place in metadata.storage_data.items()}
    for name, entry in metadata.state_dict_metadata.items():
        chunks = getattr(entry, "chunks", None)
        if chunks is None:
            if (name, ()) not in places:
                raise ValueError(f"{name} is nowhere")
            continue
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(entry.size):
            raise ValueError(f"pieces of {name} are missing")
        if lost := [chunk for chunk in chunks if (name, tuple(chunk.offsets)) not in places]:
            raise ValueError(f"the piece of {name} at {tuple(lost[0].offsets)} is nowhere")
    for (name, _), place in places.items():
        file = folder / place.relative_path
        if name not in metadata.state_dict_metadata or not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{name} in {place.relative_path} is not the checkpoint's own")
        if not file.is_file() or file.stat().st_size < place.offset + place.length or place.offset < 0:
            raise ValueError(f"{place.relative_path} is missing or too short")
        if place.transform_descriptors:
            raise ValueError(f"{name} was written with {place.transform_descriptors[0]}")
    return places


def _check_zero(checkpoint: Path, folder: Path, step: int, processes: int, exact: bool) -> None:
    """A folder of DeepSpeed's: one optimizer file a rank, one model file in all (ZeRO-1, 2) or one a rank."""
    files = sorted(folder.glob("*.pt"))
    states = {file: _read(checkpoint, file) for file in files}
    models = [file for file in files if file.name.endswith("model_states.pt")]
    ranks = [file for file in files if file.name.endswith("optim_states.pt")]
    with sentence_about(checkpoint, folder.name):
        if len(ranks) != processes or len(models) not in (1, processes):
            raise ValueError(f"{len(ranks)} files of optimizer states and {len(models)} of weights for {processes}")
    for file in models:
        with sentence_about(checkpoint, f"{folder.name}/{file.name}"):
            _check_model_state(states[file], step, processes)
    sizes = set()
    for file in ranks:
        with sentence_about(checkpoint, f"{folder.name}/{file.name}"):
            sizes.add(tuple(_check_rank_state(states[file], step, processes, exact)))
            if len(sizes) > 1:
                raise ValueError("it holds other parts than the file of another rank")


def _read(checkpoint: Path, file: Path) -> dict[str, Any]:
    with sentence_about(checkpoint, f"{file.parent.name}/{file.name}"):
        return load_without_code(file, verify=False)  # the manifest's checksums have been compared


def _check_model_state(state: dict[str, Any], step: int, processes: int) -> None:
    for name, wanted in {"global_steps": step, "dp_world_size": processes, "mp_world_size": 1}.items():
        if state.get(name) != wanted:
            raise ValueError(f"{name} is {state.get(name)!r}; allowed: {wanted}")
    if not isinstance(skipped := state.get("skipped_steps"), int) or not 0 <= skipped <= step:
        raise ValueError(f"skipped_steps is {skipped!r}; allowed: 0 to {step}")
    if not isinstance(state.get("module"), dict):
        raise ValueError("no weights are in it")


def _check_rank_state(state: dict[str, Any], step: int, processes: int, exact: bool) -> Iterator[int]:
    """Yields the numbers of weights in the groups of a rank."""
    outer = state["optimizer_state_dict"]
    counted = outer["partition_count"]
    if {processes} != set(counted if isinstance(counted, list) else [counted]):
        raise ValueError(f"partition_count is {counted!r}; allowed: {processes}")
    rows = outer["fp32_flat_groups" if outer["zero_stage"] == 3 else "single_partition_of_fp32_groups"]
    inner = outer["optimizer_state_dict" if outer["zero_stage"] == 3 else "base_optimizer_state"]
    for number, group in enumerate(inner["param_groups"]):
        for name in ("lr", *group):
            _check_setting(f"param_groups.{number}.{name}", group.get(name))
    counts = []
    for number, (row, entry) in enumerate(zip(rows, inner["state"].values(), strict=True)):
        check_entry(number, entry, row)
        counts += [check_count(number, entry["step"])] if "step" in entry else []
        yield row.numel()
    check_latest(counts, step, exact)


def _check_setting(name: str, value: Any) -> None:
    """Of a group: a rate that is NaN, or text where a number belongs, would do harm some steps later."""
    last = name.rpartition(".")[2]
    numbers = value if last == "betas" and isinstance(value, tuple | list) else [value]
    if last in ("lr", "initial_lr", "weight_decay", "eps", "betas"):
        for number in numbers:
            number = number.item() if isinstance(number, torch.Tensor) and number.numel() == 1 else number
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < math.inf:
                raise ValueError(f"{name} is {value!r}; allowed: finite numbers >= 0")
