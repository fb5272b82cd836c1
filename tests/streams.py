"""Migration streams built byte by byte: every item, record and message. catalogue.py has whole streams."""

import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from migsniff.core.wire import Command, ItemType, RamFlag, ReturnPathType

PAGE_SIZE = 4096
HEADER = b"QEVM\0\0\0\x03"
EOS = struct.pack(">Q", RamFlag.EOS)
FLUSH = struct.pack(">Q", RamFlag.MULTIFD_FLUSH)
EOF = b"\0"
RAM_ID = 2
BLOCKS = {b"pc.ram": 64 * PAGE_SIZE, b"vga.vram": 16 * PAGE_SIZE}

# ---------------------------------------------------------------- items


def str8(text: bytes) -> bytes:
    return struct.pack(">B", len(text)) + text


def u64(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}Q", *numbers)


def configuration(machine: bytes = b"pc-i440fx-7.2", *subsections: bytes) -> bytes:
    return struct.pack(">BI", ItemType.CONFIGURATION, len(machine)) + machine + b"".join(subsections)


def subsection(name: bytes, payload: bytes, version: int = 1) -> bytes:
    return struct.pack(">B", ItemType.SUBSECTION) + str8(name) + struct.pack(">I", version) + payload


def page_bits(bits: int) -> bytes:
    return subsection(b"configuration/target-page-bits", struct.pack(">I", bits))


def capabilities(*names: bytes) -> bytes:
    payload = struct.pack(">I", len(names)) + b"".join(map(str8, names))
    return subsection(b"configuration/capabilities", payload)


def uuid(value: bytes) -> bytes:
    return subsection(b"configuration/uuid", value)


def section(
    kind: ItemType,
    section_id: int,
    payload: bytes,
    idstr: bytes = b"",
    *,
    instance: int = 0,
    version: int = 1,
    footer: bool = True,
) -> bytes:
    """A section of any kind; START and FULL need an `idstr`."""
    head = struct.pack(">BI", kind, section_id)
    if kind in (ItemType.SECTION_START, ItemType.SECTION_FULL):
        head += str8(idstr) + struct.pack(">II", instance, version)
    tail = struct.pack(">BI", ItemType.SECTION_FOOTER, section_id) if footer else b""
    return head + payload + tail


def full(
    section_id: int,
    idstr: bytes,
    payload: bytes,
    *,
    instance: int = 0,
    version: int = 1,
    footer: bool = True,
) -> bytes:
    return section(
        ItemType.SECTION_FULL, section_id, payload, idstr, instance=instance, version=version, footer=footer
    )


def command(number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">BHH", ItemType.COMMAND, number, len(payload)) + payload


def ping(value: int) -> bytes:
    return command(Command.PING, struct.pack(">I", value))


def advise(page_size: int) -> bytes:
    return command(Command.POSTCOPY_ADVISE, struct.pack(">QQ", page_size, page_size))


def discard(block: bytes, *ranges: tuple[int, int]) -> bytes:
    body = b"\0" + str8(block) + b"\0" + b"".join(struct.pack(">QQ", *span) for span in ranges)
    return command(Command.POSTCOPY_RAM_DISCARD, body)


def package(*items: bytes) -> bytes:
    blob = b"".join(items)
    return command(Command.PACKAGED, struct.pack(">I", len(blob))) + blob


def description(text: bytes) -> bytes:
    return struct.pack(">BI", ItemType.VMDESCRIPTION, len(text)) + text


# ---------------------------------------------------------------- ram


def block_list(blocks: dict[bytes, int], *numbers: int) -> bytes:
    """MEM_SIZE; each block is followed by `numbers`, which only some modes send."""
    listed = (
        str8(name) + struct.pack(f">{1 + len(numbers)}Q", length, *numbers) for name, length in blocks.items()
    )
    return struct.pack(">Q", sum(blocks.values()) | RamFlag.MEM_SIZE) + b"".join(listed)


