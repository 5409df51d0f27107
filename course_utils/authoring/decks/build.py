"""Executed decks (``slides/NN_name.ipynb``) -> one self-contained HTML file each, in ``build/slides``.

    python -m course_utils.authoring.decks.build              # every deck
    python -m course_utils.authoring.decks.build 01 04        # two of them
    python -m course_utils.authoring.decks.build 01 --pictures /tmp/pictures   # a PNG of each slide, and a check of it

nbconvert's slides machinery cuts the notebook into slides, fragments and notes; the template and theme are ours
(``slides/theme/course``); reveal.js comes from the installed ``sphinx-revealjs`` wheel and is written into the page;
formulas become MathML. The page therefore needs no network and no server.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
from pathlib import Path

from course_utils.authoring.decks.browser import chromium, walk
from course_utils.authoring.decks.deck import (
    DECKS,
    NOTEBOOKS,
    OUT,
    THEME,
    Deck,
    DeckError,
    course_name,
    read_executed,
    write_whole,
)
from course_utils.authoring.decks.export import export


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
    title, num_slides, page = export(nb, notebook, THEME)
    target = out / f"{notebook.stem}.html"
    write_whole(target, page)
    return Deck(notebook.stem, title, num_slides, minutes(page), target)


def minutes(page: str) -> int:
    """Minutes to speak a built deck: the sum of its slides' timings."""
    return round(sum(map(int, re.findall(r'<section[^>]* data-timing="(\d+)"', page))) / 60)


def write_index(decks: list[Deck], out: Path = OUT, lessons: dict[str, str] | None = None) -> Path:
    """Write ``out/index.html``: the course's name, each deck with a link, and its lesson.

    Args:
        lessons: deck name -> address of its lesson; left out, the notebooks as they lie from ``out``.
    """
    if lessons is None:
        lessons = {deck.name: os.path.relpath(NOTEBOOKS / f"{deck.name}.ipynb", out) for deck in decks}
    items = "\n".join(_item(deck, lessons.get(deck.name)) for deck in decks)
    page = (THEME / "index.html").read_text(encoding="utf-8")
    page = page.replace("<!-- course -->", html.escape(course_name())).replace("<!-- decks -->", items)
    write_whole(out / "index.html", page)
    return out / "index.html"


def _item(deck: Deck, lesson: str | None) -> str:
    link = f' · <a href="{html.escape(lesson)}">lesson</a>' if lesson else ""
    size = f"{deck.num_slides} slides · {deck.minutes} min"
    return f'<li><a href="{deck.path.name}">{html.escape(deck.title)}</a> <span>{size}{link}</span></li>'


def built_decks(out: Path = OUT) -> list[Deck]:
    """Every deck that lies built in ``out``, by number, so that the index also lists those built earlier."""
    decks = []
    for path in sorted(out.glob("[0-9][0-9]_*.html")):
        page = path.read_text(encoding="utf-8")
        title = html.unescape(re.search(r"<title>(.*?)</title>", page, re.S)[1])
        decks.append(Deck(path.stem, title, page.count("<section"), minutes(page), path))
    return decks


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    command = "python -m course_utils.authoring.decks.build"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
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
        return 2


def look_at(decks: list[Deck], pictures: Path) -> int:
    """Walk through each deck in Chromium, write PNGs, print what is wrong; 1 when anything is."""
    problems = []
    with chromium() as browser:
        for deck in decks:
            walked = walk(browser, deck.path, pictures)
            problems += [f"{deck.name}: {problem}" for problem in walked.problems()]
    print(f"{pictures}: one PNG per slide", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
