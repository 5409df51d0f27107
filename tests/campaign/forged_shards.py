"""Contents of shards that fit no run, or run code when they are unpickled; sizes and checksums agree."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from course_utils.parallel.convert.fsdp import METADATA, read_metadata
from course_utils.training import resume
from tests.campaign.forgeries import GONE, NAN, instead, put, removed

MARKER = "code-was-run"  # a file beside the checkpoints


class Code:
    """Pickled, it is a call: whoever unpickles it makes the file."""

    def __init__(self, marker: str = ""):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def code(content: Any) -> Any:
    """all is code"""
    return Code()


def entry(key: str, value: Any) -> Callable[[Any], Any]:
    """A change of a DCP folder: another value under ``key``."""

    def change(content: Any) -> Any:
        return key, value

    change.__doc__ = f"{key} {value}"[:100]
    return change


def of_metadata(name: str, change_it: Callable[[Any], None]) -> Callable[[Any], Any]:
    """A change of a DCP folder's metadata object."""

    def change(content: Any) -> Any:
        change_it(content)
        return content

    change.__doc__ = name
    return change


def _places(**changes: Any) -> Callable[[Any], None]:
    """The first piece lies elsewhere."""

    def change(metadata: Any) -> None:
        index, place = next(iter(metadata.storage_data.items()))
        metadata.storage_data[index] = dataclasses.replace(place, **changes)

    return change


def _lose_a_piece(metadata: Any) -> None:
    next(e for e in metadata.state_dict_metadata.values() if len(getattr(e, "chunks", ())) > 1).chunks.pop()


def _lose_a_place(metadata: Any) -> None:
    del metadata.storage_data[next(iter(metadata.storage_data))]


def _lose_a_name(metadata: Any) -> None:
    name = next(name for name in metadata.state_dict_metadata if "norm" in name)
    del metadata.state_dict_metadata[name]
    metadata.storage_data = {index: place for index, place in metadata.storage_data.items() if index.fqn != name}


METADATA_CHANGES = [
    removed,
    code,
    instead({}),
    instead(3),
    of_metadata("a piece is not listed", _lose_a_piece),
    of_metadata("a piece is nowhere", _lose_a_place),
    of_metadata("a name is gone", _lose_a_name),
    of_metadata("a file outside", _places(relative_path="../../secret")),
    of_metadata("a file that is not there", _places(relative_path="__7_0.distcp")),
    of_metadata("beyond the end", _places(offset=10**9)),
    of_metadata("before the beginning", _places(offset=-5)),
    of_metadata("transforms", _places(transform_descriptors=["zstd"])),
]
STEP = "optimizer.state.model.norm.weight.step"
GROUP = "optimizer.param_groups.0."
DISTCP = "__0_0.distcp"
OF_OPTIMIZER = [
    removed,
    instead(b""),
    entry(STEP, torch.tensor(NAN)),
    entry(STEP, torch.tensor(-1.0)),
    entry(STEP, torch.tensor(7.0)),
    entry(STEP, Code()),
    entry(GROUP + "lr", Code()),
    entry(GROUP + "lr", NAN),
    entry(GROUP + "lr", "text"),
    entry(GROUP + "weight_decay", True),
    entry(GROUP + "betas", (0.9, NAN)),
    entry("optimizer.state.model.norm.weight.exp_avg", torch.zeros(2)),
    entry("optimizer.state.model.norm.weight.exp_avg_sq", "text"),
]
OF_MODEL = [removed, instead(b""), *(entry("model.model.norm.weight", value) for value in (Code(), torch.zeros(2), 3))]

COUNTS = [("global_steps", 4), ("global_steps", "6"), ("dp_world_size", 4), ("mp_world_size", 2), ("skipped_steps", -1)]
MODEL_STATES = [removed, code, instead({}), instead(3), *(put(name, value) for name, value in COUNTS)]
MODEL_STATES += [put("module", GONE), put("module", "model.norm.weight", Code())]
WEIGHTS = [put("module", "model.norm.weight", GONE), put("module", "model.norm.weight", torch.zeros(3))]