def mapped_list(
    blocks: dict[bytes, Sequence[bytes | None]], page_size: int = PAGE_SIZE, version: int = 1, hole: int = 40
) -> bytes:
    """MEM_SIZE of a mapped-ram file: behind each block its bitmap, a hole, and its pages.

    None is a zero page: where it would stand the file has whatever stood there before.
    """
    list_ = struct.pack(">Q", sum(map(len, blocks.values())) * page_size | RamFlag.MEM_SIZE)
    for name, pages in blocks.items():
        bits = sum(1 << number for number, page in enumerate(pages) if page is not None)
        bitmap = bits.to_bytes((len(pages) + 63) // 64 * 8, "little")
        list_ += str8(name) + struct.pack(">Q", len(pages) * page_size)
        at = 1000 + len(list_)
        list_ += struct.pack(">IQQQ", version, page_size, at, at + len(bitmap) + hole) + bitmap + bytes(hole)
        list_ += b"".join(filled(page_size, 0x55) if page is None else page for page in pages)
    return list_


def record(address: int, flag: int, body: bytes, block: bytes | None) -> bytes:
    """A page record, which goes on in the block before if it names none."""
    if block is None:
        return struct.pack(">Q", address | flag | RamFlag.CONTINUE) + body
    return struct.pack(">Q", address | flag) + str8(block) + body


def filled(size: int, fill: int = 0xAA) -> bytes:
    """Contents of a page which are no records under any page size."""
    return bytes([fill]) * size


def normal(address: int, block: bytes | None = None, contents: bytes = filled(PAGE_SIZE)) -> bytes:
    return record(address, RamFlag.PAGE, contents, block)


def zero(address: int, block: bytes | None = None, fill: int = 0) -> bytes:
    return record(address, RamFlag.ZERO, bytes([fill]), block)


def xbzrle(address: int, block: bytes | None = None, delta: bytes = b"\x05\x03abc") -> bytes:
    return record(address, RamFlag.XBZRLE, struct.pack(">BH", 1, len(delta)) + delta, block)


def compressed(address: int, block: bytes | None = None, contents: bytes = filled(PAGE_SIZE)) -> bytes:
    packed = zlib.compress(contents, 1)
    return record(address, RamFlag.COMPRESS_PAGE, struct.pack(">I", len(packed)) + packed, block)


def ram(
    kind: ItemType,
    *records: bytes,
    footer: bool = True,
    section_id: int = RAM_ID,
    version: int = 4,
    eos: bytes = EOS,
) -> bytes:
    """A section of ram."""
    return section(kind, section_id, b"".join(records) + eos, b"ram", version=version, footer=footer)


def ram_start(blocks: dict[bytes, int] = BLOCKS, *records: bytes, footer: bool = True) -> bytes:
    return ram(ItemType.SECTION_START, block_list(blocks), *records, footer=footer)


def ram_part(*records: bytes, footer: bool = True) -> bytes:
    return ram(ItemType.SECTION_PART, *records, footer=footer)


def ram_end(*records: bytes, footer: bool = True) -> bytes:
    return ram(ItemType.SECTION_END, *records, footer=footer)


# ---------------------------------------------------------------- return path, multifd


def message(number: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HH", number, len(payload)) + payload


def colo(number: int, *length: int) -> bytes:
    """A message of COLO, either way; the length of the state behind VMSTATE_SIZE."""
    return struct.pack(f">I{len(length)}Q", number, *length)


def pong(value: int) -> bytes:
    return message(ReturnPathType.PONG, struct.pack(">I", value))


def shut(value: int) -> bytes:
    return message(ReturnPathType.SHUT, struct.pack(">I", value))


def request(start: int, length: int, block: bytes | None = None) -> bytes:
    body = struct.pack(">QI", start, length)
    if block is None:
        return message(ReturnPathType.REQ_PAGES, body)
    return message(ReturnPathType.REQ_PAGES_ID, body + str8(block))


def received_bitmap(block: bytes, bitmap: bytes, end: int = 0x0123456789ABCDEF) -> bytes:
    head = message(ReturnPathType.RECV_BITMAP, str8(block))
    return head + struct.pack(">Q", len(bitmap)) + bitmap + struct.pack(">Q", end)


def hello(channel: int, uuid: bytes = bytes(16)) -> bytes:
    return struct.pack(">II16sB39x", 0x11223344, 1, uuid, channel)


def multifd_packet(
    number: int,
    block: bytes = b"pc.ram",
    *,
    normal: int = 0,
    zero: int = 0,
    flags: int = 0,
    data: bytes = b"",
    size: int | None = None,
    page_size: int = PAGE_SIZE,
    magic: int = 0x11223344,
    version: int = 1,
    addresses: Sequence[int] = (),
) -> bytes:
    """A packet with pages. `addresses` are the first pages'; behind them stand those of the block's first."""
    capacity = 524288 // page_size
    places = [*addresses, *range(0, capacity * page_size, page_size)][:capacity]
    head = struct.pack(
        ">IIIIIIQI28x256s",
        *(magic, version, flags, capacity, normal, len(data) if size is None else size, number, zero, block),
    )
    return head + struct.pack(f">{capacity}Q", *places) + data


def multifd_device_state(idstr: bytes, instance: int, data: bytes) -> bytes:
    return struct.pack(">III256sII", 0x11223344, 1, 0x40, idstr, instance, len(data)) + data


# ---------------------------------------------------------------- devices and their description


@dataclass(frozen=True)
class Device:
    """A FULL section whose state is one buffer."""

    section_id: int
    idstr: bytes
    payload: bytes
    instance: int = 0
    version: int = 1

    def item(self, *, footer: bool = True) -> bytes:
        return full(
            self.section_id,
            self.idstr,
            self.payload,
            instance=self.instance,
            version=self.version,
            footer=footer,
        )

    def describe(self, size: int | None = None) -> dict[str, object]:
        size = len(self.payload) if size is None else size
        fields = [{"name": "data", "type": "buffer", "size": size}]
        return {
            "name": self.idstr.decode(),
            "instance_id": self.instance,
            "vmsd_name": self.idstr.decode(),
            "version": self.version,
            "fields": fields if size else [],
        }


TIMER = Device(0, b"timer", b"\0\0\0\0\0\0\0\x2a" * 3, version=2)
CPU = Device(5, b"cpu_common", b"\x7e\0\0\0\x06halted\0\0", instance=1)  # another one's footer in it
SERIAL = Device(9, b"0000:00:03.0/serial", b"\x04\0\0\0\x0a\x01 \x00\x06\x08\x02", instance=7)
GLOBALSTATE = Device(260, b"globalstate", b"running\0")
DEVICES = (TIMER, CPU, SERIAL, GLOBALSTATE)


def described(devices: Iterable[Device] = DEVICES, page_size: int | None = PAGE_SIZE) -> bytes:
    """The description item of these devices."""
    top: dict[str, object] = {"devices": [device.describe() for device in devices]}
    if page_size is not None:
        top = {"page_size": page_size, **top}
    return description(json.dumps(top).encode())


def states(devices: Iterable[Device] = DEVICES, *, footer: bool = True) -> bytes:
    return b"".join(device.item(footer=footer) for device in devices)
