"""The layers of records for scapy, made of the layouts that the decoder reads with."""

from typing import Final

from migsniff.core import messages, oldstyle, tls, wire
from migsniff.core.layout import Layout, Tagged
from migsniff.core.livesections import LIVE_SECTIONS
from migsniff.core.mappedram import bitmap_size
from migsniff.core.wire import Command, ItemType, RamFlag, ReturnPathType
from migsniff.scapyfields import (
    MAX_ELEMENTS,
    Element,
    Fields,
    Record,
    fields_of,
    make,
    make_tagged,
    parts_of,
)

# behind what says what is missing if it is
from scapy.fields import ConditionalField, PacketListField, StrLenField  # isort: skip
from scapy.packet import Packet, Raw  # isort: skip

# ---------------------------------------------------------------- items of the main channel

MigrationHeader = make("MigrationHeader", wire.FILE_HEADER, magic=wire.FILE_MAGIC, version=wire.FILE_VERSION)
ConfigurationSection = make("ConfigurationSection", wire.CONFIGURATION, type=ItemType.CONFIGURATION)
Subsection = make("Subsection", wire.SUBSECTION, type=ItemType.SUBSECTION, version_id=1)
SectionStart = make("SectionStart", wire.ANNOUNCED, type=ItemType.SECTION_START)
SectionPart = make("SectionPart", wire.CONTINUED, type=ItemType.SECTION_PART)
SectionEnd = make("SectionEnd", wire.CONTINUED, type=ItemType.SECTION_END)
SectionFull = make("SectionFull", wire.ANNOUNCED, type=ItemType.SECTION_FULL)
SectionFooter = make("SectionFooter", wire.FOOTER, type=ItemType.SECTION_FOOTER)
EndOfFile = make("EndOfFile", Layout(wire.TYPE), type=ItemType.EOF)
VmDescription = make("VmDescription", wire.VMDESCRIPTION, type=ItemType.VMDESCRIPTION)


class CommandItem(Record):
    """A command; those that are known have layers of their own (COMMAND_LAYERS)."""

    name = "CommandItem"
    fields_desc = fields_of(wire.COMMAND_HEADER, type=ItemType.COMMAND)


class MessageItem(Record):
    """A message of the return path; those that are known have layers of their own (MESSAGE_LAYERS)."""

    name = "MessageItem"
    fields_desc = fields_of(wire.RETURN_PATH_HEADER)


class Sized(Element):
    """A record whose header says how long the rest of it is; it is counted unless `length` was given."""

    def post_build(self, packet: bytes, payload: bytes) -> bytes:
        if self.getfieldval("length") is None:
            at = 5 if isinstance(self, CommandItem) else 4
            packet = packet[: at - 2] + wire.U16.pack((len(packet) - at) & 0xFFFF) + packet[at:]
        return packet + payload


class WithPackage(Sized):
    """The command that a package follows, which is its payload and is counted, unless that was given."""

    def post_build(self, packet: bytes, payload: bytes) -> bytes:
        if self.getfieldval("package") is None:
            packet = packet[:-4] + wire.U32.pack(len(payload) & 0xFFFFFFFF)
        return super().post_build(packet, payload)


def _sized(number: int, entry: messages.Message, base: type[Record]) -> type[Record]:
    """The layer of a command or a message: the header, then its payload as the registry lays it out."""
    kind = "Command" if base is CommandItem else "Message"
    header: Fields = [field.copy() for field in base.fields_desc]
    header[-2].default = number
    header[-1].default = None
    payload: Fields = fields_of(entry.layout)
    kinds: tuple[type[Record], ...] = (Sized, base)
    if entry.least == 0 and entry.most:  # a payload that may be left out
        payload = [
            ConditionalField(field, lambda packet: packet.length is None or packet.length > 0)
            for field in payload
        ]
    elif payload and isinstance(payload[-1], PacketListField):
        used = entry.layout.struct.size
        payload[-1].length_from = lambda packet: packet.length - used - 2 - len(packet.block)
    elif entry.layout is messages.LENGTH:
        payload[-1].default = None
        kinds = (WithPackage, base)
    name = kind + "".join(word.capitalize() for word in entry.name.split("_"))
    return type(name, kinds, {"name": name, "fields_desc": header + payload})


COMMAND_LAYERS: Final = {
    number: _sized(number, entry, CommandItem)
    for number in messages.COMMANDS
    if (entry := messages.COMMANDS.get(number))
}
MESSAGE_LAYERS: Final = {
    number: _sized(number, entry, MessageItem)
    for number in messages.RETURN_PATH
    if (entry := messages.RETURN_PATH.get(number))
}
COMMAND_PACKAGED: Final = COMMAND_LAYERS[Command.PACKAGED]
MESSAGE_BITMAP: Final = MESSAGE_LAYERS[ReturnPathType.RECV_BITMAP]
ReceivedBitmap = make("ReceivedBitmap", wire.RECEIVED_BITMAP, end=wire.RECV_BITMAP_END)
ColoMessage = make_tagged(wire.COLO_MESSAGE)


RECORDS: Final[Fields] = [PacketListField("records", [], Raw, max_count=MAX_ELEMENTS)]


class Package(Record):
    """What stands in a package: the payload of a CommandPackaged."""

    name = "Package"
    fields_desc = RECORDS


# ---------------------------------------------------------------- records of RAM

WORD: Final = Layout(wire.RAM_WORD)


def _page(flags: RamFlag) -> Fields:
    """The word of a page record, and the name of its block unless it is that of the record before."""
    return [*fields_of(WORD, word=int(flags)), *parts_of(wire.RAM_PAGE.tag, wire.RAM_PAGE.parts)]


