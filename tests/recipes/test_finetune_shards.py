"""Shards that FSDP or DeepSpeed would unpickle, or take in silence; whole runs: tests/campaign/shards.py."""

import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp

from course_utils.recipes.finetune_resume import check_parts
from course_utils.recipes.finetune_shards import check_shards
from course_utils.training.checked_loading import DoesNotFit
from course_utils.training.resume import mark_complete
from tests.campaign.forged_shards import FORGED, MARKER, forge

STEP = torch.tensor(6.0)
MOMENTS = {"step": STEP, "exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}
GROUP = {"lr": 0.1, "initial_lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}


def finished(checkpoint):
    """The checkpoint before is there too, to be offered."""
    mark_complete(checkpoint, {"step": 6})
    older = checkpoint.with_name("checkpoint-4")
    shutil.copytree(checkpoint, older)
    mark_complete(older, {"step": 4})
    return checkpoint


@pytest.fixture
def of_fsdp(tmp_path):
    """One process's DCP folders, with the names that two ranks' have."""
    checkpoint = tmp_path / "checkpoint-6"
    weight, group = torch.ones(4), GROUP | {"params": ["model.norm.weight"]}
    optimizer = {"state": {"model.norm.weight": {**MOMENTS, "step": STEP}}, "param_groups": {0: group}}
    parts = {"pytorch_model_fsdp_0": {"model": {"model.norm.weight": weight}}, "optimizer_0": {"optimizer": optimizer}}
    for name, content in parts.items():
        dcp.save(content, storage_writer=dcp.FileSystemWriter(checkpoint / name), no_dist=True)
    return finished(checkpoint)


@pytest.fixture
def of_deepspeed(tmp_path):
    """The files of two ranks under ZeRO-2."""
    checkpoint = tmp_path / "checkpoint-6"
    folder = checkpoint / "global_step6"
    folder.mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step6")
    weights = {"module": {"model.norm.weight": torch.ones(8)}, "global_steps": 6, "skipped_steps": 0}
    torch.save(weights | {"dp_world_size": 2, "mp_world_size": 1}, folder / "mp_rank_00_model_states.pt")
    inner = {"state": {0: MOMENTS}, "param_groups": [GROUP]}
    outer = {"zero_stage": 2, "partition_count": [2], "single_partition_of_fp32_groups": [torch.ones(4)]}
    for rank in range(2):
        state = {"optimizer_state_dict": outer | {"base_optimizer_state": inner}}
        torch.save(state, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return finished(checkpoint)


CASES = {"fsdp2": ("FSDP", "of_fsdp"), "zero2": ("DEEPSPEED", "of_deepspeed")}
# What only the ranks that load can see: names and shapes beside the model's.
LATER = ("a name is gone", "all is b''", "exp_avg tensor", "exp_avg_sq text", "model.model.norm.weight", "module model")


@pytest.mark.parametrize("strategy", CASES)
def test_shards_that_fit_no_run_or_hold_code_are_one_sentence(strategy, request, tmp_path):
    engine, fixture = CASES[strategy]
    good, tried = request.getfixturevalue(fixture), 0
    check_shards(good, engine, 6, 2, exact=True)
    for file, changes in FORGED[strategy].items():
        for change in changes:
            is_later = any(change.__doc__.startswith(word) or word in change.__doc__ for word in LATER)
            is_later = is_later and not (engine == "DEEPSPEED" and "Code" in change.__doc__)
            if not (good / file).exists() or is_later:
                continue
            shutil.copytree(good.parent, tmp_path / "copy", dirs_exist_ok=False)
            checkpoint = tmp_path / "copy" / good.name
            try:
                forge(checkpoint, file, change)
            except StopIteration:  # one process cuts nothing into pieces
                shutil.rmtree(tmp_path / "copy")
                continue
            with pytest.raises(
                DoesNotFit, match=r"does not fit this run: .*; allowed: the next .*checkpoint-4$"
            ) as told:
                check_shards(checkpoint, engine, 6, 2, exact=True)
            assert any(name in str(told.value) for name in file.split("/")), (file, change.__doc__, told.value)
            assert not (tmp_path / "copy" / MARKER).exists(), (file, change.__doc__)
            shutil.rmtree(tmp_path / "copy")
            tried += 1
    assert tried > 25


def test_a_metadata_file_that_is_code_would_run(of_fsdp):
    """What the check is for: torch's own reader runs it."""
    forge(of_fsdp, "optimizer_0/.metadata", FORGED["fsdp2"]["optimizer_0/.metadata"][1])
    dcp.FileSystemReader(of_fsdp / "optimizer_0").read_metadata()
    assert (of_fsdp.parent / MARKER).exists()


def test_moments_of_an_earlier_step_are_refused_unless_a_loss_scale_skipped(of_fsdp):
    with pytest.raises(DoesNotFit, match="the optimizer counted 6 steps in a checkpoint of step 8"):
        check_shards(of_fsdp, "FSDP", 8, 2, exact=True)
    check_shards(of_fsdp, "FSDP", 8, 2, exact=False)


@pytest.mark.parametrize("ranks", [1, 2, None])
def test_what_the_trainer_would_go_on_without(ranks, tmp_path):
    checkpoint = tmp_path / "checkpoint-6"
    checkpoint.mkdir()
    names = ["optimizer.pt", "scheduler.pt"]
    names += {1: ["rng_state.pth"], 2: ["rng_state_0.pth", "rng_state_1.pth"], None: []}[ranks]
    for name in names:
        (checkpoint / name).touch()
    check_parts(checkpoint, "MULTI_CPU", ranks)
    for name in names:
        (checkpoint / name).unlink()
        with pytest.raises(DoesNotFit, match=rf"it is not there.* \({name}\); allowed: "):
            check_parts(checkpoint, "MULTI_CPU", ranks)
        (checkpoint / name).touch()
    (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer_0")
    check_parts(checkpoint, "FSDP", ranks)
