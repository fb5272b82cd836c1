"""QEMU's migration stream as layers of scapy: to look into records, to build them, to make them wrong.

    from migsniff.scapy import *
    MigrationStream(open("dump", "rb").read()).show()

Each layer is made of the layout that the decoder reads with (core.wire, core.messages), and whole streams
are taken apart where the decoder finds their records. They are held in memory: this is for small ones.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar, Final

from migsniff.core import wire
from migsniff.core.arrivals import Chunk, Direction
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.channel import DirectionDecoder, Reader
from migsniff.core.context import Context
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.events import (
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    EndOfStream,
    Event,
    Header,
    LiveSection,
    MultifdHello,
    MultifdPacket,
    RamBlocks,
    RamPages,
    RamSection,
    ReturnPathMessage,
    Section,
)
from migsniff.core.multifd import MultifdReader
from migsniff.core.returnpath import ReturnPathReader
from migsniff.core.stream import MainReader
from migsniff.core.wire import ItemType, RamFlag
from migsniff.scapylayers import (
    COMMAND_LAYERS,
    MAX_ELEMENTS,
    MESSAGE_LAYERS,
    RAM_LAYERS,
    SECTIONS,
    CommandItem,
    CompressedPage,
    ConfigurationSection,
    EndOfFile,
    EndOfRecords,
    Fields,
    FlushMultifd,
    MessageItem,
    MigrationHeader,
    MultifdDeviceState,
    MultifdHelloPacket,
    MultifdPages,
    NormalPage,
    RamBlock,
    RamBlockList,
    ReceivedBitmap,
    Record,
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

# behind the layers, which say what is missing if it is
from scapy.fields import PacketListField  # isort: skip
from scapy.packet import Packet, Raw, fuzz  # isort: skip

# ---------------------------------------------------------------- whole streams


RECORDS: Final[Fields] = [PacketListField("records", [], Raw, max_count=MAX_ELEMENTS)]


class Stream(Packet):
    """Records one behind the other, found by the decoder; what it cannot read is Raw."""

    way: ClassVar[Direction] = "fwd"
    fields_desc = RECORDS

    def do_dissect(self, data: bytes) -> bytes:
        """Take all bytes apart."""
        self.fields["records"] = list(self._records(data))
        self.raw_packet_cache = None
        return b""

    def _records(self, data: bytes) -> Iterator[Packet]:
        at = 0
        for start, stop, layer in _spans(*self._events(data), data):
            if start > at:
                yield Raw(data[at:start])
            if stop > max(at, start):
                yield layer(data[start:stop]) if start >= at else Raw(data[at:stop])
                at = stop
        if at < len(data):
            yield Raw(data[at:])

    def _reader(self, queue: ByteQueue, context: Context) -> tuple[Reader, Steps]:
        main = MainReader("main", queue, context, DeviceStateBudget())
        return main, main.run()

    def _events(self, data: bytes) -> tuple[list[Event], int]:
        """The decoder's events, and the page size, 0 if it was not told."""
        queue, context = ByteQueue(), Context(want_contents=True)
        decoder = DirectionDecoder("main", self.way, queue)
        decoder.parse(*self._reader(queue, context))
        chunk = Chunk(0, 0, self.way, data, len(data))
        return [*decoder.feed(chunk), *decoder.close()], context.page_size or 0


class MigrationStream(Stream):
    """A main channel from its first byte on."""

    name = "MigrationStream"


class ReturnPathStream(Stream):
    """What the destination says on a main channel."""

    name = "ReturnPathStream"
    way = "rev"

    def _reader(self, queue: ByteQueue, context: Context) -> tuple[Reader, Steps]:
        reader = ReturnPathReader("main", queue, context)
        return reader, reader.run()


class MultifdStream(Stream):
    """A multifd channel. What its packets mean is told by the main channel: a subclass has that as `main`."""

    name = "MultifdStream"
    main: ClassVar[bytes] = b""

    def _reader(self, queue: ByteQueue, context: Context) -> tuple[Reader, Steps]:
        told = DirectionDecoder("main", "fwd", ByteQueue())
        told.parse(*Stream._reader(self, told.queue, context))
        for _ in told.feed(Chunk(0, 0, "fwd", self.main, len(self.main))):
            pass
        reader = MultifdReader("multifd", queue, context)
        return reader, reader.run()


Span = tuple[int, int, Callable[[bytes], Packet]]


