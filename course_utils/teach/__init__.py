"""What a notebook calls: the lesson's opening, claims, figures, exercises with checkers, sources of helpers.

Lessons write ``from course_utils import teach`` and use the names below.
"""

from course_utils.teach.claim import claim
from course_utils.teach.exercise import check, show_hint, show_solution
from course_utils.teach.figure import show, use_course_style
from course_utils.teach.lesson import show_source, start
from course_utils.teach.record import progress

__all__ = [
    "check",
    "claim",
    "progress",
    "show",
    "show_hint",
    "show_solution",
    "show_source",
    "start",
    "use_course_style",
]
