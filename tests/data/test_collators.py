"""Span corruption by T5's definition, label padding, stacking."""

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from course_utils.data.collators import (
    IGNORED,
    SpanCorruptionCollator,
    StackingCollator,
    add_sentinels,
    corrupt_spans,
    pad_labels,
    sample_spans,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(195))]


@pytest.fixture
def tokenizer():
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, mask_token="[MASK]", **special)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("length", [2, 3, 7, 20, 64, 512])
@pytest.mark.parametrize("density, mean", [(0.15, 3.0), (0.5, 3.0), (0.9, 1.0), (0.01, 10.0)])
def test_spans_have_the_right_total_and_never_touch(length, density, mean):
    for seed in range(5):
        spans = sample_spans(length, generator(seed), density, mean)
        hidden = sum(stop - start for start, stop in spans)
        assert hidden == min(max(round(length * density), 1), length - 1)
        assert len(spans) == min(max(round(hidden / mean), 1), length - hidden + 1)
        assert spans[0][0] >= 0 and spans[-1][1] <= length
        assert all(stop > start for start, stop in spans)
        assert all(left[1] < right[0] for left, right in zip(spans, spans[1:], strict=False))


@pytest.mark.parametrize("length, density", [(20, 0.15), (40, 0.3)])
def test_every_place_is_about_equally_likely(length, density):
    hidden = torch.zeros(length)
    for seed in range(800):
        for start, stop in sample_spans(length, generator(seed), density):
            hidden[start:stop] += 1 / 800
    assert (hidden > 0.2 * density).all() and (hidden[3:-3] < 2 * density).all()


def test_span_lengths_vary_around_their_mean():
    spans = sample_spans(2000, generator(), 0.15, 3.0)
    lengths = [stop - start for start, stop in spans]
    assert sum(lengths) == 300 and len(lengths) == 100 and len(set(lengths)) > 4


def test_corruption_is_the_papers_example():
    # Raffel et al. 2020, figure 2: "Thank you for inviting me to your party last week".
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    inputs, targets = corrupt_spans(text, [(2, 4), (8, 9)], ["<X>", "<Y>", "<Z>"])
    assert inputs == ["Thank", "you", "<X>", "me", "to", "your", "party", "<Y>", "week"]
    assert targets == ["<X>", "for", "inviting", "<Y>", "last", "<Z>"]


def test_input_and_target_together_hold_the_text():
    ids, sentinels = list(range(10, 90)), list(range(1000, 1050))
    inputs, targets = corrupt_spans(ids, sample_spans(80, generator(), 0.3), sentinels)
    pieces, current = {}, None
    for token in targets:
        if token >= 1000:
            current = pieces.setdefault(token, [])
        else:
            current.append(token)
    restored = [t for token in inputs for t in (pieces[token] if token >= 1000 else [token])]
    assert restored == ids and pieces[max(pieces)] == []


