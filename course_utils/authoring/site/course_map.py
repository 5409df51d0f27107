"""The map of the course as an SVG picture: a box per lesson, an arrow to each lesson that builds on it directly."""

from __future__ import annotations

import html
import textwrap

from course_utils.authoring.site.lessons import Lesson

WIDTH, HEIGHT, GAP, DROP = 138, 64, 10, 40  # px: a box, the space beside it, the space below it


def levels(needs: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """For each lesson the longest way to it from a lesson that needs none: the row in which it is drawn.

    Args:
        needs: the numbers of the lessons that each builds on; numbers that are no key are left out.

    Raises:
        ValueError: lessons that need each other.
    """
    found: dict[str, int] = {}

    def level(number: str, path: tuple[str, ...]) -> int:
        if number in path:
            raise ValueError(f"lessons {' and '.join((*path, number))} need each other; allowed: no circle")
        if number not in found:
            before = [level(need, (*path, number)) for need in needs[number] if need in needs]
            found[number] = 1 + max(before, default=-1)
        return found[number]

    for number in needs:
        level(number, ())
    return found


def arrows(needs: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """``(earlier, later)`` for each pair without another lesson between them."""

    def before(number: str) -> set[str]:
        direct = {need for need in needs[number] if need in needs}
        return direct.union(*map(before, direct)) if direct else direct

    return [
        (need, number)
        for number in needs
        for need in needs[number]
        if need in needs and not any(need in before(other) for other in needs[number] if other in needs)
    ]


def places(needs: dict[str, tuple[str, ...]]) -> dict[str, tuple[float, int]]:
    """``(column, row)`` of each box: below the middle of the lessons it builds on, as far as there is room."""
    rows, columns = levels(needs), {}
    edges = arrows(needs)
    widest = max([list(rows.values()).count(row) for row in rows.values()])
    for row in range(max(rows.values()) + 1):
        wanted = {}
        for number in (number for number, its in rows.items() if its == row):
            above = [columns[early] for early, late in edges if late == number]
            wanted[number] = sum(above) / len(above) if above else (widest - 1) / 2
        ordered = sorted(wanted, key=lambda number: (wanted[number], number))
        crowd = {at: [number for number in ordered if wanted[number] == at] for at in wanted.values()}
        last = -1.0
        for number in ordered:
            siblings = crowd[wanted[number]]
            spread = wanted[number] + siblings.index(number) - (len(siblings) - 1) / 2
            last = columns[number] = max(spread, last + 1, 0.0)
    return {number: (columns[number], rows[number]) for number in needs}


def draw(lessons: list[Lesson]) -> str:
    """The picture: an ``<svg>`` whose boxes are links to the lessons, and whose title says what it shows."""
    needs = {lesson.number: lesson.needs for lesson in lessons}
    at = {
        number: (8 + column * (WIDTH + GAP), 4 + row * (HEIGHT + DROP))
        for number, (column, row) in places(needs).items()
    }
    width = max(x for x, _ in at.values()) + WIDTH + 8
    height = max(y for _, y in at.values()) + HEIGHT + 4
    lines = [_arrow(at[early], at[late]) for early, late in arrows(needs)]
    boxes = [_box(lesson, *at[lesson.number]) for lesson in lessons]
    return (
        f'<svg class="course-map" style="max-width:{width:.0f}px;min-width:min({width:.0f}px,40rem)" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="group" aria-labelledby="course-map-title">'
        f'<title id="course-map-title">{html.escape(describe(lessons))}</title>' + "".join(lines + boxes) + "</svg>"
    )


def describe(lessons: list[Lesson]) -> str:
    """The map in words, for readers who cannot see it."""
    known = {lesson.number for lesson in lessons}
    parts = []
    for lesson in lessons:
        needs = [number for number in lesson.needs if number in known]
        parts.append(f"{lesson.number} after {' and '.join(needs)}" if needs else f"{lesson.number} first")
    return "Map of the course: which lesson builds on which. " + "; ".join(parts) + "."


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0, x1, y1 = start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1] - 7
    middle = (y0 + y1) / 2
    curve = (
        f'<path class="edge" d="M{x0:.0f} {y0:.0f} C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}"/>'
    )
    return curve + f'<path class="tip" d="M{x1 - 5:.0f} {y1 - 1:.0f} h10 l-5 8 z"/>'


def _box(lesson: Lesson, x: float, y: float) -> str:
    short = lesson.title.partition(":")[0]
    rows = textwrap.wrap(short, 18, max_lines=2, placeholder=" …")
    words = "".join(
        f'<text x="{x + 9:.0f}" y="{y + 38 + 16 * number:.0f}">{html.escape(row)}</text>'
        for number, row in enumerate(rows)
    )
    return (
        f'<a href="{lesson.page}" aria-label="Lesson {lesson.number}: {html.escape(lesson.title)}">'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>'
        f'<text class="number" x="{x + 9:.0f}" y="{y + 20:.0f}">{lesson.number}</text>{words}</a>'
    )
