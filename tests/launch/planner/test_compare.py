"""The estimators of accelerate and DeepSpeed beside the planner: asked as they would ask themselves."""

import pytest

from course_utils.launch.planner.compare import compare_estimators, comparison_table
from course_utils.launch.spec import Spec
from course_utils.models.configs import shape_of
from course_utils.models.shapes import builtin, parameter_count

PSI = parameter_count(builtin()["meta-llama/Llama-3.1-8B"])


def _eight(strategy):
    return Spec(model="meta-llama/Llama-3.1-8B", gpus_per_node=8, strategy=strategy)


def test_estimators_side_by_side():
    """accelerate counts 8 bytes a parameter for bf16, whatever the strategy; DeepSpeed has a formula of its own."""
    rows = {row.tool: row for row in compare_estimators(_eight("zero2"))}
    assert rows["accelerate estimate-memory"].gpu == PSI * 8
    pytest.importorskip("deepspeed", reason="deepspeed is installed on Linux only")
    theirs, ours = rows["DeepSpeed's estimator"].gpu, rows["this planner, states at the update"].gpu
    assert ours == pytest.approx(theirs, rel=0.1)
    assert rows["this planner"].gpu > theirs
    assert "GPU GiB" in comparison_table(list(rows.values()))
    assert len(compare_estimators(_eight("fsdp2"))) == 3


def test_deepspeeds_estimator_is_asked_as_it_asks_itself():
    """Given a real model it takes the largest matrix for the largest layer, whatever module that is in."""
    pytest.importorskip("deepspeed", reason="deepspeed is installed on Linux only")
    from transformers import LlamaConfig

    from course_utils.models.configs import meta_model, shape_of_config

    sizes = {"hidden_size": 64, "intermediate_size": 800, "num_hidden_layers": 2, "num_attention_heads": 4}
    for vocabulary in (500, 2000):  # the largest: a matrix of the MLP, then the embedding
        config = LlamaConfig(**sizes, vocab_size=vocabulary)
        spec = Spec(model=shape_of_config(config), gpus_per_node=8, strategy="zero3")
        rows = {row.tool: row for row in compare_estimators(spec)}
        whole, largest = parameter_count(spec.model), 64 * max(vocabulary, 800)
        assert rows["DeepSpeed's estimator"].gpu == 4 * largest + 18 * whole // 8
        found = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in meta_model(config).modules())
        assert found == largest
        assert rows["this planner, states at the update"].gpu == pytest.approx(20 * whole / 8, rel=1e-3)


def test_accelerate_counts_the_same_parameters():
    """``compare_estimators`` gives accelerate 4 bytes a parameter; its own count of the real model agrees."""
    from accelerate.utils import calculate_maximum_sizes
    from transformers import GPT2Config

    from course_utils.models.configs import meta_model

    total, _ = calculate_maximum_sizes(meta_model(GPT2Config()))
    assert total == pytest.approx(4 * parameter_count(shape_of("openai-community/gpt2")), rel=0.01)
