"""The rules of the mould, for lessons written in it: each takes a notebook and returns what breaks the rule."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from typing import Any

import nbformat

from course_utils.authoring import mould
from course_utils.teach import exercise
from tests.lessons.rules import code_cells

WIDEST = 88  # characters: JupyterLab at 1280 pixels shows about 95
PLUMBING = {"mock", "unittest", "logging", "subprocess", "contextlib", "warnings", "multiprocessing", "signal"}
FEWEST_EXERCISES, FEWEST_KINDS = 4, 3


def fits_its_minutes(notebook: Any) -> list[str]:
    return [complaint] if (complaint := mould.too_long(notebook.cells)) else []


def says_its_minutes(notebook: Any) -> list[str]:
    wanted = f"**Minutes:** {mould.minutes(notebook.cells)} "
    return [] if wanted in notebook.cells[0].source else [f"the first cell does not say {wanted!r}: use {{minutes}}"]


def folded(notebook: Any) -> list[str]:
    flags = mould.is_deeper(notebook.cells)
    heads = [c for c, deeper in zip(notebook.cells, flags, strict=True) if deeper and c.source.startswith("#")]
    return [f"not folded: {c.source[:40]!r}" for c in heads if not c.metadata.get("jp-MarkdownHeadingCollapsed")]


def deeper_headings_start_cells(notebook: Any) -> list[str]:
    """Else JupyterLab does not fold the section, and what stands above it in the cell is not counted as core."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    parts = [(cell, part) for cell in cells for part in re.split(r"^(?=#{2,4} )", cell.source, flags=re.MULTILINE)]
    parts = [(cell, nbformat.v4.new_markdown_cell(part)) for cell, part in parts if part.strip()]
    deeper = defaultdict(set)
    for (cell, _), flag in zip(parts, mould.is_deeper([part for _, part in parts]), strict=True):
        deeper[cell.id].add(flag)
    return [f"core and deeper in one cell: {cell.source[:60]!r}" for cell in cells if len(deeper[cell.id]) > 1]


def narrow_lines(notebook: Any) -> list[str]:
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    return [
        f"a line of {len(line)} characters, at most {WIDEST} are shown: {line!r}"
        for line in lines
        if len(line) > WIDEST
    ]


def claims_instead_of_asserts(notebook: Any) -> list[str]:
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return [f"`{ast.unparse(node)[:60]}`: use teach.claim" for node in found]


def no_plumbing_in_the_core(notebook: Any) -> list[str]:
    found = []
    for cell, deeper in zip(notebook.cells, mould.is_deeper(notebook.cells), strict=True):
        if cell.cell_type != "code" or deeper:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"a core cell imports {name}" for name in names if name.split(".")[0] in PLUMBING]
    return found


def exercises_after_their_sections(notebook: Any) -> list[str]:
    cells = code_cells(notebook)
    asked = [
        (place, id) for place, cell in enumerate(cells) for id in re.findall(r'teach\.check\(\s*"(.+?)"', cell.source)
    ]
    found = []
    if len(asked) < FEWEST_EXERCISES:
        found.append(f"{len(asked)} exercises, at least {FEWEST_EXERCISES} are due")
    kinds = {exercise.find(id).kind for _, id in asked}
    if len(kinds) < FEWEST_KINDS:
        found.append(f"exercises of {len(kinds)} kinds ({', '.join(sorted(kinds))}), at least {FEWEST_KINDS} are due")
    if sum(place < 0.8 * len(cells) for place, _ in asked) < len(asked) / 2:
        found.append("most exercises stand in the last fifth: each belongs after the section it trains")
    return found + [f"{id} has no second hint" for _, id in asked if len(exercise.find(id).hints) < 2]


def figures_know_their_text(notebook: Any) -> list[str]:
    return [
        f"alt= in a cell: {line.strip()!r}"
        for c in code_cells(notebook)
        for line in c.source.splitlines()
        if "alt=" in line
    ]


MOULD_RULES = [
    fits_its_minutes,
    says_its_minutes,
    folded,
    deeper_headings_start_cells,
    narrow_lines,
    claims_instead_of_asserts,
    no_plumbing_in_the_core,
    exercises_after_their_sections,
    figures_know_their_text,
]
