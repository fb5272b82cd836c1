"""The layers of records for scapy, made of the layouts that the decoder reads with."""

from collections.abc import Callable
from typing import Any, ClassVar, Final

try:
    from scapy.fields import (
        ByteEnumField,
        ByteField,
        ConditionalField,
        FieldLenField,
        FieldListField,
        IntField,
        LongField,
        PacketListField,
        ShortEnumField,
        ShortField,
        StrField,
        StrFixedLenField,
        StrLenField,
        XIntField,
    )
    from scapy.packet import Packet, Raw
except ImportError:
    raise ImportError("migsniff.scapy needs scapy: pip install 'migsniff[scapy]'") from None

from migsniff.core import messages, wire
from migsniff.core.wire import Command, ItemType, Layout, RamFlag, ReturnPathType

Fields = list[Any]
NUMBERS: Final = {"B": ByteField, "H": ShortField, "I": IntField, "Q": LongField}
FLAGS: Final = sum(RamFlag)
LOW_FLAGS: Final = 0xFF
MAX_ELEMENTS: Final = wire.MAX_RAM_BLOCKS
ONLY_LOW: Final = RamFlag.ZERO | RamFlag.MEM_SIZE | RamFlag.PAGE | RamFlag.XBZRLE
ENUMS: Final[dict[str, Callable[[], Any]]] = {
    "type": lambda: ByteEnumField("type", 0, {int(kind): kind.name for kind in ItemType}),
    "command": lambda: ShortEnumField("command", 0, {int(kind): kind.name for kind in Command}),
    "message": lambda: ShortEnumField("message", 0, {int(kind): kind.name for kind in ReturnPathType}),
    "magic": lambda: XIntField("magic", 0),
}


class Record(Packet):
    """A record of the stream. What a layer does not take of its bytes is its payload."""

    layout: ClassVar[Layout] = Layout()

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """The item that begins behind this one, if the type byte is all it takes to tell."""
        return ITEMS.get(payload[0], Raw) if isinstance(self, ENDS_BY_ITSELF) else Raw


def fields_of(layout: Layout, **defaults: Any) -> Fields:
    """scapy's fields for a layout."""
    found: Fields = []
    for name, how in layout.fields:
        default = defaults.get(name)
        if isinstance(how, Layout):
            found.append(_repeated(name, how))
        elif how in ("str8", "str32"):
            found += _counted(name, how, default)
        elif how == "rest":
            found.append(StrField(name, default or b""))
        elif how[-1] in "sx" and how[:-1]:
            size = int(how[:-1])
            found.append(StrFixedLenField(name, default or bytes(size), length=size))
        else:
            field = ENUMS[name]() if name in ENUMS else NUMBERS[how](name, 0)
            field.default = field.any2i(None, 0 if default is None else default)
            found.append(field)
    return found


def _counted(name: str, how: str, default: Any) -> Fields:
    """Text behind its length, which is counted unless it is given."""
    length = f"{name}_length"

    def told(packet: Packet) -> int:
        return int(getattr(packet, length))

    def fits(packet: Packet, size: int) -> int:
        return size & (0xFF if how == "str8" else 0xFFFFFFFF)

    return [
        FieldLenField(length, None, fmt="B" if how == "str8" else "I", length_of=name, adjust=fits),
        StrLenField(name, default or b"", length_from=told),
    ]


def _repeated(name: str, layout: Layout) -> Any:
    if len(layout.fields) == 1 and isinstance(layout.fields[0][1], str):
        return FieldListField(
            name, [], NUMBERS[layout.fields[0][1]](layout.fields[0][0], 0), max_count=MAX_ELEMENTS
        )
    return PacketListField(name, [], make(name.capitalize(), layout, base=Element), max_count=MAX_ELEMENTS)


def make(
    name: str,
    layout: Layout,
    before: Fields | None = None,
    base: type[Record] | None = None,
    **defaults: Any,
) -> type[Record]:
    """A layer named `name` for a layout, behind other fields if they are given."""
    fields = [*(before or []), *fields_of(layout, **defaults)]
    return type(name, (base or Record,), {"name": name, "fields_desc": fields, "layout": layout})


class Element(Record):
    """One of several that stand one behind the other: the next begins where it ends."""

    def extract_padding(self, rest: bytes) -> tuple[bytes, bytes]:
        return b"", rest


# ---------------------------------------------------------------- items of the main channel

