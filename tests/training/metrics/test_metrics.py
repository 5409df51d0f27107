"""The metric modules: equal to the libraries' values on random inputs, one sentence for bad ones, no network."""

import math
import shutil
import socket
import subprocess
import sys
import warnings

import evaluate
import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats
from sklearn import metrics as sk

from course_utils.training.metrics import CLASSIFICATION, GENERATION, METRICS, REGRESSION, load_metric, metric_folder

LOADED = {name: load_metric(name) for name in METRICS}  # one object each, as a learner keeps them
QUICK = settings(max_examples=60, deadline=None)
CLASSES = 4


def rows_of(values, least=1):
    return st.lists(st.tuples(values, values), min_size=least, max_size=40)


def compute(name, rows, **options):
    predictions, references = map(list, zip(*rows, strict=True))
    return LOADED[name].compute(predictions=predictions, references=references, **options)


@QUICK
@given(rows_of(st.integers(0, CLASSES - 1)), st.sampled_from(["micro", "macro", "weighted", None]))
def test_classification_equals_scikit_learn(rows, average):
    predicted, labels = zip(*rows, strict=True)
    assert compute("accuracy", rows) == {"accuracy": sk.accuracy_score(labels, predicted)}
    assert np.array_equal(compute("confusion_matrix", rows)["confusion_matrix"], sk.confusion_matrix(labels, predicted))
    scores = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
    for name, score in scores.items():
        wanted = score(labels, predicted, average=average, zero_division=0)
        assert np.array_equal(compute(name, rows, average=average)[name], wanted)


@QUICK
@given(rows_of(st.integers(0, 1)))
def test_binary_equals_scikit_learn(rows):
    predicted, labels = zip(*rows, strict=True)
    assert compute("f1", rows) == {"f1": sk.f1_score(labels, predicted, zero_division=0)}
    assert compute("recall", rows) == {"recall": sk.recall_score(labels, predicted, zero_division=0)}


@QUICK
@given(rows_of(st.integers(0, CLASSES - 1)))
def test_num_labels_counts_absent_classes(rows):
    predicted, labels = map(list, zip(*rows, strict=True))
    both = {"predictions": predicted, "references": labels}
    f1 = load_metric("f1", average="macro", num_labels=CLASSES).compute(**both)["f1"]
    assert f1 == sk.f1_score(labels, predicted, average="macro", labels=range(CLASSES), zero_division=0)
    matrix = load_metric("confusion_matrix", num_labels=CLASSES).compute(**both)["confusion_matrix"]
    assert matrix.shape == (CLASSES, CLASSES)


@QUICK
@given(rows_of(st.floats(-1e6, 1e6), least=2))
def test_regression_equals_scikit_learn_and_scipy(rows):
    predicted, wanted = map(np.array, zip(*rows, strict=True))
    assert compute("mse", rows)["mse"] == sk.mean_squared_error(wanted, predicted)
    assert compute("mae", rows)["mae"] == sk.mean_absolute_error(wanted, predicted)
    assert compute("r_squared", rows)["r_squared"] == sk.r2_score(wanted, predicted)
    for name, function in {"pearsonr": stats.pearsonr, "spearmanr": stats.spearmanr}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nearly constant input
            found, value = compute(name, rows)[name], function(predicted, wanted).statistic
        assert found == value or (math.isnan(found) and math.isnan(value))


WORDS = st.lists(st.sampled_from(["a", "b", "c", "the", ".", "7", "seven"]), max_size=9).map(" ".join)


@QUICK
@given(rows_of(WORDS))
def test_generation_equals_rouge_score_and_sacrebleu(rows):
    written, wanted = map(list, zip(*rows, strict=True))
    assert compute("exact_match", rows)["exact_match"] == np.mean([p == r for p, r in rows])
    scorer = RougeScorer(["rougeL"])
    value = np.mean([scorer.score(r, p)["rougeL"].fmeasure for p, r in rows])
    assert compute("rouge", rows)["rougeL"] == pytest.approx(value, abs=1e-12)
    assert compute("bleu", rows)["bleu"] == sacrebleu.corpus_bleu(written, [wanted], force=True).score / 100


