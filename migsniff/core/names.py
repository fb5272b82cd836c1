"""Names as they stand on the wire, read no further than they are names."""

from bisect import bisect_left
from collections.abc import Generator, Iterable

from migsniff.core.bytequeue import ByteQueue
from migsniff.core.events import Event
from migsniff.core.text import checked, printable_length


def take_name(queue: ByteQueue, count: int, what: str) -> Generator[Event | None, None, str]:
    """A name of `count` characters; StreamProblem at the first byte that is none of printable ASCII."""
    name = checked((yield from queue.fitting(0, count, printable_length)), what)
    queue.advance(count)
    return name


class KnownNames:
    """The names that can stand somewhere."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._all = sorted(names)
        self._by_length: dict[int, list[bytes]] = {}
        for name in self._all:
            self._by_length.setdefault(len(name), []).append(name)

    def fitting(self, begun: bytes, count: int) -> int:
        """How many of the first bytes of a name of `count` are those of one that is known.

        If none is so long, those of any.
        """
        names = self._by_length.get(count, self._all)
        at = bisect_left(names, begun)
        return max((_common(name, begun) for name in names[max(0, at - 1) : at + 1]), default=0)


def _common(one: bytes, other: bytes) -> int:
    least = min(len(one), len(other))
    return next((n for n in range(least) if one[n] != other[n]), least)
