"""The course's text data sets, from the installed libraries (``source="local"``) or the hub (``source="hub"``)."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from course_utils.data import corpus, hub_data
from course_utils.data.cache import cached_dataset
from course_utils.data.docstrings import Docstring, library_versions, read_libraries
from course_utils.hub import check_source

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

FORMAT = 2  # raise it when the same docstrings would give other rows


def load_classification(source: str = "local") -> DatasetDict:
    """Text classification: splits ``train``, ``validation``, ``test``; columns ``text`` (str), ``label`` (ClassLabel).

    Local: which of ten libraries does this sentence come from? 12,000 / 1,500 / 2,500 rows, naturally imbalanced, with
    the column ``file``; no file is in two splits. Hub: ``stanfordnlp/sst2``.

    Raises:
        ValueError: unknown ``source``.
        ConnectionError: ``source="hub"`` without a network.
        OSError: the cache cannot be written.
    """
    check_source(source)
    if source == "hub":
        return hub_data.load_hub_classification()
    return _local("classification", lambda: corpus.classification(_docstrings()))


def load_fresh_test(source: str = "local") -> Dataset:
    """Test rows for the one number at the end of lesson 01; columns as in ``load_classification``.

    Local: about 2,000 sentences of the test files that ``load_classification``'s test split leaves out. That split had
    a say in the course's settings; these rows had none. Hub: the test split of ``stanfordnlp/sst2``, as it is. Raises
    as ``load_classification``.
    """
    check_source(source)
    if source == "hub":
        return hub_data.load_hub_classification()["test"]
    return _local("fresh_test", lambda: corpus.fresh_test(_docstrings()))["test"]


def load_instructions(source: str = "local") -> DatasetDict:
    """Instruction pairs: columns ``instruction``, ``input``, ``output`` (all str), and ``file`` locally.

    Hub: ``databricks/databricks-dolly-15k``. Raises as ``load_classification``.
    """
    check_source(source)
    if source == "hub":
        return hub_data.load_hub_instructions()
    return _local("instructions", lambda: corpus.instructions(load_classification()))


def load_language_modelling(source: str = "local") -> DatasetDict:
    """Running text, a paragraph a row: column ``text`` (str), and ``file`` locally.

    Hub: the text of ``databricks/databricks-dolly-15k``. Raises as ``load_classification``.
    """
    check_source(source)
    if source == "hub":
        return hub_data.load_hub_text()
    return _local("language_modelling", lambda: corpus.language_modelling(_docstrings()))


def _local(name: str, build) -> DatasetDict:
    return cached_dataset(name, {"format": FORMAT, **library_versions()}, build)


@cache
def _docstrings() -> list[Docstring]:
    # Kept for the life of the process: two data sets are made from one reading.
    return read_libraries()
