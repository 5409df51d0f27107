"""Packing: rows hold every document whole, and a packed loss is the unpacked one."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from course_utils.data.batches import IGNORED
from course_utils.data.packing import (
    PADDING,
    PackedCollator,
    assign_rows,
    document_mask,
    mask_window,
    pack_documents,
)

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


@pytest.mark.parametrize("open_rows", [0, -1])
def test_rows_that_are_never_open_are_refused(open_rows):
    with pytest.raises(ValueError, match=f"open_rows={open_rows} is out of range; allowed: a whole number >= 1"):
        assign_rows([1, 1], 24, open_rows)


@pytest.mark.parametrize("lengths", [[3, 25], [0]])
def test_a_document_that_fits_no_row_is_refused(lengths):
    with pytest.raises(ValueError, match="allowed: 1 to row_length=24"):
        pack_documents([[1] * n for n in lengths], 24)


# Architecture, its settings, and what an explicit mask can do for it: None, the documents' own; a number, with a window
# of that length; "refused", because some of its layers see otherwise.
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2}
TWO = {"num_key_value_heads": 2}
SLIDING = TWO | {"sliding_window": 4}
OLD = {"vocab_size": 60, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}
ARCHITECTURES = [
    ("llama", SIZES | TWO, None),
    ("qwen2", SIZES | TWO, None),
    ("gpt_neo", OLD | {"attention_types": [[["global", "local"], 1]], "window_size": 4}, None),  # adds its own window
    ("mistral", SIZES | TWO | {"sliding_window": None}, None),
    ("mistral", SIZES | SLIDING, 4),
    ("phi3", SIZES | SLIDING, 4),
    ("qwen2", SIZES | SLIDING | {"use_sliding_window": True, "max_window_layers": 0}, 4),
    ("qwen3", SIZES | SLIDING | {"use_sliding_window": True, "max_window_layers": 1}, "refused"),  # layer by layer
    ("gemma2", SIZES | SLIDING, "refused"),
    ("gemma3_text", SIZES | SLIDING | {"use_bidirectional_attention": True}, "refused"),
    ("llama4_text", SIZES | TWO | {"attention_chunk_size": 4, "num_local_experts": 2}, "refused"),  # chunks
    ("lfm2", SIZES | TWO | {"layer_types": ["full_attention", "conv"]}, "refused"),  # a convolution over the row
    ("mamba2", {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 8, "head_dim": 8}, "refused"),
    ("bloom", {"vocab_size": 60, "hidden_size": 32, "n_layer": 1, "n_head": 4}, "refused"),  # biases from a 2D mask
    ("bert", SIZES, "refused"),  # an encoder: sees both sides
    ("paligemma", {}, "refused"),  # sees all of its prompt
]


@pytest.mark.parametrize(("architecture", "settings", "window"), ARCHITECTURES)
def test_packed_logits_are_the_documents_own_or_the_mask_is_refused(architecture, settings, window):
    """What the model's own masks hide stays hidden; an architecture whose masks cannot be kept is refused."""
    config = AutoConfig.for_model(architecture, **settings)
    if window == "refused":
        with pytest.raises(ValueError, match="explicit_mask=True .*; allowed: ") as error:
            PackedCollator(config=config)
        assert "\n" not in str(error.value)
        return
    assert mask_window(config) == window
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    documents = [torch.randint(3, 60, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (11, 7, 9)]
    batch = PackedCollator(config=config)(pack_documents(documents, 30))
    del batch["labels"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
        packed, start = model(**batch).logits[0], 0
        for document in documents:
            alone = model(torch.tensor([document]), use_cache=False).logits[0]
            torch.testing.assert_close(packed[start : start + len(document)], alone, atol=1e-4, rtol=0)
            start += len(document)


def test_a_window_hides_what_is_further_away():
    visible = document_mask(torch.tensor([[0, 0, 0, 0, 1, 1]]), window=2)[0, 0] == 0
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible[:4, :4].int().tolist() == expected and visible[5].int().tolist() == [0, 0, 0, 0, 1, 1]


def test_the_loop_refuses_a_mask_that_overrules_the_models_own():
    """Where the collator was not told the model, the loop still is: nothing is trained on the wrong logits."""
    from course_utils.training.loop import LoopConfig, train

    config = AutoConfig.for_model("mistral", **SIZES, **SLIDING)
    model = AutoModelForCausalLM.from_config(config)
    rows = pack_documents([[5] * 11, [6] * 7], 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"the window of 4 .*PackedCollator\(config=model.config\)"):
        train(model, [PackedCollator()(rows)], optimizer, LoopConfig(1))
    assert len(train(model, [PackedCollator(config=config)(rows)], optimizer, LoopConfig(1))) == 1