def test_several_references():
    rows = {"predictions": ["a b c d", "x"], "references": [["a b", "a b c d"], ["y", "z"]]}
    assert LOADED["exact_match"].compute(**rows) == {"exact_match": 0.5}
    assert LOADED["rouge"].compute(**rows)["rougeL"] == 0.5
    wanted = sacrebleu.corpus_bleu(rows["predictions"], [["a b", "y"], ["a b c d", "z"]]).score / 100
    assert LOADED["bleu"].compute(**rows)["bleu"] == wanted


@QUICK
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 50)), min_size=1, max_size=20))
def test_perplexity_goes_over_tokens(rows):
    losses, counts = zip(*rows, strict=True)
    assert compute("perplexity", rows)["perplexity"] == pytest.approx(math.exp(min(700, sum(losses) / sum(counts))))


def test_perplexity_without_end_is_infinite():
    assert compute("perplexity", [(1e6, 1)])["perplexity"] == math.inf


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_single_class_and_all_wrong(name):
    single, wrong = compute(name, [(0, 0)] * 3), compute(name, [(1, 0), (0, 1)])
    if name == "confusion_matrix":
        assert single[name].tolist() == [[3]] and wrong[name].tolist() == [[0, 1], [1, 0]]
    else:
        assert single == {name: 1.0 if name == "accuracy" else 0.0} and wrong == {name: 0.0}


@pytest.mark.parametrize("name", ["pearsonr", "spearmanr"])
def test_constant_predictions_have_no_correlation(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(compute(name, [(1.0, 1.0), (1.0, 2.0)])[name])


# --- bad input -------------------------------------------------------------------------------------------------------

NUMERIC = CLASSIFICATION + REGRESSION
BAD = [
    *((name, [], [], r"predictions=\[\] is empty; allowed: at least one row") for name in METRICS),
    *((name, [1, 2], [1], "predictions has 2 rows and references 1; allowed") for name in NUMERIC),
    *((name, ["a", "b"], ["a"], "predictions has 2 rows and references 1; allowed") for name in GENERATION[:3]),
    *((name, [math.nan, 1], [0, 1], r"predictions\[0\]=nan is not finite; allowed") for name in NUMERIC),
    *((name, [0, 1], [0, math.inf], r"references\[1\]=inf is not finite; allowed") for name in NUMERIC),
    *((name, [[0.1, 0.9]], [1], r"predictions\[0\] is 2 values; allowed: one number") for name in NUMERIC),
    *((name, ["a"], [1], r"predictions\[0\] is 'a'; allowed: one number") for name in NUMERIC),
    *((name, [0.7, 1], [0, 1], r"predictions\[0\]=0.7 is no class number; allowed") for name in CLASSIFICATION),
    *((name, [0, 1], [-100, 1], r"references\[0\]=-100 is no class number; allowed") for name in CLASSIFICATION),
    *((name, [1.0], [1.0], "references has 1 row; allowed: at least 2") for name in REGRESSION[2:]),
    *((name, [7, 8], ["a", "b"], r"predictions\[0\]=7 is no text; allowed") for name in GENERATION[:3]),
    *((name, ["a", None], ["a", "b"], r"predictions\[1\]=None is no text; allowed") for name in GENERATION[:3]),
    ("f1", [0, 2], [0, 1], r"predictions\[1\]=2 is no class number; allowed: whole numbers from 0 to 1"),
    ("bleu", ["a", "b"], [["a"], ["b", "c"]], r"references\[1\] has 2 texts; allowed: 1"),
    ("rouge", ["a", "b"], [["a"], []], r"references\[1\]=\[\] is no text; allowed"),
    ("perplexity", [-1.0], [3], r"predictions\[0\]=-1 is out of range; allowed: >= 0"),
    ("perplexity", [1.0], [0], r"references\[0\]=0 is out of range; allowed: >= 1"),
]


@pytest.mark.parametrize(("name", "predictions", "references", "sentence"), BAD)
def test_bad_input_is_one_sentence_and_the_metric_lives_on(name, predictions, references, sentence):
    metric = load_metric(name)
    with pytest.raises(ValueError, match=sentence) as caught:
        metric.compute(predictions=predictions, references=references)
    assert "\n" not in str(caught.value)
    good = ["a", "b"] if name in GENERATION[:3] else [1.0, 0.0]
    references = [1, 1] if name == "perplexity" else good
    again = load_metric(name).compute(predictions=good, references=references)
    assert str(metric.compute(predictions=good, references=references)) == str(again)


def test_unknown_names_are_one_sentence():
    with pytest.raises(ValueError, match="name='accurracy' is not known; allowed: 'accuracy'"):
        load_metric("accurracy")
    with pytest.raises(ValueError, match="source='disk' is not known"):
        load_metric("accuracy", source="disk")
    with pytest.raises(ValueError, match="average='makro' is not known"):
        load_metric("f1", average="makro")
    with pytest.raises(ValueError, match="options=.*num_labels.*hub"):
        load_metric("f1", source="hub", num_labels=3)


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="not reachable"):
        load_metric("accuracy", source="hub")


