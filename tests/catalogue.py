"""One whole stream of each kind, none longer than it must be."""

import struct

from migsniff.core.arrivals import Direction
from migsniff.core.wire import Command, ItemType, ReturnPathType
from tests import tlsstreams
from tests.playing import Stream, precopy
from tests.streams import (
    EOF,
    EOS,
    FLUSH,
    HEADER,
    PAGE_SIZE,
    TIMER,
    advise,
    block_list,
    capabilities,
    colo,
    command,
    compressed,
    configuration,
    described,
    discard,
    filled,
    full,
    hello,
    mapped_list,
    message,
    multifd_device_state,
    multifd_packet,
    normal,
    package,
    page_bits,
    ping,
    pong,
    ram,
    ram_end,
    ram_part,
    ram_start,
    received_bitmap,
    record,
    request,
    section,
    shut,
    states,
    str8,
    uuid,
    xbzrle,
    zero,
)

SMALL = 256  # the least page size, so that every byte of a stream can be a test case
SMALL_BLOCKS = {b"ram": 16 * SMALL, b"rom": 4 * SMALL}
SMALL_HEAD = HEADER + configuration(b"virt", page_bits(8))


def page(address: int, block: bytes | None = None, size: int = SMALL) -> bytes:
    return normal(address, block, filled(size))


