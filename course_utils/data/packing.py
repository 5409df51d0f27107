"""Packing: several documents in one row instead of padding (lesson 02).

Packed documents must not see each other. An attention mask that is block diagonal keeps them apart. The first token of
each document has the label -100, or a document's last token would be trained to predict the next one's first. Position
ids start again at 0: learned absolute positions need it; rotary ones are relative and would not notice; transformers
recognises documents by it where no mask is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED, check_not_empty

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PADDING = -1  # document id of padding


def assign_rows(lengths: Sequence[int], row_length: int, open_rows: int = 64) -> list[list[int]]:
    """First fit: put each document into the first open row that has room, whole, in the order given.

    Args:
        lengths: number of tokens of each document, 1 <= length <= row_length.
        row_length: tokens a row.
        open_rows: only the last so many rows are tried, which keeps the cost linear in the number of documents; >= 1.

    Returns:
        For each row the indices of its documents.

    Raises:
        ValueError: a document is empty or longer than a row, or ``open_rows`` is below 1.
    """
    if open_rows < 1:
        raise ValueError(f"open_rows={open_rows} is out of range; allowed: a whole number >= 1")
    rows: list[list[int]] = []
    room: list[int] = []
    for index, length in enumerate(lengths):
        if not 1 <= length <= row_length:
            raise ValueError(f"document {index} has {length} tokens; allowed: 1 to row_length={row_length}")
        first = max(0, len(rows) - open_rows)
        row = next((r for r in range(first, len(rows)) if room[r] >= length), None)
        if row is None:
            rows.append([])
            room.append(row_length)
            row = -1
        rows[row].append(index)
        room[row] -= length
    return rows


def pack_documents(
    documents: Sequence[Sequence[int]], row_length: int, pad_token_id: int = 0, open_rows: int = 64
) -> list[dict[str, Tensor]]:
    """Pack token sequences into rows for a causal language model.

    Args:
        documents: token ids of each document, 1 to ``row_length`` of them; truncate before.
        row_length: L, tokens a row.
        pad_token_id: stands in what is left at a row's end.
        open_rows: see ``assign_rows``.

    Returns:
        Rows of int64 tensors, each (L,): ``input_ids``; ``labels`` (= input_ids, -100 on each document's first token
        and on padding; the model shifts them itself); ``position_ids`` (restart at 0 with each document);
        ``document_ids`` (0, 1, ... in the row, -1 on padding). Padding gets positions of its own, like a last document.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
    return [
        _pack_row([documents[i] for i in row], row_length, pad_token_id)
        for row in assign_rows([len(document) for document in documents], row_length, open_rows)
    ]


def _pack_row(documents: Sequence[Sequence[int]], row_length: int, pad_token_id: int) -> dict[str, Tensor]:
    input_ids, labels, position_ids, document_ids = [], [], [], []
    for number, document in enumerate(documents):
        tokens = list(document)
        input_ids += tokens
        labels += [IGNORED, *tokens[1:]]
        position_ids += range(len(tokens))
        document_ids += [number] * len(tokens)
    padding = row_length - len(input_ids)
    row = {
        "input_ids": input_ids + [pad_token_id] * padding,
        "labels": labels + [IGNORED] * padding,
        "position_ids": position_ids + list(range(padding)),
        "document_ids": document_ids + [PADDING] * padding,
    }
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in row.items()}


