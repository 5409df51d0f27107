"""The line of a running cell: what it says of loops, of any optimizer and of ranks; silent where nobody listens."""

from __future__ import annotations

import os
import time

import pytest
import torch

from course_utils import progress
from course_utils.parallel import run_ranks
from course_utils.training.loop import LoopConfig, train
from course_utils.training.settings import quiet_trainer


@pytest.fixture
def listening(monkeypatch):
    """Listen for one test; hooks of the optimizers stay in torch, but they find nobody."""
    monkeypatch.setattr(progress, "_now", None)
    return progress.listen()


class Doubler(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, labels, attention_mask=None, input_ids=None):
        loss = (self.scale - 2) ** 2
        return type("Output", (), {"loss": loss, "logits": self.scale[None]})()


def batches():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    return [{"input_ids": torch.zeros(2, 3).long(), "attention_mask": mask, "labels": torch.zeros(2).long()}] * 2


def run(steps: int) -> None:
    model = Doubler()
    train(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1), LoopConfig(steps))


def test_the_loop_reports_steps_loss_and_tokens_without_padding(listening):
    run(5)
    assert (listening.step, listening.steps, listening.optimizer_steps) == (5, 5, 5)
    assert listening.tokens == 4 * 3  # the first report starts the clock
    assert listening.loss == pytest.approx(0.6**2, rel=1e-4)  # clipped steps of 0.1: distances 1, .9, .8, .7, .6


def test_the_line_says_only_what_is_known(listening):
    start = listening.started
    assert listening.line(start + 12) == "12 s"
    listening.optimizer_steps = 7
    assert listening.line(start + 12) == "12 s · step 7"
    listening.step, listening.steps, listening.loss = 130, 500, 1.2345
    listening.first, listening.tokens = (30, start + 2), 50_000
    assert listening.line(start + 12) == "12 s · step 130 of 500 · loss 1.23 · 5,000 tokens/s · about 37 s left"
    assert listening.line(start + 12, {"1": 3, "0": 4}).endswith(" left · rank 0: step 4 · rank 1: step 3")


def test_a_second_run_in_the_cell_starts_its_own_clock(listening):
    run(5)
    run(3)
    assert (listening.step, listening.steps, listening.optimizer_steps) == (3, 3, 8)
    assert listening.tokens == 2 * 3


def test_loops_written_on_the_page_count_by_their_optimizer(listening):
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.AdamW([weight])
    for _ in range(3):
        (weight**2).backward()
        optimizer.step()
    assert listening.optimizer_steps == 3 and listening.first is None


def test_nothing_is_kept_where_nobody_listens(monkeypatch):
    monkeypatch.setattr(progress, "_now", None)
    run(2)
    assert progress._now is None and progress.trainer_callbacks() == []


def test_a_quiet_trainer_reports(listening, tmp_path):
    rows = [{"labels": 0}] * 4
    collate = lambda rows: {"labels": torch.tensor([row["labels"] for row in rows])}  # noqa: E731
    settings = {"max_steps": 3, "use_cpu": True, "remove_unused_columns": False}
    quiet_trainer(ReturnsDict(), tmp_path, rows, data_collator=collate, **settings).train()
    assert (listening.step, listening.steps, listening.optimizer_steps) == (3, 3, 3)


class ReturnsDict(Doubler):
    def forward(self, labels):
        return {"loss": (self.scale - 2) ** 2}


def two_steps() -> int:
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):
        (weight**2).backward()
        optimizer.step()
        time.sleep(0.6)
    return os.getpid()


def test_ranks_write_their_steps_where_they_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv(progress.RANKS_FOLDER, str(tmp_path))
    since = time.time()
    run_ranks(f"{__file__}:two_steps", 2)
    assert progress.steps_of_ranks(tmp_path, since) == {"0": 2, "1": 2}
    assert progress.steps_of_ranks(tmp_path, time.time() + 60) == {}
