"""Specs that make no sense are refused with one sentence."""

import pytest

from course_utils.launch.spec import Spec, SpecError


@pytest.mark.parametrize("field", ["output_dir", "model"])
def test_the_end_of_options_mark_is_no_name(field):
    """argparse drops it from ``--output_dir=--``, and the program gets an empty list for a folder."""
    with pytest.raises(SpecError, match=f"^{field}='--' is not allowed; allowed: a name other than"):
        Spec(**{field: "--"})
    assert getattr(Spec(**{field: "--x"}), field) == "--x"
