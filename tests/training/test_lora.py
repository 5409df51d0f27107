"""LoRA by hand: PEFT's values, gradients and merge; what is frozen; what is refused."""

import copy

import pytest
import torch
from torch import nn

from course_utils.models import load_causal_lm
from course_utils.training import lora

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8, "num_attention_heads": 2}


@pytest.fixture
def base():
    torch.manual_seed(0)
    return load_causal_lm(vocab_size=40, **SIZES).eval()


@pytest.fixture
def batch():
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids}


def test_at_the_start_it_is_the_base_and_only_adapters_train(base, batch):
    expected = base(**batch).logits
    model = lora.add_lora(copy.deepcopy(base), 4, 8)
    assert torch.equal(model(**batch).logits, expected)
    trained = {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    count = lora.count_parameters(model)
    assert trained == {"A", "B"} and count.trainable == sum(v.numel() for v in lora.adapter_state(model).values())
    assert count.total == count.trainable + sum(p.numel() for p in base.parameters())
    assert 0 < count.share < 1


def test_twenty_steps_are_pefts(base, batch):
    from peft import LoraConfig, get_peft_model

    ours = lora.add_lora(copy.deepcopy(base), 4, 8)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(lora.ALL_LINEAR), task_type="CAUSAL_LM")
    theirs = get_peft_model(copy.deepcopy(base), config)
    assert not theirs.load_state_dict(lora.peft_weights(ours), strict=False).unexpected_keys
    for model in (ours, theirs):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(20):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    state = theirs.state_dict()
    assert max((state[name] - value).abs().max() for name, value in lora.peft_weights(ours).items()) < 1e-5
    assert (ours(**batch).logits - theirs(**batch).logits).abs().max() < 1e-5
    merged = theirs.merge_and_unload()
    assert (lora.merge_lora(ours)(**batch).logits - merged(**batch).logits).abs().max() < 1e-5


def moved(model):
    for layer in lora.lora_layers(model).values():
        nn.init.normal_(layer.B, std=0.2)
    return model


def test_merging_keeps_the_logits_and_switching_off_gives_the_base(base, batch):
    model = moved(lora.add_lora(copy.deepcopy(base), 4, 8))
    with_adapters = model(**batch).logits
    assert (with_adapters - base(**batch).logits).abs().max() > 0.1
    with lora.adapters_off(model):
        assert torch.equal(model(**batch).logits, base(**batch).logits)
    assert torch.equal(model(**batch).logits, with_adapters)
    merged = lora.merge_lora(copy.deepcopy(model))
    assert (merged(**batch).logits - with_adapters).abs().max() < 1e-4
    assert set(merged.state_dict()) == set(base.state_dict())


def test_a_bias_stays_and_a_16_bit_base_has_float32_adapters():
    layer = lora.LoRALinear(nn.Linear(6, 5).bfloat16(), 2, 4)
    nn.init.normal_(layer.B)
    x = torch.randn(3, 6).bfloat16()
    assert layer.A.dtype == torch.float32 and layer(x).dtype == torch.bfloat16
    merged = layer.merged()
    assert merged.weight.dtype == torch.bfloat16 and torch.equal(merged.bias, layer.base.bias)
    assert (merged(x).float() - layer(x).float()).abs().max() < 0.2


def test_bytes_count_what_is_trained(base):
    full = lora.training_bytes(base)
    assert full["gradients"] == full["weights"] and full["moments"] == 2 * full["weights"]
    adapted = lora.training_bytes(lora.add_lora(copy.deepcopy(base), 1, 2))
    assert adapted["gradients"] < full["gradients"] / 4 and adapted["weights"] > full["weights"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda base: lora.add_lora(base, 0), "rank=0"),
        (lambda base: lora.add_lora(base, targets=("nothing",)), "match no linear layer; allowed: .*q_proj"),
        (lambda base: lora.add_lora(lora.add_lora(base)), "adapters already"),
        (lambda base: lora.LoRALinear(nn.Linear(2, 2), dropout=1.0), "dropout=1.0"),
    ],
)
def test_what_cannot_work_is_refused(base, call, words):
    with pytest.raises(ValueError, match=words):
        call(base)
