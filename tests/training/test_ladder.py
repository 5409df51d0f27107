"""Every rung is the same training: same targets, same update; only what it computes besides differs."""

import pytest
import torch

from course_utils.models import load_causal_lm, load_tokenizer
from course_utils.training.ladder import GPU_LADDER, LADDER, Climb, Orders, Round, Rung, interleaved, rate, speedup

PIECES = ("reads a tensor", "the value of the function and of its argument", "writes", "one row of the table")
TEXTS = [" ".join(PIECES[: 1 + i % 4]) for i in range(24)]
OPTIONS = {"row_length": 40, "per_step": 4, "steps": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def model_of(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    return load_causal_lm(vocab_size=len(tokenizer), **sizes)


def rungs(*names):
    return [rung for rung in LADDER if rung.name in names]


def test_each_rung_changes_one_thing():
    ladder = (*LADDER, *GPU_LADDER)
    for before, after in zip(ladder, ladder[1:], strict=False):
        changed = [name for name in Rung.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
        assert len(changed) == 2 and "name" in changed
    assert len({rung.name for rung in ladder}) == len(ladder)


def test_all_rungs_train_on_the_same_targets_in_each_round(tokenizer):
    found = {}
    for rung in LADDER[:5]:
        orders = Orders(rung, TEXTS, tokenizer, **OPTIONS)
        assert len(orders) == 6
        batches = [orders[i] for i in range(6)]
        counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
        found[rung.name] = [counts[at] + counts[at + 1] for at in (0, 2, 4)]
    assert len({tuple(counts) for counts in found.values()}) == 1
    assert min(found["pack"]) > 0


def test_a_last_round_with_fewer_rows_than_steps_is_shorter(tokenizer):
    """25 short documents, 12 a round: the last round is one document, so one packed row, in two steps."""
    orders = Orders(*rungs("pack"), [*TEXTS, TEXTS[0]], tokenizer, row_length=40, per_step=6, steps=2)
    assert len(orders) == 5
    assert [len(orders[i]["input_ids"]) > 0 for i in range(5)] == [True] * 5


def test_less_is_computed_from_rung_to_rung(tokenizer):
    climbs = [Climb(rung, TEXTS, tokenizer, model_of(tokenizer), **OPTIONS) for rung in LADDER[1:5]]
    found = interleaved(climbs, rounds=2)
    computed = [sum(one.computed for one in rounds) for rounds in found.values()]
    assert computed == sorted(computed, reverse=True) and computed[-1] < computed[0]


def test_a_step_over_all_documents_is_the_same_whatever_the_rung(tokenizer):
    """One step on everything: batches then hold the same targets, so the updates must agree."""
    moved = {}
    for rung in [*rungs("naive", "tokenise in batches", "pad to the longest", "pack"), LADDER[7]]:
        model = model_of(tokenizer)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        climb = Climb(rung, TEXTS[:8], tokenizer, model, row_length=40, per_step=8, steps=1)
        climb.optimizer = torch.optim.SGD(climb.weights, lr=0.1)  # Adam would hide a factor
        climb.round()
        moved[rung.name] = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    naive = moved.pop("naive")
    for name, other in moved.items():
        tolerance = 0.03 if name == "SDPA attention" else 1e-4  # that one computes in bf16
        assert ((other - naive).norm() / naive.norm()).item() < tolerance, name


def test_a_worker_hands_over_the_same_batches(tokenizer):
    alone, helped = (
        Climb(Rung(tokenise="batch", batches="packed", workers=n), TEXTS, tokenizer, model_of(tokenizer), **OPTIONS)
        for n in (0, 1)
    )
    for a, b in zip(alone.next_batches(6), helped.next_batches(6), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_lengths_are_needed_for_anything_but_padding_to_the_maximum(tokenizer):
    with pytest.raises(ValueError, match="needs lengths"):
        Orders(Rung(batches="packed"), TEXTS, tokenizer, **OPTIONS)


def test_ratios_are_paired_by_round():
    slow = [Round(100, 200, wall, wall / 2) for wall in (2.0, 4.0, 20.0)]
    fast = [Round(100, 120, wall, wall / 4) for wall in (1.0, 2.0, 10.0)]
    assert speedup(fast, slow) == (2.0, 2.0, 2.0)  # though the last round was slow for both
    assert speedup(fast, slow, "cpu").value == 4.0
    assert rate(slow) == 25.0
    with pytest.raises(ValueError, match="rounds=0"):
        interleaved([], rounds=0)
