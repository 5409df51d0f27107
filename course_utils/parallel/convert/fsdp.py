"""The tensors of a ``torch.distributed.checkpoint`` folder (DCP), which FSDP1 and FSDP2 write, read one at a time.

The folder holds ``__<rank>_<n>.distcp`` files, in which every rank wrote its chunks of the tensors one behind the
other, and ``.metadata``, written last: which chunk of which tensor lies where. Documentation:
https://docs.pytorch.org/docs/stable/distributed.checkpoint.html

``dcp.load`` fills tensors that the caller has made; of ``dcp.load({})`` it makes nothing, silently. Here the tensors
are made from ``.metadata`` itself, and every chunk is compared with its checksum.

``.metadata`` is a pickle, and ``FileSystemReader.read_metadata`` loads it with ``pickle.load``, which runs whatever
code the file names. ``read_metadata`` here looks up nothing but the classes of ``ALLOWED``.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from course_utils.parallel.convert.check import ConversionError, check_zip

METADATA = ".metadata"
_CLASSES = "torch.distributed.checkpoint.metadata"
ALLOWED = {
    *((_CLASSES, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex")),
    *(
        (_CLASSES, name)
        for name in ("StorageMeta", "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class _Allowed(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return super().find_class(module, name) if module != "pathlib" else Path
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_metadata(folder: Path) -> Any:
    """``.metadata`` of a DCP folder, without running code that it may name.

    Raises:
        ConversionError: it is missing, cut off, or names anything that a checkpoint does not need.
    """
    file = folder / METADATA
    if not file.is_file():
        raise ConversionError(
            f"{folder} has no {METADATA}, which is written last: the save was interrupted; take an earlier checkpoint"
        )
    try:
        with file.open("rb") as stream:
            metadata = _Allowed(stream).load()
    except pickle.UnpicklingError as error:
        if "." in str(error) and " " not in str(error):
            raise ConversionError(
                f"{file} names {error}, which no checkpoint needs and which was not called; do not trust this file"
            ) from None
        raise ConversionError(f"{file} is damaged: cut off or overwritten; take an earlier checkpoint") from None
    except Exception as error:  # a pickle that is cut off fails in many ways
        raise ConversionError(f"{file} is damaged: cut off or overwritten; take an earlier checkpoint") from error
    if not hasattr(metadata, "state_dict_metadata") or not metadata.storage_data:
        raise ConversionError(f"{file} lists no tensors; take an earlier checkpoint")
    return metadata


class _Slice(io.RawIOBase):
    """``length`` bytes of ``stream`` from ``start`` on, as a file of their own, without a copy of them in memory."""

    def __init__(self, stream: IO[bytes], start: int, length: int):
        self.stream, self.start, self.length, self.position = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.stream.seek(self.start + self.position)
        count = self.stream.readinto(memoryview(buffer)[: max(self.length - self.position, 0)])
        self.position += count
        return count


class ShardedTensors:
    """The model's part of a DCP folder (see ``check.Stored``); the optimizer's, if it is there, is left alone.

    Args:
        folder: with ``.metadata`` and the ``.distcp`` files, as Accelerate, Trainer or ``dcp.save`` wrote it.

    Raises:
        ConversionError: no weights of a model in it, files missing or too short, or chunks that leave holes.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        metadata = read_metadata(folder)
        tensors = {n: m for n, m in metadata.state_dict_metadata.items() if hasattr(m, "chunks")}
        self.keys = _of_model(tensors, metadata.planner_data or {}, folder)  # plain name -> name in the metadata
        self.shapes = {name: tensors[key].size for name, key in self.keys.items()}
        self.dtypes = {name: tensors[key].properties.dtype for name, key in self.keys.items()}
        self.chunks: dict[str, list[tuple[Any, Any]]] = {key: [] for key in self.keys.values()}
        for index, place in metadata.storage_data.items():
            if index.fqn in self.chunks:
                self.chunks[index.fqn].append((index, place))
        self.sizes = {(key, tuple(chunk.offsets)): chunk.sizes for key in self.chunks for chunk in tensors[key].chunks}
        files = {place.relative_path for places in self.chunks.values() for _, place in places}
        self.kind = f"FSDP or DCP, {len(files)} file{'s' * (len(files) > 1)}"
        self._check_places()

    def _check_places(self) -> None:
        ends: dict[str, int] = {}
        for name, key in self.keys.items():
            stored = sum(math.prod(self.sizes.get((key, tuple(index.offset)), (0,))) for index, _ in self.chunks[key])
            if stored != math.prod(self.shapes[name]):
                raise ConversionError(
                    f"{self.folder / METADATA} lists {stored} of {math.prod(self.shapes[name])} numbers of {name}; "
                    "take an earlier checkpoint"
                )
            for _, place in self.chunks[key]:
                if place.transform_descriptors:
                    raise ConversionError(
                        f"{self.folder} was written with {place.transform_descriptors[0]}; allowed: no transforms"
                    )
                ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
        for name, end in sorted(ends.items()):
            file = self.folder / name
            if not file.resolve().is_relative_to(self.folder.resolve()):
                raise ConversionError(f"{self.folder / METADATA} names {name}, outside its folder; do not trust it")
            if not file.is_file():
                raise ConversionError(
                    f"{file} is missing; every rank's file must be in one folder, or take an earlier checkpoint"
                )
            if file.stat().st_size < end:
                raise ConversionError(
                    f"{file} is cut off: {file.stat().st_size} of at least {end} bytes; take an earlier checkpoint"
                )

    def read(self, name: str) -> Tensor:
        """The whole tensor, put together from its chunks; one chunk's memory beside it."""
        key = self.keys[name]
        whole = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        for index, place in self.chunks[key]:
            file = self.folder / place.relative_path
            with file.open("rb") as stream:
                content = _Slice(stream, place.offset, place.length)
                check_zip(content, file)
                content.seek(0)
                chunk = torch.load(content, map_location="cpu", weights_only=True)
            if len(self.chunks[key]) == 1 and chunk.shape == whole.shape and chunk.dtype == whole.dtype:
                return chunk
            corner, sizes = whole, self.sizes[key, tuple(index.offset)]
            for dimension, (start, size) in enumerate(zip(index.offset, sizes, strict=True)):
                corner = corner.narrow(dimension, start, size)
            if chunk.shape != corner.shape or chunk.dtype != whole.dtype:
                raise ConversionError(
                    f"{file} is damaged: it has {tuple(chunk.shape)} of {name} in a place for {tuple(corner.shape)}"
                )
            corner.copy_(chunk)
        return whole


def _of_model(tensors: dict[str, Any], paths: dict[str, tuple], folder: Path) -> dict[str, str]:
    """``{name: key}`` of the weights: under "model" as Accelerate saves, at the top, or the largest group."""
    groups: dict[tuple, dict[str, str]] = {}
    for key in tensors:
        path = paths.get(key, (key,))
        groups.setdefault(tuple(path[:-1]), {})[str(path[-1])] = key
    of_optimizer = [group for group in groups if group and str(group[0]).startswith("optim")]
    for group in of_optimizer:
        del groups[group]
    if not groups:
        what = "an optimizer's state" if of_optimizer else "no tensors"
        raise ConversionError(f"{folder} holds {what}, not a model's weights; allowed: pytorch_model_fsdp_0 beside it")
    best = next((group for group in (("model",), ()) if group in groups), None)
    return groups[best if best is not None else max(groups, key=lambda group: len(groups[group]))]
