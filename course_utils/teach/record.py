"""A learner's progress: ``teach.progress()`` prints it, ``teach.check`` notes a solved exercise.

It is kept in ``work/progress.txt`` and never leaves the machine. Only a notebook that a learner opened writes there:
``make lab`` names the file and its own process id in the environment, and a kernel that this process did not start
itself (papermill's, nbval's, another server's) leaves it alone.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from course_utils.teach import solved, start_page

FILE, SERVER = "COURSE_PROGRESS", "COURSE_LAB_PID"  # environment variables that `make lab` sets


def record(id: str) -> str:
    """Note that exercise ``id`` is solved, where a learner's progress is kept, and renew the start page.

    Returns:
        What to tell the learner: how far the lesson is; empty where no progress is kept.
    """
    if os.environ.get(SERVER) != str(os.getppid()) or not os.environ.get(FILE):
        return ""
    file, number = Path(os.environ[FILE]), id.partition(".")[0]
    try:
        if id not in solved.read(file):
            with file.open("a", encoding="utf-8") as lines:  # one short line: two notebooks cannot mix theirs
                lines.write(f"{id} {datetime.now():%Y-%m-%d %H:%M}\n")
            start_page.write(file.parent)
    except OSError as error:  # a full or read-only disk must not stop a lesson
        return f"(not noted in {file}: {error.strerror})"
    return f"Lesson {number}: {solved.marks(number, solved.read(file))} exercises solved."


def progress() -> None:
    """Print, lesson by lesson, which exercises are solved and which is next."""
    file = Path(os.environ.get(FILE) or solved.ROOT / "work" / solved.NAME)
    done, titles = solved.read(file), solved.titles()
    for number in sorted({id.partition(".")[0] for id in titles}):
        following = next((id for id in solved.in_lesson(number) if id not in done), None)
        hint = f"next: {following} {titles[following]}" if following else "done"
        print(f"{number}  {solved.marks(number, done):<16} {hint}")
    print(f"{len(done)} of {len(titles)} exercises solved. Noted in {file}, which stays on this machine.")
