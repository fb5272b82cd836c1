"""QEMU's migration stream as layers of scapy: to look into records, to build them, to make them wrong.

    from migsniff.scapy import *
    MigrationStream(open("dump", "rb").read()).show()

Each layer is made of the layout that the decoder reads with, and whole streams are taken apart where the
decoder finds their records. They are held in memory: this is for small ones.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Final

from migsniff.core.arrivals import Chunk, Direction
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.channel import DirectionDecoder, PreemptReader, Reader, classify
from migsniff.core.colo import read_stream
from migsniff.core.context import Context
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.errors import CaptureError
from migsniff.core.events import ChannelFound, Event
from migsniff.core.multifd import MultifdReader
from migsniff.core.returnpath import ReturnPathReader
from migsniff.core.session import Session
from migsniff.core.stream import MainReader
from migsniff.core.tls import TlsConnection, TlsReader
from migsniff.feed.files import open_source
from migsniff.scapydevices import DeviceState
from migsniff.scapyfields import Element, Record
from migsniff.scapylayers import (
    COMMAND_LAYERS,
    MESSAGE_LAYERS,
    RECORDS,
    TAGGED_LAYERS,
    ColoMessage,
    CommandItem,
    CompressedPage,
    ConfigurationSection,
    EndOfFile,
    EndOfRecords,
    FlushMultifd,
    MappedRamBlock,
    MappedRamBlockAddress,
    MessageItem,
    MigrationHeader,
    MultifdDeviceState,
    MultifdHelloPacket,
    MultifdPages,
    NormalPage,
    Package,
    RamBlock,
    RamBlockAddress,
    RamBlockBoth,
    RamBlockList,
    RamBlockPageSize,
    ReceivedBitmap,
    SectionEnd,
    SectionFooter,
    SectionFull,
    SectionPart,
    SectionStart,
    Subsection,
    VmDescription,
    XbzrlePage,
    ZeroPage,
)
from migsniff.scapyspans import Spans, TlsSpans

# behind the layers, which say what is missing if it is
from scapy.packet import Packet, Raw, fuzz  # isort: skip


class Stream(Packet):
    """Records one behind the other, found by the decoder; what it cannot read is Raw.

    `main`: the bytes of the migration's main channel, which tell what those of other connections mean.
    """

    __slots__ = ("main",)
    way: ClassVar[Direction] = "fwd"
    fields_desc = RECORDS

    def __init__(self, _pkt: bytes = b"", *, main: bytes = b"", **fields: Any) -> None:
        self.main = main
        super().__init__(_pkt, **fields)

    def do_dissect(self, data: bytes) -> bytes:
        """Take all bytes apart."""
        context, spans = Context(want_contents=True, want_fields=True), self.spans()
        if self.main:
            for _ in _decode(*_main_reader(self.main, context), "fwd", self.main):
                pass
        queue = ByteQueue()
        for event in _decode(queue, *self.reader(queue, context, data), self.way, data):
            spans.note(event, context.page_size)
        self.fields["records"] = spans.packets(data)
        self.raw_packet_cache = None
        return b""

    @classmethod
    def spans(cls) -> Spans:
        """What finds the records by the decoder's events."""
        return Spans()

    def reader(self, queue: ByteQueue, context: Context, data: bytes) -> tuple[Reader, Steps]:
        """The decoder's parser of such a channel."""
        return _main_reader(data, context, queue)[1:]


def _main_reader(
    data: bytes, context: Context, queue: ByteQueue | None = None
) -> tuple[ByteQueue, Reader, Steps]:
    """The parser of a main channel, or of a resumed one."""
    queue = queue or ByteQueue()
    main = MainReader("main", queue, context, DeviceStateBudget())
    role, _ = classify(data, context, ended=True) or ("", "")
    return queue, main, main.resume() if role == "resumed" else read_stream(main)


def _decode(queue: ByteQueue, reader: Reader, steps: Steps, way: Direction, data: bytes) -> Iterator[Event]:
    decoder = DirectionDecoder("main", way, queue)
    decoder.parse(reader, steps)
    yield from decoder.feed(Chunk(0, 0, way, data, len(data)))
    yield from decoder.close()


class MigrationStream(Stream):
    """A main channel from its first byte on, or one over which postcopy goes on (`main`: the one before)."""

    name = "MigrationStream"


class ReturnPathStream(Stream):
    """What the destination says on a main channel, whose own bytes tell whether that is COLO."""

    name = "ReturnPathStream"
    way = "rev"

    def reader(self, queue: ByteQueue, context: Context, data: bytes) -> tuple[Reader, Steps]:
        """The messages."""
        reader = ReturnPathReader("main", queue, context)
        return reader, reader.run()


class MultifdStream(Stream):
    """A multifd channel. What its packets mean is told by the `main` channel."""

    name = "MultifdStream"

    @classmethod
    def spans(cls) -> Spans:
        """Pages stand in packets here."""
        return Spans(paged=False)

    def reader(self, queue: ByteQueue, context: Context, data: bytes) -> tuple[Reader, Steps]:
        """The hello, and packets."""
        reader = MultifdReader("multifd", queue, context)
        return reader, reader.run()


