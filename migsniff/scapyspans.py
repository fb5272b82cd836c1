"""Where the records of a direction begin and end, as the decoder's events tell, and the layer of each."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from struct import error as StructError
from typing import Final

from migsniff import scapylayers
from migsniff.core import oldstyle, tls, wire
from migsniff.core.events import (
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    MultifdHello,
    MultifdPacket,
    Package,
    RamBlocks,
    RamPages,
    RamSection,
    ReturnPathMessage,
    Section,
    Undecodable,
)
from migsniff.core.layout import Tagged
from migsniff.core.livesections import live_section
from migsniff.core.records import split_records
from migsniff.core.wire import ItemType, RamFlag
from migsniff.scapydevices import device_layer
from migsniff.scapylayers import (
    BLOCK_LAYERS,
    COMMAND_LAYERS,
    COMMAND_PACKAGED,
    MAPPED_LAYERS,
    MESSAGE_BITMAP,
    MESSAGE_LAYERS,
    RAM_LAYERS,
    SECTIONS,
    TAGGED_LAYERS,
    CommandItem,
    ConfigurationSection,
    EndOfFile,
    MigrationHeader,
    MultifdDeviceState,
    MultifdHelloPacket,
    MultifdPages,
    RamBlockList,
    ReceivedBitmap,
    SectionFooter,
    Subsection,
    VmDescription,
)

# behind the layers, which say what is missing if it is
from scapy.error import Scapy_Exception  # isort: skip
from scapy.packet import Packet, Padding, Raw  # isort: skip

Build = Callable[[bytes], Packet]
WORD: Final = 8


class Spans:
    """Takes the events of one direction, in order, and then makes packets of its bytes.

    `bare`: page records stand there without any section, as on a preempt channel; `paged`: they are records
    of their own, and not told of a multifd packet.
    """

    def __init__(self, *, paged: bool = True, bare: bool = False) -> None:
        self.paged = paged
        self.bare = bare
        self.found: dict[int, tuple[int, Build]] = {}  # where a record begins -> where it ends
        self.sections: dict[int, Section] = {}  # where one begins; what is told of it last holds
        self.packages: dict[int, int] = {}  # where one begins -> its length
        self.problems: list[int] = []
        self.mapped = False

    # ------------------------------------------------------------ events

    def note(self, event: Event, page_size: int | None) -> None:
        """Take the next event, with the page size as far as it is known by now."""
        start, stop = event.offset, event.offset + event.size
        match event:
            case RamPages():
                if self.paged and not self.mapped:
                    self._pages(event)
            case RamBlocks():
                self.found[start] = stop, _block_list(event, mapped=self.mapped)
            case Configuration():
                self.found[start] = stop, _configuration
                self.mapped = wire.CAPABILITY_MAPPED_RAM in (event.capabilities or ())
            case MultifdPacket() if event.method != "device-state" and page_size:
                self.found[start] = stop, _with_offsets(page_size)
            case Section():
                self.sections[start] = event
            case Package():
                self.packages[start] = event.length
            case Undecodable():
                self.problems.append(start)
            case _ if (build := _layer(event)) is not None:
                self.found[start] = stop, build

    def _pages(self, event: RamPages) -> None:
        at = event.offset
        for word, body, length in zip(event.words, event.bodies, event.lengths, strict=True):
            flags = int(word) & (event.page_size - 1) & ~RamFlag.CONTINUE
            stop = event.offset + int(body) + int(length)
            self.found[at] = stop, RAM_LAYERS[flags]
            at = stop

    # ------------------------------------------------------------ packets

    def packets(self, data: bytes) -> list[Packet]:
        """The bytes as records; those of no record are Raw."""
        for section in self.sections.values():
            self._section(section, data)
        if self.bare:
            self._words(data, 0, len(data))
        starts = [start for start in sorted(self.found) if start < len(data)]
        return list(self._packets(data, starts, 0, len(data)))

    def _packets(self, data: bytes, starts: list[int], at: int, end: int) -> Iterator[Packet]:
        for start in starts:
            stop, build = self.found[start]
            stop = min(stop, end)
            if not at <= start < stop:
                continue
            if start > at:
                yield Raw(data[at:start])
            at = stop
            packet = _fitting(build, data[start:stop])
            if build is COMMAND_PACKAGED and stop in self.packages:
                at = min(stop + self.packages[stop], end)
                inside = starts[bisect_left(starts, stop) : bisect_left(starts, at)]
                packet = packet / scapylayers.Package(records=list(self._packets(data, inside, stop, at)))
            yield packet
        if at < end:
            yield Raw(data[at:end])

    def _section(self, event: Section, data: bytes) -> None:
        """A section's header and footer, and what is known of the payload between them."""
        start, stop = event.offset, event.offset + event.size
        if event.section_type in ("START", "FULL"):
            at = start + wire.ANNOUNCED.least + data[start + wire.ANNOUNCED.struct.size]
        else:
            at = start + wire.CONTINUED.least
        self.found[start] = at, SECTIONS[event.section_type]
        if event.footer:
            stop -= wire.FOOTER.struct.size
            self.found[stop] = stop + wire.FOOTER.struct.size, SectionFooter
        match event:
            case RamSection():
                self._words(data, at, stop)
            case LiveSection() if (handler := live_section(event.idstr)) is not None:
                first = bisect_left(self.problems, at)
                self._tagged(data, at, min([stop, *self.problems[first : first + 1]]), handler.records)
            case DeviceSection(idstr=idstr) if idstr in oldstyle.RECORDS:
                self._tagged(data, at, stop, [oldstyle.RECORDS[idstr]])
            case DeviceSection(described=True, cut=False) if at < stop:
                self.found[at] = stop, device_layer(event)

    def _words(self, data: bytes, at: int, stop: int) -> None:
        """The words that stand between pages: of nothing else has a section of RAM so many."""
        while at + WORD <= stop:
            if at in self.found:
                at = self.found[at][0]
                continue
            (word,) = wire.U64.unpack_from(data, at)
            self.found[at] = at + WORD, RAM_LAYERS.get(word, Raw)
            at += WORD

    def _tagged(self, data: bytes, at: int, stop: int, kinds: Iterable[Tagged]) -> None:
        for start, end, kind, _ in split_records(data[at:stop], list(kinds)):
            self.found[at + start] = at + end, TAGGED_LAYERS[kind]


