"""Drawings of lesson 08: the difference of two functions says what differs, and every figure has its words."""

from course_utils.lessons.lesson_08 import diagrams, figures, task


def before(rows):
    """Old words."""
    total = 0
    for row in rows:
        total += row
    print(total)
    print("same")
    print("same too")
    print("and this")
    return total


def after(rows):
    total = 0
    for row in rows:
        total += 2 * row  # NEW: twice
    print(total)
    print("same")
    print("same too")
    print("and this")
    return total


def test_a_difference_shows_what_changed_and_folds_the_rest():
    lines = diagrams._difference_lines(diagrams._source(before), diagrams._source(after), 1)
    assert ("-", "        total += row") in lines and ("+", "        total += 2 * row") in lines
    assert [text for mark, text in lines if mark == "…"] == ["(4 equal lines)"]
    assert not [text for _, text in lines if "NEW" in text or "Old words" in text]


def test_every_figure_has_its_words():
    ranks = [{"seen": [1, 2], "weights": [0.0, 1.0], "rates": [1.0, 0.0], "loss": float(i)} for i in range(3)]
    runs = {name: [[rank, rank] for rank in ranks] for name in ("nothing", "model")}
    local = {every: [{"loss": float(i), "apart": [0.1, 0.0]} for i in range(3)] for every in (1, 8)}
    curves = {str(number): [0.0, 1.0, 0.0] for number in range(4)}
    types = [["AdamW", "AcceleratedOptimizer"]] * 4 + [["list", "list"]]
    made = [
        figures.flow(),
        figures.difference(before, after),
        figures.two_runs([2.0, 1.0], [2.0, 1.0]),
        figures.wrapped(types),
        figures.who_gets_what({"default": [[[0, 1]], [[2, 0]]]}, 3),
        figures.gathered([0, 1, 2, 0], 3, 2),
        figures.forgotten(runs),
        figures.scheduler_rates(curves),
        figures.local_sgd(local),
    ]
    assert all(len(figure.alternative_text) > 60 for figure in made)


def test_masked_batches_are_ragged_and_the_same_for_everybody():
    first = task.masked_batches("local", 4, 8, 0)
    task.masked_batches.cache_clear()
    second = task.masked_batches("local", 4, 8, 0)
    assert all((a["labels"] == b["labels"]).all() for a, b in zip(first, second, strict=True))
    counts = [task.count(batch) for batch in first]
    assert max(counts) > 2 * min(counts) > 0
