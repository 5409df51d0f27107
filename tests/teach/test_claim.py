"""A claim prints its sentence or stops the notebook with what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from course_utils.teach.claim import ClaimFailed, claim

MAX_STEPS, SOURCE = 40, "local"


def test_a_true_claim_is_printed_with_a_tick(capsys):
    difference = 1e-13
    claim("AdamW equals torch's within 1e-12", difference <= 1e-12)
    claim("torch and NumPy truths count", torch.tensor(3) > torch.tensor(2))
    assert capsys.readouterr().out == "✓ AdamW equals torch's within 1e-12\n✓ torch and NumPy truths count\n"


def test_a_false_claim_stops_with_the_values_it_was_made_of(capsys):
    scores, baseline = {"f1": np.float64(0.4123456789)}, torch.tensor(0.5)
    with pytest.raises(ClaimFailed) as caught:
        claim("we beat the baseline", scores["f1"] > baseline)
    assert str(caught.value).startswith("not true: we beat the baseline; scores['f1'] > baseline with ")
    assert "scores['f1']=0.412346" in str(caught.value) and "baseline=0.5" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_several_lines_calls_and_comprehensions_are_shown_as_far_as_they_are_values():
    losses = [3.0, 2.0, 2.5]
    with pytest.raises(ClaimFailed, match=r"with losses=\[3.0, 2.0, 2.5\]"):
        claim(
            "the loss falls",
            all(a > b for a, b in zip(losses, losses[1:], strict=False)),
        )


def test_a_claim_that_is_not_judged_says_so_and_on_which_condition(capsys):
    claim("beats the baseline", False, when=MAX_STEPS >= 200 and SOURCE == "local")
    assert capsys.readouterr().out == (
        "– not judged in this run (MAX_STEPS >= 200 and SOURCE == 'local' is false): beats the baseline\n"
    )


def test_a_judged_claim_is_a_claim(capsys):
    with pytest.raises(ClaimFailed):
        claim("beats the baseline", False, when=MAX_STEPS >= 20)
    claim("beats the baseline", True, when=MAX_STEPS >= 20)
    assert capsys.readouterr().out == "✓ beats the baseline\n"


def test_a_claim_is_an_assertion_error_and_needs_words():
    with pytest.raises(AssertionError):
        claim("x", False)
    with pytest.raises(ValueError, match="sentence='' is empty; allowed: the claim in words"):
        claim("", True)


def test_where_there_is_no_source_the_sentence_is_enough():
    with pytest.raises(ClaimFailed, match="^not true: no source$"):
        exec("claim('no source', False)", {"claim": claim})


def test_in_a_kernel_the_values_are_shown_too(tmp_path):
    import nbformat

    from course_utils.authoring.build import execute

    code = "from course_utils.teach.claim import claim\nmeasured = 3\nclaim('small', measured < 2)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    with pytest.raises(Exception, match="not true: small; measured < 2 with measured=3"):
        execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", tmp_path)
