"""Executed decks (``slides/NN_name.ipynb``) -> one self-contained HTML file each, in ``build/slides``.

    python -m course_utils.teach.slides              # every deck
    python -m course_utils.teach.slides 01 04        # two of them
    python -m course_utils.teach.slides 01 --pictures /tmp/pictures   # also a PNG per slide, and a check of each

nbconvert's slides machinery cuts the notebook into slides, fragments and notes; the template and theme are ours
(``slides/theme/course``); reveal.js comes from the installed ``sphinx-revealjs`` wheel and is written into the page;
formulas become MathML. The page therefore needs no network and no server.
"""

from __future__ import annotations

import argparse
import html
import importlib.resources
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECKS = ROOT / "slides"
OUT = ROOT / "build" / "slides"
THEME = DECKS / "theme"


class DeckError(Exception):
    """A deck that cannot be built; the message is one sentence for the person at the command line."""


@dataclass(frozen=True)
class Deck:
    """One built deck: ``name`` (``01_training_loop``), its ``title``, the number of slides, the HTML file."""

    name: str
    title: str
    num_slides: int
    path: Path


def find_decks(wanted: list[str], folder: Path = DECKS) -> list[Path]:
    """The executed notebooks of the ``wanted`` decks (numbers such as ``"01"`` or names), all decks for an empty list.

    Raises:
        DeckError: no such deck, or its source was never executed into a notebook.
    """
    files = [path for path in folder.glob("[0-9][0-9]_*") if path.suffix in (".py", ".ipynb")]
    names = sorted({path.stem for path in files})
    if not names:
        raise DeckError(f"no deck in {folder}; expected files called NN_name.py there")
    for want in wanted:
        if not any(want in (name, name[:2]) for name in names):
            raise DeckError(f"deck={want!r} does not exist in {folder}; allowed: {', '.join(n[:2] for n in names)}")
    chosen = [name for name in names if not wanted or name in wanted or name[:2] in wanted]
    for name in chosen:
        if not (folder / f"{name}.ipynb").exists():
            raise DeckError(f"{folder / name}.ipynb is missing: its source was not executed yet; run `make notebooks`")
    return [folder / f"{name}.ipynb" for name in chosen]


def build_deck(notebook: Path, out: Path = OUT) -> Deck:
    """Convert one executed notebook to ``out/<name>.html``.

    Raises:
        DeckError: the notebook is not executed, holds an error, has no title or a formula that cannot be converted.
    """
    nb = read_executed(notebook)
    from course_utils.teach.slides_export import export

    title, num_slides, page = export(nb, notebook, THEME)
    target = out / f"{notebook.stem}.html"
    write_whole(target, page)
    return Deck(notebook.stem, title, num_slides, target)


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


def write_index(decks: list[Deck], out: Path = OUT) -> Path:
    """Write ``out/index.html``: a plain list of the decks with links."""
    items = "\n".join(
        f'<li><a href="{deck.path.name}">{html.escape(deck.title)}</a> <span>{deck.num_slides} slides</span></li>'
        for deck in decks
    )
    page = (THEME / "index.html").read_text(encoding="utf-8").replace("<!-- decks -->", items)
    write_whole(out / "index.html", page)
    return out / "index.html"


def built_decks(out: Path = OUT) -> list[Deck]:
    """Every deck that lies built in ``out``, by number, so that the index also lists those built earlier."""
    decks = []
    for path in sorted(out.glob("[0-9][0-9]_*.html")):
        page = path.read_text(encoding="utf-8")
        title = html.unescape(re.search(r"<title>(.*?)</title>", page, re.S)[1])
        decks.append(Deck(path.stem, title, page.count("<section"), path))
    return decks


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


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m course_utils.teach.slides", description=__doc__.splitlines()[0])
    parser.add_argument("decks", nargs="*", metavar="NN", help="deck numbers or names; default: all")
    parser.add_argument("--decks", dest="folder", type=Path, default=DECKS, help="folder of the executed notebooks")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the HTML files")
    parser.add_argument("--pictures", type=Path, help="check every slide in Chromium and write a PNG of each here")
    options = parser.parse_args(arguments)
    try:
        decks = [build_deck(path, options.out) for path in find_decks(options.decks, options.folder)]
        for deck in decks:
            print(f"{deck.path}: {deck.num_slides} slides, {deck.path.stat().st_size / 1024:.0f} KB")
        print(write_index(built_decks(options.out), options.out))
        return look_at(decks, options.pictures) if options.pictures else 0
    except DeckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def look_at(decks: list[Deck], pictures: Path) -> int:
    """Walk through each deck in Chromium, write PNGs, print what is wrong; 1 when anything is."""
    from course_utils.teach.slides_browser import chromium, walk

    problems = []
    with chromium() as browser:
        for deck in decks:
            walked = walk(browser, deck.path, pictures)
            problems += [f"{deck.name}: {problem}" for problem in walked.problems()]
    print(f"{pictures}: one PNG per slide", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    # Through the package: this module run as __main__ has a DeckError of its own, not the one that its helpers raise.
    from course_utils.teach import slides

    sys.exit(slides.main())
