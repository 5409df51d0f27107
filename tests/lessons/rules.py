"""The rules of the lesson format: each function takes a notebook and returns what breaks the rule, a sentence each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from statistics import median
from typing import Any

KNOWN_TAGS = {"parameters", "nbval-ignore-output", "strip-output", "solution", "hide-input"}
SECTIONS = {
    "what you will be able to do": r"able to",
    "minutes": r"\*\*Minutes:?\*\*|\bminutes\b",
    "prerequisites": r"prerequisites",
    "what goes wrong": r"^#+ .*goes wrong",
    "exercises": r"^#+ .*exercises?\b",
    "recap": r"^#+ .*recap",
    "quiz": r"^#+ .*quiz",
    "next": r"^#+ .*next|\*\*next",
}
NOISE = {
    "a progress bar": r"\d+%\|[█▏▎▍▌▋▊▉ #]|\d+it/s|it/s\]",
    "a warning": r"\w*Warning: |\[W\d+ |\[warning\]",
    "a path of the machine that built it": r"(?<![\w.])/(?:work|home|tmp|root|Users)/",
    "an address in memory": r"\bat 0x[0-9a-f]{6,}",
    "an HTML progress table": r"<progress|jupyter-widgets",
}
TABLE = "an HTML progress table"  # the Trainer's own holds times: shown where outputs are not compared
LOWEST_COMPARED = 0.60


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", []))


def parameters_first(notebook: Any) -> list[str]:
    cells = code_cells(notebook)
    if not cells or "parameters" not in tags(cells[0]):
        return ["the first code cell is not tagged parameters"]
    assigned = {t.id for n in ast.parse(cells[0].source).body if isinstance(n, ast.Assign) for t in n.targets}
    missing = {"source", "max_steps", "seed"} - assigned
    return [f"the parameters cell does not set {', '.join(sorted(missing))}"] if missing else []


def opening_call(notebook: Any) -> list[str]:
    """The second code cell checks the parameters before anything else happens, torch's import included."""
    cells = code_cells(notebook)
    body = ast.parse(cells[1].source).body if len(cells) > 1 else []
    while body and isinstance(body[0], ast.ImportFrom) and body[0].module == "course_utils":
        del body[0]
    call = body[0].value if body and isinstance(body[0], ast.Expr) else None
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "teach.start":
        return ["the second code cell does not begin with teach.start(...), after `from course_utils import` at most"]
    passed = {word.arg for word in call.keywords if isinstance(word.value, ast.Name) and word.value.id == word.arg}
    absent = [f"{name}={name}" for name in ("source", "max_steps", "seed") if name not in passed]
    return [f"teach.start is called without {', '.join(absent)}"] if absent else []


def known_tags(notebook: Any) -> list[str]:
    unknown = set().union(*map(tags, notebook.cells)) - KNOWN_TAGS
    return [f"unknown tag {name!r}; allowed: {', '.join(sorted(KNOWN_TAGS))}" for name in sorted(unknown)]


def ignored_cells_assert(notebook: Any) -> list[str]:
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if tags(cell) & {"nbval-ignore-output", "strip-output"} and not _asserts(cell.source):
            found.append(f"code cell {number} is not compared and asserts nothing:\n{cell.source}")
        if "strip-output" in tags(cell) and "nbval-ignore-output" not in tags(cell):
            found.append(f"code cell {number} is tagged strip-output without nbval-ignore-output")
    return found


def _asserts(source: str) -> bool:
    """A plain assert, or ``teach.claim``."""
    nodes = list(ast.walk(ast.parse(source)))
    claims = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "teach.claim"]
    return bool(claims) or any(isinstance(node, ast.Assert) for node in nodes)


def compared_share(notebook: Any) -> list[str]:
    cells = code_cells(notebook)
    compared = sum("nbval-ignore-output" not in tags(cell) and "NBVAL_" not in cell.source for cell in cells)
    share = compared / len(cells)
    return [f"{share:.0%} of the code cells are compared, at least {LOWEST_COMPARED:.0%} must be"] * (
        share < LOWEST_COMPARED
    )


def short_cells(notebook: Any) -> list[str]:
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    return [f"the median code cell has {median(lengths):g} lines, at most 10 are allowed"] * (median(lengths) > 10)


def sections(notebook: Any) -> list[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    absent = [name for name, pattern in SECTIONS.items() if not re.search(pattern, text, re.IGNORECASE | re.MULTILINE)]
    found = [f"no section or line: {name}" for name in absent]
    if not re.match(r"# \d\d · \S", notebook.cells[0].source):
        found.append(f"the title is not like '# 01 · The training loop': {notebook.cells[0].source[:60]!r}")
    if text.count("<details>") != text.count("</details>"):
        found.append("a <details> is not closed")
    return found


def exercises_checked(notebook: Any) -> list[str]:
    text = "\n".join(cell.source for cell in code_cells(notebook))
    return [] if len(re.findall(r"teach\.check\(\s*\"\d\d\.\d+\"", text)) >= 2 else ["fewer than two teach.check calls"]


def images_have_alt_text(notebook: Any) -> list[str]:
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            data = output.get("data", {})
            is_bare = any(kind.startswith("image/") for kind in data)  # JupyterLab and exports show no text with these
            if is_bare or _IMAGE_WITHOUT_ALT.search(data.get("text/html", "")):
                found.append(f"code cell {number} shows an image without alternative text: use teach.show(figure)")
    for index, cell in enumerate(notebook.cells):
        is_bare = re.search(r"!\[\s*\]\(", cell.source) or _IMAGE_WITHOUT_ALT.search(cell.source)
        if cell.cell_type == "markdown" and is_bare:
            found.append(f"cell {index} holds an image without alternative text")
    return found


_IMAGE_WITHOUT_ALT = re.compile(r'<img(?![^>]*\balt="[^"]+")')
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def quiet_outputs(notebook: Any) -> list[str]:
    found, cells = [], code_cells(notebook)
    for number, text in output_texts(notebook):
        noise = [what for what, pattern in NOISE.items() if re.search(pattern, text)]
        if "nbval-ignore-output" in tags(cells[number - 1]) and "<progress" in text:
            noise = [what for what in noise if what != TABLE]
        found += [f"code cell {number} prints {what}: {text[:200]!r}" for what in noise]
    return found


def output_texts(notebook: Any) -> Iterator[tuple[int, str]]:
    """Every text that a code cell's output holds, with the cell's number; images are left out."""
    for number, cell in enumerate(code_cells(notebook), 1):
        for output in cell.outputs:
            if "text" in output:
                yield number, output.text
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield number, _PICTURE.sub("", content if isinstance(content, str) else str(content))


LESSON_RULES = [
    parameters_first,
    opening_call,
    known_tags,
    ignored_cells_assert,
    compared_share,
    short_cells,
    sections,
    exercises_checked,
    images_have_alt_text,
    quiet_outputs,
]
DECK_RULES = [known_tags, images_have_alt_text, quiet_outputs]
