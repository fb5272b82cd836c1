"""Lengths and counts that lie: a clear word on them, in bounded memory, and never a loop without end.

Time is held by pytest's limit: what is not linear here does not end within it.
"""

import gc
import json
import struct
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from migsniff.core.arrivals import Chunk, Ended, Opened
from migsniff.core.events import (
    DescriptionFound,
    DeviceSection,
    DirtySync,
    Event,
    Finding,
    RamBlocks,
    Undecodable,
)
from migsniff.core.session import Session
from migsniff.core.wire import (
    MAX_DEVICE_STATE,
    MAX_PAGE_STATE_SLACK,
    MAX_RAM_BLOCKS,
    MAX_SECTIONS,
    PAGE_STATE_SEGMENT,
    Command,
    ItemType,
    RamFlag,
)
from tests import streams
from tests.catalogue import SMALL, SMALL_BLOCKS, SMALL_HEAD, page
from tests.playing import Stream, of, play, verdict
from tests.streams import EOF, command, description, full, record, section, str8

MIB = 1 << 20
HEAD = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS)
AFTER_RAM = HEAD + streams.ram_end()
NO_FOOTERS = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS, footer=False) + streams.ram_end(footer=False)
START, PART, END = ItemType.SECTION_START, ItemType.SECTION_PART, ItemType.SECTION_END


class Peak:
    """Memory taken in the `with` block at most, beyond what was there: as the kernel counts, if it does."""

    def __enter__(self) -> "Peak":
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            self.before: int | None = self._status("VmRSS")
        except OSError:
            self.before = None
            tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is None:
            self.bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        else:
            self.bytes = self._status("VmHWM") - self.before

    def _status(self, name: str) -> int:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[name].split()[0]) << 10


def decode(pieces: Iterable[bytes], *, most: int, step: int = MIB) -> list[Event]:
    """The events of a main channel that sends these bytes, in at most `most` bytes of memory."""
    session = Session()
    events: list[Event] = []
    end = 0
    with Peak() as peak:
        events += session.feed(Opened(0, 0, "", ""))
        for piece in pieces:
            for at in range(0, len(piece), step):
                part = piece[at : at + step]
                end += len(part)
                events += (
                    event
                    for event in session.feed(Chunk(0, 0, "fwd", part, end))
                    if not isinstance(event, DirtySync)
                )
        events += session.feed(Ended(0, 0, "fwd", "eof", "source"))
        events += session.finish()
    assert peak.bytes < most, f"{peak.bytes / MIB:.1f} MiB"
    return events


def problem(events: list[Event]) -> str:
    """The code of what ended the decoding."""
    return of(events, Undecodable)[0].code