def _spans(events: list[Event], page_size: int, data: bytes) -> list[Span]:
    """Where each record begins and ends, and what makes a layer of it."""
    spans: dict[int, Span] = {}
    ram: list[RamSection] = []
    for event in events:
        start, stop = event.offset, event.offset + event.size
        match event:
            case Header():
                spans[start] = start, stop, MigrationHeader
            case Configuration():
                spans[start] = start, stop, _configuration
            case CommandSent():
                spans[start] = start, stop, COMMAND_LAYERS[event.command]
            case ReturnPathMessage():
                spans[start] = start, stop, MESSAGE_LAYERS[event.message]
            case EndOfStream():
                spans[start] = start, stop, EndOfFile
            case DescriptionFound():
                spans[start] = start, stop, VmDescription
            case MultifdHello():
                spans[start] = start, stop, MultifdHelloPacket
            case MultifdPacket(method="device-state"):
                spans[start] = start, stop, MultifdDeviceState
            case MultifdPacket():
                spans[start] = start, stop, _with_offsets(page_size)
            case RamBlocks():
                spans[start] = start, stop, _block_list
            case RamPages(channel="main"):  # those of a multifd packet are no records of their own
                spans |= {span[0]: span for span in _pages(event)}
            case RamSection():
                ram.append(event)
            case DeviceSection() | LiveSection():
                spans |= {span[0]: span for span in _section(event, data)}
            case _:
                pass
    for section in ram:
        spans |= {span[0]: span for span in _section(section, data, spans)}
    return [spans[start] for start in sorted(spans)]


def _section(event: Section, data: bytes, inside: dict[int, Span] | None = None) -> Iterator[Span]:
    """A section's header and footer; `inside`: the pages of a RAM section, between which words stand."""
    layer = SECTIONS[event.section_type]
    size = 14 + data[event.offset + 5] if event.section_type in ("START", "FULL") else 5
    at, stop = event.offset + size, event.offset + event.size
    yield event.offset, at, layer
    if event.footer:
        stop -= wire.FOOTER.struct.size
        yield stop, stop + wire.FOOTER.struct.size, SectionFooter
    while inside is not None and at < stop:
        if at in inside:
            at = inside[at][1]
            continue
        (word,) = wire.U64.unpack_from(data, at)
        yield at, at + 8, RAM_LAYERS.get(word, Raw)
        at += 8


def _pages(event: RamPages) -> Iterator[Span]:
    at = event.offset
    for word, body, length in zip(event.words, event.bodies, event.lengths, strict=True):
        flags = int(word) & (event.page_size - 1) & ~RamFlag.CONTINUE
        stop = event.offset + int(body) + int(length)
        yield at, stop, RAM_LAYERS[flags]
        at = stop


def _block_list(data: bytes) -> Packet:
    """The block list; with other numbers behind the blocks than their lengths it is shown as it stands."""
    found = RamBlockList(data)
    known = sum(len(bytes(block)) for block in found.blocks)
    total = sum(block.length for block in found.blocks if isinstance(block, RamBlock))
    if known == len(data) - 8 and total == found.word - RamFlag.MEM_SIZE:
        return found
    return RamBlockList(data[:8]) / Raw(data[8:])


def _configuration(data: bytes) -> Packet:
    """The section with its subsections as payloads, cut where the next one begins."""
    head = 5 + wire.U32.unpack_from(data, 1)[0]
    found = ConfigurationSection(data[:head])
    rest = data[head:]
    # names begin alike: a byte 5 before "<length>configuration/" is a subsection, any other is data
    cuts = [
        at
        for at in range(len(rest))
        if rest[at] == ItemType.SUBSECTION and rest[at + 2 :].startswith(wire.SUBSECTION_PREFIX_CONFIGURATION)
    ]
    for start, stop in pairwise([*cuts, len(rest)]):
        found = found / Subsection(rest[start:stop])
    return found


def _with_offsets(page_size: int) -> Callable[[bytes], Packet]:
    """Packets whose list of offsets has room for so many pages; what is behind it is page contents."""

    def layer(data: bytes) -> Packet:
        size = wire.MULTIFD_PACKET.size + 8 * (wire.MULTIFD_PACKET_BYTES // page_size)
        head = MultifdPages(data[:size])
        return head / Raw(data[size:]) if len(data) > size else head

    return layer


__all__ = [
    "COMMAND_LAYERS",
    "MESSAGE_LAYERS",
    "CommandItem",
    "CompressedPage",
    "ConfigurationSection",
    "EndOfFile",
    "EndOfRecords",
    "FlushMultifd",
    "MessageItem",
    "MigrationHeader",
    "MigrationStream",
    "MultifdDeviceState",
    "MultifdHelloPacket",
    "MultifdPages",
    "MultifdStream",
    "NormalPage",
    "RamBlock",
    "RamBlockList",
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
    "VmDescription",
    "XbzrlePage",
    "ZeroPage",
    "fuzz",
]
_BY_NUMBER: Final = {layer.__name__: layer for layer in (*COMMAND_LAYERS.values(), *MESSAGE_LAYERS.values())}
globals().update(_BY_NUMBER)  # CommandPing, MessageShut ...: as many as the registries have
__all__ += sorted(_BY_NUMBER)
