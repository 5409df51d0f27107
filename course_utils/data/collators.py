"""Collators: from a list of examples to one batch of tensors (lesson 02).

Transformers brings collators for padding, masked language modelling and sequence-to-sequence labels. The ones here are
those it does not bring: T5's span corruption, and plain stacking for tensors that are not token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from course_utils.data.batches import IGNORED, check_not_empty

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pad_labels(labels: Sequence[Sequence[int]], pad_to_multiple_of: int = 1, value: int = IGNORED) -> Tensor:
    """Stack label rows of different lengths, filling up on the right with ``value``.

    Args:
        labels: B sequences of token ids.
        pad_to_multiple_of: the width is rounded up to a multiple of this (tensor cores like 8), >= 1.
        value: what stands on padding; -100 is what torch's cross-entropy skips.

    Returns:
        ``(B, L)`` int64, L the longest row rounded up.

    Raises:
        ValueError: no rows, or ``pad_to_multiple_of`` below 1.
    """
    if not labels:
        raise ValueError("labels=[] holds no rows; allowed: at least one sequence of token ids")
    if pad_to_multiple_of < 1:
        raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of} is out of range; allowed: a whole number >= 1")
    longest = max(map(len, labels))
    width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    padded = torch.full((len(labels), width), value, dtype=torch.int64)
    for row, ids in zip(padded, labels, strict=True):
        row[: len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
    return padded


def _cut_at_random(total: int, parts: int, generator: torch.Generator) -> list[int]:
    """``parts`` whole numbers >= 1 that add up to ``total``, every such split equally likely."""
    cuts = (torch.randperm(total - 1, generator=generator)[: parts - 1] + 1).sort().values.tolist()
    edges = [0, *cuts, total]
    return [right - left for left, right in zip(edges, edges[1:], strict=False)]


def sample_spans(
    length: int, generator: torch.Generator, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> list[tuple[int, int]]:
    """Draw the spans that span corruption hides from a text of ``length`` tokens.

    The number of hidden tokens and of spans is fixed (rounded), only their places and lengths are random: Raffel et al.
    2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (15% of the tokens, mean
    span length 3). Between two spans stands at least one kept token, so that no two spans touch.
    One difference to the paper's published code: there every text ends with a hidden span, which matters little for
    512 tokens with 26 spans, but would hide the end, and only the end, of a sentence with a single span. Here all
    places are equally likely.

    Args:
        length: number of tokens, >= 2.
        generator: source of randomness.
        noise_density: share of tokens to hide, between 0 and 1.
        mean_span_length: mean number of tokens a span, >= 1.

    Returns:
        ``[(start, stop), ...]`` in order, half open, as slices are.

    Raises:
        ValueError: an argument out of its range.
    """
    if length < 2:
        raise ValueError(f"length={length} is too short for a hidden and a kept token; allowed: a whole number >= 2")
    if not 0 < noise_density < 1:
        raise ValueError(f"noise_density={noise_density} is out of range; allowed: above 0 and below 1")
    if mean_span_length < 1:
        raise ValueError(f"mean_span_length={mean_span_length} is out of range; allowed: a number >= 1")
    hidden = min(max(round(length * noise_density), 1), length - 1)
    spans = min(max(round(hidden / mean_span_length), 1), length - hidden + 1)
    span_lengths = _cut_at_random(hidden, spans, generator)
    # One gap before each span and one after the last. The outer two may be empty: draw them one too long.
    gaps = _cut_at_random(length - hidden + 2, spans + 1, generator)
    result, position = [], gaps[0] - 1
    for span, gap in zip(span_lengths, gaps[1:], strict=True):
        result.append((position, position + span))
        position += span + gap
    return result


def corrupt_spans(
    ids: Sequence[int], spans: Sequence[tuple[int, int]], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Replace each span by one sentinel; the target lists each sentinel with the tokens it stands for.

    Raffel et al. 2020, figure 2: the target ends with one more sentinel, which says that nothing follows.

    Args:
        ids: token ids of one text.
        spans: half-open ``(start, stop)``, in order, not overlapping.
        sentinels: ids of the sentinel tokens, at least ``len(spans) + 1``, all different, none of them in ``ids``.

    Returns:
        ``(inputs, targets)``, two lists of ids.

    Raises:
        ValueError: too few sentinels, one of them twice, or one that stands in the text: input and target together
            could not be turned back into it.
    """
    if len(set(sentinels)) < len(sentinels):
        raise ValueError(f"sentinels={list(sentinels)} repeats an id; allowed: different ones")
    if written := sorted(set(ids) & set(sentinels)):
        raise ValueError(f"ids hold the sentinels {written}; allowed: a text without the sentinels' ids")
    if len(sentinels) < len(spans) + 1:
        raise ValueError(
            f"sentinels has {len(sentinels)} ids for {len(spans)} spans; allowed: at least one more than spans"
        )
    inputs, targets, position = [], [], 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        inputs += [*ids[position:start], sentinel]
        targets += [sentinel, *ids[start:stop]]
        position = stop
    return inputs + list(ids[position:]), targets + [sentinels[len(spans)]]


