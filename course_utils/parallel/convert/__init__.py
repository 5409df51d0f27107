"""A sharded checkpoint becomes a Hugging Face folder, as ``from_pretrained`` reads it (lessons 12 and 13).

    convert_checkpoint("runs/four/checkpoint-500", "Qwen/Qwen3-0.6B", "models/mine")

FSDP1 and FSDP2 (folders of torch.distributed.checkpoint) and DeepSpeed's ZeRO-1, 2 and 3; a full model, or a LoRA
adapter alone or added to its base. The program is ``course_utils.recipes.convert``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

from course_utils.parallel.convert.check import (
    ConversionError,
    Layout,
    Stored,
    check_fit,
    check_tied,
    layout_of,
    plain_names,
)
from course_utils.parallel.convert.folder import (
    HubFolder,
    copy_beside,
    model_folder,
    open_checkpoint,
    whole_folder,
    write_weights,
)
from course_utils.parallel.convert.lora import Adapter, has_adapter

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PretrainedConfig

__all__ = ["ConversionError", "Converted", "convert_checkpoint"]
ADAPTER_FILE = "adapter_config.json"


class Converted(NamedTuple):
    """What was made of what."""

    folder: Path
    source: str  # what wrote the checkpoint, such as "DeepSpeed ZeRO-3, 2 ranks"
    model: str  # the class to load it with; for an adapter that of its base
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]
    files: tuple[str, ...]  # all files of the folder


def convert_checkpoint(
    checkpoint: str | Path,
    model: str | Path | PretrainedConfig,
    out: str | Path,
    *,
    adapter: Literal["keep", "merge"] | None = None,
    adapter_config: str | Path | LoraConfig | None = None,
    architecture: str | None = None,
    config_changes: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
    verify: bool = True,
) -> Converted:
    """Write the Hugging Face folder ``out`` from a sharded checkpoint; one process, no GPU, about one model of memory.

    FSDP: tensor after tensor is read and written, so memory is that of the largest. DeepSpeed: the files are mapped,
    and what the system keeps of them in memory is at most the float32 weights. Nothing in the files is executed:
    pickles are read with short lists of allowed classes (``fsdp.ALLOWED``, ``deepspeed.STANDS_IN``).

    Every name and shape is compared with what ``model`` says the model has, every read byte with its checksum. ``out``
    appears whole at the end, or not at all.

    To go on training on another number of processes no conversion is needed under FSDP2: its folder is read by any
    number (``dcp.load`` reshards). DeepSpeed refuses that, see ``deepspeed``; a converted folder can begin a new run,
    without the optimizer's moments.

    Args:
        checkpoint: Trainer's ``checkpoint-500``, a folder of ``Accelerator.save_state``, ``pytorch_model_fsdp_0`` or
            any folder of ``dcp.save``, one with DeepSpeed's ``latest``, or its ``global_step500``.
        model: the model that was trained, as a folder, a hub name (its configuration and tokenizer are taken), or
            a configuration.
        out: the new folder.
        adapter: what to do with LoRA adapters in the checkpoint: "keep" writes an adapter's folder, "merge" a model's,
            ``W + s * B @ A`` with the base from the checkpoint or, if that holds the adapter only, from ``model``.
        adapter_config: PEFT's settings, as an object or a folder with adapter_config.json; None: looked for in and
            beside the checkpoint, then in ``model``.
        architecture: the class that was trained, if it is not the one in config.json, such as
            "Qwen3ForSequenceClassification"; ``config_changes``: fields that the run had otherwise (``num_labels``).
        dtype: of the written floats, such as "bfloat16"; None: as they were saved (DeepSpeed's are float32).
        max_shard_size: of a safetensors file, bytes or "5GB".
        overwrite: replace ``out`` if it is a model's folder.
        verify: DeepSpeed: compare the optimizer's parts with their checksums too, which reads all files once more.

    Returns:
        What was made of what.

    Raises:
        ConversionError: the checkpoint is unfinished, damaged, of another model or kind, or ``out`` exists.
        ValueError: an argument is none of the allowed values.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    number_type = _checked(adapter, dtype)
    if checkpoint.resolve().is_relative_to(out.resolve()):
        raise ConversionError(f"{out} holds the checkpoint {checkpoint}; allowed: another name")
    stored = open_checkpoint(checkpoint, verify)
    config, home = _configuration(model, dict(config_changes or {}), weights=adapter == "merge")
    layout, skeleton = layout_of(config, architecture)
    if has_adapter(stored.shapes) != (adapter is not None):
        if adapter is None:
            raise ConversionError(f"{checkpoint} holds a LoRA adapter; allowed: adapter='keep' or adapter='merge'")
        raise ConversionError(f"{checkpoint} holds no LoRA adapter; allowed: adapter=None")
    settings = _adapter_settings(adapter_config, checkpoint, home) if adapter else None
    with whole_folder(out, overwrite) as folder:
        if adapter == "keep":
            found = Adapter(stored, settings, layout, skeleton, checkpoint)
            shapes = {name: stored.shapes[key] for name, key in sorted(found.adapter.items())}
            dtypes = {name: stored.dtypes[found.adapter[name]] for name in shapes}
            write_weights(
                folder,
                shapes,
                dtypes := _cast(dtypes, number_type),
                lambda name: stored.read(found.adapter[name]),
                max_shard_size="1TB",  # PEFT reads one file
                name="adapter_model",
            )
            settings = copy.deepcopy(settings)
            settings.inference_mode = True
            if isinstance(model, str | Path):
                settings.base_model_name_or_path = str(model)
            settings.save_pretrained(folder)
        else:
            if adapter == "merge":
                dtypes, read = _merged(stored, settings, layout, skeleton, checkpoint, home)
            else:
                names = plain_names(stored.shapes, layout.shapes)
                check_fit({name: stored.shapes[key] for name, key in names.items()}, layout, checkpoint)
                check_tied(names, stored, layout, checkpoint)
                dtypes, read = _whole(stored, names, layout)
            shapes = {name: layout.shapes[name] for name in dtypes}
            write_weights(folder, shapes, dtypes := _cast(dtypes, number_type), read, max_shard_size)
            _write_config(config, layout, dtypes, folder)
        if home is not None:
            copy_beside(home, folder, with_generation=adapter != "keep")
        files = tuple(sorted(path.name for path in folder.iterdir()))
    return Converted(
        folder=out,
        source=stored.kind,
        model=layout.owner,
        tensors=len(shapes),
        parameters=sum(shape.numel() for shape in shapes.values()),
        dtypes=tuple(sorted({str(kind).removeprefix("torch.") for kind in dtypes.values()})),
        files=files,
    )


def _checked(adapter: Any, dtype: str | torch.dtype | None) -> torch.dtype | None:
    if adapter not in (None, "keep", "merge"):
        raise ValueError(f"adapter={adapter!r} is not known; allowed: None, 'keep', 'merge'")
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype={dtype!r} is not known; allowed: None, 'float32', 'bfloat16', 'float16'")
    return found


def _configuration(model: Any, changes: dict[str, Any], weights: bool) -> tuple[PretrainedConfig, Path | None]:
    from transformers import AutoConfig

    if not isinstance(model, str | Path):
        config = copy.deepcopy(model)
        config.update(changes)
        return config, None
    home = model_folder(model, weights)
    try:
        return AutoConfig.from_pretrained(home, **changes), home
    except (ValueError, OSError) as error:
        raise ConversionError(f"{home / 'config.json'} is not read: {' '.join(str(error).split())}") from error


def _adapter_settings(given: Any, checkpoint: Path, home: Path | None) -> LoraConfig:
    from peft import LoraConfig, PeftConfig

    if given is not None and not isinstance(given, str | Path):
        return given
    if given is not None:
        given = Path(given)
        places = [given.parent if given.name == ADAPTER_FILE else given]
    else:
        places = [checkpoint, checkpoint.parent, checkpoint.parent.parent, *([home] if home else [])]
    place = next((place for place in places if (place / ADAPTER_FILE).is_file()), None)
    if place is None:
        raise ConversionError(
            f"no {ADAPTER_FILE} in {' or '.join(map(str, places[:2]))}; allowed: adapter_config, a folder with the one "
            "that LoraConfig(...).save_pretrained writes"
        )
    found = PeftConfig.from_pretrained(place)
    if not isinstance(found, LoraConfig):
        raise ConversionError(f"{place / ADAPTER_FILE} is a {type(found).__name__}; allowed: LoRA")
    return found


def _whole(stored: Stored, names: dict[str, str], layout: Layout) -> tuple[dict[str, torch.dtype], Any]:
    """Types and reader of a full model; tied weights once, under the name that the model's class keeps."""
    names = dict(names)
    for alias, source in layout.tied.items():
        if alias in names:
            names.setdefault(source, names[alias])
            del names[alias]
    order = [name for name in layout.shapes if name in names]
    return {name: stored.dtypes[names[name]] for name in order}, lambda name: stored.read(names[name])


def _merged(
    stored: Stored, settings: LoraConfig, layout: Layout, skeleton: torch.nn.Module, checkpoint: Path, home: Path | None
) -> tuple[dict[str, torch.dtype], Any]:
    found = Adapter(stored, settings, layout, skeleton, checkpoint)
    if not found.base and home is None:
        raise ConversionError(f"{checkpoint} holds the adapter only; allowed with adapter='merge': model, a folder")
    base = stored if found.base else HubFolder(home)
    names = found.base or plain_names(base.shapes, layout.shapes)
    for alias, source in layout.tied.items():
        if alias in names:
            names.setdefault(source, names[alias])
    place = checkpoint if found.base else home
    trained_whole = {name.removeprefix("base_model.model.") for name in found.adapter if ".lora_" not in name}
    shapes = {name: base.shapes[key] for name, key in names.items()}
    check_fit({n: layout.shapes[n] for n in trained_whole if n in layout.shapes} | shapes, layout, place)
    return found.merged(base, names)


def _cast(dtypes: dict[str, torch.dtype], wanted: torch.dtype | None) -> dict[str, torch.dtype]:
    return {name: wanted if wanted and kind.is_floating_point else kind for name, kind in dtypes.items()}


def _write_config(config: PretrainedConfig, layout: Layout, dtypes: dict[str, torch.dtype], folder: Path) -> None:
    floats = {kind for kind in dtypes.values() if kind.is_floating_point}
    config.architectures = [layout.owner]
    config.dtype = max(floats, key=lambda kind: kind.itemsize) if floats else None
    config.save_pretrained(folder)
