"""Figures know what they show, and say it where readers' software looks: in the HTML."""

from __future__ import annotations

import base64

import pytest
from bs4 import BeautifulSoup

from course_utils.teach.figure import COLORS, contrast_with_white, describe, new_figure, show


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
    with pytest.raises(ValueError, match="alternative_text='' is empty; allowed: a sentence that says what"):
        show(new_figure(alt=alt)[0])
    assert shown == []


def test_the_same_figure_gives_the_same_bytes(shown):
    for _ in range(2):
        figure, axis = new_figure(alt="A line.")
        axis.plot([0, 1])
        show(figure)
    assert shown[0] == shown[1]


@pytest.mark.parametrize("name", COLORS)
def test_text_in_every_colour_of_the_course_can_be_read(name, shown):
    from matplotlib.colors import rgb_to_hsv, to_rgb

    figure, axis = new_figure(alt="A word.")
    word = axis.text(0.5, 0.5, "word", color=COLORS[name])
    show(figure)
    assert contrast_with_white(to_rgb(word.get_color())) >= 4.5
    assert rgb_to_hsv(to_rgb(word.get_color()))[0] == pytest.approx(rgb_to_hsv(to_rgb(COLORS[name]))[0]), "its hue"
    if contrast_with_white(to_rgb(COLORS[name])) > 5:
        assert word.get_color() == COLORS[name]


def test_contrast_is_that_of_wcag():
    assert contrast_with_white((0, 0, 0)) == pytest.approx(21)
    assert contrast_with_white((0x8A / 255,) * 3) == pytest.approx(3.45, abs=0.01)


def test_white_text_on_something_dark_stays_white(shown):
    figure, axis = new_figure(alt="A word on a bar.")
    word = axis.text(0.5, 0.5, "word", color="white")
    show(figure)
    assert word.get_color() == "white"
