"""A range coder in pure Python: whole numbers in, bytes out, and back without a loss (lesson 07).

Source: Martin 1979, "Range encoding: an algorithm for removing redundancy from a digitised message"; the carry-less
form is Subbotin's (1999). A symbol of probability p narrows an interval to p of its width; the bytes on which both ends
of the interval agree are final. So a message costs its information, the sum of -log2 p, plus a few bytes at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

TOP, BOTTOM = 1 << 24, 1 << 16  # settled bytes leave above TOP; below BOTTOM the interval is cut to stay usable
MASK = (1 << 32) - 1
TOTAL = 1 << 14  # probabilities become whole numbers of this sum; it must not exceed BOTTOM


def counts(probabilities: Sequence[float], total: int = TOTAL) -> list[int]:
    """Whole numbers >= 1 that add up to ``total``, in proportion to ``probabilities`` (which need not add up to 1).

    Raises:
        ValueError: no probabilities, a negative or not finite one, all zero, or more of them than ``total``.
    """
    given = [float(p) for p in probabilities]
    if not given or len(given) > total:
        raise ValueError(f"probabilities has {len(given)} entries; allowed: 1 to {total}")
    whole = sum(given)
    if not all(0 <= p < float("inf") for p in given) or not 0 < whole < float("inf"):
        raise ValueError("probabilities holds a negative or not finite number, or only zeros; allowed: numbers >= 0")
    room = total - len(given)  # everyone gets 1 first, so that no symbol is impossible
    exact = [room * p / whole for p in given]
    result = [1 + int(e) for e in exact]
    by_rest = sorted(range(len(given)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_rest[: total - sum(result)]:
        result[i] += 1
    return result


def edges(table: Sequence[int]) -> list[int]:
    """Cumulative sums from 0: symbol i owns ``edges[i]`` to ``edges[i + 1]``."""
    found = [0]
    for count in table:
        found.append(found[-1] + count)
    return found


def encode(symbols: Sequence[int], tables: Sequence[Sequence[int]]) -> bytes:
    """Bytes that hold ``symbols``.

    Args:
        symbols: indices, symbol i into ``tables[i]``.
        tables: per symbol its counts (``counts``); the decoder needs the same ones.

    Raises:
        ValueError: a symbol without a place in its table, or not as many tables as symbols.
    """
    low, width, out = 0, MASK, bytearray()
    cumulative: dict[int, list[int]] = {}
    for symbol, table in zip(symbols, tables, strict=True):
        edge = cumulative.setdefault(id(table), edges(table))
        if not 0 <= symbol < len(table):
            raise ValueError(f"symbol {symbol} is outside its table; allowed: 0 to {len(table) - 1}")
        width //= edge[-1]
        low = (low + edge[symbol] * width) & MASK
        width *= edge[symbol + 1] - edge[symbol]
        while True:
            if (low ^ (low + width)) >= TOP:  # the first byte is not settled
                if width >= BOTTOM:
                    break
                width = -low & (BOTTOM - 1)  # cut the interval at the next multiple: then it is
            out.append(low >> 24)
            low, width = (low << 8) & MASK, (width << 8) & MASK
    return bytes(out) + low.to_bytes(4, "big")


def decode(data: bytes, tables: Sequence[Sequence[int]]) -> list[int]:
    """The symbols that ``encode`` put into ``data``, one per table."""
    low, width, symbols = 0, MASK, []
    code, place = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4
    cumulative: dict[int, list[int]] = {}
    for table in tables:
        edge = cumulative.setdefault(id(table), edges(table))
        width //= edge[-1]
        target = min(((code - low) & MASK) // width, edge[-1] - 1)
        symbol = _owner(edge, target)
        symbols.append(symbol)
        low = (low + edge[symbol] * width) & MASK
        width *= edge[symbol + 1] - edge[symbol]
        while True:
            if (low ^ (low + width)) >= TOP:
                if width >= BOTTOM:
                    break
                width = -low & (BOTTOM - 1)
            code = ((code << 8) & MASK) | (data[place] if place < len(data) else 0)
            low, width, place = (low << 8) & MASK, (width << 8) & MASK, place + 1
    return symbols


def _owner(edge: Sequence[int], target: int) -> int:
    """The symbol whose range holds ``target``."""
    import bisect

    return bisect.bisect_right(edge, target) - 1