def repeated(piece: bytes, total: int) -> Iterator[bytes]:
    """`total` bytes of the same again and again, a MiB at a time."""
    block = piece * (MIB // len(piece))
    for _ in range(total // MIB):
        yield block


def nested(depth: int) -> bytes:
    return b'{"devices":' + b"[" * depth + b"]" * depth + b"}"


U32_MAX = b"\xff" * 4
REFUSED: dict[str, tuple[bytes, str]] = {
    "a machine type of 4 GiB": (streams.HEADER + b"\7" + U32_MAX, "length"),
    "2^32 capabilities": (
        streams.HEADER
        + streams.configuration(b"virt", streams.subsection(b"configuration/capabilities", U32_MAX)),
        "count",
    ),
    "RAM blocks that are longer than all of them": (
        SMALL_HEAD
        + section(
            START, 2, struct.pack(">Q", 4096 | 4) + b"\3ram" + struct.pack(">Q", 1 << 63), b"ram", version=4
        ),
        "ram-blocks-total",
    ),
    "a description of 4 GiB": (AFTER_RAM + EOF + b"\6" + U32_MAX + b"{}", "length"),
    "a description that nests": (AFTER_RAM + EOF + description(nested(100_000)), "description-depth"),
    "a description of many things": (
        AFTER_RAM + EOF + description(b'{"devices":[' + b"{}," * 2_000_000 + b"{}]}"),
        "description-nodes",
    ),
    "a package in a package": (
        AFTER_RAM + streams.package(streams.package(streams.ping(1))),
        "package-depth",
    ),
    "a section longer than its package": (
        AFTER_RAM + command(Command.PACKAGED, b"\0\0\0\x14") + full(4, b"timer", bytes(100)),
        "package-end",
    ),
    "a compressed page of 4 GiB": (
        streams.HEADER
        + streams.configuration(b"virt", streams.page_bits(12))
        + streams.ram_start()
        + section(PART, 2, record(0, RamFlag.COMPRESS_PAGE, U32_MAX, b"pc.ram")),
        "compress-length",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    data, code = REFUSED[name]
    events = decode([data], most=40 * MIB)
    assert problem(events) == code
    assert verdict(events).outcome == "undecodable"


ENDLESS: dict[str, tuple[bytes, str]] = {
    "a package of 4 GiB": (AFTER_RAM + command(Command.PACKAGED, U32_MAX), "between sections"),
    "a dirty bitmap of 2^63": (
        AFTER_RAM
        + section(START, 9, struct.pack(">BQIQ", 0x40, 0, 1, 1 << 63), b"dirty-bitmap", footer=False),
        "in section dirty-bitmap instance 0 (START)",
    ),
    "storage attributes of 2^64": (
        AFTER_RAM
        + section(START, 9, struct.pack(">QQ", 2, (1 << 64) - 1), b"s390-storage_attributes", footer=False),
        "in section s390-storage_attributes instance 0 (START)",
    ),
    "device memory of 2^64": (
        AFTER_RAM
        + section(START, 9, struct.pack(">QQ", 0xFFFFFFFFEF100004, (1 << 64) - 1), b"a/vfio", footer=False),
        "in section a/vfio instance 0 (START)",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_counted_only(name: str) -> None:
    """What has no limit in the protocol is stepped over, and the verdict says where it stopped."""
    data, where = ENDLESS[name]
    rest = bytes(3 * MIB) if "package" not in name else b""
    events = decode([data, rest], most=20 * MIB)
    assert verdict(events).outcome in ("truncated", "cancelled")
    assert where in verdict(events).message


class TestRam:
    def test_blocks_without_end(self) -> None:
        head = struct.pack(">Q", (1 << 62) | 4)
        blocks = repeated(b"\1x" + bytes(8), 2 * MIB)
        start = SMALL_HEAD + section(START, 2, head, b"ram", version=4, footer=False)
        assert problem(decode([start, *blocks], most=64 * MIB)) == "count"

    def test_as_many_blocks_as_there_may_be(self) -> None:
        blocks = {b"%05d" % i + b"x" * 250: SMALL for i in range(MAX_RAM_BLOCKS)}
        records = [streams.zero(0, name) for name in blocks][:2_000]
        events = decode(
            [SMALL_HEAD, streams.ram_start(blocks), streams.ram_part(*records), streams.ram_end(), EOF],
            most=200 * MIB,
        )
        assert len(of(events, RamBlocks)[0].blocks) == MAX_RAM_BLOCKS
        assert verdict(events).ok

    def test_lengths_of_2_to_the_62(self) -> None:
        blocks = {b"a": 1 << 62, b"b": 1 << 62}
        pages = [streams.zero((1 << 62) - SMALL, b"a"), streams.zero(0), page(1 << 61, b"b")]
        events = decode(
            [SMALL_HEAD, streams.ram_start(blocks), streams.ram_part(*pages), streams.ram_end(), EOF],
            most=2 * MIB,
        )
        assert verdict(events).ok

    def test_pages_that_are_far_apart(self) -> None:
        """Each record could buy a segment of page state: 64 KiB for 9 bytes."""
        step = SMALL * PAGE_STATE_SEGMENT
        pages = b"".join(
            streams.zero(i * step, None if i else b"ram")
            for i in range(3 * MAX_PAGE_STATE_SLACK // PAGE_STATE_SEGMENT)
        )
        head = SMALL_HEAD + streams.ram_start({b"ram": 1 << 50})
        events = decode(
            [head, streams.ram_part(pages), streams.ram_end(), EOF], most=MAX_PAGE_STATE_SLACK + 8 * MIB
        )
        assert verdict(events).ok

    def test_addresses_that_go_back_all_the_time(self) -> None:
        """Each record seems to begin a pass of its own."""
        count = 40_000
        pages = b"".join(streams.zero((count - i) * SMALL, None if i else b"ram") for i in range(count))
        head = SMALL_HEAD + streams.ram_start({b"ram": 1 << 40})
        events = decode([head, streams.ram_part(pages), streams.ram_end(), EOF], most=40 * MIB)
        assert verdict(events).ok

    def test_page_size_from_much_and_nothing(self) -> None:
        """Two bytes at a time, while it is not known how large a page is."""
        head = streams.HEADER + streams.configuration(b"virt") + streams.ram_start({b"ram": 1 << 30})
        data = head + streams.ram_part(streams.normal(0, b"ram", bytes(65536)))[:40_000]
        events = decode([data], most=8 * MIB, step=2)
        assert verdict(events).outcome == "truncated"


class TestSections:
    def test_ids_without_end(self) -> None:
        sections = b"".join(full(i, b"x", b"") for i in range(10, MAX_SECTIONS + 20))
        events = decode([AFTER_RAM, sections], most=150 * MIB)
        assert problem(events) == "count"
        assert len(of(events, DeviceSection)) == MAX_SECTIONS - 1

    @pytest.mark.parametrize("head", [AFTER_RAM, NO_FOOTERS], ids=["footers", "no footers"])
    @pytest.mark.parametrize("kind", [ItemType.SECTION_FULL, START])
    def test_that_never_end(self, head: bytes, kind: ItemType) -> None:
        begin = section(kind, 40, b"", b"acme/endless", footer=False)
        junk = repeated(b"\x7e\0\0\0\x2a device memory ", 3 * MAX_DEVICE_STATE)
        events = decode([head + begin, *junk], most=3 * MAX_DEVICE_STATE)
        cut = of(events, DeviceSection)
        assert [(one.cut, one.fields) for one in cut] == [(True, ())] * (kind == ItemType.SECTION_FULL)
        assert verdict(events).outcome == "truncated"
        assert "in section acme/endless instance 0" in verdict(events).message

    def test_longer_than_is_kept(self) -> None:
        """Its end is found all the same, and what comes behind it."""
        big = full(40, b"big", bytes(MAX_DEVICE_STATE + 5 * MIB))
        devices = (streams.TIMER, streams.Device(40, b"big", b""), streams.CPU)
        text = streams.described(devices, SMALL)
        stream = [AFTER_RAM, streams.TIMER.item(), big, streams.CPU.item(), EOF, text]
        events = decode(stream, most=4 * MAX_DEVICE_STATE)
        assert [
            (device.idstr, device.size) for device in of(events, DeviceSection) if device.provisional
        ] == [
            ("timer", len(streams.TIMER.item())),
            ("big", len(big)),
            ("cpu_common", len(streams.CPU.item())),
        ]
        assert [device.idstr for device in of(events, DeviceSection) if not device.provisional] == [
            "timer",
            "cpu_common",
        ]
        assert [finding.code for finding in of(events, Finding)] == ["device-too-big"]
        assert verdict(events).ok

    @pytest.mark.parametrize("fill", [b"\x04", b"\x04AAAA\x01A", b"\0\6", b"\0\6\0\0\0\0", b"\x08\0\2\0\4"])
    def test_where_every_byte_may_begin_the_next_one(self, fill: bytes) -> None:
        big = full(40, b"big", fill * (2 * MIB // len(fill)), footer=False)
        rest = full(41, b"timer", b"", footer=False) + EOF + description(b'{"devices":[]}')
        events = decode([NO_FOOTERS, big, rest], most=30 * MIB)
        assert [device.idstr for device in of(events, DeviceSection) if device.provisional] == [
            "big",
            "timer",
        ]
        assert verdict(events).ok

    @pytest.mark.parametrize("behind", [b"", b"\x04", b"\0", b"\x08\0\2\0", b"\0\6", b"\x02\0\0\0\x0a"])
    def test_full_of_their_own_footer(self, behind: bytes) -> None:
        big = full(40, b"big", (b"\x7e\0\0\0\x28" + behind) * (MIB // 5))
        rest = full(41, b"timer", b"") + EOF + description(b'{"devices":[]}')
        events = decode([AFTER_RAM, big, rest], most=30 * MIB)
        assert [device.idstr for device in of(events, DeviceSection) if device.provisional] == [
            "big",
            "timer",
        ]
        assert verdict(events).ok


class TestDescription:
    def test_framing_that_goes_astray(self) -> None:
        """A description that ends a device early, among bytes that look like a hundred thousand sections."""
        fake = b"".join(full(1000 + i, b"x", b"") for i in range(100_000))
        devices = (streams.Device(40, b"big", b"\x7e\0\0\0\x28\x55" + fake), streams.TIMER)
        text = json.dumps({"devices": [devices[0].describe(0)]}).encode()
        pieces = [AFTER_RAM, streams.states(devices), EOF, description(text)]
        events = decode(pieces, most=200 * MIB)
        assert len([device for device in of(events, DeviceSection) if device.provisional]) == 2
        assert verdict(events).ok

    @pytest.mark.parametrize("kind", ["uint8", "uint64", "nullptr", "capability"])
    def test_arrays_of_2_to_the_31(self, kind: str) -> None:
        field: dict[str, object] = {"name": "a", "type": kind, "size": 1, "array_len": 1 << 31}
        device = {"name": "timer", "instance_id": 0, "vmsd_name": "t", "version": 2, "fields": [field]}
        text = description(json.dumps({"devices": [device]}).encode())
        events = decode([AFTER_RAM, streams.TIMER.item(), EOF, text], most=64 * MIB)
        assert len(of(events, DescriptionFound)) == 1
        assert of(events, Finding)[0].code in (
            "field-short",
            "description-shape",
            "description-nodes",
        )
        assert verdict(events).ok

    def test_a_long_one(self) -> None:
        text = b'{"devices":[],"x":"' + b"y" * (15 << 20) + b'"}'
        events = decode([AFTER_RAM, EOF, description(text)], most=100 * MIB)
        assert verdict(events).ok


class TestOtherChannels:
    def test_received_bitmap_of_2_to_the_63(self) -> None:
        bitmap = streams.message(5, str8(b"ram")) + struct.pack(">Q", 1 << 63)
        stream = Stream(
            ((0, "fwd", AFTER_RAM), (0, "rev", bitmap + bytes(1000)), (0, "fwd", EOF)), outcome="completed"
        )
        events = play(stream)
        assert problem(events) == "length"
        assert of(events, Undecodable)[0].direction == "rev"

    @pytest.mark.parametrize(
        ("packet", "code"),
        [
            (streams.multifd_packet(0, normal=1 << 31, page_size=65536), "multifd-pages"),
            (streams.multifd_packet(0, normal=5, zero=4, page_size=65536), "multifd-pages"),
            (streams.multifd_packet(0, zero=U32_MAX[0] << 24, page_size=65536), "multifd-pages"),
            (streams.multifd_packet(0, normal=1, size=(1 << 32) - 1, page_size=65536), "multifd-size"),
            (streams.multifd_packet(0, flags=0x3E, page_size=65536), "multifd-method"),
            (streams.multifd_packet(0, magic=0x11223345, page_size=65536), "multifd-magic"),
            (streams.multifd_packet(0, version=2, page_size=65536), "multifd-version"),
        ],
    )
    def test_multifd_packets(self, packet: bytes, code: str) -> None:
        main = streams.HEADER + streams.configuration(b"virt", streams.page_bits(16)) + streams.ram_start()
        events = play(Stream(((0, "fwd", main), (1, "fwd", streams.hello(0) + packet + bytes(1000)))))
        assert [(event.channel, event.code) for event in of(events, Undecodable)] == [("multifd-0", code)]

    def test_multifd_without_a_page_size(self) -> None:
        session = Session()
        events: list[Event] = []
        data = streams.hello(0) + streams.multifd_packet(0)[:12] + bytes(8 * MIB)
        with Peak() as peak:
            for end in range(65536, len(data), 65536):
                events += session.feed(Chunk(0, 0, "fwd", data[end - 65536 : end], end))
        assert peak.bytes < 16 * MIB
        assert problem(events) == "multifd-wait"
