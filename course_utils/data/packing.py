"""Packing: several documents in one row instead of padding (lesson 02).

Packed documents must not see each other. An attention mask that is block diagonal keeps them apart. The first token of
each document has the label -100, or a document's last token would be trained to predict the next one's first. Position
ids start again at 0: learned absolute positions need it; rotary ones are relative and would not notice; transformers
recognises documents by it where no mask is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED

PADDING = -1  # document id of padding


def assign_rows(lengths: Sequence[int], row_length: int, open_rows: int = 64) -> list[list[int]]:
    """First fit: put each document into the first open row that has room, whole, in the order given.

    Args:
        lengths: number of tokens of each document, 1 <= length <= row_length.
        row_length: tokens a row.
        open_rows: only the last so many rows are tried, which keeps the cost linear in the number of documents.

    Returns:
        For each row the indices of its documents.

    Raises:
        ValueError: a document is empty or longer than a row.
    """
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


def document_mask(document_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The causal mask that keeps packed documents apart, to be passed as ``attention_mask``.

    Additive: 0 where a query may look, the dtype's lowest number elsewhere. A boolean mask means the same to SDPA, but
    the eager attention of transformers adds it to the scores as 0 and 1 and hides nothing, not even the future.

    Args:
        document_ids: (B, L); equal numbers belong together.
        dtype: of the model's activations.

    Returns:
        (B, 1, L, L): [b, 0, query, key].
    """
    length = document_ids.shape[-1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    mask = torch.zeros(same.shape, dtype=dtype, device=document_ids.device)
    return mask.masked_fill(~(same & causal), torch.finfo(dtype).min)[:, None]


class PackedCollator:
    """Stack packed rows into a batch with the explicit document mask, so that nothing depends on detection.

    transformers can also recognise packed rows by their position ids, but only if it gets no ``attention_mask`` and
    builds no key-value cache (``use_cache=False``): otherwise documents see each other, without a warning.

    Args:
        explicit_mask: add ``attention_mask`` (B, 1, L, L); False relies on detection.
        dtype: of the mask.
    """

    def __init__(self, explicit_mask: bool = True, dtype: torch.dtype = torch.float32):
        self.explicit_mask, self.dtype = explicit_mask, dtype

    def __call__(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Turn B rows of ``pack_documents`` into ``input_ids``, ``labels``, ``position_ids`` (B, L) and the mask."""
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}
        document_ids = batch.pop("document_ids")
        if self.explicit_mask:
            batch["attention_mask"] = document_mask(document_ids, self.dtype)
        return batch
