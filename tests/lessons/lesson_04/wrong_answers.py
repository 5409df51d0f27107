"""Wrong answers to lesson 04's exercises, each with words of the hint it must get."""

import numpy as np

from course_utils.lessons.lesson_04.solutions import solution_3, solution_4, solution_5, solution_6
from course_utils.training.evaluation import macro_f1


def scores(**changes):
    return {"accuracy": 0.7, "macro_f1": 0.275, "micro_f1": 0.7} | changes


def per_class(matrix):
    hits, rows, columns = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return hits, rows, columns, 2 * hits / np.maximum(rows + columns, 1)


def weighted(matrix):
    _, rows, _, f1 = per_class(matrix)
    return float((rows / rows.sum() * f1).sum())


def of_means(matrix):
    hits, rows, columns, _ = per_class(matrix)
    precision, recall = np.mean(hits / np.maximum(columns, 1)), np.mean(hits / np.maximum(rows, 1))
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def only_seen(matrix):
    _, rows, columns, f1 = per_class(matrix)
    return float(f1[rows + columns > 0].mean())


def unguarded(matrix):
    with np.errstate(all="ignore"):
        return float(np.mean(2 * np.diag(matrix) / (matrix.sum(0) + matrix.sum(1))))


class NoKeywords(solution_3):
    def _compute(self, predictions, references, tolerance=None):
        return solution_3._compute(self, predictions, references, tolerance)


class NoCallTolerance(solution_3):
    def _compute(self, predictions, references, **_):
        return solution_3._compute(self, predictions, references)


class ForgetsTolerance(solution_3):
    def __init__(self, *args, tolerance=1.0, **options):
        super().__init__(*args, **options)


class Strict(solution_3):
    def _compute(self, predictions, references, tolerance=None, **_):
        tolerance = self.tolerance if tolerance is None else tolerance
        return {"within": float(np.mean(np.abs(np.subtract(predictions, references)) < tolerance))}


class BareNumber(solution_3):
    def _compute(self, predictions, references, **options):
        return solution_3._compute(self, predictions, references, **options)["within"]


def draws_of(rows_of, quantiles=(0.025, 0.975)):
    def interval(score, predicted, labels, rng, resamples=500):
        draws = []
        for _ in range(resamples):
            first, second = rows_of(rng, len(labels))
            draws.append(score(predicted[first], labels[second]))
        return tuple(np.quantile(draws, quantiles))

    return interval


def twice(rows):
    return rows, rows


def settings(**changes):
    return lambda given: solution_5(given) | changes


def by_name(given):
    return solution_5(given) | {"greater_is_better": not given["metric_for_best_model"].endswith("loss")}


def keep_direction(given):
    return solution_5(given) | {k: v for k, v in given.items() if k == "greater_is_better"}


def keep_saving(given):
    return solution_5(given) | {k: v for k, v in given.items() if k in ("save_strategy", "save_steps")}


def keep_save_steps(given):
    return solution_5(given) | {k: v for k, v in given.items() if k == "save_steps" and "eval_steps" in given}


def changed(**values):
    return lambda prediction: solution_6(prediction) | {k: v(prediction) for k, v in values.items()}


def kept(prediction):
    predicted, labels = prediction.predictions.argmax(-1), prediction.label_ids
    return predicted[labels != -100], labels[labels != -100]


def sklearn_f1(prediction, average, classes=True, drop=True):
    from sklearn.metrics import f1_score

    predicted, labels = kept(prediction) if drop else (prediction.predictions.argmax(-1), prediction.label_ids)
    named = range(prediction.predictions.shape[-1]) if classes else None
    return float(f1_score(labels, predicted, average=average, labels=named, zero_division=0))


def batch_means(prediction):
    import torch

    predicted, labels = map(torch.as_tensor, kept(prediction))
    count = prediction.predictions.shape[-1]
    parts = zip(predicted.split(32), labels.split(32), strict=True)
    return float(np.mean([macro_f1(p, y, count) for p, y in parts]))


WRONG = {
    "04.1": [
        (scores(macro_f1=0.824), "first class alone"),
        (scores(macro_f1=0.576), "weighted mean"),
        (scores(micro_f1=0.824), "FN count, too"),
        (scores(accuracy=70), "not percent"),
        ({}, "three numbers"),
        (0.7, "three numbers"),
    ],
    "04.2": [
        (lambda m: float(np.diag(m).sum() / m.sum()), "That is accuracy"),
        (weighted, "weighted mean"),
        (of_means, "F1 of mean precision and mean recall"),
        (only_seen, "left it out"),
        (unguarded, "0 / 0 is nan"),
        (lambda m: per_class(m)[3], "Average the classes"),
        (lambda m: {}, "Average the classes"),
        (lambda m: None if len(m) > 2 else per_class(m)[3].mean(), "returned None"),
    ],
    "04.3": [
        (NoKeywords, "take **_"),
        (NoCallTolerance, "reaches _compute as a keyword"),
        (ForgetsTolerance, "__init__ must keep"),
        (Strict, "may be equal"),
        (BareNumber, "dict with 'within'"),
        ({}, "Fill in Within"),
    ],
    "04.4": [
        (draws_of(lambda rng, n: twice(rng.permutation(n))), "permutation"),
        (draws_of(lambda rng, n: (rng.integers(0, n, n), rng.integers(0, n, n))), "no longer belong together"),
        (draws_of(lambda rng, n: twice(rng.integers(0, n, n // 4))), "as many rows as the set"),
        (draws_of(lambda rng, n: twice(rng.integers(0, n, n)), (0.25, 0.75)), "2.5% and the 97.5%"),
        (draws_of(lambda rng, n: twice(rng.integers(0, n, n)), (0.975, 0.025)), "Low comes first"),
        (lambda s, p, y, rng, resamples: solution_4(s, p, y, rng, 20), "use `resamples`"),
        (lambda s, p, y, rng, resamples: {}, "two numbers"),
    ],
    "04.5": [
        (by_name, "is a smaller value better"),
        (keep_direction, "is a smaller value better"),
        (keep_saving, "Is every evaluation saved"),
        (keep_save_steps, "save at every evaluation"),
        (settings(load_best_model_at_end=False), "the last weights stay"),
        (lambda given: solution_5(given) | {"metric_for_best_model": "loss"}, "leave it alone"),
        (lambda given: {}, "leave it alone"),
        (lambda given: given.update(solution_5(given)) or given, "copy"),
    ],
    "04.6": [
        (changed(macro_f1=lambda p: sklearn_f1(p, "weighted")), "follows the big class"),
        (changed(macro_f1=lambda p: sklearn_f1(p, "macro", classes=False)), "counts as 0"),
        (changed(macro_f1=lambda p: sklearn_f1(p, "macro", drop=False)), "drop them"),
        (changed(macro_f1=batch_means), "no means of batches"),
        (changed(macro_f1=lambda p: np.float32(solution_6(p)["macro_f1"])), "plain floats"),
        (changed(worst_recall=lambda p: 1.0), "The lowest"),
        (lambda p: {"macro_f1": solution_6(p)["macro_f1"]}, "Four entries"),
        (lambda p: {}, "Four entries"),
    ],
}
