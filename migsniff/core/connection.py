"""One connection of a migration."""

from migsniff.core.arrivals import Direction
from migsniff.core.bytequeue import ByteQueue
from migsniff.core.channel import DirectionDecoder
from migsniff.core.multifd import MultifdReader
from migsniff.core.reached import Reached
from migsniff.core.returnpath import ReturnPathReader
from migsniff.core.stream import MainReader
from migsniff.core.tls import TlsConnection
from migsniff.core.verdict import ConnectionEnd


class Connection:
    """One connection: a decoder for each direction, once the first bytes have told its role."""

    def __init__(self, number: int, *, note_omitted: bool) -> None:
        self.number = number
        self.began: int | None = None  # when its first byte came
        self.role: str | None = None
        self.name: str | None = None
        self.main: MainReader | None = None
        self.multifd: MultifdReader | None = None
        self.return_path: ReturnPathReader | None = None
        self.queues: dict[Direction, ByteQueue] = {
            "fwd": ByteQueue(note_omitted=note_omitted),
            "rev": ByteQueue(note_omitted=note_omitted),
        }
        self.decoders: dict[Direction, DirectionDecoder] = {}
        self.tls = TlsConnection()
        self.ends: list[ConnectionEnd] = []
        self.drained: Reached | None = None  # from here on nothing that its source sent went on
        self.shut_behind_end = False  # the source had ended before the destination said SHUT
        self.head = b""

    def ended(self, direction: Direction) -> bool:
        """Whether this direction has ended."""
        return any(end.direction == direction for end in self.ends)
