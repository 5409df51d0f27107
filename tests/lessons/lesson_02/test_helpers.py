"""What lesson 02 measures with: batches of four strategies, splits, paired gains, guesses for hidden words."""

import numpy as np
import pytest
import torch

from course_utils.data.batches import IGNORED
from course_utils.lessons.lesson_02 import leaks, pretraining
from course_utils.lessons.lesson_02.strategies import Speed, Strategies, _speeds

LENGTHS = np.random.default_rng(0).integers(2, 17, 200).tolist()
DOCUMENTS = [[10 + i % 50] * length for i, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def ways():
    return Strategies(DOCUMENTS, batch_size=8, width=16)


def steps_of(ways, name):
    return -(-len(ways.packed) // ways.rows_a_step) if name == "packed" else len(ways.random)


@pytest.mark.parametrize("place", range(4))
def test_each_strategy_holds_every_token_once_and_its_share_of_padding(ways, place):
    name, real, positions = ways.names[place], 0, 0
    for step in range(steps_of(ways, name)):
        batch = ways.batch(name, step)
        ids = batch["input_ids"]
        assert ((batch["labels"] == IGNORED) | (batch["labels"] == ids)).all()
        real, positions = real + int((ids != 0).sum()), positions + ids.numel()
    assert real == sum(LENGTHS)
    assert ways.shares()[name] == pytest.approx(1 - real / positions)


def test_padding_is_never_a_target_and_every_other_token_is(ways):
    batch = ways.padded([0, 1, 2], 16)
    assert torch.equal(batch["labels"] == IGNORED, batch["attention_mask"] == 0)
    assert batch["attention_mask"].sum(1).tolist() == LENGTHS[:3]


def test_grids_show_padding_and_the_documents_of_a_packed_row(ways):
    for name in ways.names:
        for step, grid in enumerate(ways.grids(name)):
            assert ((grid < 0) == (ways.batch(name, step)["input_ids"] == 0).numpy()).all()
    assert ways.grids("packed")[0].max() > 0


def test_speeds_against_the_first_strategy():
    found = _speeds({"a": 100, "b": 100}, {"a": 400, "b": 100}, {"a": 1.0, "b": 0.5, "tiny": 0.2})
    assert found["a"] == Speed(1, 1, 1)
    assert found["b"] == pytest.approx((2, 4, 1 / (0.2 + 0.8 / 4)))


def test_a_split_by_file_cuts_no_file_and_leaves_large_ones_in_training():
    files = np.array([f"small {i // 5}" for i in range(900)] + ["large"] * 100)
    is_test = leaks.split_by_file(files, 0.2, seed=1)
    assert not set(files[is_test]) & set(files[~is_test])
    assert "large" not in set(files[is_test])
    assert 200 <= is_test.sum() < 205
    by_row = leaks.split_by_row(is_test, seed=1)
    assert by_row.sum() == is_test.sum()
    assert set(files[by_row]) & set(files[~by_row])


def test_scores_find_copies_and_leave_them_out():
    generator = np.random.default_rng(0)
    words = [["sun", "moon", "star", "sky"], ["salt", "bread", "soup", "oil"]]
    labels = generator.integers(0, 2, 300)
    texts = [" ".join(generator.choice(words[label], 3)) for label in labels]
    found = leaks.scores(texts, labels, np.arange(300) < 60)
    assert found["nearest neighbour"] == found["linear model"] == 1
    assert set(found) == {"nearest neighbour", "linear model", "without copies"}


def test_paired_gains_are_those_of_the_same_seed():
    results = [
        {"task": "probe", "labels": 5, "start": start, "seed": seed, "accuracy": base + 0.1 * seed}
        for seed in (0, 1)
        for start, base in (("random", 0.2), ("pretrained", 0.25))
    ]
    report = {"results": results, "compared": [{"task": "probe", "labels": 5, "gain": 0.05, "standard_error": 0.01}]}
    ((values, mean, half),) = pretraining.paired(report).values()
    assert values == pytest.approx([0.05, 0.05]) and (mean, half) == pytest.approx((0.05, 0.02))


def test_the_recorded_gains_are_those_of_its_runs():
    report = pretraining.recorded()
    for (_, mean, half), setting in zip(pretraining.paired(report).values(), report["compared"], strict=True):
        assert mean == pytest.approx(setting["gain"], abs=2e-4) and half == 2 * setting["standard_error"]


def test_a_guess_names_the_likeliest_tokens_and_the_hidden_words_probability():
    from course_utils.models import load_masked_lm, load_tokenizer

    tokenizer = load_tokenizer("local")
    torch.manual_seed(0)
    model = load_masked_lm(num_hidden_layers=1, hidden_size=32, intermediate_size=32, num_attention_heads=2)
    best, chance = pretraining.guess(model, tokenizer, "Stack the rows of a table.", "rows")
    assert len(best) == 3 and 0 < chance < 0.01
