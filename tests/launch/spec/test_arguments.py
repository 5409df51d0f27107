"""What the course's finetune is told to train: the head and loss that the plan counts, and on which data."""

import pytest

from course_utils.launch import Spec, render
from course_utils.launch.spec.arguments import program_arguments
from course_utils.models.configs import shape_of

LM_SHAPE = shape_of("Qwen/Qwen3-0.6B")
PARAGRAPHS = "the course's paragraphs (no data argument)"
TASKS = {  # name: (fields of the spec, the --task flags of its files, what it trains on)
    "language model": ({}, ["--task=causal_lm"], PARAGRAPHS),
    "name nobody knows": ({"model": "me/mine"}, ["--task=causal_lm"], PARAGRAPHS),
    "shape": ({"model": LM_SHAPE}, ["--task=causal_lm"], PARAGRAPHS),
    "no LM head": (
        {"model": LM_SHAPE.model_copy(update={"lm_head": False})},
        ["--task=classification"],
        "the course's labelled sentences (no data argument)",
    ),
    "by path": ({"program": "course_utils/recipes/finetune.py"}, ["--task=causal_lm"], PARAGRAPHS),
    "data": ({"arguments": ("--train_file", "a.jsonl")}, ["--task=causal_lm"], "a.jsonl"),
    "named": ({"arguments": ("--task=classification", "--dataset_name=x")}, ["--task=classification"], "x"),
    "named in two words": ({"arguments": ("--task", "causal_lm", "--seed=1")}, ["--task"], PARAGRAPHS),
    "another program": ({"program": "trl.scripts.sft"}, [], ""),
    "no flags": ({"trainer_flags": False}, [], ""),
}


@pytest.mark.parametrize("name", TASKS)
def test_finetune_is_told_the_task_that_was_planned(name):
    fields, flags, data = TASKS[name]
    spec = Spec(**fields)
    assert [word for word in program_arguments(spec) if word.partition("=")[0] == "--task"] == flags
    assert (f"this run trains on: {data}." in render(spec)["README.md"]) == bool(data)


@pytest.mark.parametrize(("architecture", "task"), [("Llama", "causal_lm"), ("ModernBert", "classification")])
def test_the_task_of_a_folder_is_its_models(architecture, task, tmp_path):
    """Of an encoder, too, whose checkpoint holds a head over the vocabulary (masked words)."""
    import transformers

    config = getattr(transformers, f"{architecture}Config")()
    config.architectures = [f"{architecture}For{'CausalLM' if task == 'causal_lm' else 'MaskedLM'}"]
    config.save_pretrained(tmp_path)
    assert f"--task={task}" in program_arguments(Spec(model=str(tmp_path)))
