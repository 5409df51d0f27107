"""The cheap trainings of lesson 01: what they claim to compare, and that the recorded comparison is what is drawn."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorWithPadding

from course_utils.data import load_classification
from course_utils.lessons.lesson_01 import comparisons
from course_utils.models import load_tokenizer


@pytest.fixture(scope="module")
def small_task():
    """512 rows, a tokenizer's collator and its size."""
    table, tokenizer = load_classification()["train"].select(range(512)), load_tokenizer()
    encoded = tokenizer(list(table["text"]), truncation=True, max_length=12)
    columns = zip(encoded["input_ids"], encoded["attention_mask"], table["label"], strict=True)
    rows = [dict(zip(("input_ids", "attention_mask", "labels"), row, strict=True)) for row in columns]
    return rows, DataCollatorWithPadding(tokenizer), len(tokenizer)


def test_a_race_updates_as_torch_does(small_task):
    """The rule p - lr * decay * p - lr * direction with Adam's direction is AdamW: same losses as torch's."""
    rows, collate, vocab_size = small_task
    validation = [collate(rows[:64])]
    race = comparisons.Race(rows, collate, validation, 10, vocab_size, seeds=(0,), steps=5)
    race.run("AdamW", comparisons.adam, 0.03, decay=0.1)

    torch.manual_seed(0)
    model = comparisons.WordVectors(vocab_size, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1)
    batches = iter(comparisons.ShuffledBatches(rows, 32, collate, seed=0, lengths=race.lengths))
    losses = []
    for _ in range(5):
        loss = model.loss(next(batches), "mean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert race.curves["AdamW"][0] == pytest.approx(losses, abs=1e-4)
    assert race.reached["AdamW"][0] == pytest.approx(model.loss(validation[0], "mean").item(), abs=1e-3)


def test_short_run_leaves_one_thing_out(small_task):
    rows, collate, vocab_size = small_task
    validation = [collate(rows[:64])]

    def loss(**changes):
        return comparisons.short_run(rows, collate, validation, 0, steps=10, vocab_size=vocab_size, **changes)

    whole = loss()
    assert whole == loss(), "the same seed is the same run"
    changes = ("warmup", "falling", "clip", "groups")
    assert all(loss(**{change: False}) != whole for change in changes)


def test_the_rates_are_the_best_of_those_tried():
    losses = comparisons.recorded("rates")["validation_loss"]
    for name, rate in {"encoder": comparisons.PEAK, "SGD": 1.0, "momentum": 1.0}.items():
        assert float(min(losses[name], key=losses[name].get)) == rate, name
        assert comparisons.RATES.get(name, rate) == rate
    adaptive = ("RMS step", "Adam", "AdamW")
    total = {rate: sum(losses[name][rate] for name in adaptive) for rate in losses["Adam"]}
    assert {comparisons.RATES[name] for name in adaptive} == {float(min(total, key=total.get))}


def test_the_recorded_comparison_has_what_the_lesson_says_of_it():
    recorded = comparisons.recorded("because")
    low, high = recorded["validation_loss"].values()
    assert recorded["seeds"] == 12 and all(len(runs) == 12 for rate in (low, high) for runs in rate.values())
    best, triple = sum(low["nothing"]), sum(high["nothing"])
    assert best < triple, "the lower rate is the better one"
    center, half = comparisons.effect(low, "falling")
    assert center > half, "letting the rate fall helps"
    for name in ("warmup", "clip", "groups"):
        center, half = comparisons.effect(low, name)
        assert center - half < 0.03, f"{name} makes no large difference at the best rate"


def test_an_outlier_is_felt_and_clipping_hides_it():
    around = comparisons.around_outlier(comparisons.adam, limit=1.1)
    free, clipped = around["not clipped"], around["clipped"]
    assert len(free) == len(clipped) == 300
    assert free[200] > 10 * free[199] and free[250] < 0.6 * clipped[250]
    assert clipped[200] < 1.5 * clipped[199]


def test_answers_leave_the_model_as_it_was(small_task):
    tokenizer = load_tokenizer()
    model = comparisons.load_classifier(10, **comparisons.TINY, vocab_size=len(tokenizer)).train()
    found = comparisons.answers(model, tokenizer, ["A sentence.", "Another sentence of words."])
    assert model.training and len(found) == 2
    assert all(0 <= label < 10 and 0 < probability <= 1 for label, probability in found)


def test_intervals():
    assert comparisons.effect({"nothing": [1.0, 2.0], "decay": [2.0, 3.0]}, "decay") == (1.0, 0.0)
    center, half = comparisons.effect({"nothing": [0.0, 0.0, 0.0], "decay": [0.0, 1.0, 2.0]}, "decay")
    assert center == 1 and half == pytest.approx(4.3027 / 3**0.5, abs=1e-3)
    center, half = comparisons.large_interval([1, 0, -1, 0])
    assert center == 0 and half == pytest.approx(1.96 * (2 / 3) ** 0.5 / 2)