def document_mask(document_ids: Tensor, dtype: torch.dtype = torch.float32, window: int | None = None) -> Tensor:
    """The causal mask that keeps packed documents apart, to be passed as ``attention_mask``.

    Additive: 0 where a query may look, the dtype's lowest number elsewhere. A boolean mask means the same to SDPA, but
    the eager attention of transformers adds it to the scores as 0 and 1 and hides nothing, not even the future.

    Args:
        document_ids: (B, L); equal numbers belong together.
        dtype: of the model's activations.
        window: a query sees itself and the ``window - 1`` tokens before it (``config.sliding_window``); None: all.

    Returns:
        (B, 1, L, L): [b, 0, query, key].
    """
    length = document_ids.shape[-1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    if window is not None:
        causal = causal.triu(1 - window)
    mask = torch.zeros(same.shape, dtype=dtype, device=document_ids.device)
    return mask.masked_fill(~(same & causal), torch.finfo(dtype).min)[:, None]


def mask_window(config: PreTrainedConfig) -> int | None:
    """The window that an explicit mask needs for the model of ``config``: a given mask *replaces* the model's own.

    transformers hands a 4D mask to every layer as it is. So one mask fits where all layers see alike: everything
    before them (None), or the same window (its length).

    Raises:
        ValueError: the model's layers see differently (local and global ones, chunks, recurrent ones, which no mask
            holds apart), or it is no causal model, or it makes biases of a 2D mask.
    """
    from transformers.models.auto import modeling_auto as auto

    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    if not kinds and getattr(text, "attention_chunk_size", None):
        kinds = {"chunked_attention"}
    kinds = kinds or {"full_attention" if window is None else "sliding_attention"}
    encoder = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    reason = None
    if len(kinds) > 1 or not kinds <= {"full_attention", "sliding_attention"}:
        reason = f"its layers see in their own ways ({', '.join(sorted(kinds))})"
    elif getattr(text, "use_bidirectional_attention", None):
        reason = "it attends in both directions"
    elif config.model_type not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or encoder:
        reason = "it is no causal language model"
    elif getattr(text, "alibi", config.model_type == "bloom"):
        reason = "it makes its position biases from a 2D mask"
    if reason:
        raise ValueError(
            f"explicit_mask=True does not fit {config.model_type!r}: one mask would replace the model's own, and "
            f"{reason}; allowed: explicit_mask=False where the model recognises documents by position_ids, or padding"
        )
    return window if kinds == {"sliding_attention"} else None


def check_mask_fits(mask: Tensor, config: PreTrainedConfig) -> None:
    """Refuse a batch whose explicit mask would make the model of ``config`` see what its own masks hide.

    Args:
        mask: (B, 1, L, L), additive, as ``document_mask`` makes it.

    Raises:
        ValueError: as ``mask_window``, or the mask shows more than the model's window.
    """
    window = mask_window(config)
    if window is not None and bool((mask == 0).tril(-window).any()):
        raise ValueError(
            f"the attention mask shows tokens outside the window of {window} of {config.model_type!r}; allowed: "
            "PackedCollator(config=model.config), which keeps it"
        )


class PackedCollator:
    """Stack packed rows into a batch with the explicit document mask, so that nothing depends on detection.

    transformers can also recognise packed rows by their position ids, but only if it gets no ``attention_mask`` and
    builds no key-value cache (``use_cache=False``): otherwise documents see each other, without a warning.

    Args:
        explicit_mask: add ``attention_mask`` (B, 1, L, L); False relies on detection.
        dtype: of the mask.
        config: the model's, ``model.config``: the mask keeps its window. None: for models whose layers all see
            everything before them; the course's loop refuses a batch that does not fit its model.

    Raises:
        ValueError: no mask fits the model of ``config``, see ``mask_window``.
    """

    def __init__(
        self,
        explicit_mask: bool = True,
        dtype: torch.dtype = torch.float32,
        config: PreTrainedConfig | None = None,
    ):
        self.explicit_mask, self.dtype = explicit_mask, dtype
        self.window = mask_window(config) if explicit_mask and config is not None else None

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Turn B rows of ``pack_documents`` into ``input_ids``, ``labels``, ``position_ids`` (B, L) and the mask."""
        check_not_empty("rows", rows, "packed rows")
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        document_ids = batch.pop("document_ids")
        if self.explicit_mask:
            batch["attention_mask"] = document_mask(document_ids, self.dtype, self.window)
        return batch
