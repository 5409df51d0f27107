"""Docstrings of the installed libraries, read with ``ast``: nothing is imported, nothing is downloaded.

Raw material of the course's text corpus (lesson 02 tells how it is made).
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterable
from importlib import metadata, util
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

# Import name -> distribution name. All of them are pinned in requirements.txt, so every learner gets the same corpus.
LIBRARIES = {
    "accelerate": "accelerate",
    "datasets": "datasets",
    "evaluate": "evaluate",
    "huggingface_hub": "huggingface_hub",
    "matplotlib": "matplotlib",
    "networkx": "networkx",
    "numpy": "numpy",
    "pandas": "pandas",
    "peft": "peft",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "sympy": "sympy",
    "torch": "torch",
    "transformers": "transformers",
}

_TEST_FOLDERS = {"tests", "test", "testing"}
_DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Docstring(NamedTuple):
    """One docstring: which ``library`` and ``file`` it stands in, the dotted ``name`` it documents, its ``text``."""

    library: str
    file: str
    name: str
    text: str


def library_versions() -> dict[str, str]:
    """Installed version of every library of the corpus.

    Raises:
        ModuleNotFoundError: a library is missing; the sentence names it and says what to do.
    """
    versions = {}
    for library, distribution in LIBRARIES.items():
        try:
            versions[library] = metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise ModuleNotFoundError(
                f"library={library!r} is not installed, and the corpus is read from it; run "
                "`pip install -r requirements.txt`"
            ) from error
    return versions


def source_files(library: str) -> tuple[Path, list[Path]]:
    """``(root, files)`` of an installed library: its Python files, sorted, without its tests."""
    spec = util.find_spec(library)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"library={library!r} is not installed; run `pip install -r requirements.txt`")
    root = Path(spec.submodule_search_locations[0])
    files = (path for path in root.rglob("*.py") if not _TEST_FOLDERS & set(path.relative_to(root).parts))
    return root, sorted(files)


def read_file(library: str, root: Path, path: Path) -> list[Docstring]:
    """Every docstring of one file. A file that does not parse (templates, other Python versions) has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    file = f"{library}/{path.relative_to(root).as_posix()}"
    return [
        Docstring(library, file, getattr(node, "name", path.stem), text)
        for node in ast.walk(tree)
        if isinstance(node, _DEFINITIONS) and (text := ast.get_docstring(node))
    ]


def read_libraries(libraries: Iterable[str] = LIBRARIES) -> list[Docstring]:
    """Every docstring of the installed libraries, in the order of libraries and files, with a progress bar.

    A second process reads every other file. It is started as a command: a multiprocessing worker would run a learner's
    unguarded script once more.
    """
    from tqdm import tqdm

    tasks = _tasks(libraries)
    # The package imports this module before it is run: right here, and Python would warn of it in a learner's notebook.
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "course_utils.data.docstrings", *libraries]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as helper, tempfile.TemporaryFile() as drained:
        # The helper's output is kept flowing, or a full pipe would stop it.
        copier = threading.Thread(target=shutil.copyfileobj, args=(helper.stdout, drained))
        copier.start()
        # disable=None: a bar in a terminal, nothing in a log or a notebook's output.
        bar = tqdm(tasks[0::2], desc="reading docstrings", unit=" files", leave=False, disable=None)
        ours = [read_file(*task) for task in bar]
        copier.join()
        drained.seek(0)
        theirs = [[Docstring(*found) for found in json.loads(line)] for line in drained]
    if helper.returncode or len(theirs) != len(tasks) // 2:
        raise ChildProcessError(f"`{' '.join(command)}` ended with exit code {helper.returncode}; run it to see why")
    return [docstring for pair in zip_longest(ours, theirs, fillvalue=[]) for found in pair for docstring in found]


def _tasks(libraries: Iterable[str]) -> list[tuple[str, Path, Path]]:
    return [(library, root, path) for library in libraries for root, files in [source_files(library)] for path in files]


# --- one sentence, cleaned -------------------------------------------------------------------------------------------

_ROLE = re.compile(r":[\w:.+-]+:`~?([^`]*?)(?:\s*<[^`>]*>)?`")  # :class:`~torch.Tensor` -> torch.Tensor
_MARKDOWN_LINK = re.compile(r"\[([^\]]*)\]\((?:[^)]*)\)")
_WORD = re.compile(r"\S+")
# Names that give a library away, with the short forms people import them under.
_GIVEAWAYS = (
    *LIBRARIES,
    *("scikit-learn", "scikit", "pytorch", "hugging face", "huggingface", "hugging", "numpy's", "pyplot"),
    *("aten", "aoti", "dynamo", "inductor", "np", "pd", "plt", "mpl", "nx", "nxgraph", "dataframe's"),
)
_NAMES = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, _GIVEAWAYS))})(?![A-Za-z0-9])", re.IGNORECASE)


def first_sentence(text: str) -> str:
    """The first sentence of a docstring on one line, markup removed."""
    paragraph = inspect.cleandoc(text).split("\n\n", 1)[0]
    line = plain_text(" ".join(paragraph.split()))
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", line, maxsplit=1)[0]


def plain_text(text: str) -> str:
    """``text`` without reStructuredText roles, Markdown links and backticks."""
    text = _MARKDOWN_LINK.sub(r"\1", _ROLE.sub(r"\1", text))
    return text.replace("`", "").replace("**", "").strip()


def mask_names(text: str) -> str:
    """``text`` with every library's name replaced by ``<lib>``, so that a classifier has to read the rest."""
    return _NAMES.sub("<lib>", text)


def is_prose(sentence: str, fewest_words: int = 5, most_words: int = 60) -> bool:
    """True for a sentence of 5 to 60 words, at least three quarters of whose characters are letters or spaces."""
    if not fewest_words <= len(_WORD.findall(sentence)) <= most_words:
        return False
    return sum(character.isalpha() or character == " " for character in sentence) >= 0.85 * len(sentence)


if __name__ == "__main__":  # the helper of read_libraries: every other file, a JSON line each
    for task in _tasks(sys.argv[1:])[1::2]:
        print(json.dumps(read_file(*task)))
