"""Drawings and cells of lesson 12: every figure has its words, settings resolve as the lesson's table says."""

import pytest

from course_utils.lessons.lesson_12 import figures, task
from course_utils.lessons.lesson_12.exercises_shard import pretended_ranks


def test_every_figure_has_its_words():
    states = {"parameters": 40, "gradients": 40, "optimizer": 80, "gathered": 0}
    run = {"forward": [0, 5, 0], "backward": [5, 0], "whole": 10}
    step = {"calls": [["all-gather", 20], ["reduce-scatter", 10]], "parameters": 10}
    made = [
        figures.stages(),
        figures.one_step(),
        figures.cut([(6, 4), (5,), (3, 4)]),
        figures.dtensor({"odd": [(3, 4), (2, 4)]}),
        figures.two_linears(),
        figures.meshes(),
        figures.held_bytes({"DDP": states}, {"DDP": states}, 10),
        figures.gathered({"per layer": run}),
        figures.volumes({"ZeRO-3": step}),
    ]
    assert all(len(figure.alternative_text) > 60 for figure in made)


def test_the_yaml_resolves_to_what_it_says():
    found = task.environment_of(task.YAML)
    assert found["ACCELERATE_USE_FSDP"] == "true" and found["FSDP_VERSION"] == "2"
    assert found["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "Qwen3DecoderLayer"
    assert not [name for name in found if not name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))]


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ({"sharding_strategy": "SHARD_GRAD_OP"}, "reshard_after_forward", True),
        ({"reshard_after_forward": False}, "reshard_after_forward", False),
        ({"fsdp_offload_params": True}, "cpu_offload", None),
        ({"cpu_offload": True}, "cpu_offload", True),
    ],
)
def test_settings_resolve_as_the_table_says(config, name, value):
    assert task.plugin_of(**config).get(name) == value


def test_pretended_ranks_leave_no_group_behind():
    import torch.distributed as dist

    for _ in range(2):
        with pretended_ranks(4):
            assert (dist.get_rank(), dist.get_world_size()) == (1, 4)
    assert not dist.is_initialized()
    with pretended_ranks(2), pytest.raises(RuntimeError, match="already"), pretended_ranks(2):
        pass


def test_a_sentences_loss_is_near_that_of_chance_before_training():
    from course_utils.parallel import reference

    losses = task.loss_per_token(reference.new_model(), ["Return the mean of all values.", "Raise an error."], "local")
    assert all(5.5 < loss < 7 for loss in losses)  # log(512) = 6.2
