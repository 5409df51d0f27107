"""FLOPs of a model: the formula equals the planner's and what torch counts."""

import pytest
import torch

from course_utils.launch.planner.speed import flops_per_token
from course_utils.models import load_causal_lm, load_classifier
from course_utils.models.configs import shape_of_config
from course_utils.models.flops import counted_flops, training_flops_per_token
from course_utils.models.shapes import builtin


@pytest.mark.parametrize("name", builtin())
def test_it_is_the_planners_formula(name):
    class Asked:
        lora_rank, sequence_length = 0, 2048

    assert training_flops_per_token(builtin()[name], 2048) == flops_per_token(Asked, builtin()[name])


def test_counted_operator_by_operator():
    length = 64
    ids = torch.randint(4, 100, (2, length))
    model = load_causal_lm("local", vocab_size=500, attn_implementation="eager")
    shape = shape_of_config(model.config)
    counted = counted_flops(model, {"input_ids": ids, "labels": ids}) / ids.numel()
    # eager attention computes all T x T scores; the embedding is no matrix multiplication
    assert counted == pytest.approx(training_flops_per_token(shape, length), rel=0.05)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_classifier_is_close(tmp_path):
    ids = torch.randint(4, 100, (2, 32))
    model = load_classifier(3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}
    per_token = training_flops_per_token(shape_of_config(model.config), 32)
    assert counted_flops(model, batch) / ids.numel() == pytest.approx(per_token, rel=0.1)


def test_length_must_be_positive():
    with pytest.raises(ValueError, match="length=0"):
        training_flops_per_token(builtin()["openai-community/gpt2"], 0)
