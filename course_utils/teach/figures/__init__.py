"""Figures of the lessons and decks. ``core`` has the style; ``lesson_NN`` one function per figure."""

from course_utils.teach.figures.core import COLORS, new_figure, show, use_course_style

__all__ = ["COLORS", "new_figure", "show", "use_course_style"]
