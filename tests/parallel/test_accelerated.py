"""``accelerated``: lesson 01's loop line by line; one process gives its very numbers, two give them up to rounding."""

import inspect
import re
from types import SimpleNamespace

import pytest
import torch

from course_utils.parallel import accelerated, run_ranks
from course_utils.training import evaluation, loop
from tests.marked_lines import unmarked


@pytest.mark.parametrize("module, name", [(loop, "train"), (evaluation, "predict"), (evaluation, "evaluate")])
def test_equals_the_plain_version_but_for_marked_lines(module, name):
    plain, ours = (inspect.getsource(getattr(place, name)) for place in (module, accelerated))
    ours = re.sub(r"\(\n    accelerator: Accelerator, (.*)\n\)", r"(\1)", ours)  # the signature: one argument more,
    ours = ours.replace("(accelerator: Accelerator, ", "(")  # in one line or in three
    # The loop feeds JupyterLab's line itself; ranks report through their optimizer (course_utils/progress.py).
    plain = "".join(line for line in plain.splitlines(keepends=True) if "progress.report(" not in line)
    assert unmarked(plain, ours) == []


def build(rows=35, ragged=True):
    """A token classifier of a few hundred weights; rows with 1 to 4 targets, so that micro-batches are ragged."""
    from torch import nn

    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(3)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

        def forward(self, x, labels=None):
            logits = self.layers(x)
            loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
            return SimpleNamespace(loss=loss, logits=logits)

    found = []
    for i in range(rows):
        labels = torch.full((4,), -100)
        labels[: 1 + i % 4 if ragged else 4] = i % 3
        found.append((torch.randn(4, 6, generator=generator), labels))
    return Model(), found


def collate(rows):
    return {"x": torch.stack([x for x, _ in rows]), "labels": torch.stack([labels for _, labels in rows])}


def by_hand(batch_size, accumulation, steps, rows):
    from course_utils.data.batches import ShuffledBatches
    from course_utils.training.optim import AdamW
    from course_utils.training.schedules import make_scheduler

    model, data = build(rows)
    optimizer = AdamW(model.parameters(), lr=0.05)
    batches = ShuffledBatches(data, batch_size, collate, seed=5, lengths=[1] * len(data))
    config = loop.LoopConfig(steps, accumulation, max_grad_norm=0.1)
    return loop.train(model, batches, optimizer, config, make_scheduler(optimizer, "cosine", 2, steps)), model


