"""The weights of a DeepSpeed checkpoint (ZeRO-1, 2, 3), read one at a time, without DeepSpeed and without running code.

A folder ``global_step<N>`` holds the float32 master weights in pieces, inside the optimizer's files:

    zero_pp_rank_<r>_mp_rank_00_optim_states.pt
        ZeRO-1, 2: all parameters of a group in one row, cut into as many equal parts as there are ranks
        ZeRO-3: every parameter cut into as many parts; a rank's parts in one row
    mp_rank_00_model_states.pt (ZeRO-3: one a rank)
        which parameter has which shape

``latest`` beside the folder, written last, names it. The arithmetic is that of DeepSpeed's ``utils/zero_to_fp32.py``
(0.19); that script loads these pickles with ``weights_only=False`` and puts the whole model into memory. Here the files
are mapped into memory (``mmap``), and torch's restricted unpickler reads them: beside tensors and containers they name
three classes of DeepSpeed, for which harmless ones stand in (``STANDS_IN``).

Resume on another number of ranks: DeepSpeed refuses ("Automatic adjustment of ZeRO's optimizer state partitioning with
a new world size is not currently supported"), unless the checkpoint is made a "universal" one first
(``ds_to_universal.py``). FSDP's folders (DCP) resume on any number.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.parallel.convert.check import ConversionError, check_zip

LATEST = "latest"


class _Anything:
    """Takes the place of a class whose content nobody asks for."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Anything:
        return object.__new__(cls)


STANDS_IN = [
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Anything, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Anything, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Anything, "deepspeed.utils.tensor_fragment.fragment_address"),
]


def load_without_code(file: Path, verify: bool) -> dict[str, Any]:
    """A file of ``torch.save``, its tensors mapped from the disk; beside torch's, only ``STANDS_IN`` is looked up.

    Raises:
        ConversionError: damaged, or it names another class.
    """
    if verify:
        with file.open("rb") as stream:
            check_zip(stream, file)
    try:
        with torch.serialization.safe_globals(STANDS_IN):
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise ConversionError(
                f"{file} names {named[1]}, which is not on the list of what a checkpoint may hold, and was not called; "
                "if you trust the file, convert it with DeepSpeed's own zero_to_fp32.py"
            ) from None
        raise ConversionError(f"{file} is damaged: it cannot be read; take an earlier checkpoint") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ConversionError(f"{file} is damaged: it cannot be read; take an earlier checkpoint") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{file} is no DeepSpeed checkpoint; allowed: a folder that save_checkpoint wrote")
    return content


