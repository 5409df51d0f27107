"""What a deck is, where decks lie, and how one is read: the ground of building, exporting and looking at them."""

from __future__ import annotations

import importlib.resources
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
DECKS = ROOT / "slides"
NOTEBOOKS = ROOT / "notebooks"
OUT = ROOT / "build" / "slides"
THEME = DECKS / "theme"


class DeckError(Exception):
    """A deck that cannot be built; the message is one sentence for the person at the command line."""


@dataclass(frozen=True)
class Deck:
    """One built deck: ``name`` (``01_training_loop``), its ``title``, the number of slides, minutes to speak, the HTML
    file."""

    name: str
    title: str
    num_slides: int
    minutes: int
    path: Path


def course_name() -> str:
    """The course's name: the title of README.md."""
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").strip()


def read_executed(notebook: Path):
    """The notebook at ``notebook``, checked to have run to its end without an error."""
    import nbformat

    try:
        nb = nbformat.read(notebook, as_version=4)
    except Exception as error:  # nbformat raises a different type for each way a file can be broken
        raise DeckError(f"{notebook} is not a notebook that can be read ({type(error).__name__})") from error
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            raise DeckError(f"{notebook} was not executed (code cell {number} has no result); run `make notebooks`")
        for output in cell.outputs:
            if output.output_type == "error":
                raise DeckError(
                    f"{notebook} stopped with {output.ename} in cell {number}; repair it, run `make notebooks`"
                )
    return nb


def write_whole(target: Path, text: str) -> None:
    """Write ``text`` to a temporary name and rename it, so that nobody ever opens half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def reveal_file(name: str) -> str:
    """The text of a file of reveal.js 5 (``dist/reveal.js``) out of the installed ``sphinx-revealjs`` wheel."""
    file = importlib.resources.files("sphinx_revealjs").joinpath("_static", "revealjs", *name.split("/"))
    return file.read_text(encoding="utf-8")
