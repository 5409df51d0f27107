"""Charts of more than one lesson, with values as short runs give them."""

import warnings

from course_utils.teach.charts import grouped_bars


def test_bars_that_are_all_zero_have_an_axis():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = grouped_bars({"a": {"x": 0.0, "y": 0.0}, "b": {"x": 0.0, "y": 0.0}}, "share")
        figure.canvas.draw()
    assert figure.axes[0].get_ylim() == (0, 1)
    assert grouped_bars({"a": {"x": 0.5}}, "share").axes[0].get_ylim() == (0, 0.625)
