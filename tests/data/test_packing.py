"""Packing: rows hold every document whole, and a packed loss is the unpacked one."""

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from course_utils.data.batches import IGNORED
from course_utils.data.packing import PADDING, PackedCollator, assign_rows, document_mask, pack_documents

LENGTHS = [7, 12, 1, 20, 3, 16, 9, 2, 14]
DOCUMENTS = [torch.randint(1, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]


def tiny_model(attention):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=300, head_dim=16, intermediate_size=96, max_position_embeddings=64, **sizes)
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).double()
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.5)  # far from uniform: a leak shows
    return model


def loss_of(model, labels, **inputs):
    # transformers computes the loss in float32 whatever the model's dtype; float64 shows that the two are equal.
    logits = model(**inputs).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def unpacked_loss(model):
    total = tokens = 0
    for document in DOCUMENTS:
        ids = torch.tensor([document])
        if len(document) > 1:  # a single token has nothing to predict
            total += loss_of(model, ids, input_ids=ids) * (len(document) - 1)
            tokens += len(document) - 1
    return total / tokens


def test_rows_hold_every_document_whole_and_once():
    rows = assign_rows(LENGTHS, 24)
    assert sorted(i for row in rows for i in row) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[i] for i in row) <= 24 for row in rows)
    assert assign_rows([10, 10, 4], 14) == [[0, 2], [1]]
    assert assign_rows([10, 10, 4], 14, open_rows=1) == [[0], [1, 2]]


def test_a_row_has_restarting_positions_and_no_target_at_a_start():
    (row,) = pack_documents([[5, 6, 7], [8, 9]], row_length=7)
    assert row["input_ids"].tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert row["labels"].tolist() == [IGNORED, 6, 7, IGNORED, 9, IGNORED, IGNORED]
    assert row["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert row["document_ids"].tolist() == [0, 0, 0, 1, 1, PADDING, PADDING]


def test_mask_is_block_diagonal_and_causal():
    visible = document_mask(torch.tensor([[0, 0, 1, 1, -1]])) == 0
    assert visible.shape == (1, 1, 5, 5)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert visible[0, 0].int().tolist() == expected


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("explicit", [True, False])
def test_packed_loss_and_gradients_are_the_unpacked_ones(attention, explicit):
    # Eager attention computes its softmax in float32, whatever the model's dtype.
    tolerance = 1e-12 if attention == "sdpa" else 1e-6
    model = tiny_model(attention)
    batch = PackedCollator(explicit_mask=explicit, dtype=torch.float64)(pack_documents(DOCUMENTS, 24))
    expected = unpacked_loss(model)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = loss_of(model, **batch, use_cache=explicit)  # a cache does no harm where the mask is explicit
    assert abs(loss - expected) < tolerance
    for ours, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=1e-5)


def test_the_leaks_the_lesson_speaks_of_are_real():
    # If transformers closes one of these, the lesson's text must change.
    model = tiny_model("eager").train()
    batch = PackedCollator(explicit_mask=False)(pack_documents(DOCUMENTS, 24))
    ones = torch.ones_like(batch["input_ids"])
    boolean = document_mask(torch.stack([row["document_ids"] for row in pack_documents(DOCUMENTS, 24)])) == 0
    expected = unpacked_loss(model)
    for options in ({}, {"use_cache": False, "attention_mask": ones}, {"use_cache": False, "attention_mask": boolean}):
        assert abs(loss_of(model, **batch, **options) - expected) > 1e-5


def test_a_document_cannot_change_another():
    model = tiny_model("sdpa")
    changed = [DOCUMENTS[0][::-1], *DOCUMENTS[1:]]
    batches = [PackedCollator(dtype=torch.float64)(pack_documents(docs, 24)) for docs in (DOCUMENTS, changed)]
    logits = [model(**batch).logits[0, LENGTHS[0] :] for batch in batches]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("lengths", [[3, 25], [0]])
def test_a_document_that_fits_no_row_is_refused(lengths):
    with pytest.raises(ValueError, match="allowed: 1 to row_length=24"):
        pack_documents([[1] * n for n in lengths], 24)
