"""The range coder: lossless for anything, and as short as the information it holds."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.models.range_coder import TOTAL, counts, decode, encode

TABLES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300).filter(any)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_counts_are_whole_positive_and_complete(probabilities):
    found = counts(probabilities)
    assert sum(found) == TOTAL and min(found) >= 1 and len(found) == len(probabilities)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip(data):
    tables = data.draw(st.lists(TABLES.map(counts), max_size=40))
    symbols = [data.draw(st.integers(0, len(table) - 1)) for table in tables]
    assert decode(encode(symbols, tables), tables) == symbols


@pytest.mark.parametrize("rare", [1e-9, 0.01, 0.5])
def test_length_is_the_information_and_a_few_bytes(rare):
    table = counts([1 - rare, rare / 2, rare / 2])
    generator = random.Random(1)
    symbols = generator.choices(range(3), weights=table, k=20_000)
    information = -sum(math.log2(table[s] / TOTAL) for s in symbols) / 8
    data = encode(symbols, [table] * len(symbols))
    assert information <= len(data) <= 1.005 * information + 5
    assert decode(data, [table] * len(symbols)) == symbols


def test_long_runs_of_the_least_likely_symbol():
    table = counts([1, 0, 0, 0])
    symbols = [3, 1, 2] * 3000  # low and high ends of the interval, carries included
    assert decode(encode(symbols, [table] * 9000), [table] * 9000) == symbols


def test_nothing_to_encode():
    assert decode(encode([], []), []) == []


@pytest.mark.parametrize("probabilities", [[], [0, 0], [-1, 2], [math.nan, 1], [math.inf], [1] * (TOTAL + 1)])
def test_no_distribution(probabilities):
    with pytest.raises(ValueError, match="probabilities"):
        counts(probabilities)


@pytest.mark.parametrize("symbol", [-1, 2])
def test_a_symbol_outside_its_table(symbol):
    with pytest.raises(ValueError, match=f"symbol {symbol}"):
        encode([symbol], [counts([1, 1])])


def test_as_many_tables_as_symbols():
    with pytest.raises(ValueError):
        encode([0, 0], [counts([1, 1])])