# --- as evaluate's users use them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_it_is_an_evaluate_metric_that_no_network_is_asked_for(name, monkeypatch):
    def no_network(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    metric = evaluate.load(str(metric_folder(name)))
    assert isinstance(metric, evaluate.Metric) and metric.description


def test_a_copied_folder_loads_and_writes_where_it_is_told(tmp_path):
    shutil.copytree(metric_folder("accuracy"), tmp_path / "accuracy")
    metric = evaluate.load(str(tmp_path / "accuracy"), cache_dir=str(tmp_path / "cache"))
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert metric.compute() == {"accuracy": 0.5}


def test_batches_arrays_and_tensors_give_the_same():
    predicted, labels = [0, 1, 2, 1], [0, 1, 1, 1]
    metric = load_metric("f1", average="macro")
    whole = metric.compute(predictions=predicted, references=labels)
    for kind in (np.array, torch.tensor):
        for start in (0, 2):
            metric.add_batch(predictions=kind(predicted[start : start + 2]), references=kind(labels[start : start + 2]))
        assert metric.compute() == whole
    for one, other in zip(predicted, labels, strict=True):
        metric.add(prediction=one, reference=other)
    assert metric.compute() == whole


def test_modules_that_look_alike_keep_their_own_name_value_and_description_when_combined():
    """precision, recall and f1, and the two correlations, differ in one function: none may answer for another."""
    from scipy import stats
    from sklearn import metrics

    rows = {"predictions": [0, 1, 2, 2, 0, 1], "references": [0, 2, 2, 1, 0, 0]}
    alike = {name: load_metric(name, average="macro", num_labels=3) for name in ("precision", "recall", "f1")}
    alike |= {name: load_metric(name) for name in ("pearsonr", "spearmanr")}
    for name, metric in alike.items():
        assert metric.description.lower().startswith(name.removesuffix("r")), (name, metric.description)
    predicted, true = rows["predictions"], rows["references"]
    options = {"average": "macro", "labels": range(3), "zero_division": 0}
    wanted = {
        name: getattr(metrics, f"{name}_score")(true, predicted, **options) for name in ("precision", "recall", "f1")
    }
    wanted |= {name: getattr(stats, name)(predicted, true).statistic for name in ("pearsonr", "spearmanr")}
    assert evaluate.combine(list(alike.values())).compute(**rows) == pytest.approx(wanted, rel=1e-14)
    assert len(set(wanted.values())) == 5


def test_combine_hands_every_keyword_to_every_module():
    both = evaluate.combine([load_metric(name) for name in ("accuracy", "f1", "confusion_matrix")])
    both.add_batch(predictions=[0, 1], references=[0, 2])
    found = both.compute(average="micro")
    assert found["accuracy"] == found["f1"] == 0.5 and found["confusion_matrix"].shape == (3, 3)
    prefixed = evaluate.combine({"a": load_metric("mae"), "b": load_metric("mse")}, force_prefix=True)
    assert prefixed.compute(predictions=[1.0], references=[3.0]) == {"a_mae": 2.0, "b_mse": 4.0}


def test_importing_the_package_is_cheap_and_the_scripts_are_shipped():
    heavy = "[m for m in ('evaluate', 'torch', 'numpy', 'sklearn') if m in sys.modules]"
    code = f"import sys, course_utils.training.metrics; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    import tomllib
    from pathlib import Path

    settings = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    shipped = settings["tool"]["setuptools"]["package-data"]["course_utils.training.metrics"]
    package = metric_folder("accuracy").parent
    assert {p.parent.name for pattern in shipped for p in package.glob(pattern)} >= set(METRICS)
