"""Two processes give exactly one process's value, for a set that does not divide; the wrong ways do not."""

import pytest
import torch

from course_utils.data import load_classification
from course_utils.models import load_classifier, load_tokenizer
from course_utils.parallel import evaluate_on_ranks, run_ranks
from course_utils.training.metrics import load_metric

ROWS, BATCH = 61, 8


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    torch.manual_seed(0)
    model = load_classifier(10, hidden_size=64, intermediate_size=128, num_hidden_layers=1)
    rows = load_classification()["validation"].select(range(ROWS))
    folder = tmp_path_factory.mktemp("ranks")
    inputs = evaluate_on_ranks.save_inputs(model, rows, load_tokenizer(), folder, BATCH)
    single = run_ranks(evaluate_on_ranks.evaluate, processes=1, arguments=inputs)[0]
    return single, run_ranks(evaluate_on_ranks.evaluate, processes=2, arguments=inputs)


def test_gather_for_metrics_gives_every_row_once_in_order(results):
    single, ranks = results
    assert len(single["own"]) == ROWS
    assert ranks[0]["gather_for_metrics"] == ranks[1]["gather_for_metrics"] == single["own"]


def test_the_trainer_reports_one_processs_value_on_every_rank(results):
    single, ranks = results
    for rank in ranks:
        for name in ("f1", "accuracy", "n_seen"):
            assert rank["trainer"][name] == single["trainer"][name]
    predicted, labels = zip(*single["own"], strict=True)
    f1 = load_metric("f1", average="macro", num_labels=10).compute(predictions=predicted, references=labels)["f1"]
    assert single["trainer"]["f1"] == pytest.approx(f1, abs=1e-12)


def test_gather_alone_counts_the_filling(results):
    single, ranks = results
    found = ranks[0]["gather"]
    assert len(found) == 64 and found[:ROWS] == single["own"] and found[ROWS:] == single["own"][:3]
    assert [len(rank["own"]) for rank in ranks] == [32, 32]