def with_accelerate(batch_size, accumulation, steps, rows, folder=None, stop_after=None):
    """The same run; in ranks, when it is called there. Losses, weights, what ran, and one epoch's logits."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from torch.utils.data import DataLoader

    from course_utils.data.sampling import LengthGroupedBatchSampler
    from course_utils.parallel.accelerated import PreparedBatches, predict, train
    from course_utils.training.optim import AdamW
    from course_utils.training.schedules import make_scheduler
    from tests.parallel.test_accelerated import build, collate

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    model, data = build(rows)
    optimizer = AdamW(model.parameters(), lr=0.05)
    sampler = LengthGroupedBatchSampler([1] * len(data), batch_size, 5)
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate)
    scheduler = make_scheduler(optimizer, "cosine", 2, steps)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    batches = PreparedBatches(accelerator, loader, sampler)
    accelerator.register_for_checkpointing(batches)
    saving = {"save_every": 1, "folder": folder, "resume": True} if folder else {}
    config = loop.LoopConfig(stop_after or steps, accumulation, max_grad_norm=0.1, **saving)
    history = train(accelerator, model, batches, optimizer, config, scheduler)
    logits, labels = predict(accelerator, model, accelerator.prepare(DataLoader(data, 8, collate_fn=collate)))
    found = {
        "history": history,
        "weights": [p.tolist() for p in model.parameters()],
        "logits": logits.tolist(),
        "labels": labels.tolist(),
        "world_size": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.name,
        "wrapper": type(model).__name__,
        "optimizer": type(optimizer).__name__,
    }
    if accelerator.num_processes > 1:
        found["backend"] = torch.distributed.get_backend()
    return found


def experiments(folder):
    """Several runs in one launch: starting ranks costs seconds."""
    from tests.parallel.test_accelerated import with_accelerate

    return {
        "whole epochs": with_accelerate(4, 2, 12, 32),
        "ragged end": with_accelerate(4, 2, 12, 35),
        "first part": with_accelerate(4, 2, 12, 32, f"{folder}/run", stop_after=5)["history"],
        "second part": with_accelerate(4, 2, 12, 32, f"{folder}/run"),
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    return run_ranks("tests.parallel.test_accelerated:experiments", 2, {"folder": str(folder)})


def far(first, second):
    return max((torch.tensor(a) - torch.tensor(b)).abs().max().item() for a, b in zip(first, second, strict=True))


@pytest.fixture
def weights_of_hand():
    def run(*settings):
        history, model = by_hand(*settings)
        return history, [p.tolist() for p in model.parameters()]

    return run


def test_one_process_gives_the_very_numbers_of_the_plain_loop(weights_of_hand):
    """Accelerate's clipping is torch's, which sums the same squares in the same order."""
    history, weights = weights_of_hand(4, 4, 12, 35)
    found = with_accelerate(4, 4, 12, 35)
    assert found["history"] == history
    assert far(found["weights"], weights) == 0
    assert (found["world_size"], found["distributed_type"], found["wrapper"]) == (1, "NO", "Model")


def test_two_processes_equal_one_at_the_same_effective_batch(ranks, weights_of_hand):
    """4 x 2 x 2 = 4 x 1 x 4 rows a step, with unequal numbers of targets; 24 steps of sums in another order."""
    history, weights = weights_of_hand(4, 4, 12, 32)
    for rank in ranks:
        found = rank["whole epochs"]
        assert [r["loss"] for r in found["history"]] == pytest.approx([r["loss"] for r in history], abs=2e-6)
        assert far(found["weights"], weights) < 1e-5
        assert (found["world_size"], found["backend"], found["distributed_type"]) == (2, "gloo", "MULTI_CPU")
        assert (found["wrapper"], found["optimizer"]) == ("DistributedDataParallel", "AcceleratedOptimizer")
    assert ranks[0]["whole epochs"]["weights"] == ranks[1]["whole epochs"]["weights"]


def test_an_epoch_that_does_not_divide_repeats_rows_in_training_but_not_in_scores(ranks, weights_of_hand):
    history, weights = weights_of_hand(4, 4, 12, 35)
    _, data = build(35)
    for rank in ranks:
        found = rank["ragged end"]
        assert far(found["weights"], weights) > 1e-4  # rows of the epoch's beginning fill up its end
        assert [r["loss"] for r in found["history"][:2]] == pytest.approx([r["loss"] for r in history[:2]], abs=2e-6)
        assert found["labels"] == [labels.tolist() for _, labels in data]  # each once, in order
        assert len(found["logits"]) == 35


def test_a_stopped_run_goes_on_bitwise(ranks):
    for rank in ranks:
        whole, second = rank["whole epochs"], rank["second part"]
        assert [r["step"] for r in rank["first part"]] == [1, 2, 3, 4, 5]
        assert rank["first part"] + second["history"] == whole["history"]
        assert second["weights"] == whole["weights"]


def test_states_of_fewer_processes_are_refused(tmp_path):
    accelerator = SimpleNamespace(process_index=1)
    with pytest.raises(FileNotFoundError, match="random_states_1.pkl is missing(.|\n)*allowed: as many processes"):
        accelerated.load_checkpoint(accelerator, tmp_path / "step-00000001")


def test_what_is_not_distributed_is_refused():
    accelerator = SimpleNamespace(num_processes=1, distributed_type=SimpleNamespace(name="NO"))
    assert accelerated.expect_ranks(accelerator, 1)["backend"] is None
    with pytest.raises(accelerated.WrongRanks, match="2 processes were asked for, but each trains alone"):
        accelerated.expect_ranks(accelerator, 2)
    accelerator.num_processes = 2  # as a program may believe
    with pytest.raises(accelerated.WrongRanks, match="trains alone"):
        accelerated.expect_ranks(accelerator, 2)


def model_not_prepared():
    from accelerate import Accelerator
    from torch import nn

    from course_utils.parallel.accelerated import WrongRanks, expect_ranks

    accelerator, model = Accelerator(cpu=True), nn.Linear(2, 2)
    try:
        expect_ranks(accelerator, 2, model)
    except WrongRanks as error:
        return [str(error), expect_ranks(accelerator, 2, accelerator.prepare(model))]


def test_an_unwrapped_model_is_refused():
    sentence, facts = run_ranks("tests.parallel.test_accelerated:model_not_prepared", 2)[1]
    assert sentence == "the model is a plain Linear on 2 processes; prepare it"
    wanted = {"world_size": 2, "backend": "gloo", "distributed_type": "MULTI_CPU", "wrapper": "DistributedDataParallel"}
    assert facts == wanted
