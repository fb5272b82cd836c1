"""The pieces of a migration's connections in any order in which TCP can deliver them.

Each direction keeps its own order. Beyond that, what one side sends comes behind what it answers: the
destination has heard what came before on its connection, pages on a preempt channel and a resumed connection
are asked for. Multifd channels and the main channel wait for nobody.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Direction,
    Ended,
    Opened,
)
from migsniff.core.wire import FILE_MAGIC, MULTIFD_MAGIC, U32
from tests.playing import Cut, Stream, whole

AHEAD = 2 << 20
"""Bytes of a multifd channel that may come before the main channel's first: a decoder alone holds no more."""


class Arriving(NamedTuple):
    """A piece, or the end of a direction; `behind` are the indices of what must have come before."""

    what: tuple[int, Direction, bytes] | Ended
    behind: tuple[int, ...]


def plan(stream: Stream, cut: Cut, *, ahead: int = AHEAD, ends_last: bool = False) -> list[Arriving]:
    """What arrives, and what each of it comes behind."""
    pieces = [(n, direction, part) for n, direction, data in stream.pieces for part in cut(data) if part]
    free, main = _free(stream)
    found: list[Arriving] = []
    latest: dict[tuple[int, Direction], int] = {}
    came: dict[int, int] = {}
    for index, (number, direction, data) in enumerate(pieces):
        behind = [latest[number, direction]] if (number, direction) in latest else []
        came[number] = came.get(number, 0) + len(data)
        if direction == "rev":
            behind += [at for (other, way), at in latest.items() if way == "fwd" and other not in free]
        elif number not in free:
            behind += [at for (_, way), at in latest.items() if way == "rev"]
        elif came[number] > ahead:
            behind += [i for i, each in enumerate(pieces) if each[:2] == (main, "fwd")][:1]
        found.append(Arriving((number, direction, data), tuple(behind)))
        latest[number, direction] = index
    ends = list(stream.ends)
    told = {(end.connection, end.direction) for end in ends}
    for number, direction in sorted({(n, way) for n, _, _ in pieces for way in ("fwd", "rev")}):
        if (number, direction) not in told:
            ends.append(Ended(0, number, direction, "eof", "source" if direction == "fwd" else "destination"))
    for end in ends:
        # who ended first decides the verdict: ends keep their order
        last = latest.get((end.connection, end.direction))
        before = [] if last is None else [last]
        if ends_last or end.connection not in free:  # and a side that ends has heard the other
            before += latest.values()
        if isinstance(found[-1].what, Ended):
            before.append(len(found) - 1)
        found.append(Arriving(end, tuple(before)))
    return found


Order = list[tuple[int, Direction, bytes] | Ended]
"""Pieces and ends as they come."""


def _free(stream: Stream) -> tuple[set[int], int]:
    """The connections that wait for nobody: multifd channels, and the main channel beside them; and that."""
    heads: dict[int, bytes] = {}
    for number, direction, data in stream.pieces:
        if direction == "fwd":
            heads[number] = heads.get(number, b"") + data[:4]
    multifd = {number for number, head in heads.items() if head[:4] == U32.pack(MULTIFD_MAGIC)}
    main = next((number for number, head in heads.items() if head[:4] == U32.pack(FILE_MAGIC)), 0)
    return multifd | {main} if multifd else set(), main


def shuffled(items: list[Arriving], chance: random.Random) -> Order:
    """One of the orders: some connections are much faster than others."""
    speed = {number: chance.choice((0.01, 1, 1, 30)) for number in range(300)}
    waits = [len(set(item.behind)) for item in items]
    blocks: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        for other in set(item.behind):
            blocks.setdefault(other, []).append(index)
    ready = [index for index, count in enumerate(waits) if not count]
    order = []
    while ready:
        weights = [speed[_connection(items[index])] for index in ready]
        index = ready.pop(chance.choices(range(len(ready)), weights)[0])
        order.append(items[index].what)
        for other in blocks.get(index, ()):
            waits[other] -= 1
            if not waits[other]:
                ready.append(other)
    assert len(order) == len(items)
    return order


def _connection(item: Arriving) -> int:
    return item.what.connection if isinstance(item.what, Ended) else item.what[0]


def arrivals(order: Order, cut: Cut = whole) -> Iterator[Arrival]:
    """The order as arrivals, each piece cut once more; a chunk's data is wiped behind it."""
    ends: dict[tuple[int, Direction], int] = {}
    opened = {each.connection if isinstance(each, Ended) else each[0] for each in order}
    for number in sorted(opened):  # accepted in the order in which they were made, whoever speaks first
        yield Opened(0, number, "source", "destination")
    for each in order:
        if isinstance(each, Ended):
            yield each
            continue
        number, direction, data = each
        for piece in cut(data):
            lent = bytearray(piece)
            key = number, direction
            ends[key] = ends.get(key, 0) + len(piece)
            yield Chunk(0, number, direction, memoryview(lent), ends[key])
            lent[:] = b"\xee" * len(lent)
