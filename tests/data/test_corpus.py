"""The corpus: prose only, names masked, no near-duplicates, no file in two splits."""

from collections import Counter

import pytest

from course_utils.data import (
    corpus,
    load_classification,
    load_fresh_test,
    load_instructions,
    load_language_modelling,
    own_sentences,
)
from course_utils.data.corpus import Row
from course_utils.data.docstrings import LIBRARIES, first_sentence, is_prose, mask_names


@pytest.fixture(scope="module")
def labelled():
    return load_classification()


def test_sizes_classes_and_imbalance(labelled):
    assert {split: table.num_rows for split, table in labelled.items()} == corpus.ROWS
    assert len(labelled["train"].features["label"].names) == 10
    for split in labelled.values():
        counts = Counter(split["label"])
        assert len(counts) == 10, "every class is in every split"
        assert max(counts.values()) > 10 * min(counts.values()), "class sizes are left as they are"


@pytest.mark.parametrize("load", [load_classification, load_instructions, load_language_modelling])
def test_no_file_is_in_two_splits(load):
    files = {split: set(table["file"]) for split, table in load().items()}
    assert all(files.values())
    assert not files["train"] & files["validation"]
    assert not files["train"] & files["test"]
    assert not files["validation"] & files["test"]


def test_a_split_by_row_would_be_caught(labelled):
    """The check above can fail: shuffled rows share files between splits."""
    table = labelled["train"].shuffle(seed=0)
    half = table.num_rows // 2
    assert set(table.select(range(half))["file"]) & set(table.select(range(half, table.num_rows))["file"])


def test_fresh_test_rows_are_in_no_split_and_from_files_of_the_test_split(labelled):
    fresh = load_fresh_test()
    assert fresh.features == labelled["test"].features and 1_500 < len(fresh) < 3_000
    assert len(set(fresh["label"])) == 10
    for split in labelled.values():
        assert not set(fresh["text"]) & set(split["text"])
    for split in ("train", "validation"):
        assert not set(fresh["file"]) & set(labelled[split]["file"])


def test_no_library_name_is_left(labelled):
    names = set(LIBRARIES) | {"pytorch", "huggingface", "np", "pd"}
    for table in labelled.values():
        for text in table["text"]:
            assert not names & set(corpus.words_of(text.replace("<lib>", " ")))


def test_texts_are_prose_and_unlike_each_other(labelled):
    words = [corpus.words_of(text) for table in labelled.values() for text in table["text"]]
    assert len(set(words)) == len(words)
    seen = set()
    for text in words:
        keys = corpus.neighbour_keys(text)
        assert seen.isdisjoint(keys), f"a near-duplicate: {' '.join(text)}"
        seen.update(keys)
    assert all(is_prose(text) for table in labelled.values() for text in table["text"])


def test_near_duplicates_are_found():
    long = "Return the sorted list of names of all open files"
    rows = [
        Row(long, "numpy", "a"),
        Row(long.replace("sorted", "ordered"), "numpy", "b"),  # one word replaced
        Row(long.replace("sorted ", ""), "numpy", "c"),  # one word left out
        Row(long.upper() + "!", "numpy", "d"),  # the same words
        Row("Close every file that is still open at exit", "numpy", "e"),
        Row("Shared by two of the libraries, word for word", "numpy", "f"),
        Row("Shared by two of the libraries, word for word", "pandas", "g"),
    ]
    assert [row.file for row in corpus.remove_near_duplicates(rows)] == ["a", "e"]


def test_split_fills_every_split_and_keeps_big_files_in_train():
    rows = [Row(f"text {i}", "numpy", f"small{i // 2}") for i in range(100)]
    rows += [Row(f"big {i}", "numpy", "big") for i in range(60)]
    splits = corpus.split_by_file(rows)
    assert sum(map(len, splits.values())) == len(rows)
    assert {row.file for row in splits["train"]} >= {"big"}
    for held_out in ("validation", "test"):
        assert 0.12 * 160 <= len(splits[held_out]) <= 0.12 * 160 + 2


def test_cleaning_of_a_sentence():
    text = "Compute :func:`~torch.nn.relu` of `x`, see [docs](https://a.b).\n\nMore."
    assert first_sentence(text) == "Compute torch.nn.relu of x, see docs."
    assert mask_names("The NumPy array, a torch.Tensor, PyTorch or np.") == (
        "The <lib> array, a <lib>.Tensor, <lib> or <lib>."
    )
    assert mask_names("torchlight, pandastic") == "torchlight, pandastic"
    assert is_prose("This sentence has six words altogether")
    assert not is_prose("Too short a line")
    assert not is_prose("x_1 = 3; y[2] += 4 * (z - 1) // 7 % 2")


def test_instructions_are_the_classification_rows(labelled):
    pairs = load_instructions()
    names = labelled["test"].features["label"].names
    assert pairs["test"].column_names == ["file", "instruction", "input", "output"] or set(
        pairs["test"].column_names
    ) == {"file", "instruction", "input", "output"}
    assert pairs["test"]["input"][:20] == labelled["test"]["text"][:20]
    assert pairs["test"]["output"][:20] == [names[label] for label in labelled["test"]["label"][:20]]


def test_language_modelling_text_is_large_and_unique():
    train = load_language_modelling()["train"]
    assert train.num_rows > 60_000
    assert len(set(train["text"])) == train.num_rows


def test_own_sentences_come_from_this_package():
    found = own_sentences()
    assert len(found) > 50
    assert "Which of ten libraries" not in found
    assert any("docstrings" in sentence.lower() for sentence in found)
    assert all(map(is_prose, found))


def test_unknown_source_is_refused():
    with pytest.raises(ValueError, match=r"source='cloud' is not known; allowed: 'local', 'hub'"):
        load_classification("cloud")
