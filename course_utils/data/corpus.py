"""From docstrings to data sets: choose sentences, remove duplicates, split by source file."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from course_utils.data.docstrings import Docstring, first_sentence, is_prose, mask_names, plain_text

if TYPE_CHECKING:
    from datasets import DatasetDict

# The classes: ten libraries between 500 and 12,000 sentences. The imbalance is the libraries' own.
LABELS = (
    *("accelerate", "datasets", "matplotlib", "numpy", "pandas"),
    *("scipy", "sklearn", "sympy", "torch", "transformers"),
)
ROWS = {"train": 12_000, "validation": 1_500, "test": 2_500}
HELD_OUT_SHARE = 0.12  # of each library's rows, in the validation split and again in the test split
BIGGEST_HELD_OUT_FILE = 0.04  # a file with a larger share of its library stays in the training split
QUESTION = "Which library documents this?"


class Row(NamedTuple):
    """A piece of text and where it comes from."""

    text: str
    library: str
    file: str


def sentences(docstrings: Iterable[Docstring]) -> list[Row]:
    """The first sentence of each docstring of the ten libraries: prose only, library names masked, no duplicates."""
    rows = []
    for docstring in docstrings:
        if docstring.library in LABELS:
            sentence = mask_names(first_sentence(docstring.text))
            if is_prose(sentence):
                rows.append(Row(sentence, docstring.library, docstring.file))
    return remove_near_duplicates(rows)


def paragraphs(docstrings: Iterable[Docstring], shortest: int = 60, longest: int = 1200) -> list[Row]:
    """Every paragraph of prose of ``shortest`` to ``longest`` characters, each once: language-modelling text."""
    seen, rows = set(), []
    for docstring in docstrings:
        for paragraph in docstring.text.split("\n\n"):
            if ">>>" in paragraph or not shortest <= len(paragraph) <= longest:
                continue
            text = plain_text(" ".join(paragraph.split()))
            letters = sum(character.isalpha() or character == " " for character in text)
            if letters >= 0.75 * len(text) and text not in seen:
                seen.add(text)
                rows.append(Row(text, docstring.library, docstring.file))
    return rows


# --- duplicates ------------------------------------------------------------------------------------------------------

_WORDS = re.compile(r"[a-z]+")


def words_of(text: str) -> tuple[str, ...]:
    """Lower-case words, no digits, no punctuation: what is compared when looking for duplicates."""
    return tuple(_WORDS.findall(text.lower()))


def neighbour_keys(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Keys that two texts share when they are equal, or (from 7 words on) when they differ in one word.

    Deleting each word in turn finds insertions, deletions and substitutions alike: "symmetric deletion".
    """
    if len(words) < 7:
        return [words]
    return [words, *(words[:i] + words[i + 1 :] for i in range(len(words)))]


def remove_near_duplicates(rows: list[Row]) -> list[Row]:
    """The first row of each group of near-duplicates; a text that several libraries share is dropped altogether."""
    owners = defaultdict(set)
    for row in rows:
        owners[words_of(row.text)].add(row.library)
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        words = words_of(row.text)
        keys = neighbour_keys(words)
        if len(owners[words]) == 1 and seen.isdisjoint(keys):
            kept.append(row)
        seen.update(keys)
    return kept


# --- splits ----------------------------------------------------------------------------------------------------------


def split_by_file(rows: list[Row], seed: int = 0) -> dict[str, list[Row]]:
    """Rows by split such that no file is in two splits and every library is in all three.

    Files in random order fill the test, then the validation split of their library up to ``HELD_OUT_SHARE``; hashing
    file names instead left a small library without validation rows.
    """
    by_library = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_library[row.library][row.file].append(row)
    splits = {"train": [], "validation": [], "test": []}
    for library in sorted(by_library):
        files = by_library[library]
        total = sum(map(len, files.values()))
        order = sorted(files)
        random.Random(f"{seed}-{library}").shuffle(order)
        filled = Counter()
        for file in order:
            split = "train"
            if len(files[file]) <= max(1, BIGGEST_HELD_OUT_FILE * total):
                room = (held for held in ("test", "validation") if filled[held] < HELD_OUT_SHARE * total)
                split = next(room, "train")
            filled[split] += len(files[file])
            splits[split] += files[file]
    return splits


def classification(docstrings: Iterable[Docstring], seed: int = 0) -> DatasetDict:
    """*Which library does this sentence come from?* Columns ``text``, ``label``, ``file``; sizes in ``ROWS``."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(LABELS)), "file": Value("string")})
    splits = split_by_file(sentences(docstrings), seed)
    made = {}
    for split, wanted in ROWS.items():
        rows = random.Random(f"{seed}-{split}").sample(splits[split], wanted)
        columns = {
            "text": [row.text for row in rows],
            "label": [LABELS.index(row.library) for row in rows],
            "file": [row.file for row in rows],
        }
        made[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(made)


def fresh_test(docstrings: Iterable[Docstring], seed: int = 0) -> DatasetDict:
    """The sentences of the test files that ``classification`` did not draw: no setting was ever judged by them.

    One split, ``test``, with the columns of ``classification``. Its files are those of the test split, so it is as far
    from the training rows as that split is; no row is in both.
    """
    from datasets import Dataset, DatasetDict

    drawn = classification(docstrings, seed)["test"]
    seen = set(drawn["text"])  # no text occurs twice: near-duplicates were removed
    rows = [row for row in split_by_file(sentences(docstrings), seed)["test"] if row.text not in seen]
    columns = {
        "text": [row.text for row in rows],
        "label": [LABELS.index(row.library) for row in rows],
        "file": [row.file for row in rows],
    }
    return DatasetDict({"test": Dataset.from_dict(columns, features=drawn.features)})


def language_modelling(docstrings: Iterable[Docstring], seed: int = 0) -> DatasetDict:
    """All paragraphs, split by file. Columns ``text``, ``file``."""
    from datasets import Dataset, DatasetDict

    made = {}
    for split, rows in split_by_file(paragraphs(docstrings), seed).items():
        random.Random(f"{seed}-{split}").shuffle(rows)
        made[split] = Dataset.from_dict({"text": [row.text for row in rows], "file": [row.file for row in rows]})
    return DatasetDict(made)


def instructions(labelled: DatasetDict) -> DatasetDict:
    """The classification rows as instruction pairs. Columns ``instruction``, ``input``, ``output``, ``file``."""
    names = labelled["train"].features["label"].names

    def to_pair(batch: dict) -> dict:
        return {
            "instruction": [QUESTION] * len(batch["text"]),
            "input": batch["text"],
            "output": [names[label] for label in batch["label"]],
        }

    return labelled.map(to_pair, batched=True, remove_columns=["text", "label"], keep_in_memory=True)
