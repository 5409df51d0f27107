"""Folders: which kind of checkpoint one is, a model's own one, and writing one so that it is there whole or not at all.

Weights are written as safetensors (https://huggingface.co/docs/safetensors: eight bytes with the header's length, a
JSON header with every tensor's type, shape and place, then the numbers), tensor by tensor: the library's ``save_file``
wants all of a file's tensors in memory at once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.hub import from_hub
from course_utils.parallel.convert.check import ConversionError, Stored
from course_utils.parallel.convert.deepspeed import LATEST, ZeroTensors
from course_utils.parallel.convert.fsdp import METADATA, ShardedTensors
from course_utils.training.checkpoint import _flush_to_disk

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model",
          "sentencepiece*", "chat_template*", "generation_config.json", "preprocessor_config.json",
          "processor_config.json")  # fmt: skip
FSDP_FOLDER = "pytorch_model_fsdp_0"


def open_checkpoint(folder: Path, verify: bool) -> Stored:
    """The tensors of a checkpoint, whichever kind it is.

    Raises:
        ConversionError: no such folder, a folder of another kind, or a damaged or unfinished one.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is no folder; allowed: a checkpoint that FSDP or DeepSpeed wrote")
    for place in (folder, folder / FSDP_FOLDER):
        if (place / METADATA).exists() or any(place.glob("*.distcp")):
            return ShardedTensors(place)
    if (folder / FSDP_FOLDER).is_dir():
        raise ConversionError(f"{folder / FSDP_FOLDER} is empty: the save was interrupted; take an earlier checkpoint")
    if (folder / LATEST).is_file():
        tag = (folder / LATEST).read_text().strip()
        if not tag or Path(tag).name != tag or not (folder / tag).is_dir():
            raise ConversionError(f"{folder / LATEST} names {tag!r}, which is not there; take an earlier checkpoint")
        return ZeroTensors(folder / tag, verify)
    if any(folder.glob("*_optim_states.pt")) or any(folder.glob("*_model_states.pt")):
        return ZeroTensors(folder, verify)
    steps = sorted(folder.glob("global_step*")) + sorted(folder.glob("*/*_states.pt"))
    if steps:
        raise ConversionError(f"{folder} has no file {LATEST!r}, which DeepSpeed writes last: the save was interrupted")
    raise ConversionError(f"{folder} is no sharded checkpoint{_hint(folder)}")


def _hint(folder: Path) -> str:
    if any(folder.glob("*.safetensors")):
        return ", but a Hugging Face folder already: from_pretrained reads it as it is"
    if any(folder.glob("pytorch_model*.bin")):
        return ", but one that was gathered while it was saved (FULL_STATE_DICT): torch.load reads it"
    runs = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if runs:
        return f"; allowed: one of its checkpoints, such as {runs[-1]}"
    return f"; allowed: a folder with {METADATA}, {FSDP_FOLDER} or {LATEST} in it"


class HubFolder:
    """The weights of a model's folder (see ``check.Stored``): the frozen base of an adapter.

    Raises:
        ConversionError: it has no safetensors.
    """

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self.kind, self.files = "Hugging Face folder", {}
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        of_code = {code: dtype for dtype, code in CODES.items()}
        for file in sorted(folder.glob("*.safetensors")):
            if file.name.startswith("adapter"):
                continue
            opened = safe_open(file, "pt")
            for name in opened.keys():  # noqa: SIM118 (safe_open is no mapping)
                part = opened.get_slice(name)
                self.files[name] = opened
                self.shapes[name], self.dtypes[name] = torch.Size(part.get_shape()), of_code[part.get_dtype()]
        if not self.files:
            raise ConversionError(f"{folder} has no safetensors; adapter='merge' needs the weights of the base model")

    def read(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)


def model_folder(model: str | Path, weights: bool) -> Path:
    """The folder of a model: itself, or the hub's files of it (configuration, tokenizer, weights if asked for).

    Raises:
        ConversionError: no config.json there, or the hub does not have or reach it.
    """
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise ConversionError(f"{model} has no config.json; allowed: the folder of the model that was trained")
        return Path(model)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors"] if weights else ["config.json"]
    try:
        with from_hub(str(model), "model"):  # asks first: without a network the client tries for minutes
            return Path(snapshot_download(str(model), allow_patterns=[*wanted, *BESIDE]))
    except ConnectionError as error:
        raise ConversionError(f"model={str(model)!r} is no folder, and no model of the hub: {error}") from error


@contextmanager
def whole_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write into that is called ``out`` once the block is left without an error, every byte on the disk.

    Until then it has a hidden name beside ``out``; an error takes it away, and what a killed conversion left behind
    goes with the next one. An existing ``out`` stays as it is until the new one takes its place.

    Raises:
        ConversionError: ``out`` exists and is not to be, or is not a model's folder.
    """
    if out.exists():
        if not overwrite:
            raise ConversionError(f"{out} exists; allowed: a new name, or overwrite=True")
        if not any((out / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ConversionError(f"{out} exists and is not a model's folder; it is not overwritten")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (out.parent / f".{out.name}.{word}-{os.getpid()}" for word in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            _flush_to_disk(path)
        if out.exists():
            if not overwrite:  # somebody made it meanwhile
                raise ConversionError(f"{out} exists; allowed: a new name, or overwrite=True")
            os.rename(out, replaced)
        os.rename(temporary, out)
        _flush_to_disk(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for word in ("tmp", "old"):
        for leftover in out.parent.glob(f".{out.name}.{word}-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def copy_beside(source: Path, folder: Path, with_generation: bool) -> None:
    """Copy the tokenizer's files and, for a model, its generation settings, as far as ``source`` has them."""
    for name in {file.name for pattern in BESIDE for file in source.glob(pattern) if file.is_file()}:
        if with_generation or name != "generation_config.json":
            shutil.copyfile(source / name, folder / name)


def write_weights(
    folder: Path,
    shapes: Mapping[str, torch.Size],
    dtypes: Mapping[str, torch.dtype],
    read: Callable[[str], Tensor],
    max_shard_size: str | int,
    name: str = "model",
) -> list[str]:
    """Write ``name.safetensors``, or several and their index; one tensor is in memory at a time.

    Args:
        shapes, dtypes: of what is written, in this order; ``read(name)`` gives it, in any float type.
        max_shard_size: bytes, or "5GB".

    Returns:
        The files' names.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    empty = {key: torch.empty(shapes[key], dtype=dtypes[key], device="meta") for key in shapes}
    pattern = f"{name}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(empty, filename_pattern=pattern, max_shard_size=max_shard_size)
    for file, names in split.filename_to_tensors.items():
        _write_file(folder / file, {key: empty[key] for key in names}, read)
    if split.is_sharded:
        metadata = split.metadata | {"total_parameters": sum(value.numel() for value in empty.values())}
        index = {"metadata": metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return sorted(split.filename_to_tensors)


def _write_file(file: Path, tensors: dict[str, Tensor], read: Callable[[str], Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            value = read(name).to(tensor.dtype).contiguous()
            if value.shape != tensor.shape:
                raise ConversionError(f"{name} has shape {tuple(value.shape)} instead of {tuple(tensor.shape)}")
            stream.write(value.reshape(-1).view(torch.uint8).numpy())