def passes(*, footer: bool = True) -> bytes:
    """Three passes over small blocks: the last with the guest stopped, none in one of the sections."""
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
START, PART, END = ItemType.SECTION_START, ItemType.SECTION_PART, ItemType.SECTION_END
LIVE_SECTIONS = (
    section(START, 20, struct.pack(">I", 15), b"spapr/htab"),
    section(PART, 20, struct.pack(">IIHH32sIHHIHH", 0, 7, 2, 1, b"h" * 32, 9, 0, 4, 0, 0, 0)),
    section(START, 21, struct.pack(">Q", 1), b"s390-storage_attributes", version=0),
    section(PART, 21, struct.pack(">QQ5sQQ", 0x5000 | 2, 5, b"attrs", 8, 1)),
    section(START, 22, struct.pack(">Q", 4 | 17 << 9) + struct.pack(">Q", 2), b"block"),
    section(PART, 22, struct.pack(">QB4sQ", 9, 4, b"disk", 2)),
    section(START, 23, struct.pack(">B5sB2s", 0x1C, b"\4node", 2, b"bm") + bytes(5) + b"\1", b"dirty-bitmap"),
    section(
        END,
        23,
        struct.pack(">BQIQ3s", 0x40, 0, 64, 3, b"bit") + struct.pack(">BQI", 0x42, 64, 9) + b"\x20\1",
    ),
    section(START, 24, struct.pack(">QQ", 0xFFFFFFFFEF100003, 0xFFFFFFFFEF100001), b"0000:00:04.0/vfio"),
    section(PART, 24, struct.pack(">QQ4sQ", 0xFFFFFFFFEF100004, 4, b"data", 0xFFFFFFFFEF100005)),
    section(END, 24, struct.pack(">QQQ", 0xFFFFFFFFEF100004, 0, 0xFFFFFFFFEF100001)),
    section(START, 25, b"what it sends nobody knows \x7e\0\0\0\x19", b"acme/live"),
    section(PART, 25, b""),
    section(END, 25, b"\x7e\0\0\0"),
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
                + multifd_packet(2, b"ram", zero=3, size=99, page_size=65536)
                + multifd_packet(4, b"ram", normal=1, flags=8, data=b"qpl", page_size=65536),
            ),
            (
                2,
                "fwd",
                multifd_device_state(b"0000:00:04.0/vfio", 3, b"device memory")
                + multifd_packet(3, b"ram", normal=1, zero=1, flags=2, data=b"zlib", page_size=65536)
                + multifd_packet(5, b"ram", normal=1, flags=0x10, data=b"uadk", page_size=65536)
                + multifd_packet(6, b"ram", normal=2, flags=0x20, data=b"qatzip", page_size=65536),
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
            capabilities(b"x-ignore-shared", b"another"),
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
    "mapped-ram": precopy(
        HEADER,
        configuration(b"virt", page_bits(8), capabilities(b"mapped-ram")),
        ram(
            ItemType.SECTION_START,
            mapped_list({b"ram": [filled(SMALL), None, filled(SMALL, 7)], b"rom": [None]}, SMALL),
        ),
        ram_part(),
        ram_end(),
        TIMER.item(),
        EOF,
        described([TIMER], page_size=SMALL),
    ),
    "huge pages": precopy(
        SMALL_HEAD, ram(ItemType.SECTION_START, block_list(SMALL_BLOCKS, 1 << 21)), ram_end(), EOF
    ),
    "live sections": precopy(SMALL_HEAD, *LIVE_SECTIONS[:1], passes(), *LIVE_SECTIONS[1:], TIMER.item(), EOF),
    "a live section that does not fit": precopy(
        SMALL_HEAD,
        passes(),
        section(START, 21, struct.pack(">Q", 0x40) + b"something", b"s390-storage_attributes"),
        section(END, 21, struct.pack(">Q", 1)),
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
        section(START, 20, struct.pack(">I", 15), b"spapr/htab"),
        ram_start(SMALL_BLOCKS),
        full(31, b"0000:00:06.0/virtio-mem-device-early", b"\x02\0\0\0\x02"),
        ram_part(page(0, b"ram")),
        ram_end(),
        TIMER.item(),
        EOF,
    ),
    "unknown commands": precopy(SMALL_HEAD, command(77), passes(), command(1234, b"what"), EOF),
    "colo": Stream(
        (
            (*MAIN, SMALL_HEAD + command(Command.ENABLE_COLO) + passes() + states() + EOF),
            (*MAIN, described(page_size=SMALL)),
            (*BACK, colo(0)),
            (*MAIN, colo(1)),
            (*BACK, colo(2)),
            (*MAIN, colo(3) + ram_end(page(SMALL)) + EOF),
            (*MAIN, colo(4, len(states() + EOF)) + states() + EOF),
            (*BACK, colo(5) + colo(6)),
            (*MAIN, colo(1)),
        )
    ),
    "bytes behind the description": precopy(
        SMALL_HEAD, passes(), EOF, described((), page_size=SMALL), b"and so on"
    ),
    "another page size in the description": precopy(
        SMALL_HEAD, passes(), EOF, described((), page_size=PAGE_SIZE)
    ),
    "tls": Stream(
        (
            (*MAIN, tlsstreams.client(0x0304, name=b"dest", psk=True)),
            (*BACK, tlsstreams.server(psk=True) + tlsstreams.CHANGED + tlsstreams.data(40)),
            (*MAIN, tlsstreams.CHANGED + tlsstreams.data(53, 300, 900, 19)),
            (*BACK, tlsstreams.data(60)),
        ),
        outcome="opaque",
    ),
    "tls that asks once more": Stream(
        (
            (*MAIN, tlsstreams.client(0x0304)),
            (*BACK, tlsstreams.server(retry=True) + tlsstreams.CHANGED),
            (*MAIN, tlsstreams.CHANGED + tlsstreams.client(0x0304)),
            (*BACK, tlsstreams.server() + tlsstreams.data(40)),
            (*MAIN, tlsstreams.data(53, 70)),
        ),
        outcome="opaque",
    ),
    "tls 1.2": Stream(
        (
            (*MAIN, tlsstreams.client()),
            (*BACK, tlsstreams.server(0x0303, 0xC02F) + tlsstreams.record(22, b"\x0b" + bytes(40))),
            (*MAIN, tlsstreams.CHANGED + tlsstreams.record(22, b"\1" * 40) + tlsstreams.data(70)),
            (*MAIN, tlsstreams.record(21, bytes(26))),
        ),
        outcome="opaque",
    ),
    "tls that is refused": Stream(
        (
            (*MAIN, tlsstreams.client(0x0304)),
            (*BACK, tlsstreams.record(21, b"\2\x28")),
        ),
        outcome="failed",
    ),
    "tls with something else behind it": Stream(
        ((*MAIN, tlsstreams.client(0x0304) + tlsstreams.data(40) + b"something else"),),
        outcome="undecodable",
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
