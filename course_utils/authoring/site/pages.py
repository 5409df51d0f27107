"""The site's own pages in MyST Markdown: landing page, exercises, slides."""

from __future__ import annotations

import html
import importlib
import inspect
import re
from pathlib import Path

from course_utils.authoring.decks.deck import Deck, course_name
from course_utils.authoring.site.course_map import draw
from course_utils.authoring.site.lessons import Lesson
from course_utils.authoring.site.sections import exercise_section
from course_utils.teach import exercise

INDEX = """\
# {name}

A course in notebooks for people who know Python and a little PyTorch. Each lesson builds one part of a training run by
hand, shows that it equals the library's, measures what it claims in its own cells, and breaks it on purpose to show
which check catches the silent bug. It runs on a laptop: 2 cores, no GPU, no network after the installation.

These pages show every lesson as it was executed. To run, change and break the cells yourself, clone the course and type
`make lab`: JupyterLab opens on the lessons.

{result}

## Map

An arrow leads from a lesson to one that builds on it.

<div class="course-map-frame">
{map}
</div>

## Lessons

{table}

Minutes are computed: reading, running and solving. Sections titled *Deeper* are folded and can be left out: the first
number is without them.

## More

{more}

```{{toctree}}
:hidden:
:caption: Lessons

{lesson_files}
```

```{{toctree}}
:hidden:
:caption: Beside the lessons

{other_files}
```
"""


def index(lessons: list[Lesson], decks: list[Deck], other: dict[str, str], figures: Path) -> str:
    """The landing page.

    Args:
        decks: of the site.
        other: pages that follow the lessons, file name -> one line that says what is there.
        figures: folder of the figures that are already written.
    """
    rows = ["| lesson | minutes | exercises | slides |", "|---|---|---|---|"]
    playable = {deck.name for deck in decks}
    for lesson in lessons:
        deck = f'<a href="slides/{lesson.name}.html">play</a>' if lesson.name in playable else ""
        count = f"[{len(lesson.exercises)}](exercises.md#lesson-{lesson.number})" if lesson.exercises else ""
        title = f"[{lesson.number} {lesson.title}](lessons/{lesson.name}.ipynb)"
        minutes = lesson.minutes.replace("core ", "").replace(", with everything ", " / ")
        rows.append(f"| {title} | {minutes} | {count} | {deck} |")
    return INDEX.format(
        name=course_name(),
        result=_first_figure(lessons[0], figures),
        map=draw(lessons),
        table="\n".join(rows),
        more="\n".join(f"- {line}" for line in other.values()),
        lesson_files="\n".join(f"lessons/{lesson.name}" for lesson in lessons),
        other_files="\n".join(other),
    )


def _first_figure(lesson: Lesson, figures: Path) -> str:
    """The first figure of a lesson, which shows where it leads, as a link to it; empty where it has none."""
    files = sorted((figures / lesson.number).glob("*.png"))
    if not files:
        return ""
    texts = [str(o.get("data", {}).get("text/html", "")) for c in lesson.notebook.cells for o in c.get("outputs", [])]
    alt = next(found[1] for found in (re.search(r'<img class="figure"[^>]* alt="([^"]*)"', t) for t in texts) if found)
    picture = f'<img class="figure" width="820" alt="{alt}" src="figures/{lesson.number}/{files[0].name}">'
    caption = f"Where lesson {lesson.number} leads: {html.escape(lesson.title)}."
    return f'<p class="result"><a href="{lesson.page}">{picture}</a></p>\n<p class="caption">{caption}</p>'


def exercises(lessons: list[Lesson]) -> str:
    """The page of all exercises: what each asks is in its lesson; hints and a solution open on a click."""
    parts = [
        "# Exercises\n\nEach exercise is a cell to fill in, right after the section it trains; the cell below it says "
        "what is right, what is wrong, and on which input. Hints and solutions open on a click."
    ]
    for lesson in lessons:
        if lesson.exercises:
            parts.append(f"(lesson-{lesson.number})=\n## {lesson.number} · {lesson.title}")
            parts += [_exercise(lesson, id) for id in lesson.exercises]
    return "\n\n".join(parts) + "\n"


def _exercise(lesson: Lesson, id: str) -> str:
    task = exercise.find(id)
    anchor = exercise_section(lesson, id).anchor
    folds = [_fold(f"Hint {step}", hint) for step, hint in enumerate(task.hints, 1)]
    folds.append(_fold("Solution", f"````python\n{solution_text(id)}\n````"))
    title = f"### {id} {task.title}"
    where = f"*{task.kind}* · [in the lesson](lessons/{lesson.name}.ipynb#{anchor})"
    return "\n\n".join([title, where, *statement(lesson, id), *folds])


def statement(lesson: Lesson, id: str) -> list[str]:
    """What exercise ``id`` asks: the text and the cells from its heading, or the exercise before it, to its check."""
    parts: list[str] = []
    for position, cell in enumerate(lesson.notebook.cells):
        if position == exercise_section(lesson, id).cell:
            parts = []
        if cell.cell_type == "code":
            parts.append(f"````python\n{cell.source.rstrip()}\n````")
            checked = re.search(r'teach\.check\(\s*"(\d\d\.\d+)"', cell.source)
            if checked and checked[1] == id:
                break
            if checked:
                parts = []
        else:
            text = re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            parts.append(re.sub(r"^#+ .*$", "", text, flags=re.MULTILINE).strip())
    return [part for part in parts if part]


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def solution_text(id: str) -> str:
    """The source of an exercise's solution: a function's own, else the line that sets the value."""
    found = exercise.solution(id)
    if inspect.isfunction(found) or inspect.isclass(found):
        return inspect.getsource(found).rstrip()
    number, name = id.split(".")[1], f"course_utils.lessons.lesson_{id[:2]}.solutions"
    source = inspect.getsource(importlib.import_module(name))
    assigned = re.search(rf"^solution_{number} = .*(?:\n[ )\]}}].*)*", source, re.MULTILINE)
    return assigned[0].rstrip() if assigned else repr(found)


def slides(lessons: list[Lesson], decks: list[Deck]) -> str:
    """The page of all decks."""
    names = {lesson.name: lesson for lesson in lessons}
    rows = ["| deck | slides | minutes | lesson |", "|---|---|---|---|"]
    for deck in decks:
        lesson = names.get(deck.name)
        link = f"[{lesson.number}](lessons/{lesson.name}.ipynb)" if lesson else ""
        title = f'<a href="slides/{deck.name}.html">{html.escape(deck.title)}</a>'
        rows.append(f"| {title} | {deck.num_slides} | {deck.minutes} | {link} |")
    return (
        "# Slides\n\nOne deck a lesson, with the figures of real runs. A deck opens in this window: <kbd>Space</kbd> "
        "goes on, <kbd>S</kbd> opens the speaker notes, <kbd>F</kbd> is full screen, <kbd>Esc</kbd> shows all slides; "
        "the browser's Back leads here. Each file stands alone: save it, and it plays without a network.\n\n"
        + "\n".join(rows)
        + "\n"
    )