class ZeroTensors:
    """The weights in a ``global_step<N>`` folder (see ``check.Stored``).

    Args:
        folder: with the ``*_model_states.pt`` and ``*_optim_states.pt`` of every rank.
        verify: compare all files with their checksums first, which reads them once.

    Raises:
        ConversionError: a rank's file is missing or damaged, the ranks' files do not belong together, or it is a kind
            that is not supported (tensor or pipeline parallel, experts, no ZeRO).
    """

    def __init__(self, folder: Path, verify: bool = True):
        self.folder = folder
        optimizers = sorted(folder.glob("*_optim_states.pt"), key=_rank_of)
        models = sorted(folder.glob("*_model_states.pt"), key=_rank_of)
        if not optimizers or not models:
            lacking = "optim" if not optimizers else "model"
            raise ConversionError(
                f"{folder} has no *_{lacking}_states.pt; allowed: a folder that DeepSpeed wrote under ZeRO-1, 2 or 3"
            )
        odd = [f.name for f in (*models, *optimizers) if "expert" in f.name or not re.search(r"mp_rank_00_", f.name)]
        if odd:
            raise ConversionError(f"{folder} holds {odd[0]}: tensor parallel or expert shards are not supported")
        states = [load_without_code(file, verify) for file in models]
        pieces = [load_without_code(file, verify).get("optimizer_state_dict", {}) for file in optimizers]
        if "zero_stage" not in pieces[0] or "param_shapes" not in states[0]:
            raise ConversionError(f"{folder} was not written under ZeRO; allowed: stage 1, 2 or 3")
        self.stage = int(pieces[0]["zero_stage"])
        count = pieces[0].get("partition_count", len(pieces))
        self.ranks = max(count) if isinstance(count, list) else count
        self._check_ranks(optimizers, models)
        key = "fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"
        self.parts = [list(piece[key]) for piece in pieces]  # [rank][group]: a row of numbers
        self.kind = f"DeepSpeed ZeRO-{self.stage}, {self.ranks} rank{'s' * (self.ranks > 1)}"
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.places: dict[str, tuple[Any, ...]] = {}
        self._place_trained(states[0], pieces[0])
        self._place_frozen(states)
        self._place_rest(states[0])

    def _check_ranks(self, optimizers: list[Path], models: list[Path]) -> None:
        for files, wanted in ((optimizers, self.ranks), (models, self.ranks if self.stage == 3 else 1)):
            missing = sorted(set(range(wanted)) - {_rank_of(file) for file in files})
            if missing or len(files) != wanted:
                which = f"rank {missing[0]}'s is missing" if missing else "some are of another run"
                raise ConversionError(
                    f"{self.folder} was written by {self.ranks} ranks but holds {len(files)} of {wanted} "
                    f"{'_'.join(files[0].stem.split('_')[-2:])} files: {which}"
                )

    def _place_trained(self, state: dict[str, Any], piece: dict[str, Any]) -> None:
        paddings = piece.get("param_alignment_paddings")
        offset = 0
        for group, shapes in enumerate(state["param_shapes"]):
            offset = offset if self.stage == 3 else 0  # ZeRO-3: all groups in one row; else one row a group
            for number, (name, shape) in enumerate(shapes.items()):
                shape = torch.Size(shape)
                self.shapes[name], self.dtypes[name] = shape, self.parts[0][0].dtype
                self.places[name] = ("trained", group, offset)
                offset += self._share(shape) if self.stage == 3 else math.prod(shape)
                if paddings is not None and self.stage != 3:
                    offset += paddings[group][number]
            if self.stage != 3:
                held = sum(part[group].numel() for part in self.parts)
                self._check_count(offset, held, slack=4 * self.ranks)
        if self.stage == 3:
            for part in self.parts:
                self._check_count(offset, sum(row.numel() for row in part), slack=0)

    def _check_count(self, used: int, held: int, slack: int) -> None:
        if not used <= held <= used + slack:
            raise ConversionError(
                f"{self.folder} holds {held} numbers where its parameters have {used}: files of several runs are mixed"
            )

    def _place_frozen(self, states: list[dict[str, Any]]) -> None:
        fragments = [state.get("frozen_param_fragments") or {} for state in states]
        for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
            self.shapes[name], self.dtypes[name] = torch.Size(shape), fragments[0][name].dtype
            self.places[name] = ("frozen", [fragment[name] for fragment in fragments])

    def _place_rest(self, state: dict[str, Any]) -> None:
        """Buffers, which every rank has whole, and the second names of shared parameters."""
        for name, value in (state.get("module") or {}).items():
            if name in (state.get("buffer_names") or ()):
                self.shapes[name], self.dtypes[name], self.places[name] = value.shape, value.dtype, ("buffer", value)
        for alias, name in dict(state.get("shared_params") or {}).items():
            if name in self.places:
                self.shapes[alias], self.dtypes[alias] = self.shapes[name], self.dtypes[name]
                self.places[alias] = self.places[name]

    def _share(self, shape: torch.Size) -> int:
        return math.ceil(math.prod(shape) / self.ranks)

    def read(self, name: str) -> Tensor:
        """The whole tensor, put together from the ranks' pieces."""
        kind, *place = self.places[name]
        shape = self.shapes[name]
        if kind == "buffer":
            return place[0]
        if kind == "frozen":
            pieces = [fragment.flatten() for fragment in place[0]]
        elif self.stage == 3:
            pieces = [piece for part in self.parts for piece in _cut(part, place[1], self._share(shape))]
        else:
            group, start = place
            pieces = _cut([part[group] for part in self.parts], start, math.prod(shape))
        row = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # one piece: no copy of what is mapped
        return row[: math.prod(shape)].view(shape)


def _cut(rows: list[Tensor], start: int, count: int) -> list[Tensor]:
    """``count`` numbers from ``start`` on, of ``rows`` laid end to end."""
    found, position = [], 0
    for row in rows:
        first, last = max(start - position, 0), min(start + count - position, row.numel())
        if first < last:
            found.append(row[first:last])
        position += row.numel()
    return found


def _rank_of(file: Path) -> int:
    found = re.search(r"zero_pp_rank_(\d+)_", file.name)
    return int(found[1]) if found else 0
