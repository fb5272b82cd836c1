"""TCP segments of one direction, as they were captured, become its bytes in order, and holes between them.

Pure: no packets, no clock. Sequence numbers are 32 bits wide and wrap; offsets count from the first byte and
do not. What comes twice is taken once, as it came first. Model: aioquic's quic/stream.py.
"""

from bisect import bisect_right
from typing import Final

from migsniff.core.arrivals import Data

Piece = Data | int
"""Bytes, or the length of a hole: bytes that were sent and are not in the capture."""

WRAP: Final = 1 << 32
HALF: Final = 1 << 31
OVERHEAD: Final = 160  # bytes that holding a segment takes beside its data
MAX_WAITING: Final = 8 << 20  # of one direction, behind a hole
PATIENCE: Final = 1_000_000  # µs that bytes behind a hole wait once the receiver has said that it has them


class Room:
    """How many bytes all directions together may still hold behind holes."""

    def __init__(self, limit: int = 64 << 20) -> None:
        self.left = limit


class Reassembly:
    """One direction of a connection. `at` is the offset of the next byte, `stop` that of the FIN, if seen.

    `starts` are the offsets where what waits behind holes begins.
    `conflicts` counts bytes that came twice and differed while both could be compared.
    """

    __slots__ = (
        "_acked",
        "_base",
        "_held",
        "_room",
        "_since",
        "_waiting",
        "at",
        "conflicts",
        "starts",
        "stop",
    )

    def __init__(self, room: Room) -> None:
        self.at = 0
        self.stop: int | None = None
        self.conflicts = 0
        self._room = room
        self._base: int | None = None  # the sequence number of offset 0
        self._acked = 0
        self._since = 0
        self._held = 0
        self.starts: list[int] = []
        self._waiting: list[tuple[int, Data]] = []  # (offset behind it, bytes; the rest of it was cut off)

    def begin(self, sequence: int) -> None:
        """Say which sequence number the first byte has: what a SYN tells, or the peer's acknowledgement."""
        if self._base is None:
            self._base = sequence % WRAP

    @property
    def begun(self) -> bool:
        """Whether it is known where the direction begins."""
        return self._base is not None

    def offset(self, sequence: int) -> int:
        """The offset of a sequence number: the one that is nearest to where we are."""
        assert self._base is not None
        distance = (sequence - self._base - self.at) % WRAP
        return self.at + (distance if distance < HALF else distance - WRAP)

    def segment(self, sequence: int, data: Data, length: int, time: int) -> list[Piece]:
        """Take a segment of `length` bytes of which the first are in `data`; returns what is in order now."""
        if self._base is None:
            self._base = sequence
        start = self.offset(sequence)
        at = self.at
        if start == at and not self._waiting:
            self.at = at + length
            return [data, length - len(data)] if len(data) < length else [data]
        if start + length <= at:
            return []
        if start < at:
            data, length, start = data[at - start :], start + length - at, at
        if not self._waiting:
            self._since = time
        self._hold(start, start + length, data)
        pieces: list[Piece] = []
        self._drain(pieces)
        while self.starts and (self._held > MAX_WAITING or self._room.left < 0 or self._overdue(time)):
            self._skip(pieces)
            self._since = time
        return pieces

    def acknowledged(self, sequence: int) -> None:
        """The receiver has all bytes before this one: a hole below it will most likely stay one."""
        if self._base is not None and (offset := self.offset(sequence)) > self._acked:
            self._acked = offset

    def finish(self, sequence: int) -> None:
        """A FIN: no byte from this one on."""
        if self._base is None:
            self._base = sequence % WRAP
        if self.stop is None:
            self.stop = max(self.at, self.offset(sequence))

    def flush(self) -> list[Piece]:
        """All that waits, with the holes in it: nothing more will come."""
        pieces: list[Piece] = []
        while self.starts:
            self._skip(pieces)
        return pieces

    # ------------------------------------------------------------ what waits behind a hole

    def _overdue(self, time: int) -> bool:
        return self.starts[0] <= self._acked and time - self._since > PATIENCE

    def _hold(self, start: int, stop: int, data: Data) -> None:
        """Keep what is new of a segment."""
        begin = start
        index = bisect_right(self.starts, start)
        if index and self._waiting[index - 1][0] > start:
            index -= 1
        while start < stop:
            known = self.starts[index] if index < len(self.starts) else stop
            if start < known:
                end = min(known, stop)
                new = bytes(data[start - begin : end - begin])
                self.starts.insert(index, start)
                self._waiting.insert(index, (end, new))
                self._held += len(new) + OVERHEAD
                self._room.left -= len(new) + OVERHEAD
                start = end
            else:
                end, old = self._waiting[index]
                same = old[start - known : min(stop, end) - known]
                again = data[start - begin : start - begin + len(same)]
                if same[: len(again)] != again:
                    self.conflicts += len(again)
                start = end
            index += 1

    def _drain(self, pieces: list[Piece]) -> None:
        """Take what has no hole before it."""
        count = 0
        for start, (stop, data) in zip(self.starts, self._waiting, strict=True):
            if start != self.at:
                break
            pieces.append(data)
            if cut := stop - start - len(data):
                pieces.append(cut)
            self._held -= len(data) + OVERHEAD
            self._room.left += len(data) + OVERHEAD
            self.at = stop
            count += 1
        del self.starts[:count], self._waiting[:count]

    def _skip(self, pieces: list[Piece]) -> None:
        """Give up the first hole."""
        pieces.append(self.starts[0] - self.at)
        self.at = self.starts[0]
        self._drain(pieces)