def add_sentinels(tokenizer: PreTrainedTokenizerBase, count: int = 100) -> list[int]:
    """Add ``<extra_id_0>`` ... to the tokenizer (T5's names) and return their ids; existing ones are reused.

    The model's embedding must grow with it: ``model.resize_token_embeddings(len(tokenizer))``.
    """
    names = [f"<extra_id_{i}>" for i in range(count)]
    tokenizer.add_tokens(names, special_tokens=True)
    return tokenizer.convert_tokens_to_ids(names)


class SpanCorruptionCollator:
    """Collate tokenised texts into T5's span-corruption batches, drawing new spans at every call.

    Special tokens of the features ([CLS], [SEP], padding) are dropped before corruption; input and target each end with
    the tokenizer's end token. Padding: ``input_ids`` with the tokenizer's padding id, ``labels`` with -100.

    Args:
        tokenizer: supplies the padding id, the end token and the special ids.
        sentinels: ids of the sentinel tokens, see ``add_sentinels``.
        noise_density, mean_span_length: see ``sample_spans``.
        seed: of the collator's own generator. Each DataLoader worker adds its number, or all would draw alike.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        sentinels: Sequence[int],
        noise_density: float = 0.15,
        mean_span_length: float = 3.0,
        seed: int = 0,
    ):
        self.tokenizer, self.sentinels, self.seed = tokenizer, list(sentinels), seed
        self.noise_density, self.mean_span_length = noise_density, mean_span_length
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        self.end = [] if end is None else [end]
        self.dropped = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._generator: torch.Generator | None = None

    def _random(self) -> torch.Generator:
        # Built at the first call, not in __init__: only then is it known in which worker process this copy lives.
        if self._generator is None:
            worker = torch.utils.data.get_worker_info()
            self._generator = torch.Generator().manual_seed(self.seed + (worker.id if worker else 0))
        return self._generator

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Turn B features with ``input_ids`` into ``input_ids``, ``attention_mask`` (B, L) and ``labels`` (B, T).

        Raises:
            ValueError: no features, a text of fewer than two tokens or with a sentinel in it, or more spans than
                sentinels.
        """
        check_not_empty("features", features, "texts")
        self._check_no_sentinel(features)
        inputs, targets = [], []
        for feature in features:
            ids = [i for i in torch.as_tensor(feature["input_ids"]).tolist() if i not in self.dropped]
            spans = sample_spans(len(ids), self._random(), self.noise_density, self.mean_span_length)
            source, target = corrupt_spans(ids, spans, self.sentinels)
            inputs.append({"input_ids": source + self.end})
            targets.append(target + self.end)
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        return batch | {"labels": pad_labels(targets)}

    def _check_no_sentinel(self, features: Sequence[dict[str, Any]]) -> None:
        taken = set(self.sentinels)
        for number, feature in enumerate(features):
            written = next((i for i in torch.as_tensor(feature["input_ids"]).tolist() if i in taken), None)
            if written is not None:
                name = self.tokenizer.convert_ids_to_tokens(written)
                raise ValueError(f"text {number} of the batch holds the sentinel {name!r}; allowed: texts without it")


class StackingCollator:
    """Stack examples key by key, for tensors that are not token ids: point clouds, images, spectra.

    ``label`` becomes ``labels``, which is what Trainer and the models look for.
    """

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Turn B features whose values have shape ``(...)`` into tensors of shape ``(B, ...)``.

        Raises:
            ValueError: no features, or keys or shapes differ between the examples; the sentence names them.
        """
        check_not_empty("features", features, "examples")
        names = list(features[0])
        for feature in features:
            if list(feature) != names:
                raise ValueError(f"features hold different keys: {names} and {list(feature)}; allowed: the same keys")
        return {"labels" if name == "label" else name: self._stack(name, features) for name in names}

    @staticmethod
    def _stack(name: str, features: Sequence[dict[str, Any]]) -> Tensor:
        tensors = [torch.as_tensor(feature[name]) for feature in features]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(shapes) > 1:
            listed = ", ".join(map(str, sorted(shapes)))
            raise ValueError(f"{name} has shapes {listed} in one batch; allowed: one shape (pad or sample first)")
        return torch.stack(tensors)
