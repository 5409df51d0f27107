"""Throughput: useful tokens, evaluation left out, MFU, resume, peaks by name."""

import time

import pytest
import torch
from transformers import TrainerCallback

from course_utils.training.callbacks import Throughput
from course_utils.training.callbacks.throughput import device_peak, matmul_peak
from tests.training.callbacks.runs import RESTORE, entries, restored
from tests.training.trainer_runs import make_trainer


class Tokens(torch.nn.Module):
    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(8, 4)

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.embedding(input_ids).mean(1)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Slow(TrainerCallback):
    """Evaluations and saves that take 0.1 s."""

    def on_prediction_step(self, *args, **kwargs):
        time.sleep(0.1)


def token_trainer(folder, callbacks, **settings):
    row = {"input_ids": torch.arange(6), "attention_mask": torch.tensor([1, 1, 1, 1, 0, 0]), "labels": torch.tensor(1)}
    defaults = {"include_num_input_tokens_seen": "non_padding", "logging_steps": 3, "max_steps": 9}
    trainer = make_trainer(folder, Tokens(), callbacks=callbacks, **(defaults | settings))
    trainer.train_dataset, trainer.eval_dataset = [row] * 64, [row] * 8
    return trainer


def test_throughput_counts_useful_tokens_and_not_the_evaluation(tmp_path):
    meter = Throughput(flops_per_token=1e3, peak=1e9)
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 9}
    trainer = token_trainer(tmp_path, [meter, Slow()], **settings)
    start = time.perf_counter()
    trainer.train()
    whole = time.perf_counter() - start
    assert meter.tokens == 9 * 8 * 4  # steps, rows, tokens without padding
    assert 0 < meter.seconds < whole - 5 * 0.1
    rates = entries(trainer, "tokens_per_second")
    assert [step for step, _ in rates] == [3, 6, 9]
    for (_, rate), (_, mfu) in zip(rates, entries(trainer, "mfu"), strict=True):
        assert mfu == pytest.approx(rate * 1e3 / 1e9)
    resumed = token_trainer(tmp_path, [Throughput()], **settings | RESTORE | {"max_steps": 12})
    resumed.train(resume_from_checkpoint=True)
    assert restored(resumed, Throughput).tokens == 12 * 8 * 4
    assert restored(resumed, Throughput).flops_per_token == 1e3


def test_throughput_needs_counted_tokens(tmp_path):
    with pytest.raises(ValueError, match="tokens are not counted"):
        make_trainer(tmp_path, callbacks=[Throughput()]).train()
    with pytest.raises(ValueError, match="peak=0"):
        Throughput(peak=0)
    assert Throughput().tokens_per_second != Throughput().tokens_per_second  # NaN before the first log


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-40GB", 312e12), ("NVIDIA L4", 121e12), ("Tesla T4", 65e12)]
    + [("NVIDIA L40S", 362e12), ("NVIDIA A10G", 70e12), ("NVIDIA GeForce RTX 4090", None), ("", None)],
)
def test_peaks_by_torchs_name(name, peak):
    assert device_peak(name) == peak


def test_measured_peak_is_a_speed():
    assert matmul_peak(64, rounds=1) > 1e6