def _rank_states(inner: str, rows: str) -> list[Callable[[Any], Any]]:
    outer = "optimizer_state_dict"
    changes = [removed, code, instead({}), put(outer, 3), put(outer, {}), put(outer, "partition_count", 4)]
    changes += [put(outer, rows, []), put(outer, rows, 0, torch.zeros(3)), put(outer, inner, "state", {})]
    moments = [("exp_avg", torch.zeros(2)), ("exp_avg", Code()), ("step", torch.tensor(NAN)), ("step", -1.0)]
    moments += [("step", torch.tensor(9.0)), ("exp_avg_sq", "text"), ("exp_avg", GONE)]
    changes += [put(outer, inner, "state", 0, name, value) for name, value in moments]
    settings = [("lr", NAN), ("lr", "text"), ("weight_decay", True), ("betas", (0.9, NAN)), ("lr", GONE)]
    return changes + [put(outer, inner, "param_groups", 0, name, value) for name, value in settings]


def _optim(rank: int) -> str:
    return f"global_step6/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


LATEST = [removed, *map(instead, ("", "global_step4", "../checkpoint-4/global_step4", "global_step7"))]
TWO = _rank_states("base_optimizer_state", "single_partition_of_fp32_groups")
THREE = _rank_states("optimizer_state_dict", "fp32_flat_groups")
FORGED: dict[str, dict[str, list[Callable[[Any], Any]]]] = {
    "fsdp2": {
        f"pytorch_model_fsdp_0/{METADATA}": METADATA_CHANGES,
        f"optimizer_0/{METADATA}": METADATA_CHANGES,
        f"pytorch_model_fsdp_0/{DISTCP}": OF_MODEL,
        f"optimizer_0/{DISTCP}": OF_OPTIMIZER,
        "rng_state_1.pth": [removed],
        "scheduler.pt": [removed],
    },
    "zero2": {
        "latest": LATEST,
        "global_step6/mp_rank_00_model_states.pt": [*MODEL_STATES, *WEIGHTS],
        _optim(0): TWO,
        _optim(1): TWO,
        "rng_state_1.pth": [removed],
        "scheduler.pt": [removed],
    },
    "zero3": {
        "latest": LATEST,
        "global_step6/zero_pp_rank_1_mp_rank_00_model_states.pt": MODEL_STATES,
        _optim(0): THREE,
        _optim(1): THREE,
    },
}


def forge(checkpoint: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change a shard, and the manifest so that it agrees."""
    facts = resume.read_facts(checkpoint)
    path = checkpoint / file
    content = change(_content(path))
    _place_code(content, checkpoint.parent / MARKER)
    if content is GONE:
        path.unlink()
    elif path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".distcp" and isinstance(content, tuple):
        _put_entry(path, *content)
    elif path.name == METADATA:
        path.write_bytes(pickle.dumps(content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    resume.mark_complete(checkpoint, facts)


def _content(path: Path) -> Any:
    if path.name == METADATA:
        return read_metadata(path.parent)
    return torch.load(path, weights_only=False) if path.parent.name.startswith("global_step") else None


def _place_code(content: Any, marker: Path) -> None:
    """Tell every ``Code`` in ``content`` which file it makes."""
    if isinstance(content, Code):
        content.marker = str(marker)
    for inner in (
        content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    ):
        _place_code(inner, marker)


def _put_entry(path: Path, key: str, value: Any) -> None:
    """``value`` at the end of the file, and every piece of ``key`` said to lie there."""
    metadata = read_metadata(path.parent)
    stream = io.BytesIO()
    torch.save(value, stream)
    start = path.stat().st_size
    path.write_bytes(path.read_bytes() + stream.getvalue())
    for index, place in metadata.storage_data.items():
        if index.fqn == key:
            there = {"relative_path": path.name, "offset": start, "length": len(stream.getvalue())}
            metadata.storage_data[index] = dataclasses.replace(place, **there)
    (path.parent / METADATA).write_bytes(pickle.dumps(metadata))
