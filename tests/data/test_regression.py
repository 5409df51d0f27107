"""The regression task: parameters counted as a reader would, splits by file, own rows that may be shown."""

import ast

import numpy as np
import pytest

from course_utils.data.regression import ROWS, count_parameters, functions_in, own_functions, parameter_counts


@pytest.mark.parametrize(
    ("signature", "count"),
    [
        ("f()", 0),
        ("f(a, b=1)", 2),
        ("f(self, a)", 1),
        ("f(cls)", 0),
        ("f(a, /, b, *args, c, d=2, **kwargs)", 6),
        ("f(*, a)", 1),
        ("f(a, self)", 2),
    ],
)
def test_parameters_are_counted(signature, count):
    assert count_parameters(ast.parse(f"def {signature}: ...").body[0]) == count
    assert count_parameters(ast.parse(f"async def {signature}: ...").body[0]) == count


def test_the_rows_of_a_file(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        'class A:\n    """A class with a docstring of many words is no function."""\n'
        '    def f(self, x, y):\n        """Add the two numbers and return their sum. More."""\n'
        '    def g(self):\n        """Short."""\n'
    )
    rows = list(functions_in(file, "torch", "torch/some.py"))
    assert [(row.text, row.parameters) for row in rows] == [("Add the two numbers and return their sum.", 2)]
    file.write_text("def (:")
    assert list(functions_in(file, "torch", "torch/some.py")) == []


def test_the_splits_share_no_file_and_no_text():
    counts = parameter_counts()
    assert {split: len(rows) for split, rows in counts.items()} == ROWS
    for column in ("file", "text"):
        values = [set(rows[column][:]) for rows in counts.values()]
        assert not (values[0] & values[1] or values[0] & values[2] or values[1] & values[2])
    every = np.array(counts["train"]["parameters"][:])
    assert every.min() >= 0 and 1 < every.mean() < 4


def test_own_rows_are_of_this_project():
    rows = own_functions()
    assert len(rows) > 20 and {row.library for row in rows} == {"course_utils"}
