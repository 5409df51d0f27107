"""No committed output repeats a phrase of the corpus: other projects' docstrings stay out of this repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import nbformat
import pytest

from course_utils.authoring.build import ROOT, targets
from course_utils.data import load_classification, load_language_modelling, own_sentences
from tests.lessons import rules as lesson_rules

SENTENCE_PHRASE = 6  # words in a row shared with a sentence of the classification set
PARAGRAPH_PHRASE = 9  # with any paragraph of the libraries: longer, because short ones are plain English


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def phrases(text: str, length: int) -> Iterator[tuple[str, ...]]:
    found = words(text)
    return zip(*(found[start:] for start in range(length)), strict=False)


def shared_phrases(outputs: Iterable[str], corpus: Iterable[str], own: Iterable[str], length: int) -> list[str]:
    """Runs of ``length`` words that stand in ``outputs`` and in ``corpus`` but not in this project's ``own`` text."""
    shown = {phrase for text in outputs for phrase in phrases(text, length)}
    shown -= {phrase for text in own for phrase in phrases(text, length)}
    return sorted({" ".join(p) for text in corpus for p in phrases(text, length) if p in shown}) if shown else []


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [text for split in load_classification().values() for text in split["text"]]


@pytest.fixture(scope="module")
def own() -> list[str]:
    """The text of this project: its code and the sources of its lessons."""
    files = [*(ROOT / "course_utils").rglob("*.py"), *targets()]
    return [path.read_text(encoding="utf-8") for path in files]


@pytest.fixture(scope="module")
def outputs() -> dict[str, str]:
    built = [nbformat.read(path, as_version=4) for path in targets().values() if path.exists()]
    names = [f"{path.parent.name}/{path.stem}" for path in targets().values() if path.exists()]
    return {
        f"{name} code cell {number}, output {index}": text
        for name, notebook in zip(names, built, strict=True)
        for index, (number, text) in enumerate(lesson_rules.output_texts(notebook))
    }


def offending(outputs: dict[str, str], corpus: Iterable[str], own: list[str], length: int) -> dict[str, list[str]]:
    shared = shared_phrases(outputs.values(), corpus, own, length)
    places = {place: " ".join(words(text)) for place, text in outputs.items()}
    return {place: hits for place, text in places.items() if (hits := [p for p in shared if p in text])}


def test_no_output_holds_a_phrase_of_a_corpus_sentence(outputs, sentences, own):
    assert offending(outputs, sentences, own, SENTENCE_PHRASE) == {}


def test_no_output_holds_a_phrase_of_a_corpus_paragraph(outputs, own):
    paragraphs = (text for split in load_language_modelling().values() for text in split["text"])
    assert offending(outputs, paragraphs, own, PARAGRAPH_PHRASE) == {}


def test_a_planted_sentence_is_noticed(sentences, own):
    planted = next(s for s in sentences if len(words(s)) >= 8 and words(s) not in map(words, own))
    printed = f"label 3\n  text: {planted.upper()!r}\n"
    assert offending({"cell 1": printed}, sentences, own, SENTENCE_PHRASE).keys() == {"cell 1"}
    assert offending({"cell 1": " ".join(words(planted)[1:8])}, sentences, own, SENTENCE_PHRASE)


def test_a_planted_paragraph_is_noticed(own):
    paragraphs = load_language_modelling()["train"]["text"][:2000]
    planted = next(p for p in paragraphs if len(words(p)) >= 20)
    assert offending({"cell 1": planted[:200]}, paragraphs, own, PARAGRAPH_PHRASE)


def test_own_sentences_may_be_shown(sentences, own):
    assert offending({"cell 1": "\n".join(own_sentences())}, sentences, own, SENTENCE_PHRASE) == {}
