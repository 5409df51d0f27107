"""Text of this project itself, which a committed notebook may show; other people's sentences may not be."""

from __future__ import annotations

from pathlib import Path

from course_utils.data.docstrings import first_sentence, is_prose, read_file

# Few files, so that a docstring written elsewhere changes no lesson that shows these sentences.
OWN_FILES = (
    "data/cache.py",
    "data/collators.py",
    "data/docstrings.py",
    "data/packing.py",
    "models/shapes.py",
    "training/checkpoint.py",
    "training/loop.py",
    "training/optim.py",
    "training/schedules.py",
)


def own_sentences() -> list[str]:
    """Sentences of this project's own docstrings (``OWN_FILES``, in order): text that a committed notebook may show."""
    root = Path(__file__).resolve().parents[1]
    docstrings = [found for name in OWN_FILES for found in read_file("course_utils", root, root / name)]
    return list(dict.fromkeys(s for found in docstrings if is_prose(s := first_sentence(found.text))))