class TlsSpans(Spans):
    """Of a direction of TLS: the decoder tells of its records only together."""

    def packets(self, data: bytes) -> list[Packet]:
        """The records up to what is none."""
        self._tagged(data, 0, min(self.problems, default=len(data)), [tls.TLS_RECORD])
        return super().packets(data)


def _fitting(build: Build, data: bytes) -> Packet:
    """The layer; Raw for bytes that the decoder takes but a layer cannot: behind a name that is too short."""
    try:
        packet = build(data)
    except (StructError, Scapy_Exception):
        return Raw(data)
    return Raw(data) if Padding in packet else packet


def _layer(event: Event) -> Build | None:
    """What makes a layer of a record that is nothing but what its event tells."""
    match event:
        case Header():
            return MigrationHeader
        case CommandSent():
            return COMMAND_LAYERS[event.command]
        case Finding(code="command"):
            return CommandItem
        case ReturnPathMessage():
            layer = MESSAGE_LAYERS[event.message]
            return _with_bitmap if layer is MESSAGE_BITMAP else layer
        case ColoMessage():
            return scapylayers.ColoMessage
        case EndOfStream():
            return EndOfFile
        case DescriptionFound():
            return VmDescription
        case MultifdHello():
            return MultifdHelloPacket
        case MultifdPacket():
            return MultifdDeviceState
        case _:
            return None


def _block_list(event: RamBlocks, *, mapped: bool) -> Build:
    """The list with the numbers that the decoder has told apart, and the pages if they are mapped."""

    def build(data: bytes) -> Packet:
        at = WORD
        blocks: list[Packet] = []
        for block in event.blocks:
            numbers = block.page_size is not None, block.address is not None
            layer = BLOCK_LAYERS[numbers]
            stop = at + 1 + data[at] + WORD + sum(numbers) * WORD
            if mapped:
                if stop + wire.MAPPED_RAM_HEADER.size > len(data):
                    break  # the list ends here: what is behind the block's entry makes no sense
                layer = MAPPED_LAYERS[layer]
                _, _, bitmap_at, pages_at = wire.MAPPED_RAM_HEADER.unpack_from(data, stop)
                stop += wire.MAPPED_RAM_HEADER.size
                stop += pages_at - bitmap_at + block.length if pages_at else 0
            blocks.append(layer(data[at:stop]))
            at = stop
        found = RamBlockList(data[:WORD])
        found.blocks = blocks
        return found / Raw(data[at:]) if at < len(data) else found

    return build


def _configuration(data: bytes) -> Packet:
    """The section with its subsections as payloads, cut where the next one begins."""
    layout = wire.CONFIGURATION
    head = layout.least + wire.U32.unpack_from(data, layout.struct.size)[0]
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


def _with_bitmap(data: bytes) -> Packet:
    """The message that the bitmap follows outside of its length."""
    size = wire.RETURN_PATH_HEADER.struct.size
    size += wire.RETURN_PATH_HEADER.struct.unpack_from(data)[1]
    return MESSAGE_BITMAP(data[:size]) / ReceivedBitmap(data[size:])


def _with_offsets(page_size: int) -> Build:
    """Packets whose list of offsets has room for so many pages; what is behind it is page contents."""

    def layer(data: bytes) -> Packet:
        size = wire.MULTIFD_PACKET.size + 8 * (wire.MULTIFD_PACKET_BYTES // page_size)
        head = MultifdPages(data[:size])
        return head / Raw(data[size:]) if len(data) > size else head

    return layer
