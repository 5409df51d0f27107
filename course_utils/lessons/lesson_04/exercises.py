"""Exercises of lesson 04: a majority, a confusion matrix, a metric module, an interval, the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from course_utils.lessons.lesson_04 import exercises_repair  # noqa: F401  registers 04.5 and 04.6
from course_utils.teach.exercise import Wrong, ask, exercise


@exercise(
    "04.1",
    "the majority's scores",
    kind="predict",
    hints=(
        "Write down TP, FP and FN of each of the three classes first; the second and third class are never given.",
        "The first class has 700 hits and 300 rows of other classes among its 1,000 answers. Macro: add the three F1 "
        "and divide by 3. Micro: add the TP, FP and FN of all classes, then use the formula once.",
    ),
)
def check_majority(answer: Any) -> None:
    """``{"accuracy": ..., "macro_f1": ..., "micro_f1": ...}``."""
    given = "700, 200 and 100 rows, always the first class"
    wanted = {"accuracy": 0.7, "macro_f1": 2 * 0.7 / 1.7 / 3, "micro_f1": 0.7}
    if not isinstance(answer, dict) or set(answer) != set(wanted):
        raise Wrong(
            given=given, expected=f"a dict with {', '.join(wanted)}", got=repr(answer), hint="Give three numbers."
        )
    for name, value in wanted.items():
        got = float(answer[name])
        if abs(got - value) > 0.0016:
            raise Wrong(given=given, expected=f"another {name}", got=f"{got:g}", hint=_hint_on_majority(name, got))


def _hint_on_majority(name: str, got: float) -> str:
    if got > 1:
        return "These are shares between 0 and 1, not percent."
    if name == "accuracy":
        return "Accuracy is the share of rows that are right: how many of the 1,000 are?"
    if name == "macro_f1" and abs(got - 1.4 / 1.7) < 0.002:
        return "That is the F1 of the first class alone. The two other classes have F1 = 0 and count in the mean."
    if name == "macro_f1" and abs(got - 0.7 * 1.4 / 1.7) < 0.002:
        return "That is the weighted mean. Macro gives every class the same weight, however many rows it has."
    if name == "macro_f1":
        return "F1 of the first class is 2 * 700 / (2 * 700 + 300 + 0); then the plain mean over three classes."
    return "Micro adds over the classes first. Each of the 300 misses is one FP and one FN. The FN count, too."


@exercise(
    "04.2",
    "macro-F1 from a confusion matrix",
    hints=(
        "TP of a class is on the diagonal. What is the sum of its row, and of its column, in TP, FN and FP?",
        "Row sum = TP + FN, column sum = TP + FP, so the denominator of F1 is their sum. Where it is 0, avoid 0 / 0.",
    ),
)
def check_macro_f1(answer: Callable[[np.ndarray], float]) -> None:
    """``answer(matrix)`` returns a float."""
    cases = (
        ("[[8, 2], [1, 9]]", np.array([[8, 2], [1, 9]])),
        ("three classes of 90, 9 and 1 rows", np.array([[85, 4, 1], [5, 4, 0], [1, 0, 0]])),
        ("a class that neither occurs nor is given", np.array([[5, 1, 0], [2, 8, 0], [0, 0, 0]])),
        ("every row wrong", np.array([[0, 3], [4, 0]])),
    )
    for given, matrix in cases:
        wanted = _f1(matrix)
        got = ask(answer, matrix.copy(), given=given, expected="a number")
        if np.ndim(got) or isinstance(got, str | dict | set):
            raise Wrong(
                given=given, expected="one number", got=repr(got)[:80], hint="Average the classes' F1 at the end."
            )
        if not abs(float(got) - wanted) < 1e-6:
            hint = _hint_on_matrix(float(got), matrix)
            raise Wrong(given=given, expected=f"{wanted:.4f}", got=f"{float(got):.4f}", hint=hint)


def _f1(matrix: np.ndarray) -> float:
    return float(np.mean(2 * np.diag(matrix) / np.maximum(matrix.sum(0) + matrix.sum(1), 1)))


def _hint_on_matrix(got: float, matrix: np.ndarray) -> str:
    hits, rows, columns = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    if np.isnan(got):
        return "0 / 0 is nan: a class that neither occurs nor is given counts as 0. Guard the division."
    if abs(got - hits.sum() / matrix.sum()) < 1e-6:
        return "That is accuracy, which is micro-F1. Macro: F1 of each class, then the mean."
    weighted = float(np.sum(rows / rows.sum() * 2 * hits / np.maximum(rows + columns, 1)))
    if abs(got - weighted) < 1e-6:
        return "That is the weighted mean: macro counts every class the same."
    if abs(got - np.mean(hits / np.maximum(rows, 1))) < 1e-6:
        return "That is the mean recall: F1 needs the column sums (false positives) too."
    precision, recall = np.mean(hits / np.maximum(columns, 1)), np.mean(hits / np.maximum(rows, 1))
    if precision + recall and abs(got - 2 * precision * recall / (precision + recall)) < 1e-6:
        return "That is the F1 of mean precision and mean recall. Compute F1 in each class first, then the mean."
    seen = (rows + columns) > 0
    if not seen.all() and abs(got - np.mean((2 * hits / np.maximum(rows + columns, 1))[seen])) < 1e-6:
        return "A class that neither occurs nor is given counts as 0; you left it out of the mean."
    return "F1 of a class is 2 TP / (row sum + column sum). Then the plain mean over all classes."


@exercise(
    "04.3",
    "a metric module",
    hints=(
        "Compare with the source of Accuracy above: which three methods has it, and what does each return?",
        "Set self.tolerance before super().__init__(*args, **options). _info returns evaluate.MetricInfo(description=, "
        "citation=, inputs_description=, features=). _compute takes tolerance=None and **_ and returns a dict.",
    ),
)
def check_module(answer: type) -> None:
    """``answer`` is a subclass of ``evaluate.Metric``."""
    import evaluate

    if not (isinstance(answer, type) and issubclass(answer, evaluate.Metric)):
        raise Wrong(
            given="the class", expected="a subclass of evaluate.Metric", got=repr(answer), hint="Fill in Within."
        )
    predictions, references = [1.4, 5.0, 3.0, -1.0], [2.0, 9.0, 3.0, 0.0]

    def computed(given: str, wanted: float, make: Callable[[], Any], hint: str, **options: Any) -> None:
        got = ask(make, given=given, expected=f"{{'within': {wanted}}}")
        found = ask(got.compute, given=given, predictions=predictions, references=references, **options)
        _expect_within(found, wanted, given, hint)

    computed("Within()", 0.75, lambda: answer(keep_in_memory=True), "The distance may be equal to the tolerance.")
    hint = "__init__ must keep the tolerance it is given."
    computed("Within(tolerance=0.5)", 0.25, lambda: answer(tolerance=0.5, keep_in_memory=True), hint)
    hint = "compute(tolerance=...) reaches _compute as a keyword and goes before the one of __init__."
    computed("compute(..., tolerance=4)", 1.0, lambda: answer(keep_in_memory=True), hint, tolerance=4)
    whole = answer(keep_in_memory=True)
    for start in (0, 3):
        part = slice(start, start + 3)
        whole.add_batch(predictions=np.array(predictions[part]), references=np.array(references[part]))
    given = "add_batch with 3 rows, then with 1, as arrays"
    _expect_within(ask(whole.compute, given=given), 0.75, given, "_compute gets all rows: nothing to add up yourself.")
    _check_combined(answer, predictions, references)


def _expect_within(found: Any, wanted: float, given: str, hint: str) -> None:
    expected = f"{{'within': {wanted}}}"
    if not isinstance(found, dict) or set(found) != {"within"}:
        raise Wrong(given=given, expected=expected, got=repr(found)[:80], hint="_compute returns a dict with 'within'.")
    if not abs(float(found["within"]) - wanted) < 1e-9:
        raise Wrong(given=given, expected=expected, got=repr(found), hint=hint)


def _check_combined(answer: type, predictions: list, references: list) -> None:
    import evaluate

    from course_utils.training.metrics import load_metric

    both = evaluate.combine([load_metric("mae"), answer(keep_in_memory=True)])
    given = "evaluate.combine([mae, Within()]), compute(..., average='macro')"
    try:
        found = both.compute(predictions=predictions, references=references, average="macro")
    except TypeError as error:
        hint = "In a combination every module gets every keyword: let _compute take **_ as well."
        raise Wrong(given=given, expected="both results", got=f"TypeError: {error}", hint=hint) from None
    _expect_within({"within": found.get("within")}, 0.75, given, "The same value as alone.")


@exercise(
    "04.4",
    "a bootstrap interval",
    hints=(
        "One draw: as many row numbers as there are rows, with replacement; the same numbers for both arrays.",
        "rng.integers(0, n, n) gives the row numbers. Collect `resamples` scores; np.quantile(draws, [0.025, 0.975]).",
    ),
)
def check_interval(answer: Callable) -> None:
    """``answer(score, predicted, labels, rng, resamples)`` returns ``(low, high)``."""
    for seed, (rows, share) in enumerate(((400, 0.8), (100, 0.6), (1000, 0.95))):
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, rows)
        predicted = np.where(random.random(rows) < share, labels, (labels + 1) % 3)
        _check_one_interval(answer, predicted, labels, seed)


def _check_one_interval(answer: Callable, predicted: np.ndarray, labels: np.ndarray, seed: int) -> None:
    def accuracy(p: np.ndarray, y: np.ndarray) -> float:
        sizes.append(len(y))
        return float(np.mean(np.asarray(p) == np.asarray(y)))

    sizes: list[int] = []
    n, value = len(labels), float(np.mean(predicted == labels))
    given = f"{n} rows, accuracy {value:.3f}, 500 draws"
    expected = "(low, high) around it"
    found = ask(
        answer,
        accuracy,
        predicted.copy(),
        labels.copy(),
        np.random.default_rng(seed),
        500,
        given=given,
        expected=expected,
    )
    if not isinstance(found, tuple | list | np.ndarray) or len(found) != 2:
        raise Wrong(given=given, expected=expected, got=repr(found)[:80], hint="Return two numbers: low and high.")
    low, high = map(float, found)
    width, wanted = high - low, 2 * 1.96 * (value * (1 - value) / n) ** 0.5
    expected, got = f"about {value:.3f} ± {wanted / 2:.3f}", f"({low:.3f}, {high:.3f})"

    def wrong(hint: str) -> Wrong:
        return Wrong(given=given, expected=expected, got=got, hint=hint)

    if abs((low + high) / 2 - value) > 0.1 * wanted + 0.01:
        if high < value:
            raise wrong("Predictions and labels no longer belong together: draw one set of row numbers for both.")
        raise wrong("The interval is not around the score: take the 2.5% and the 97.5% quantile, low first.")
    if width < 0:
        raise wrong("Low comes first.")
    if width < 1e-9:
        raise wrong("Every draw gave the same score: draw with replacement, a permutation only reorders the rows.")
    if len(sizes) < 250:
        raise wrong(f"Only {len(sizes)} draws were scored: use `resamples`.")
    if min(sizes) < n:
        raise wrong(f"A draw has as many rows as the set ({n}), not {min(sizes)}: smaller draws vary more.")
    if width < 0.7 * wanted or width > 1.4 * wanted:
        raise wrong("The width is off: the middle 95% of the scores lie between the 2.5% and the 97.5% quantile.")