MigrationHeader = make("MigrationHeader", wire.FILE_HEADER, magic=wire.FILE_MAGIC, version=wire.FILE_VERSION)
ConfigurationSection = make("ConfigurationSection", wire.CONFIGURATION, type=ItemType.CONFIGURATION)
Subsection = make("Subsection", wire.SUBSECTION, type=ItemType.SUBSECTION, version_id=1)
SectionStart = make("SectionStart", wire.ANNOUNCED, type=ItemType.SECTION_START)
SectionPart = make("SectionPart", wire.CONTINUED, type=ItemType.SECTION_PART)
SectionEnd = make("SectionEnd", wire.CONTINUED, type=ItemType.SECTION_END)
SectionFull = make("SectionFull", wire.ANNOUNCED, type=ItemType.SECTION_FULL)
SectionFooter = make("SectionFooter", wire.FOOTER, type=ItemType.SECTION_FOOTER)
EndOfFile = make("EndOfFile", Layout(("type", "B")), type=ItemType.EOF)
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


def _sized(number: int, entry: messages.Message, base: type[Record]) -> type[Record]:
    """The layer of a command or a message: the header, then its payload as the registry lays it out."""
    kind = "Command" if base is CommandItem else "Message"
    header: Fields = [field.copy() for field in base.fields_desc]
    header[-2].default = number
    header[-1].default = None
    payload: Fields = fields_of(entry.layout)
    if entry.least == 0 and entry.most:  # a payload that may be left out
        payload = [
            ConditionalField(field, lambda packet: packet.length is None or packet.length > 0)
            for field in payload
        ]
    elif payload and isinstance(payload[-1], PacketListField):
        used = entry.layout.struct.size
        payload[-1].length_from = lambda packet: packet.length - used - 2 - len(packet.block)
    name = kind + "".join(word.capitalize() for word in entry.name.split("_"))
    return type(name, (Sized, base), {"name": name, "fields_desc": header + payload, "layout": entry.layout})


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
ReceivedBitmap = make("ReceivedBitmap", wire.RECEIVED_BITMAP)

# ---------------------------------------------------------------- records of RAM


class WordField(LongField):
    """The word of a RAM record: an address, and flags in its low bits."""

    def i2repr(self, packet: Packet | None, value: Any) -> str:
        word = int(value or 0)
        # with pages of 256 bytes the upper flags are bits of the address, but then there is one of these
        flags = RamFlag(word & (LOW_FLAGS if word & ONLY_LOW else FLAGS))
        return f"{word - flags:#x} {flags.name or int(flags)}"


def _word(flags: RamFlag) -> Fields:
    return [WordField("word", int(flags))]


def _page(flags: RamFlag) -> Fields:
    """The word of a page record, and the name of its block unless it is that of the record before."""
    named = fields_of(Layout(("block", "str8")))
    return _word(flags) + [
        ConditionalField(field, lambda packet: not packet.word & RamFlag.CONTINUE) for field in named
    ]


RamBlock = make("RamBlock", wire.RAM_BLOCK, base=Element)
RamBlockList = make(
    "RamBlockList",
    Layout(),
    [*_word(RamFlag.MEM_SIZE), PacketListField("blocks", [], RamBlock, max_count=MAX_ELEMENTS)],
)
NormalPage = make("NormalPage", Layout(("data", "rest")), _page(RamFlag.PAGE))
ZeroPage = make("ZeroPage", Layout(("fill", "B")), _page(RamFlag.ZERO))
XbzrlePage = make("XbzrlePage", wire.XBZRLE_LAYOUT, _page(RamFlag.XBZRLE), marker=wire.XBZRLE_MARKER)
CompressedPage = make("CompressedPage", wire.COMPRESSED_LAYOUT, _page(RamFlag.COMPRESS_PAGE))
EndOfRecords = make("EndOfRecords", Layout(), _word(RamFlag.EOS))
FlushMultifd = make("FlushMultifd", Layout(), _word(RamFlag.MULTIFD_FLUSH))
RAM_LAYERS: Final[dict[int, type[Record]]] = {
    RamFlag.MEM_SIZE: RamBlockList,
    RamFlag.PAGE: NormalPage,
    RamFlag.ZERO: ZeroPage,
    RamFlag.XBZRLE: XbzrlePage,
    RamFlag.COMPRESS_PAGE: CompressedPage,
    RamFlag.EOS: EndOfRecords,
    RamFlag.MULTIFD_FLUSH: FlushMultifd,
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
ENDS_BY_ITSELF: Final = (MigrationHeader, ConfigurationSection, SectionFooter, EndOfFile)
SECTIONS: Final = {"START": SectionStart, "PART": SectionPart, "END": SectionEnd, "FULL": SectionFull}