class PreemptStream(Stream):
    """A preempt channel: pages that the destination of postcopy asked for. `main` tells their size."""

    name = "PreemptStream"

    @classmethod
    def spans(cls) -> Spans:
        """Pages without sections."""
        return Spans(bare=True)

    def reader(self, queue: ByteQueue, context: Context, data: bytes) -> tuple[Reader, Steps]:
        """Page records."""
        reader = PreemptReader("preempt", queue, context)
        return reader, reader.run()


class TlsStream(Stream):
    """One direction of a connection with TLS: scapy's own TLS layers take its records further apart."""

    name = "TlsStream"

    @classmethod
    def spans(cls) -> Spans:
        """The records one by one."""
        return TlsSpans()

    def reader(self, queue: ByteQueue, context: Context, data: bytes) -> tuple[Reader, Steps]:
        """The records."""
        reader = TlsReader("tls", self.way, queue, TlsConnection())
        return reader, reader.run()


class UnknownStream(Stream):
    """A connection of an unknown protocol."""

    name = "UnknownStream"


KINDS: Final[dict[tuple[str, Direction], type[Stream]]] = {
    ("main", "fwd"): MigrationStream,
    ("main", "rev"): ReturnPathStream,
    ("resumed", "fwd"): MigrationStream,
    ("resumed", "rev"): ReturnPathStream,
    ("multifd", "fwd"): MultifdStream,
    ("preempt", "fwd"): PreemptStream,
    ("tls", "fwd"): TlsStream,
    ("tls", "rev"): TlsStream,
}


def streams(path: str, **how: Any) -> dict[str, Stream]:
    """All connections of a migration as packets, by channel and direction ("main.fwd", "multifd-0.fwd").

    `path`: a capture with `--ram keep`, a dump, or whatever else `migsniff read` opens, with the options of
    migsniff.feed.files.open_source. Raises CaptureError.
    """
    source = open_source(path, **how)
    if not source.contents:
        raise CaptureError(
            f"{path}: {source.describe} has not the bytes; layers need one made with --ram keep"
        )
    session = Session(contents=True, fields=True)
    data: dict[tuple[int, Direction], bytearray] = {}
    found: dict[str, tuple[int, Direction, type[Stream], Spans]] = {}

    def note(event: Event) -> None:
        if isinstance(event, ChannelFound):
            for way in ("fwd", "rev"):
                kind = KINDS.get((event.role, way), UnknownStream)
                found[f"{event.channel}.{way}"] = event.connection, way, kind, kind.spans()
        elif (name := f"{event.channel}.{event.direction}") in found:
            found[name][3].note(event, session.context.page_size)

    for arrival in source.arrivals():
        if isinstance(arrival, Chunk):
            whole = data.setdefault((arrival.connection, arrival.direction), bytearray())
            whole += arrival.data
            if len(whole) != arrival.end:
                raise CaptureError(f"{path}: bytes are missing before offset {arrival.end}")
        for event in session.feed(arrival):
            note(event)
    for event in session.finish():
        note(event)
    return {
        name: kind(records=spans.packets(bytes(data[number, way])))
        for name, (number, way, kind, spans) in found.items()
        if data.get((number, way))
    }


__all__ = [
    "COMMAND_LAYERS",
    "MESSAGE_LAYERS",
    "TAGGED_LAYERS",
    "ColoMessage",
    "CommandItem",
    "CompressedPage",
    "ConfigurationSection",
    "DeviceState",
    "Element",
    "EndOfFile",
    "EndOfRecords",
    "FlushMultifd",
    "MappedRamBlock",
    "MappedRamBlockAddress",
    "MessageItem",
    "MigrationHeader",
    "MigrationStream",
    "MultifdDeviceState",
    "MultifdHelloPacket",
    "MultifdPages",
    "MultifdStream",
    "NormalPage",
    "Package",
    "PreemptStream",
    "RamBlock",
    "RamBlockAddress",
    "RamBlockBoth",
    "RamBlockList",
    "RamBlockPageSize",
    "Raw",
    "ReceivedBitmap",
    "Record",
    "ReturnPathStream",
    "SectionEnd",
    "SectionFooter",
    "SectionFull",
    "SectionPart",
    "SectionStart",
    "Subsection",
    "TlsStream",
    "UnknownStream",
    "VmDescription",
    "XbzrlePage",
    "ZeroPage",
    "fuzz",
    "streams",
]
_MADE: Final = {
    layer.__name__: layer
    for layer in (*COMMAND_LAYERS.values(), *MESSAGE_LAYERS.values(), *TAGGED_LAYERS.values())
}
globals().update(_MADE)  # CommandPing, MessageShut, VfioRecord ...: as many as the registries have
__all__ += sorted(_MADE)
