"""One connection of a migration."""

from typing import Final

from migsniff.core.arrivals import Direction
from migsniff.core.bytequeue import ByteQueue
from migsniff.core.channel import CLASSIFY, DirectionDecoder, PreemptReader
from migsniff.core.colo import read_stream
from migsniff.core.context import Context
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.multifd import MultifdReader
from migsniff.core.reached import Reached
from migsniff.core.returnpath import ReturnPathReader
from migsniff.core.stream import MainReader
from migsniff.core.tls import TlsConnection, TlsReader
from migsniff.core.verdict import ConnectionEnd

OPAQUE: Final = {"tls": "TLS records", "unknown": "bytes of an unknown protocol"}


class Connection:
    """One connection: a decoder for each direction, once the first bytes have told its role."""

    def __init__(self, number: int, *, note_omitted: bool, breathe: bool) -> None:
        self.number = number
        self.began: int | None = None  # when its first byte came
        self.role: str | None = None
        self.name: str | None = None
        self.main: MainReader | None = None
        self.multifd: MultifdReader | None = None
        self.return_path: ReturnPathReader | None = None
        self.queues: dict[Direction, ByteQueue] = {
            "fwd": ByteQueue(note_omitted=note_omitted, breathe=breathe),
            "rev": ByteQueue(note_omitted=note_omitted, breathe=breathe),
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

    @property
    def label(self) -> str:
        """Its name, also before its first bytes have told what it is."""
        return self.name or f"unknown-{self.number}"

    def decode(self, direction: Direction) -> DirectionDecoder:
        """A decoder for this direction, which counts bytes until it gets a parser."""
        decoder = DirectionDecoder(self.label, direction, self.queues[direction])
        if self.role in OPAQUE:
            decoder.opaque_as = OPAQUE[self.role]
        self.decoders[direction] = decoder
        return decoder

    def parse(self, context: Context, budget: DeviceStateBudget) -> None:
        """Give each decoder the parser for this role: that of "fwd" is there, that of "rev" may be."""
        queue, decoder, name = self.queues["fwd"], self.decoders["fwd"], self.label
        if self.role in ("main", "resumed"):
            main = self.main = MainReader(name, queue, context, budget)
            steps = read_stream(main) if self.role == "main" else main.resume()
            decoder.parse(main, steps, main.ram.leftover)
            if "rev" not in self.decoders:
                back = self.return_path = ReturnPathReader(name, self.queues["rev"], context)
                self.decode("rev").parse(back, back.run())
        elif self.role == "multifd":
            multifd = self.multifd = MultifdReader(name, queue, context)
            decoder.parse(multifd, multifd.run())
        elif self.role == "tls":
            reader = TlsReader(name, "fwd", queue, self.tls)
            decoder.parse(reader, reader.run())
            if "rev" not in self.decoders:
                back_reader = TlsReader(name, "rev", self.queues["rev"], self.tls)
                self.decode("rev").parse(back_reader, back_reader.run())
        elif self.role == "preempt":
            preempt = PreemptReader(name, queue, context)
            decoder.parse(preempt, preempt.run(), preempt.ram.leftover)
        else:
            queue.looked = CLASSIFY