def test_collator_pads_and_keeps_specials_out(tokenizer):
    sentinels = add_sentinels(tokenizer, 20)
    collate = SpanCorruptionCollator(tokenizer, sentinels, seed=1)
    features = [{"input_ids": [2, *range(5, 5 + n), 3]} for n in (8, 40, 23)]
    batch = collate(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for row, mask, labels, feature in zip(*batch.values(), features, strict=True):
        ids = row[mask.bool()].tolist()
        target = labels[labels != IGNORED].tolist()
        assert (row[mask == 0] == tokenizer.pad_token_id).all()
        assert ids[-1] == target[-1] == tokenizer.sep_token_id
        assert tokenizer.cls_token_id not in ids
        assert target[0] == sentinels[0] and target[-2] in sentinels
        assert sorted(i for i in ids + target if i not in sentinels and i != 3) == feature["input_ids"][1:-1]
    assert (batch["labels"] == 0).sum() == 0  # padding of the targets is -100, never the padding id


def test_collator_is_deterministic_and_draws_anew(tokenizer):
    sentinels = add_sentinels(tokenizer, 20)
    features = [{"input_ids": list(range(5, 105))}]
    first, second = SpanCorruptionCollator(tokenizer, sentinels), SpanCorruptionCollator(tokenizer, sentinels)
    one, two = first(features)["input_ids"], second(features)["input_ids"]
    assert torch.equal(one, two)
    assert not torch.equal(one, first(features)["input_ids"])


def test_workers_draw_different_spans(tokenizer):
    collate = SpanCorruptionCollator(tokenizer, add_sentinels(tokenizer, 20))
    data = [{"input_ids": list(range(5, 105))}] * 2
    one, two = DataLoader(data, batch_size=1, num_workers=2, collate_fn=collate)
    assert not torch.equal(one["input_ids"], two["input_ids"])


def test_a_text_that_holds_a_sentinel_is_refused(tokenizer):
    """Input and target together could not be turned back into such a text: whose sentinel is it?"""
    sentinels = add_sentinels(tokenizer, 20)
    features = [{"input_ids": list(range(5, 25))}, {"input_ids": [5, 6, sentinels[3], 7, 8]}]
    with pytest.raises(ValueError, match=r"text 1 .*<extra_id_3>.*allowed: ") as error:
        SpanCorruptionCollator(tokenizer, sentinels)(features)
    assert "\n" not in str(error.value)


def test_adding_sentinels_twice_adds_them_once(tokenizer):
    assert add_sentinels(tokenizer, 5) == add_sentinels(tokenizer, 5) == list(range(200, 205))


def test_pad_labels_fills_with_the_ignored_index():
    padded = pad_labels([[1, 2, 3], [4]], pad_to_multiple_of=8)
    assert padded.shape == (2, 8) and padded.dtype == torch.int64
    assert padded[1].tolist() == [4] + [IGNORED] * 7
    assert pad_labels([[1, 2, 3], [4]]).shape == (2, 3)


def test_an_empty_batch_is_one_sentence(tokenizer):
    """Every collator of the course says so; an AttributeError or IndexError of their insides would not."""
    from course_utils.data.clouds import CloudCollator
    from course_utils.data.instructions import InstructionCollator, pad_left
    from course_utils.data.packing import PackedCollator
    from course_utils.data.visual_questions import VqaCollator, scene_tokenizer

    spans = SpanCorruptionCollator(tokenizer, add_sentinels(tokenizer, 20))
    others = [StackingCollator(), CloudCollator(), InstructionCollator(0), PackedCollator()]
    for collate in (spans, *others, VqaCollator(scene_tokenizer()), lambda prompts: pad_left(prompts, 0)):
        with pytest.raises(ValueError, match=r"=\[\] holds no .*; allowed: at least one"):
            collate([])


def test_stacking_renames_label_and_keeps_dtypes():
    clouds = [{"points": torch.full((5, 3), float(i)), "label": i} for i in range(4)]
    batch = StackingCollator()(clouds)
    assert batch["points"].shape == (4, 5, 3) and batch["points"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1, 2, 3] and "label" not in batch


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: sample_spans(1, generator()), "length=1"),
        (lambda: sample_spans(9, generator(), 0.0), "noise_density=0.0"),
        (lambda: sample_spans(9, generator(), 0.15, 0.5), "mean_span_length=0.5"),
        (lambda: corrupt_spans([1, 2, 3], [(1, 2)], [9]), "sentinels has 1 ids for 1 spans"),
        (lambda: pad_labels([]), r"labels=\[\]"),
        (lambda: pad_labels([[1]], 0), "pad_to_multiple_of=0"),
        (lambda: corrupt_spans([1, 9, 3], [(0, 1)], [8, 9]), r"ids hold the sentinels \[9\]"),
        (lambda: corrupt_spans([1, 2, 3], [(0, 1)], [9, 9]), r"sentinels=\[9, 9\]"),
        (lambda: StackingCollator()([]), r"features=\[\]"),
        (lambda: StackingCollator()([{"x": [1]}, {"x": [1, 2]}]), r"x has shapes \(1,\), \(2,\)"),
        (lambda: StackingCollator()([{"x": 1}, {"y": 1}]), "different keys"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "allowed:" in str(error.value) and "\n" not in str(error.value)