def _mapped_pages() -> Fields:
    """What stands behind a block's header in a mapped-ram file, as far away as the header says."""

    def bitmap(packet: Packet) -> int:
        stored = packet.pages_offset and packet.page_size
        return bitmap_size(packet.length // packet.page_size) if stored else 0

    return [
        StrLenField("bitmap", b"", length_from=bitmap),
        StrLenField(
            "hole",
            b"",
            length_from=lambda packet: max(0, packet.pages_offset - packet.bitmap_offset - bitmap(packet)),
        ),
        StrLenField("pages", b"", length_from=lambda packet: packet.length if packet.pages_offset else 0),
    ]


def _block(name: str, *numbers: tuple[str, str]) -> type[Record]:
    return make(name, Layout(*wire.RAM_BLOCK.fields, *numbers), base=Element)


def _mapped(name: str, block: type[Record]) -> type[Record]:
    header = fields_of(wire.MAPPED_RAM_LAYOUT, version=wire.MAPPED_RAM_VERSION)
    fields = [*block.fields_desc, *header, *_mapped_pages()]
    return type(name, (Element,), {"name": name, "fields_desc": fields})


RamBlock = _block("RamBlock")
RamBlockPageSize = _block("RamBlockPageSize", wire.RAM_BLOCK_PAGE_SIZE)
RamBlockAddress = _block("RamBlockAddress", wire.RAM_BLOCK_ADDRESS)
RamBlockBoth = _block("RamBlockBoth", wire.RAM_BLOCK_PAGE_SIZE, wire.RAM_BLOCK_ADDRESS)
MappedRamBlock = _mapped("MappedRamBlock", RamBlock)
MappedRamBlockAddress = _mapped("MappedRamBlockAddress", RamBlockAddress)
BLOCK_LAYERS: Final = {
    (False, False): RamBlock,
    (True, False): RamBlockPageSize,
    (False, True): RamBlockAddress,
    (True, True): RamBlockBoth,
}
"""By whether a page size, and an address, stand behind the length."""
MAPPED_LAYERS: Final = {RamBlock: MappedRamBlock, RamBlockAddress: MappedRamBlockAddress}
RamBlockList = make(
    "RamBlockList",
    Layout(),
    [
        *fields_of(WORD, word=int(RamFlag.MEM_SIZE)),
        PacketListField("blocks", [], RamBlock, max_count=MAX_ELEMENTS),
    ],
)
NormalPage = make("NormalPage", Layout(("data", "rest")), _page(RamFlag.PAGE))
ZeroPage = make("ZeroPage", Layout(("fill", "B")), _page(RamFlag.ZERO))
XbzrlePage = make("XbzrlePage", wire.XBZRLE_LAYOUT, _page(RamFlag.XBZRLE), marker=wire.XBZRLE_MARKER)
CompressedPage = make("CompressedPage", wire.COMPRESSED_LAYOUT, _page(RamFlag.COMPRESS_PAGE))
EndOfRecords = make("EndOfRecords", WORD, word=int(RamFlag.EOS))
FlushMultifd = make("FlushMultifd", WORD, word=int(RamFlag.MULTIFD_FLUSH))
RAM_LAYERS: Final[dict[int, type[Record]]] = {
    RamFlag.MEM_SIZE: RamBlockList,
    RamFlag.PAGE: NormalPage,
    RamFlag.ZERO: ZeroPage,
    RamFlag.XBZRLE: XbzrlePage,
    RamFlag.COMPRESS_PAGE: CompressedPage,
    RamFlag.EOS: EndOfRecords,
    RamFlag.MULTIFD_FLUSH: FlushMultifd,
}

# ---------------------------------------------------------------- live sections, devices that save themselves


def _records_of(idstr: str) -> tuple[Tagged, ...]:
    handler = LIVE_SECTIONS.get(idstr)
    return handler.records if handler else ()


TAGGED_LAYERS: Final[dict[Tagged, type[Record]]] = {
    record: make_tagged(record)
    for records in (
        *map(_records_of, LIVE_SECTIONS),
        oldstyle.RECORDS.values(),
        [tls.TLS_RECORD],
    )
    for record in records
}

# ---------------------------------------------------------------- multifd

MultifdHelloPacket = make(
    "MultifdHelloPacket", wire.MULTIFD_HELLO_LAYOUT, magic=wire.MULTIFD_MAGIC, version=wire.MULTIFD_VERSION
)
MultifdPages = make(
    "MultifdPages", wire.MULTIFD_PACKET_LAYOUT, magic=wire.MULTIFD_MAGIC, version=wire.MULTIFD_VERSION
)
MultifdDeviceState = make(
    "MultifdDeviceState",
    wire.MULTIFD_DEVICE_STATE_LAYOUT,
    magic=wire.MULTIFD_MAGIC,
    version=wire.MULTIFD_VERSION,
    flags=int(wire.MultifdFlag.DEVICE_STATE),
)

# ---------------------------------------------------------------- what begins with which byte

ITEMS: Final[dict[int, type[Packet]]] = {
    ItemType.EOF: EndOfFile,
    ItemType.SECTION_START: SectionStart,
    ItemType.SECTION_PART: SectionPart,
    ItemType.SECTION_END: SectionEnd,
    ItemType.SECTION_FULL: SectionFull,
    ItemType.SUBSECTION: Subsection,
    ItemType.VMDESCRIPTION: VmDescription,
    ItemType.CONFIGURATION: ConfigurationSection,
    ItemType.COMMAND: CommandItem,
    ItemType.SECTION_FOOTER: SectionFooter,
}
for _ends_by_itself in (MigrationHeader, ConfigurationSection, SectionFooter, EndOfFile):
    _ends_by_itself.behind = ITEMS
SECTIONS: Final = {"START": SectionStart, "PART": SectionPart, "END": SectionEnd, "FULL": SectionFull}
