"""The course as a web page: executed lessons, decks, glossary, exercises and API -> ``build/site``.

    python -m course_utils.authoring.site.build                 # everything: build/site/index.html
    python -m course_utils.authoring.site.build 01 04 --no-api  # two lessons, without the reference pages

Nothing is executed: lessons and decks show their committed outputs. Sphinx renders them (myst-nb, sphinx-book-theme)
and its warnings stop the build. The site needs no server and no network: formulas are MathML, fonts and scripts lie in
the folder, and every link is followed before the new site replaces the old one.

``SITE_REPOSITORY`` (``https://github.com/OWNER/NAME``), where it is set, adds the buttons that lead there and to Colab.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

from course_utils.authoring.decks.build import build_deck, find_decks, write_index
from course_utils.authoring.decks.deck import DECKS, ROOT, Deck, DeckError, course_name
from course_utils.authoring.site import api, glossary, links, pages
from course_utils.authoring.site.lessons import Lesson, SiteError, page_notebook, read_lessons

OUT = ROOT / "build" / "site"
STATIC = Path(__file__).parent / "static"
MARK = ".hf-training-course-site"  # in every built site: only a folder that holds it is replaced


def build_site(wanted: list[str], out: Path = OUT, with_api: bool = True) -> list[Lesson]:
    """Build the site of the ``wanted`` lessons (all for an empty list) in ``out``, in one step at the end.

    Raises:
        SiteError, DeckError: a lesson or deck cannot be read, Sphinx warned, a link leads nowhere, or ``out`` is a
            folder that is not a site.
    """
    if out.exists() and any(out.iterdir()) and not (out / MARK).exists():
        raise SiteError(f"out={out} holds files that are not a site; allowed: a new or empty folder, or an older site")
    lessons = read_lessons(wanted)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        source, site = Path(folder) / "source", Path(folder) / "site"
        decks = copy_whole_files(lessons, site)
        write_sources(lessons, decks, source, site / "figures", with_api)
        run_sphinx(source, site, Path(folder) / "doctrees")
        for lesson in lessons:  # the theme's download button gives what was rendered: let it be the lesson itself
            shutil.copy(lesson.path, site / "_sources" / "lessons" / lesson.path.name)
        if faults := links.problems(site):
            raise SiteError(f"{len(faults)} links of the site are broken:\n" + "\n".join(faults[:40]))
        (site / MARK).touch()
        shutil.rmtree(out, ignore_errors=True)
        site.rename(out)
    return lessons


def copy_whole_files(lessons: list[Lesson], site: Path) -> list[Deck]:
    """Put into ``site`` what is no page of Sphinx's: the notebooks to download, the decks and their index."""
    (site / "notebooks").mkdir(parents=True)
    for lesson in lessons:
        shutil.copy(lesson.path, site / "notebooks")
    named = [lesson.name for lesson in lessons if (DECKS / f"{lesson.name}.ipynb").exists()]
    decks = [build_deck(path, site / "slides") for path in find_decks(named)] if named else []
    if decks:
        lesson_pages = {lesson.name: f"../{lesson.page}" for lesson in lessons}
        write_index(decks, site / "slides", lesson_pages)
    return decks


def write_sources(lessons: list[Lesson], decks: list[Deck], source: Path, figures: Path, with_api: bool) -> None:
    """Write the pages that Sphinx reads into ``source``, and the figures that they show into ``figures``."""
    import nbformat

    (source / "lessons").mkdir(parents=True)
    names = {deck.name for deck in decks}
    for lesson in lessons:
        page = page_notebook(lesson, lessons, figures, names, repository())
        nbformat.write(page, source / "lessons" / f"{lesson.name}.ipynb")
    texts = {
        "exercises.md": pages.exercises(lessons),
        "glossary.md": glossary.page(glossary.GLOSSARY.read_text(encoding="utf-8"), lessons),
    }
    other = {
        "exercises": "[Exercises](exercises.md), all of them, with hints and solutions that open on a click",
        "glossary": "[Glossary](glossary.md): each term leads to the section that introduces it",
    }
    if decks:
        texts["decks.md"] = pages.slides(lessons, decks)
        other["decks"] = "[Slides](decks.md): one deck a lesson, to play here"
    if with_api:
        packages = api.modules()
        texts |= {f"api/{package}.rst": api.page(package, names) for package, names in packages.items()}
        texts["api/index.rst"] = api.index(list(packages))
        other["api/index"] = "[Reference](api/index.rst) of `course_utils`, from its docstrings"
    texts["index.md"] = pages.index(lessons, decks, other, figures)
    for name, text in texts.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")


def repository() -> str:
    """The course's address on GitHub, or nothing."""
    return os.environ.get("SITE_REPOSITORY", "").rstrip("/")


def configuration() -> dict:
    """Sphinx's settings."""
    theme = {
        "show_toc_level": 2,
        "show_navbar_depth": 1,
        "navigation_with_keys": False,
        "use_download_button": True,
        "use_fullscreen_button": False,
        "home_page_in_toc": False,
        "navbar_persistent": [],  # the search button stands in the side bar
    }
    if repository():
        theme |= {"repository_url": repository(), "use_repository_button": True}
    return {
        "project": course_name(),
        "html_title": course_name(),
        "language": "en",
        "extensions": [
            "myst_nb",
            "sphinx.ext.autodoc",
            "sphinx.ext.napoleon",
            "course_utils.authoring.site.extension",
        ],
        "html_theme": "sphinx_book_theme",
        "html_theme_options": theme,
        "html_static_path": [str(STATIC)],
        "html_css_files": ["course.css"],
        "html_js_files": ["course.js"],
        "html_math_renderer": "mathml",
        "html_use_index": False,
        "html_domain_indices": False,
        "html_show_copyright": False,
        "html_show_sphinx": False,
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "myst_heading_anchors": 4,
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "nb_ipywidgets_js": {},  # its default loads scripts from elsewhere
        "add_module_names": False,
        "autodoc_typehints": "description",
        "autodoc_inherit_docstrings": False,  # torch's and transformers' refer to pages of their own
        "suppress_warnings": ["ref.python"],  # two classes called Config: a type hint may mean either
        "autodoc_preserve_defaults": True,
    }


def run_sphinx(source: Path, site: Path, doctrees: Path) -> None:
    """Render ``source`` into ``site``.

    Raises:
        SiteError: Sphinx warned or failed; the sentence carries what it said.
    """
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    warned = io.StringIO()
    with warnings.catch_warnings(), patch_docutils(), docutils_namespace():
        warnings.simplefilter("ignore", PendingDeprecationWarning)  # between Sphinx and its extensions
        app = Sphinx(source, None, site, doctrees, "html", configuration(), status=None, warning=warned)
        app.build(force_all=True)
    if warned.getvalue().strip():
        raise SiteError(f"Sphinx warns:\n{warned.getvalue().strip()}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    command = "python -m course_utils.authoring.site.build"
    parser = argparse.ArgumentParser(prog=command, description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NN", help="lesson numbers or names; default: all")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the site; default: build/site")
    parser.add_argument("--no-api", action="store_true", help="leave out the reference pages of course_utils")
    options = parser.parse_args(arguments)
    try:
        lessons = build_site(options.lessons, options.out, with_api=not options.no_api)
    except (SiteError, DeckError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.out / 'index.html'}: {len(lessons)} lessons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
