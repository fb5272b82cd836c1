"""Migration streams built byte by byte: everything that a stream can hold, in streams of a few kilobytes.

`STREAMS` has one of each kind; `play` decodes one, cut as the caller likes.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from migsniff.core.events import (
    Arrival,
    Chunk,
    Data,
    Direction,
    Ended,
    EndKind,
    Event,
    Opened,
    Party,
    RamPages,
    Verdict,
)
from migsniff.core.session import Session
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
) -> bytes:
    capacity = 524288 // page_size
    head = struct.pack(
        ">IIIIIIQI28x256s",
        *(magic, version, flags, capacity, normal, len(data) if size is None else size, number, zero, block),
    )
    return head + struct.pack(f">{capacity}Q", *range(0, capacity * page_size, page_size)) + data


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


# ---------------------------------------------------------------- whole streams


@dataclass(frozen=True)
class Stream:
    """What passes on the connections of a migration: (connection, direction, bytes), in order."""

    pieces: tuple[tuple[int, Direction, bytes], ...]
    ends: tuple[tuple[int, Direction, EndKind, Party], ...] = ()
    outcome: str = "completed"

    @property
    def main(self) -> bytes:
        """All that the first connection sends forward."""
        return b"".join(data for number, direction, data in self.pieces if (number, direction) == (0, "fwd"))


def precopy(*items: bytes, outcome: str = "completed") -> Stream:
    return Stream(((0, "fwd", b"".join(items)),), outcome=outcome)


Cut = Callable[[bytes], Iterable[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def pieces_of(size: int) -> Cut:
    return lambda data: [data[at : at + size] for at in range(0, len(data), size)]


def arrivals(stream: Stream, cut: Cut = whole) -> Iterator[Arrival]:
    """The stream as it arrives, each of its pieces cut. A chunk's data is wiped behind it, as a relay's is."""
    ends: dict[tuple[int, Direction], int] = {}
    for number, direction, data in stream.pieces:
        if (number, "fwd") not in ends:
            ends[number, "fwd"] = ends[number, "rev"] = 0
            yield Opened(0, number, "source", "destination")
        for piece in cut(data):
            lent = bytearray(piece)
            ends[number, direction] += len(piece)
            yield Chunk(0, number, direction, memoryview(lent), ends[number, direction])
            lent[:] = b"\xee" * len(lent)
    told = {(number, direction) for number, direction, _, _ in stream.ends}
    for number, direction, how, by in stream.ends:
        yield Ended(0, number, direction, how, by)
    for number, direction in ends:
        if (number, direction) not in told:
            yield Ended(0, number, direction, "eof", "source" if direction == "fwd" else "destination")


def decode(session: Session, source: Iterable[Arrival]) -> list[Event]:
    """All events but RamPages, whose grouping depends on the cuts."""
    events = [event for arrival in source for event in session.feed(arrival)]
    events += session.finish()
    return [event for event in events if not isinstance(event, RamPages)]


def play(stream: Stream, cut: Cut = whole, **options: bool) -> list[Event]:
    return decode(Session(**options), arrivals(stream, cut))


def play_bytes(data: Data, *, fields: bool = False) -> list[Event]:
    """The events of one connection whose source sends `data` and closes."""
    return decode(
        Session(fields=fields),
        [
            Opened(0, 0, "", ""),
            Chunk(0, 0, "fwd", data, len(data)),
            Ended(0, 0, "fwd", "eof", "source"),
            Ended(0, 0, "rev", "eof", "destination"),
        ],
    )


def verdict(events: list[Event]) -> Verdict:
    assert isinstance(events[-1], Verdict)
    return events[-1]


E = TypeVar("E", bound=Event)


def of(events: Iterable[Event], kind: type[E]) -> list[E]:
    """The events of one type."""
    return [event for event in events if isinstance(event, kind)]


# ---------------------------------------------------------------- one of each kind

SMALL = 256  # the least page size, so that every byte of a stream can be a test case
SMALL_BLOCKS = {b"ram": 16 * SMALL, b"rom": 4 * SMALL}
SMALL_HEAD = HEADER + configuration(b"virt", page_bits(8))


def page(address: int, block: bytes | None = None, size: int = SMALL) -> bytes:
    return normal(address, block, filled(size))


def passes(*, footer: bool = True) -> bytes:
    """Three passes over small blocks: pages of both, one of them again, and a last one with the guest stopped."""
    return (
        ram_start(SMALL_BLOCKS, footer=footer)
        + ram_part(page(0, b"ram"), zero(SMALL), zero(2 * SMALL), zero(0, b"rom"), footer=footer)
        + ram_part(footer=footer)
        + ram_part(zero(SMALL), page(0, b"ram"), footer=footer)
        + ram_end(page(3 * SMALL), zero(SMALL, b"rom"), footer=footer)
    )


def with_size(blocks: dict[bytes, int], page_size: int, *records: bytes) -> bytes:
    """RAM in one section each, of a target whose page size nothing tells before its first pages."""
    return ram_start(blocks) + ram_part(*records) + ram_end()


def large(address: int, block: bytes | None = None, size: int = PAGE_SIZE) -> bytes:
    return normal(address, block, filled(size, 0xC3))


MAIN: tuple[int, Direction] = (0, "fwd")
BACK: tuple[int, Direction] = (0, "rev")
LIVE_SECTIONS = (
    section(1, 20, struct.pack(">I", 15), b"spapr/htab"),
    section(2, 20, struct.pack(">IIHH32sIHHIHH", 0, 7, 2, 1, b"h" * 32, 9, 0, 4, 0, 0, 0)),
    section(1, 21, struct.pack(">Q", 1), b"s390-storage_attributes", version=0),
    section(2, 21, struct.pack(">QQ5sQQ", 0x5000 | 2, 5, b"attrs", 8, 1)),
    section(1, 22, struct.pack(">Q", 4 | 17 << 9) + struct.pack(">Q", 2), b"block"),
    section(2, 22, struct.pack(">QB4sQ", 9, 4, b"disk", 2)),
    section(1, 23, struct.pack(">B5sB2s", 0x1C, b"\4node", 2, b"bm") + bytes(5) + b"\1", b"dirty-bitmap"),
    section(
        3,
        23,
        struct.pack(">BQIQ3s", 0x40, 0, 64, 3, b"bit") + struct.pack(">BQI", 0x42, 64, 9) + b"\x20\1",
    ),
    section(1, 24, struct.pack(">QQ", 0xFFFFFFFFEF100003, 0xFFFFFFFFEF100001), b"0000:00:04.0/vfio"),
    section(2, 24, struct.pack(">QQ4sQ", 0xFFFFFFFFEF100004, 4, b"data", 0xFFFFFFFFEF100005)),
    section(3, 24, struct.pack(">QQQ", 0xFFFFFFFFEF100004, 0, 0xFFFFFFFFEF100001)),
    section(1, 25, b"what it sends nobody knows \x7e\0\0\0\x19", b"acme/live"),
    section(2, 25, b""),
    section(3, 25, b"\x7e\0\0\0"),
)

POSTCOPY_HEAD = (
    SMALL_HEAD
    + command(Command.OPEN_RETURN_PATH)
    + ping(1)
    + advise(SMALL)
    + ram_start(SMALL_BLOCKS)
    + ram_part(page(0, b"ram"), zero(SMALL), zero(0, b"rom"))
    + ram_part()
    + command(Command.SWITCHOVER_START)
    + discard(b"ram", (0, SMALL), (3 * SMALL, 2 * SMALL))
    + ping(2)
    + package(
        command(Command.POSTCOPY_LISTEN),
        states(),
        ping(3),
        command(Command.POSTCOPY_RUN),
    )
    + ping(4)
)
POSTCOPY: tuple[tuple[int, Direction, bytes], ...] = (
    (*MAIN, POSTCOPY_HEAD),
    (*BACK, pong(1) + pong(2) + pong(4) + pong(3) + request(3 * SMALL, SMALL, b"ram") + request(0, SMALL)),
    (*MAIN, ram_part(page(3 * SMALL, b"ram"), page(0), zero(SMALL)) + ram_part(zero(0, b"rom"))),
)

STREAMS: dict[str, Stream] = {
    "precopy": precopy(SMALL_HEAD, passes(), states(), EOF, described(page_size=SMALL)),
    "return path": Stream(
        (
            (*MAIN, SMALL_HEAD + command(Command.OPEN_RETURN_PATH) + ping(1) + passes()),
            (*BACK, pong(1) + message(ReturnPathType.SWITCHOVER_ACK)),
            (*MAIN, command(Command.SWITCHOVER_START) + states() + EOF + described(page_size=SMALL)),
            (*BACK, shut(0)),
        )
    ),
    "destination refuses a device": Stream(
        (
            (*MAIN, SMALL_HEAD + command(Command.OPEN_RETURN_PATH) + passes() + TIMER.item()),
            (*BACK, shut(1)),
        ),
        outcome="failed",
    ),
    "no footers": precopy(
        SMALL_HEAD, passes(footer=False), states(footer=False), EOF, described(page_size=SMALL)
    ),
    "no footers, no description": precopy(SMALL_HEAD, passes(footer=False), states(footer=False), EOF),
    "no configuration": precopy(
        HEADER,
        with_size({b"pc.ram": 65536, b"pc.rom": 4096}, PAGE_SIZE, large(0, b"pc.ram"), zero(4096)),
        TIMER.item(),
        EOF,
    ),
    "no description": precopy(SMALL_HEAD, passes(), states(), EOF),
    "no page size in the description": precopy(SMALL_HEAD, passes(), EOF, described((), page_size=None)),
    "postcopy": Stream((*POSTCOPY, (*MAIN, ram_end(zero(SMALL)) + EOF), (*BACK, shut(0)))),
    "preempt": Stream(
        (
            *POSTCOPY,
            (1, "fwd", page(5 * SMALL, b"ram") + page(6 * SMALL) + zero(7 * SMALL) + EOS),
            (*MAIN, ram_end() + EOF),
            (*BACK, shut(0)),
        )
    ),
    "resumed": Stream(
        (
            *POSTCOPY,
            (*MAIN, ram_part(page(8 * SMALL, b"ram"))[:100]),
            (1, "fwd", command(Command.RECV_BITMAP, str8(b"ram")) + command(Command.RECV_BITMAP, b"\3rom")),
            (1, "rev", received_bitmap(b"ram", b"\xff" * 8) + received_bitmap(b"rom", bytes(8))),
            (1, "fwd", command(Command.POSTCOPY_RESUME)),
            (1, "rev", message(ReturnPathType.RESUME_ACK, struct.pack(">I", 1)) + request(0, SMALL, b"rom")),
            (1, "fwd", ram_part(page(8 * SMALL, b"ram"), zero(0, b"rom")) + ram_end() + EOF),
            (1, "rev", shut(0)),
        )
    ),
    "multifd": Stream(
        (
            (1, "fwd", hello(1)),
            (
                *MAIN,
                HEADER
                + configuration(b"virt", page_bits(16))
                + ram_start({b"ram": 1 << 20}, FLUSH)
                + ram_part(FLUSH)
                + ram_end(FLUSH)
                + TIMER.item()
                + EOF,
            ),
            (2, "fwd", hello(0, b"0123456789abcdef")),
            (
                1,
                "fwd",
                multifd_packet(0, flags=1, page_size=65536)
                + multifd_packet(1, b"ram", normal=2, flags=4, data=b"zstd data", page_size=65536)
                + multifd_packet(2, b"ram", zero=3, size=99, page_size=65536),
            ),
            (
                2,
                "fwd",
                multifd_device_state(b"0000:00:04.0/vfio", 3, b"device memory")
                + multifd_packet(3, b"ram", normal=1, zero=1, flags=2, data=b"zlib", page_size=65536),
            ),
        )
    ),
    "xbzrle": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"), zero(SMALL), page(2 * SMALL)),
        ram_part(xbzrle(0), xbzrle(2 * SMALL, None, b"\0\2xy"), zero(3 * SMALL)),
        ram_part(xbzrle(0, b"ram", b""), xbzrle(SMALL), xbzrle(SMALL)),
        ram_end(xbzrle(0, None, bytes(SMALL)), xbzrle(0, b"rom")),
        EOF,
    ),
    "compress": precopy(
        HEADER,
        configuration(b"virt", page_bits(10)),
        ram_start({b"ram": 16384}),
        ram_part(
            zero(0, b"ram"),
            compressed(2048, None, filled(1024)),
            compressed(1024, None, filled(1024, 7)),
            zero(3072),
        ),
        ram_part(compressed(2048, None, filled(1024, 8)), zero(0), compressed(1024, b"ram", filled(1024))),
        ram_end(compressed(0, None, filled(1024)), zero(3072)),
        EOF,
    ),
    "configuration": precopy(
        HEADER,
        configuration(
            b"virt-7.2",
            page_bits(8),
            capabilities(b"x-ignore-shared", b"mapped-ram"),
            uuid(b"0123456789abcdef"),
        ),
        passes(),
        EOF,
    ),
    "x-ignore-shared": precopy(
        HEADER,
        configuration(b"virt", page_bits(8), capabilities(b"x-ignore-shared")),
        ram(ItemType.SECTION_START, block_list(SMALL_BLOCKS, 0xFFFC0000)),
        ram_end(page(0, b"ram")),
        EOF,
    ),
    "huge pages": precopy(
        SMALL_HEAD, ram(ItemType.SECTION_START, block_list(SMALL_BLOCKS, 1 << 21)), ram_end(), EOF
    ),
    "live sections": precopy(SMALL_HEAD, *LIVE_SECTIONS[:1], passes(), *LIVE_SECTIONS[1:], TIMER.item(), EOF),
    "a live section that does not fit": precopy(
        SMALL_HEAD,
        passes(),
        section(1, 21, struct.pack(">Q", 0x40) + b"something", b"s390-storage_attributes"),
        section(3, 21, struct.pack(">Q", 1)),
        EOF,
    ),
    "background snapshot": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"), page(2 * SMALL), zero(SMALL)),
        states(),
        EOF,
        described(page_size=SMALL),
    ),
    "early state": precopy(
        SMALL_HEAD,
        full(30, b"0000:00:05.0/virtio-mem-device-early", b"plugged"),
        section(1, 20, struct.pack(">I", 15), b"spapr/htab"),
        ram_start(SMALL_BLOCKS),
        full(31, b"0000:00:06.0/virtio-mem-device-early", b"\x02\0\0\0\x02"),
        ram_part(page(0, b"ram")),
        ram_end(),
        TIMER.item(),
        EOF,
    ),
    "unknown commands": precopy(SMALL_HEAD, command(77), passes(), command(1234, b"what"), EOF),
    "colo": precopy(SMALL_HEAD, command(Command.ENABLE_COLO), passes(), TIMER.item(), EOF, b"\0\0\0\1"),
    "bytes behind the description": precopy(
        SMALL_HEAD, passes(), EOF, described((), page_size=SMALL), b"and so on"
    ),
    "another page size in the description": precopy(
        SMALL_HEAD, passes(), EOF, described((), page_size=PAGE_SIZE)
    ),
    "tls": Stream(
        ((0, "fwd", b"\x16\3\1\0\x20 client hello"), (0, "rev", b"\x16\3\3\0\x20 server hello")),
        outcome="opaque",
    ),
    "no stream": precopy(b"GET / HTTP/1.1\r\n\r\n", outcome="not-a-stream"),
    "a connection that says nothing": Stream(((0, "fwd", b""),), outcome="empty"),
    "wrong flags": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"), record(SMALL, 1, b"", None), page(SMALL)),
        outcome="undecodable",
    ),
    "wrong block": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"), page(0, b"mystery")),
        outcome="undecodable",
    ),
    "wrong address": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"), page(SMALL), page(16 * SMALL), page(SMALL)),
        outcome="undecodable",
    ),
    "wrong footer": precopy(
        SMALL_HEAD,
        ram_start(SMALL_BLOCKS),
        ram_part(page(0, b"ram"))[:-1] + b"\7",
        ram_end(page(0)),
        outcome="undecodable",
    ),
    "wrong item": precopy(SMALL_HEAD, passes(), b"\x55" * 40, outcome="undecodable"),
    "wrong command": precopy(SMALL_HEAD, command(Command.PING, b"12"), passes(), outcome="undecodable"),
    "wrong return path": Stream(
        (
            (*MAIN, SMALL_HEAD + command(Command.OPEN_RETURN_PATH)),
            (*BACK, pong(1) + message(99, b"?") + shut(0)),
            (*MAIN, passes() + EOF),
        ),
        outcome="failed",
    ),
}
# Targets whose page size only the first pages tell.
for _size in (1024, PAGE_SIZE, 8192):
    STREAMS[f"pages of {_size} bytes"] = precopy(
        HEADER,
        configuration(b"virt"),
        with_size(
            {b"ram": 64 * _size},
            _size,
            zero(0, b"ram"),
            normal(_size, None, filled(_size)),
            zero(2 * _size),
            normal(5 * _size, None, filled(_size)),
        ),
        TIMER.item(),
        EOF,
    )
