"""A regression task: how many parameters has a function, judging by the first sentence of its docstring? (lesson 04)

Read with ``ast`` from the installed libraries, like the rest of the corpus, and split by source file. The target is
worth predicting because it is not written in the text: a sentence that speaks of options, arrays and axes belongs to
a function with more parameters than one that returns a name.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from course_utils.data.cache import cached_dataset
from course_utils.data.corpus import remove_near_duplicates, split_by_file
from course_utils.data.docstrings import first_sentence, is_prose, library_versions, mask_names, source_files
from course_utils.data.own_text import OWN_FILES

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # raise it when the same docstrings would give other rows
# The corpus's ten libraries without the two largest, which take two thirds of the reading time.
LIBRARIES = ("accelerate", "datasets", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "sympy")
ROWS = {"train": 10_000, "validation": 1_500, "test": 2_000}


class FunctionRow(NamedTuple):
    """A function: the first sentence of its docstring, where it stands, how many ``parameters`` it takes."""

    text: str
    library: str
    file: str
    parameters: int


def parameter_counts(seed: int = 0) -> DatasetDict:
    """Splits ``train``, ``validation``, ``test`` of 10,000 / 1,500 / 2,000 rows; no file is in two of them.

    Columns ``text`` (str, library names masked), ``parameters`` (int, >= 0) and ``file``. The first call reads the
    installed libraries, 15 to 30 s; later ones take it from the cache.

    Raises:
        ModuleNotFoundError: a library is not installed.
        OSError: the cache cannot be written.
    """
    made_from = {"format": FORMAT, "rows": ROWS, "seed": seed, **library_versions()}
    return cached_dataset("parameter_counts", made_from, lambda: _build(seed))


def _build(seed: int) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    found = [row for library in LIBRARIES for row in functions_of(library)]
    splits = split_by_file(remove_near_duplicates(found), seed)
    made = {}
    for split, wanted in ROWS.items():
        rows = random.Random(f"{seed}-{split}").sample(splits[split], wanted)
        columns = {name: [getattr(row, name) for row in rows] for name in ("text", "parameters", "file")}
        made[split] = Dataset.from_dict(columns)
    return DatasetDict(made)


def tokenized(counts: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int = 48) -> DatasetDict:
    """``counts`` as a Trainer takes them: ``input_ids``, ``attention_mask``, ``label`` = ln(1 + parameters) in float32.

    The logarithm, because a few functions have twenty parameters, and squared errors would be about them alone.
    """
    import numpy as np
    from datasets import Dataset, DatasetDict

    made = {}
    for split, rows in counts.items():
        encoded = tokenizer(rows["text"][:], truncation=True, max_length=max_length)
        columns = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        made[split] = Dataset.from_dict(columns | {"label": np.log1p(rows["parameters"][:]).astype("float32")})
    return DatasetDict(made)


def functions_of(library: str) -> Iterator[FunctionRow]:
    """The documented functions and methods of an installed library whose first sentence is prose."""
    root, files = source_files(library)
    for path in files:
        name = f"{library}/{path.relative_to(root).as_posix()}"
        yield from functions_in(path, library, name)


def functions_in(path: Path, library: str, name: str) -> Iterator[FunctionRow]:
    """The rows of one file; one that does not parse has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            sentence = mask_names(first_sentence(text))
            if is_prose(sentence):
                yield FunctionRow(sentence, library, name, count_parameters(node))


def own_functions() -> list[FunctionRow]:
    """Functions of this project itself (``OWN_FILES``, in order): rows that a committed notebook may show."""
    root = Path(__file__).resolve().parents[1]
    return [row for name in OWN_FILES for row in functions_in(root / name, "course_utils", name)]


def count_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Named parameters, ``*args`` and ``**kwargs`` included, without a leading ``self`` or ``cls``."""
    arguments = function.args
    positional = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    if positional[:1] in (["self"], ["cls"]):
        positional = positional[1:]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return len(positional) + len(arguments.kwonlyargs) + len(starred)
