"""The samples as the wire had them, but for what stood in the guest's pages: that was never saved.

What a stripped capture leaves out is filled up again with a pattern, so that real streams can be cut, cut off
and broken as they came: real sections, commands and device state, and records at their true distances.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from unittest import mock

from migsniff.core.arrivals import Chunk, Direction, Ended
from migsniff.core.bytequeue import ByteQueue
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from tests.playing import Stream

FOLDER = Path(__file__).parents[1] / "captures" / "samples"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/manifest.json"))
FILL = bytes(range(1, 252)) * 4400  # of an odd length, so that no two pages begin alike
ENDLESS = 1 << 60


class FillingQueue(ByteQueue):
    """Gives a reader as many page contents as it wants, and notes where."""

    __slots__ = ()

    def __init__(self, *, note_omitted: bool, breathe: bool) -> None:
        super().__init__(note_omitted=True, breathe=breathe)

    def push(self, chunk: Chunk) -> None:
        super().push(chunk)
        self.wire_end = ENDLESS

    def skip_contents(self, count: int) -> int:
        if count and self.omitted is not None:
            self.omitted.append((self.at, self.at + count))
            self.at += count
        return 0

    def discard(self) -> None:
        self.wire_end = self.at + self.size
        super().discard()

    def check_hole(self) -> None:
        pass


@cache
def raw(name: str) -> Stream:
    """A sample's stream with its contents filled up, in the pieces in which it arrived."""
    pieces: list[tuple[int, Direction, bytes]] = []
    ends: list[Ended] = []
    lengths: dict[tuple[int, Direction], int] = {}
    with mock.patch("migsniff.core.connection.ByteQueue", FillingQueue):
        session = Session()
        for arrival in open_source(str(FOLDER / name)).arrivals():
            if not isinstance(arrival, Chunk):
                if isinstance(arrival, Ended):
                    ends.append(arrival)
                list(session.feed(arrival))
                continue
            key = arrival.connection, arrival.direction
            list(session.feed(Chunk(0, *key, arrival.data, 0, "framed")))
            data = _filled(bytes(arrival.data), lengths.get(key, 0), session.omitted)
            pieces.append((*key, data))
            lengths[key] = lengths.get(key, 0) + len(data)
        (*_, verdict) = session.finish()
    return Stream(tuple(pieces), tuple(ends), getattr(verdict, "outcome", ""))


def _filled(stored: bytes, at: int, contents: Iterable[Sequence[int]]) -> bytes:
    """The stored bytes at wire offset `at`, with what belongs between them."""
    parts = []
    taken = 0
    for start, stop in contents:
        parts += [stored[taken : taken + int(start) - at], FILL[: int(stop) - int(start)]]
        taken += int(start) - at
        at = int(stop)
    return b"".join([*parts, stored[taken:]])
