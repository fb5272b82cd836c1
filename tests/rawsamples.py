"""The samples as the wire had them, but for what stood in the guest's pages: that was never saved.

What a stripped capture leaves out is filled up again with a pattern, so that real streams can be cut, cut off
and broken as they came: real sections, commands and device state, and records at their true distances.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

from migsniff.core.bytequeue import ByteQueue
from migsniff.core.events import Chunk, Direction, Ended
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from tests.playing import Stream

FOLDER = Path(__file__).parents[1] / "captures" / "samples"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/manifest.json"))
FILL = bytes(range(1, 252)) * 4400  # of an odd length, so that no two pages begin alike


class FillingQueue(ByteQueue):
    """Gives a reader as many page contents as it wants, and notes in `raw` what it is given."""

    __slots__ = ("noted", "raw")

    def __init__(self, *, note_omitted: bool = False) -> None:
        super().__init__(note_omitted=note_omitted)
        self.raw: list[tuple[int, int]] = []  # (index in the stored bytes, length of the contents)
        self.noted = 0  # bytes of contents so far

    def skip_contents(self, count: int) -> int:
        if count:
            self.raw.append((self.at - self.noted, count))
            self.noted += count
            self.at += count
            self.wire_end += count
        return 0

    def check_hole(self) -> None:
        pass


@contextmanager
def _filling() -> Iterator[None]:
    """Sessions made and used in here take page contents for granted, and read record by record."""
    with (
        mock.patch("migsniff.core.session.ByteQueue", FillingQueue),
        mock.patch("migsniff.core.ram.RamReader._scan", return_value=False),
    ):
        yield


@cache
def raw(name: str) -> Stream:
    """A sample's stream with its contents filled up, in the pieces in which it arrived."""
    pieces: list[tuple[int, Direction, bytes]] = []
    ends: list[Ended] = []
    begun: dict[tuple[int, Direction], tuple[int, int]] = {}  # stored bytes so far, contents so far
    with _filling():
        session = Session()
        for arrival in open_source(str(FOLDER / name)).arrivals():
            if isinstance(arrival, Ended):
                ends.append(arrival)
            if not isinstance(arrival, Chunk):
                list(session.feed(arrival))
                continue
            key = arrival.connection, arrival.direction
            stored, contents = begun.get(key, (0, 0))
            data = bytes(arrival.data)
            end = stored + contents + len(data)
            list(session.feed(Chunk(0, *key, data, end, "framed")))
            queue = session.connections[arrival.connection].queues[arrival.direction]
            assert isinstance(queue, FillingQueue)
            pieces.append((*key, _filled(data, stored, queue.raw)))
            queue.raw.clear()
            begun[key] = stored + len(data), queue.noted
    verdict = list(session.finish())[-1]
    return Stream(tuple(pieces), tuple(ends), getattr(verdict, "outcome", ""))


def _filled(data: bytes, base: int, contents: list[tuple[int, int]]) -> bytes:
    parts = []
    at = 0
    for index, length in contents:
        parts += [data[at : index - base], FILL[:length]]
        at = index - base
    return b"".join([*parts, data[at:]])
