"""Figures know what they show, and say it where readers' software looks: in the HTML."""

from __future__ import annotations

import base64

import pytest
from bs4 import BeautifulSoup

from course_utils.teach.figure import describe, new_figure, show


@pytest.fixture
def shown(monkeypatch) -> list[dict]:
    import IPython.display

    found: list[dict] = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: found.append(data))
    return found


def test_the_text_of_the_figure_stands_in_the_image(shown):
    figure, axis = new_figure(alt='A "rising" line <and more>.')
    axis.plot([0, 1])
    show(figure)
    image = BeautifulSoup(shown[0]["text/html"], "html.parser").img
    assert image["alt"] == 'A "rising" line <and more>.' and shown[0]["text/plain"] == f"Figure: {image['alt']}"
    kind, _, encoded = image["src"].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(encoded).startswith(b"\x89PNG")
    assert set(shown[0]) == {"text/html", "text/plain"}, "a bare image/png would be shown without its text"


def test_a_text_may_come_later(shown):
    figure, _ = new_figure()
    show(describe(figure, "Two bars."))
    assert 'alt="Two bars."' in shown[0]["text/html"]


@pytest.mark.parametrize("alt", ["", "  "])
def test_no_text_is_refused(alt, shown):
    with pytest.raises(ValueError, match="alt='' is empty; allowed: a sentence that says what the figure shows"):
        show(new_figure(alt=alt)[0])
    assert shown == []


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        figure, axis = new_figure(alt="A line.")
        axis.plot([0, 1])
        show(figure)
    assert shown[0] == shown[1]
