"""What a checkpoint must hold to become a given model, and the sentence that says where it does not (lesson 12)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Names that wrappers put into the middle of a parameter's name: FSDP1, activation checkpointing, torch.compile.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
# Names in front of all: DDP and DeepSpeed, a state dict inside {"model": ...} that was flattened.
PREFIXES = ("", "module.", "model.")


class ConversionError(RuntimeError):
    """The checkpoint cannot become the folder that was asked for; the message is one sentence. Nothing was written."""


class Stored(Protocol):
    """Tensors of a checkpoint that are read one at a time, whatever their format."""

    kind: str  # what wrote it, in words
    shapes: dict[str, torch.Size]
    dtypes: dict[str, torch.dtype]

    def read(self, name: str) -> Tensor:
        """The whole tensor, on the CPU.

        Raises:
            ConversionError: its bytes are damaged.
        """


class Layout(NamedTuple):
    """The names and shapes of a model's state dict, from its configuration alone."""

    owner: str  # the model's class
    shapes: dict[str, torch.Size]
    tied: dict[str, str]  # alias -> the name whose weights it shares; only the latter is written


def layout_of(config: PretrainedConfig, architecture: str | None = None) -> tuple[Layout, torch.nn.Module]:
    """What a model of this configuration holds, and the model itself on the "meta" device, without memory.

    Args:
        architecture: a class of transformers; None: the first of ``config.architectures``.

    Raises:
        ConversionError: no such class, one that the configuration does not fit, or one whose names in memory are not
            those of its files.
    """
    import transformers
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    name = architecture or next(iter(config.architectures or []), None)
    kind = getattr(transformers, name or "", None)
    if not hasattr(kind, "from_pretrained"):
        raise ConversionError(
            f"architecture={name!r} is no model class of transformers; allowed: the class that was trained, "
            "such as 'Qwen3ForCausalLM'"
        )
    if get_checkpoint_conversion_mapping(config.model_type):
        raise ConversionError(
            f"models of type {config.model_type!r} have other names in memory than in their files, which is not "
            "supported; save with FULL_STATE_DICT and save_pretrained instead"
        )
    try:
        with torch.device("meta"):
            model = kind(config)
    except Exception as error:  # anything: the configuration may contradict itself
        raise ConversionError(
            f"the configuration does not make a {name}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    return Layout(name, shapes, dict(getattr(model, "all_tied_weights_keys", None) or {})), model


def plain_names(saved: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """``{model's name: name in the checkpoint}``, wrappers' parts taken out, with the prefix that fits ``wanted`` best.

    Names that start otherwise keep what they have.
    """
    saved, wanted = list(saved), set(wanted)
    short = {name: unwrapped(name) for name in saved}

    def without(prefix: str) -> dict[str, str]:
        return {part.removeprefix(prefix): name for name, part in short.items()}

    return max((without(prefix) for prefix in PREFIXES), key=lambda names: len(wanted & set(names)))


def unwrapped(name: str) -> str:
    """``name`` without what wrappers put into it."""
    for part in WRAPPERS:
        name = name.replace(part, "")
    return name


def check_fit(found: Mapping[str, torch.Size], layout: Layout, place: Any) -> None:
    """Compare names and shapes; an alias of tied weights may be there or not.

    Raises:
        ConversionError: the first name that is missing, too many or of another shape, and how many more.
    """
    optional = set(layout.tied) | {source for alias, source in layout.tied.items() if alias in found}
    missing = [name for name in layout.shapes if name not in found and name not in optional]
    if missing:
        raise ConversionError(f"{place} lacks {_some(missing)}, which {layout.owner} has; is it another model's?")
    extra = [name for name in found if name not in layout.shapes]
    if extra:
        raise ConversionError(f"{place} holds {_some(extra)}, which {layout.owner} has not; is it another model's?")
    other = [name for name in found if tuple(found[name]) != tuple(layout.shapes[name])]
    if other:
        name = other[0]
        raise ConversionError(
            f"{place} holds {_some(other)} in shape {tuple(found[name])}, where {layout.owner} with this "
            f"configuration has {tuple(layout.shapes[name])}"
        )


def check_tied(names: Mapping[str, str], stored: Stored, layout: Layout, place: Any) -> None:
    """Two copies of tied weights must be equal: only one is written.

    Raises:
        ConversionError: they differ, so the run had untied them.
    """
    for alias, source in layout.tied.items():
        both = alias in names and source in names and names[alias] != names[source]
        if both and not torch.equal(stored.read(names[alias]), stored.read(names[source])):
            raise ConversionError(
                f"{place} holds {alias} and {source} with different values, though the configuration ties them; "
                "train with tie_word_embeddings as it is, or set it to false in config.json"
            )


def check_zip(stream: IO[bytes], what: Any) -> None:
    """Compare every part of a file (or slice of one) that ``torch.save`` wrote with its CRC-32; torch itself does not.

    Raises:
        ConversionError: it is cut off, or a part differs.
    """
    try:
        with zipfile.ZipFile(stream) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ConversionError(f"{what} is damaged: cut off or overwritten; take an earlier checkpoint") from error
    if bad is not None:
        raise ConversionError(
            f"{what} is damaged: its part {bad} differs from its checksum; take an earlier checkpoint"
        )


def _some(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
