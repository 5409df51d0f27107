"""The length-grouped batch sampler: complete, grouped, deterministic, resumable."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from course_utils.data.sampling import LengthGroupedBatchSampler, length_grouped_batches

LENGTHS = np.random.default_rng(0).geometric(0.08, size=1003).clip(1, 64).tolist()


def padding_share(batches):
    padded = sum(len(batch) * max(LENGTHS[i] for i in batch) for batch in batches)
    return 1 - sum(LENGTHS[i] for batch in batches for i in batch) / padded


def test_every_example_occurs_once():
    batches = list(LengthGroupedBatchSampler(LENGTHS, 16))
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert sorted(map(len, batches)) == [11] + [16] * 62


def test_drop_last_leaves_out_the_rest_only():
    sampler = LengthGroupedBatchSampler(LENGTHS, 16, drop_last=True)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 62 and {len(batch) for batch in batches} == {16}


def test_grouping_saves_padding_and_megabatch_one_does_not():
    grouped = padding_share(LengthGroupedBatchSampler(LENGTHS, 16))
    ungrouped = padding_share(LengthGroupedBatchSampler(LENGTHS, 16, megabatch=1))
    assert grouped < 0.1 < 0.5 < ungrouped


def test_longest_example_comes_first_and_order_is_random():
    batches = list(LengthGroupedBatchSampler(LENGTHS, 16, megabatch=1000))
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    assert longest[0] == max(LENGTHS)
    assert longest != sorted(longest, reverse=True)


def test_order_depends_on_seed_and_epoch_alone():
    def epoch(seed, number):
        sampler = LengthGroupedBatchSampler(LENGTHS, 16, seed=seed)
        sampler.set_epoch(number)
        return list(sampler)

    assert epoch(3, 1) == epoch(3, 1)
    assert epoch(3, 1) != epoch(3, 2) and epoch(3, 1) != epoch(4, 1)
    assert epoch(0, 1) != epoch(1, 0)


@pytest.mark.parametrize("stop", [0, 1, 30, 63])
def test_resuming_yields_the_rest(stop):
    whole = LengthGroupedBatchSampler(LENGTHS, 16, seed=5)
    whole.set_epoch(2)
    batches = list(whole)
    interrupted = LengthGroupedBatchSampler(LENGTHS, 16, seed=5)
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    seen = [next(iterator) for _ in range(stop)]
    resumed = LengthGroupedBatchSampler(LENGTHS, 16)
    resumed.load_state_dict(interrupted.state_dict())
    assert seen + list(resumed) == batches


def test_iterating_again_starts_again():
    sampler = LengthGroupedBatchSampler(LENGTHS, 16)
    first = next(iter(sampler))
    assert list(sampler)[0] == first and len(list(sampler)) == len(sampler) == 63


def test_dataloader_takes_it():
    loader = DataLoader(LENGTHS, batch_sampler=LengthGroupedBatchSampler(LENGTHS, 16), collate_fn=list)
    assert len(loader) == 63 and sorted(x for batch in loader for x in batch) == sorted(LENGTHS)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"lengths": [], "batch_size": 4}, r"lengths=\[\]"),
        ({"lengths": [1, 2], "batch_size": 0}, "batch_size=0"),
        ({"lengths": [1, 2], "batch_size": 1, "megabatch": 0}, "megabatch=0"),
        ({"lengths": [1, 2], "batch_size": 1, "seed": -1}, "seed=-1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=f"{sentence}.*allowed:"):
        LengthGroupedBatchSampler(**arguments)


def test_no_examples_no_batches():
    assert length_grouped_batches([], 4, np.random.default_rng(0)) == []
