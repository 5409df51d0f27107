"""What this site adds to Sphinx: folded sections, formulas as MathML, docstrings written for people."""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes

from course_utils.authoring.decks.export import mathml


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx when it loads the extension."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("doctree-resolved", fold_deeper)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=400)  # before napoleon reads it
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fold_deeper(app: Any, doctree: nodes.document, page: str) -> None:
    """Fold every section titled ``Deeper: ...``: its title stays on the page, the rest opens on a click.

    Done after Sphinx has collected titles and the search index's words, so both still know the section.
    """
    for section in list(doctree.findall(nodes.section)):
        title = section.next_node(nodes.title)
        if title is None or title.parent is not section:
            continue
        if re.sub(r"^[\d.· ]+", "", title.astext()).lower().startswith("deeper"):
            first = section.index(title)
            section.insert(first + 1, _raw("</summary>"))
            section.insert(first, _raw('<details class="deeper"><summary>'))
            section.append(_raw("</details>"))


def _raw(text: str) -> nodes.raw:
    return nodes.raw("", text, format="html")


def visit_inline(self: Any, node: nodes.math) -> None:
    """Write ``$...$``."""
    self.body.append(_formula(node, "inline"))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """Write ``$$...$$``."""
    self.body.append(f'<div class="formula">{_formula(node, "block")}</div>')
    raise nodes.SkipNode


def _formula(node: nodes.Element, display: str) -> str:
    """MathML; the formula's source where the converter does not know a command, with a warning, which stops a build."""
    from sphinx.util import logging

    try:
        return mathml(node.astext(), display)
    except ValueError as error:
        logging.getLogger(__name__).warning("%s", error, location=node, type="math")
        return f"<code>{html.escape(node.astext())}</code>"


def tidy_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make a docstring safe to read as reStructuredText, in place: the course writes them for people, who mean ``|x|``
    and ``eval_`` literally, and mean code by an example and by an indented block of a module's docstring."""
    found: list[str] = []
    literal = ""  # what such a block is indented by on top
    for line in lines:
        is_indented = line.startswith("    ")
        if what == "module" and is_indented and not literal:
            found += ["", "::", ""]
            literal = "    "
        elif line.strip() and not is_indented and literal:
            found.append("")
            literal = ""
        found.append(literal + line if literal else _escape(line))
        if re.fullmatch(r"Examples?:", line):  # a section of its own for napoleon
            found += ["    ::", ""]
            literal = "    "
    lines[:] = found


def _escape(line: str) -> str:
    """``line`` with the marks escaped that reStructuredText would read outside of ````code````."""
    parts = re.split(r"(``.+?``|`[^`]+`_?)", line)
    marks = r"[\\|]|(?<=\w)_(?!\w)|(?<!\*)\*(?=\w)"
    parts[::2] = [re.sub(marks, lambda mark: "\\" + mark[0], part) for part in parts[::2]]
    return "".join(parts)
