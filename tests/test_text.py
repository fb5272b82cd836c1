"""The log's lines, the trees below them, and that nothing of a stream reaches them unescaped."""

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from migsniff.core import events
from migsniff.core.arrivals import Direction, TlsFacts
from migsniff.core.events import (
    UNLISTED,
    BlockPages,
    ChannelFound,
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    Draining,
    EndOfStream,
    Event,
    Field,
    Finding,
    Header,
    LiveSection,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    Opaque,
    Package,
    PageCounts,
    PageFault,
    RamBlock,
    RamBlocks,
    RamPages,
    RamSection,
    ReturnPathMessage,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Undecodable,
    Verdict,
)
from migsniff.show.fields import field_lines
from migsniff.show.text import DEVICES_KEPT, TextLog
from migsniff.show.words import escape, memory, name, number, rate, seconds, wire
from tests.synthetic import PRECOPY, device, ram

AT: dict[str, Any] = {"channel": "main", "direction": "fwd", "offset": 1234, "size": 56}
HasText = TypeVar("HasText", bound=msgspec.Struct)
HOSTILE = "\x1b[31m\r\n\x00\x7f\x9b\u202e\u2066\u200f\ud800 x"


def lines_of(*timed: tuple[int, Event], **options: object) -> list[str]:
    """What a log with these options writes, a call an element."""
    written: list[str] = []
    log = TextLog(written.append, **options)  # type: ignore[arg-type]
    for time, event in timed:
        log.show("m1", time, event)
    log.close()
    return written


# (event, type column, section column, what the line ends with)
LINES: list[tuple[Event, str, str, str]] = [
    (ChannelFound(**AT, connection=0, role="main"), "channel", "-", "connection 0 is main"),
    (
        ChannelFound(**AT, connection=3, role="tls", detail="a ClientHello"),
        "channel",
        "-",
        "connection 3 is tls: a ClientHello",
    ),
    (Header(**AT, version=3), "header", "-", "QEMU migration stream version 3"),
    (Configuration(**AT, machine="pc-q35-7.2"), "config", "-", "machine=pc-q35-7.2"),
    (
        Configuration(**AT, machine="virt-7.2", page_bits=12, capabilities=("x-ignore-shared",), uuid="12ab"),
        "config",
        "-",
        "machine=virt-7.2 page-bits=12 capabilities=x-ignore-shared uuid=12ab",
    ),
    (
        RamBlocks(
            **AT,
            total=(64 << 20) + (4 << 20) + 0x40000 + 0x20000 + 0x1000,
            page_size=4096,
            page_size_from="table",
            blocks=(
                RamBlock("vga.vram", 4 << 20),
                RamBlock("pc.ram", 64 << 20),
                RamBlock("pc.bios", 0x40000),
                RamBlock("pc.rom", 0x20000),
                RamBlock("/rom@etc/table-loader", 0x1000),
            ),
        ),
        "blocks",
        "ram/0",
        "68.4 MiB in 5 blocks, page size 4096 (table): "
        "pc.ram 64 MiB, vga.vram 4 MiB, pc.bios 256 KiB and 2 more",
    ),
    (
        RamBlocks(
            **AT, total=4096, page_size=None, page_size_from="", blocks=(RamBlock("mach-virt.ram", 4096),)
        ),
        "blocks",
        "ram/0",
        "4 KiB in 1 block, page size not known yet: mach-virt.ram 4 KiB",
    ),
    (ram(1234, 56, "PART", PageCounts()), "PART", "ram/0", "pass=1 no pages"),
    (
        ram(1234, 56, "END", PageCounts(normal=1, zero=2, xbzrle=3, compressed=4, resent=5), 7),
        "END",
        "ram/0",
        "pass=7 normal=1 zero=2 xbzrle=3 compressed=4 resent=5 pc.ram[0x0..0x3fff000]",
    ),
    (
        RamSection(
            **AT,
            section_type="PART",
            section_id=2,
            idstr="ram",
            instance_id=0,
            version_id=4,
            footer=True,
            iteration=1,
            counts=PageCounts(zero=5),
            blocks=tuple(BlockPages(f"b{n}", n * 0x1000, n * 0x1000, PageCounts(zero=1)) for n in range(5)),
            multifd_flushes=1,
        ),
        "PART",
        "ram/0",
        "zero=5 b0[0x0..0x0] b1[0x1000..0x1000] b2[0x2000..0x2000] and 2 more blocks multifd-flushes=1",
    ),
    (
        LiveSection(
            **AT,
            section_type="START",
            section_id=3,
            idstr="spapr/htab",
            instance_id=0,
            version_id=1,
            footer=True,
            provisional=False,
            summary="order 15",
        ),
        "START",
        "spapr/htab/0",
        "exact order 15",
    ),
    (
        LiveSection(
            **AT,
            section_type="PART",
            section_id=3,
            idstr="0000:00:05.0/vfio",
            instance_id=0,
            version_id=1,
            footer=True,
            provisional=True,
        ),
        "PART",
        "0000:00:05.0/vfio/0",
        "provisional",
    ),
    (device(1234, 56, "timer"), "FULL", "timer/0", "provisional"),
    (device(1234, 56, "timer", provisional=False, described=True), "FULL", "timer/0", "exact"),
    (
        device(1234, 56, "css", provisional=False, described=True, undescribed=768, corrects=60),
        "FULL",
        "css/0",
        "exact, 768 bytes not described, was shown as 60 bytes",
    ),
    (device(1234, 56, "slirp", provisional=False), "FULL", "slirp/0", "exact, not described"),
    (
        CommandSent(
            **AT, command=3, name="POSTCOPY_ADVISE", arguments={"block_page_sizes": 4096, "page_size": 4096}
        ),
        "command",
        "-",
        "POSTCOPY_ADVISE block_page_sizes=4096 page_size=4096",
    ),
    (
        CommandSent(
            **AT,
            command=6,
            name="POSTCOPY_RAM_DISCARD",
            arguments={"block": "pc.ram", "ranges": tuple((n << 12, 4096) for n in range(5))},
        ),
        "command",
        "-",
        "POSTCOPY_RAM_DISCARD block=pc.ram ranges=0x0+0x1000,0x1000+0x1000,0x2000+0x1000 and 2 more",
    ),
    (
        ReturnPathMessage(**AT, message=5, name="RECV_BITMAP", arguments={"block": "b", "received": 5}),
        "reply",
        "-",
        "RECV_BITMAP block=b received=5",
    ),
    (
        LoosePages(**AT, iteration=2, counts=PageCounts(zero=3)),
        "pages",
        "ram/0",
        "pass=2 zero=3, in no whole section",
    ),
    (Package(**AT, length=13455), "package", "-", "13455 bytes"),
    (ColoMessage(**AT, message=1, name="X", checkpoint=2), "colo", "-", "X checkpoint=2"),
    (ColoMessage(**AT, message=4, name="X", checkpoint=2, length=7), "colo", "-", "X checkpoint=2 length=7"),
    (
        DirtySync(**AT, iteration=4, counts=PageCounts(normal=10, zero=1, bytes=40_000), final=True),
        "sync",
        "ram/0",
        "pass 4 done: 11 pages, normal=10 zero=1, source stopped",
    ),
    (EndOfStream(**AT), "eof", "-", "all state has been sent"),
    (DescriptionFound(**AT, page_size=4096, devices=31), "desc", "-", "31 devices described, page size 4096"),
    (
        DescriptionFound(**AT, page_size=None, devices=0),
        "desc",
        "-",
        "0 devices described, page size not given",
    ),
    (
        MultifdSync(
            **AT,
            packets=1,
            counts=PageCounts(normal=2, bytes=9000),
            blocks=(BlockPages("b", 0, 4096, PageCounts(normal=2, bytes=9000)),),
            syncs=3,
        ),
        "multifd",
        "-",
        "1 packet: normal=2 b[0x0..0x1000], sync 3",
    ),
    (
        MultifdSync(**AT, packets=7, counts=PageCounts(), device_state=99, last=True),
        "multifd",
        "-",
        "7 packets: no pages device-state=99, end of the channel",
    ),
    (MultifdHello(**AT, uuid="12ab", channel_id=2), "hello", "-", "multifd channel 2, uuid 12ab"),
    (
        MultifdPacket(
            **AT, packet_num=9, flags=1, method="zstd", block="pc.ram", normal=100, zero=28, data_size=5000
        ),
        "packet",
        "pc.ram",
        "packet=9 normal=100 zero=28 zstd flags=0x1",
    ),
    (Opaque(**AT, what="TLS"), "opaque", "-", "TLS"),
    (
        TlsMessage(
            **AT,
            facts=TlsFacts(
                message="ClientHello",
                version="1.3",
                versions=("1.3", "1.2"),
                ciphers=9,
                name="a\x1b b",
                psk=True,
            ),
        ),
        "tls",
        "-",
        r"ClientHello TLS 1.3, offers 1.3, 1.2 and 9 ciphers, pre-shared key, server name a\x1b\x20b",
    ),
    (
        TlsMessage(
            **AT, facts=TlsFacts(message="ServerHello", version="1.3", cipher="AES", protocols=("h2", "x"))
        ),
        "tls",
        "-",
        "ServerHello TLS 1.3 AES, protocols h2, x",
    ),
    (
        TlsMessage(**AT, facts=TlsFacts(message="ClientHello", problem="too short")),
        "tls",
        "-",
        "ClientHello: too short",
    ),
    (
        TlsMessage(**AT, facts=TlsFacts(message="alert", alert="fatal unknown_ca")),
        "tls",
        "-",
        "alert fatal unknown_ca",
    ),
    (TlsRecords(**AT, records=8192, total=16384), "tls", "-", "8192 records, 16384 so far"),
    (
        TlsEnded(
            **AT,
            records=5,
            handshake=1,
            alerts=0,
            application=3,
            payload=700,
            closed="no close_notify",
            torn=True,
        ),
        "tls",
        "-",
        "5 records: handshake=1 alert=0 application=3, 700 bytes inside; no close_notify, torn: it ended"
        " inside a record",
    ),
    (
        Undecodable(**AT, code="item-type", message="unknown section type 0x33", where="section timer"),
        "bad",
        "-",
        "unknown section type 0x33 [item-type], in section timer",
    ),
    (
        Finding(**AT, severity="warn", code="saver-failed", message="saving stopped"),
        "warn",
        "-",
        "saving stopped [saver-failed]",
    ),
    (
        Draining(**AT, where="section ram"),
        "drain",
        "-",
        "from here on nothing reaches the destination, which has gone, in section ram",
    ),
    (
        DirectionEnded(**AT, how="reset", by="destination", error="ECONNRESET", where="section ram"),
        "end",
        "-",
        "reset from destination (ECONNRESET), in section ram",
    ),
    (
        Verdict(**AT, ok=False, outcome="truncated", message="stopped at 99 in ram"),
        "verdict",
        "-",
        "TRUNCATED: stopped at 99 in ram",
    ),
]


@pytest.mark.parametrize(("event", "kind", "section", "ending"), LINES)
def test_line(event: Event, kind: str, section: str, ending: str) -> None:
    packet = isinstance(event, MultifdPacket)  # which is told with what is in it, or not at all
    (text,) = lines_of((1_500_000, event), verbose=packet)
    line = text.split("\n")[0] + "\n" if packet else text
    assert line.endswith(ending + "\n")
    assert line.count("\n") == 1
    assert line.split()[:6] == ["1.500000", "1234", "main>", kind, section, "56"]


def test_every_event_type_has_a_line_in_the_table() -> None:
    shown = {type(row[0]) for row in LINES} | {*UNLISTED, PageFault}
    assert {cls for cls in _leaves(Event) if cls.__module__ == events.__name__} == shown


def asked(start: int, time: int) -> tuple[int, ReturnPathMessage]:
    arguments: dict[str, Any] = {"block": "pc.ram", "start": start, "length": 4096}
    return time, ReturnPathMessage(**AT, message=4, name="REQ_PAGES", arguments=arguments)


def fault(start: int, time: int, **more: Any) -> tuple[int, PageFault]:
    place: dict[str, Any] = {**AT, "channel": "preempt", "block": "pc.ram", "address": start, "length": 4096}
    return time, PageFault(**{**place, "asked_channel": "main", "asked_offset": 0, **more})


FAULTS: list[tuple[int, Event]] = [
    asked(0x1000, 1000),
    asked(0x2000, 1100),
    fault(0x1000, 4200),
    asked(0x3000, 5000),
    fault(0x3000, 5000, crossed=True),
    (1_001_000, EndOfStream(**AT)),
    fault(0x2000, 1_001_100),
    (1_001_200, EndOfStream(**AT)),
]


def test_page_faults_share_a_line() -> None:
    lines: list[str] = []
    log = TextLog(lines.append)
    for time, event in FAULTS:
        log.show("m", time, event)
    told = [line.split("  ", 1)[1] if " faults " not in line else line for line in lines]
    assert [line for line in told if " faults " in line] == [
        "  1.001000          - -     faults  -              -  3 page requests, 1 answered (median 3.2 ms, "
        "p99 3.2 ms, longest 3.2 ms), 1 on preempt, 1 sent before they were asked for, 1 waiting\n",
        "  1.001200          - -     faults  -              -  0 page requests, 1 answered (median 1.00 s, "
        "p99 1.00 s, longest 1.00 s), 1 on preempt\n",
    ]
    assert len(lines) == 4


def test_each_page_fault_has_a_line_of_its_own_in_a_verbose_log() -> None:
    lines: list[str] = []
    log = TextLog(lines.append, verbose=True)
    for time, event in FAULTS:
        log.show("m", time, event)
    found = [line.splitlines()[0].split("  ")[-1] for line in lines if " fault " in line]
    assert found == [
        "page fault 0x1000 of pc.ram answered after 3.2 ms on preempt",
        "page fault 0x3000 of pc.ram: the page had been sent already",
        "page fault 0x2000 of pc.ram answered after 1.00 s on preempt",
    ]


def _leaves(cls: type[Event]) -> set[type[Event]]:
    below = cls.__subclasses__()
    return {cls} if not below else {leaf for each in below for leaf in _leaves(each)}


def test_runs_of_pages_have_no_line() -> None:
    """Nor have multifd packets, unless all is to be seen."""
    assert lines_of((0, next(row[0] for row in LINES if isinstance(row[0], MultifdPacket)))) == []
    one = np.array([8], dtype=np.uint64)
    pages = RamPages(
        **AT, block="b", page_size=4096, iteration=1, words=one, bodies=one, lengths=one, data=memoryview(b"")
    )
    assert lines_of((0, pages)) == []


def test_columns_are_aligned_and_the_important_ones_fit_80() -> None:
    lines = [line for line in lines_of(*PRECOPY) if " FULL " not in line]
    assert len({line.rindex("  ", 0, 60) for line in lines}) == 1
    assert all(line.index("  ", 50) < 60 for line in lines)


@pytest.mark.parametrize(
    ("direction", "column"),
    [("fwd", "main>"), ("rev", "main<")],
)
def test_direction(direction: Direction, column: str) -> None:
    event = EndOfStream(channel="main", direction=direction, offset=0, size=1)
    assert lines_of((0, event))[0].split()[2] == column


def test_rates_come_from_times_and_counts() -> None:
    counts = PageCounts(normal=100, zero=900, bytes=500_000)
    blocks = RamBlocks(**AT, total=4096, page_size=4096, page_size_from="", blocks=())
    first = DirtySync(**AT, iteration=1, counts=counts)
    second = DirtySync(**AT, iteration=2, counts=PageCounts(normal=10, bytes=41_000, resent=10))
    lines = lines_of((1_000, blocks), (501_000, first), (511_000, second))
    assert lines[1].endswith("normal=100 zero=900 in 0.500000 s, 2000 pages/s, 1.00 MB/s\n")
    assert lines[2].endswith("normal=10 resent=10 in 0.010000 s, 1000 pages/s, 4.10 MB/s\n")


def test_a_dump_without_times_has_no_rates() -> None:
    blocks = RamBlocks(**AT, total=4096, page_size=4096, page_size_from="", blocks=())
    sync = DirtySync(**AT, iteration=1, counts=PageCounts(normal=1, bytes=4104))
    assert lines_of((0, blocks), (0, sync))[1].endswith("pass 1 done: 1 page, normal=1\n")
    assert lines_of((0, device(0, 9, "a")), (0, device(9, 9, "b")))[1].endswith("provisional\n")


def test_time_since_the_device_before() -> None:
    lines = lines_of(
        (10, device(0, 9, "a")),
        (12, device(9, 9, "b")),
        (12, device(18, 9, "c")),
        (2_000_012, device(27, 9, "d")),
    )
    assert [line.split()[6:] for line in lines] == [
        ["provisional"],
        ["provisional", "+0.000002"],
        ["provisional"],
        ["provisional", "+2.000000"],
    ]


TWICE = [event for event in PRECOPY if isinstance(event[1], DeviceSection | DescriptionFound)]


def test_a_device_is_told_once_if_its_description_shows_nothing_else() -> None:
    """Of one that was longer, is not described, or was not seen live, the second line is the news."""
    timer = device(16_600_111, 50, "timer", provisional=False)
    found = [*TWICE, (153_000, timer), (153_000, device(1, 50, "new", provisional=False, described=True))]
    lines = [line.split(maxsplit=6)[3:] for line in lines_of(*found)]
    assert [(kind, name, *info) for kind, name, _, *info in lines] == [
        ("FULL", "timer/0", "provisional\n"),
        ("FULL", "cpu_common/1", "provisional\n"),
        ("FULL", "0000:00:02.0/vga/0", "provisional +0.000500\n"),
        ("desc", "-", "3 devices described, page size 4096\n"),
        ("FULL", "cpu_common/1", "exact, was shown as 300 bytes\n"),
        ("FULL", "0000:00:02.0/vga/0", "exact, 4 bytes not described\n"),
        ("FULL", "timer/0", "exact, not described\n"),
        ("FULL", "new/0", "exact\n"),
    ]


@pytest.mark.parametrize(
    "options", [{"verbose": True}, {"sections": {"timer"}}, {"wanted": lambda *of: True}]
)
def test_whoever_asks_for_devices_sees_both_lines(options: dict[str, Any]) -> None:
    lines = [line for line in lines_of(*TWICE, **options) if " timer/0 " in line]
    assert [line.split("\n")[0].split()[-1] for line in lines] == ["provisional", "exact"]


def test_as_many_devices_as_a_stream_may_claim_are_not_kept() -> None:
    found = [
        device(number * 100, 50, "a", provisional=False, described=True) for number in range(DEVICES_KEPT + 9)
    ]
    live = [replace(event, provisional=True, described=False) for event in found]
    assert len(lines_of(*((0, event) for event in live + found))) == len(live) + 9


def test_migrations_do_not_mix_their_times() -> None:
    written: list[str] = []
    log = TextLog(written.append, prefix=True)
    log.show("a", 10, device(0, 9, "x"))
    log.show("b", 20, device(0, 9, "x"))
    log.show("a", 30, device(9, 9, "y"))
    assert [line.split()[0] for line in written] == ["a", "b", "a"]
    assert [line.split()[7:] for line in written] == [
        ["provisional"],
        ["provisional"],
        ["provisional", "+0.000020"],
    ]


def test_absolute_times_are_utc() -> None:
    start = datetime(2025, 11, 23, 23, 59, 59, 500_000, tzinfo=UTC)
    eof = EndOfStream(**AT)
    (line,) = lines_of((600_007, eof), time_format="ad", start_time=start)
    assert line.split()[0] == "2025-11-24T00:00:00.100007Z"
    assert lines_of((600_007, eof), time_format="ad")[0].split()[0] == "0.600007", "start not known"
    written: list[str] = []
    log = TextLog(written.append, time_format="ad")
    log.begins("m1", start)
    log.show("m1", 0, eof)
    assert written[0].split()[0] == "2025-11-23T23:59:59.500000Z"


@pytest.mark.parametrize(
    ("sections", "shown"),
    [
        ({"timer"}, ["timer/0", "timer/0", "-"]),
        ({"vga"}, ["0000:00:02.0/vga/0", "0000:00:02.0/vga/0", "-"]),
        ({"cpu_common/1"}, ["cpu_common/1", "cpu_common/1", "-"]),
        ({"cpu_common/0"}, ["-"]),
        ({"ram"}, ["ram/0"] * 7 + ["-"]),
    ],
)
def test_only_some_sections_and_always_the_verdict(sections: set[str], shown: list[str]) -> None:
    assert [line.split()[4] for line in lines_of(*PRECOPY, sections=sections)] == shown


def test_what_is_not_shown_still_counts_for_times() -> None:
    lines = lines_of((10, device(0, 9, "a")), (12, device(9, 9, "b")), sections={"b"})
    assert lines[0].endswith("provisional +0.000002\n")


def test_color_only_when_asked() -> None:
    good = Verdict(**AT, ok=True, outcome="completed", message="")
    bad = Verdict(**AT, ok=False, outcome="reset", message="")
    assert "\x1b" not in lines_of((0, good), (0, bad))[0]
    assert lines_of((0, good), color=True)[0].startswith("\x1b[1;32m")
    assert lines_of((0, bad), color=True)[0].startswith("\x1b[1;31m")
    assert lines_of((0, bad), color=True)[0].endswith("\x1b[0m\n")


def test_dropped_records_have_a_line() -> None:
    line = TextLog(lambda text: None).dropped(17)
    assert line.split()[3] == "dropped"
    assert "17 records" in line
    assert line.endswith("\n")


# ---------------------------------------------------------------- the tree


def test_tree_shows_what_else_the_event_holds() -> None:
    (text,) = lines_of((0, ram(5, 6, "PART", PageCounts(normal=2, bytes=9))), verbose=True)
    rows = [line.split(maxsplit=1) for line in text.splitlines()[1:]]
    assert ["section_id:", "2"] in rows
    assert ["version_id:", "4"] in rows
    assert ["footer:", "true"] in rows
    assert ["counts:", "normal=2"] in rows
    assert ["last:", "0x3fff000 (67104768)"] in rows


LEAVES: list[tuple[Field, str]] = [
    (Field("a", "uint32", 8, 4, raw=b"\0\0\1\0", value=256), "a: 256 (0x100)  (uint32)"),
    (Field("a", "int8", 8, 1, raw=b"\xfb", value=-5), "a: -5  (int8)"),
    (Field("a", "uint8", 8, 1, raw=b"\5", value=5), "a: 5  (uint8)"),
    (Field("a", "bool", 8, 1, raw=b"\1", value=True), "a: true  (bool)"),
    (Field("a", "buffer", 8, 8, raw=b"running\0", value="running"), 'a: "running"  (buffer)'),
    (Field("a", "buffer", 8, 8, raw=bytes(8)), "a: 8 bytes, all zero  (buffer)"),
    (
        Field("a", "virtio", 8, 40, raw=bytes(range(40))),
        f"a: {bytes(range(32)).hex()}... (40 bytes)  (virtio)",
    ),
    (Field("a", "unused_buffer", 8, 9, raw=bytes(9)), "a: unused, all zero  (unused_buffer)"),
    (Field("a", "nullptr", 8, 1, raw=b"0"), "a: NULL  (nullptr)"),
    (Field("a", "timer", 8, 8, raw=b"\xff" * 8), "a: not armed  (timer)"),
    (Field("a", "timer", 8, 8, raw=b"\0" * 8, value=1_500_000_000), "a: 1500000000 ns (1.500000 s)  (timer)"),
    (
        Field("a", "timer", 8, 16, array_len=2, raw=b"\xff" * 16, value=(None, 2)),
        "a[2]: not armed, 2 ns (0.000000 s)  (timer)",
    ),
    (
        Field("a", "uint8", 8, 6, array_len=6, raw=b"x", value=(0, 0, 0, 255, 1, 1)),
        "a[6]: 0 x3 0xff 1 x2  (uint8)",
    ),
    (
        Field("a", "uint16", 8, 40, array_len=20, raw=b"x", value=tuple(range(20))),
        "a[20]: 0 1 2 3 4 5 6 7 8 9 0xa 0xb 0xc 0xd 0xe 0xf ... (20 in all)  (uint16)",
    ),
    (Field("css.subchannel", "opaque", 8, 2, raw=b"\1\2"), "css.subchannel: 0102  (opaque)"),
    (Field("a", "uint8", 8, 2, index=3, version=2, raw=b"\1\2"), "a[3]: 0102  (uint8 version 2)"),
    (Field("a", "uint8", 8, 900), "a: 900 bytes, not kept  (uint8)"),
    (Field("a", "uint8", 8, 900, meaning="all zero"), "a: all zero  (uint8)"),
    (Field("a", "uint8", 8, 1, raw=b"\x0f", value=15, meaning="a\x1bb"), "a: 15 (0xf), a\\x1bb  (uint8)"),
    (Field("a", "struct", 8, 1, meaning="type 0"), "a: type 0  (struct)"),
    (Field("a\x1b b", "x\n", 8, 1, raw=b"\1", value="\x1b]0;"), 'a\\x1b\\x20b: "\\x1b]0;"  (x\\x0a)'),
]


@pytest.mark.parametrize(("field", "text"), LEAVES)
def test_field(field: Field, text: str) -> None:
    (line,) = field_lines(field, 0)
    assert line == f"{'8':>10} {field.size:>7}  {text}"


def test_nested_fields_are_indented_below_their_struct() -> None:
    leaf = Field("x", "uint8", 20, 1, raw=b"\1", value=1)
    inner = Field("cpu/sub", "subsection", 18, 3, version=1, children=(leaf,))
    outer = Field("parent_obj", "struct", 10, 11, children=(inner,))
    text = lines_of((0, device(5, 16, "cpu", provisional=False, fields=(outer,))), verbose=True)[0]
    assert [line[31:] for line in text.splitlines()[-3:]] == [
        "parent_obj:  (struct)",
        "  cpu/sub:  (subsection version 1)",
        "    x: 1  (uint8)",
    ]


# ---------------------------------------------------------------- safety


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain text", "plain text"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\r\nb\x00", "a\\x0d\\x0ab\\x00"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\U000e0041\ud800é", "\\U000e0041\\ud800\\xe9"),
    ],
)
def test_escape(text: str, safe: str) -> None:
    assert escape(text) == safe


def test_names_are_one_bounded_word() -> None:
    assert name("a b") == "a\\x20b"
    assert name("") == "''"
    assert len(name("a" * 100_000)) == 255
    assert len(escape("a" * 100_000)) == 2000


@pytest.mark.parametrize("row", LINES)
@pytest.mark.parametrize("verbose", [False, True])
def test_no_text_of_an_event_reaches_the_log_raw(row: tuple[Event, str, str, str], verbose: bool) -> None:
    event = _with_hostile_text(row[0])
    verbose = verbose or isinstance(event, MultifdPacket)
    (text,) = lines_of((0, event), verbose=verbose)
    assert all(" " <= character <= "~" for character in text.replace("\n", ""))
    assert text.count("\n") == (1 if not verbose else len(text.splitlines()))


def _with_hostile_text(value: "HasText") -> "HasText":
    """The same with every string that the wire may choose made hostile."""
    ours = ("section_type", "direction", "severity", "how", "by")
    changed: dict[str, object] = {}
    for field in msgspec.structs.fields(value):
        old = getattr(value, field.name)
        if isinstance(old, str) and field.name not in ours:
            changed[field.name] = HOSTILE
        elif isinstance(old, dict):
            changed[field.name] = {HOSTILE: HOSTILE}
        elif isinstance(old, tuple) and old:
            changed[field.name] = tuple(
                HOSTILE if isinstance(each, str) else _with_hostile_text(each) for each in old
            )
    return msgspec.structs.replace(value, **changed)


def test_hostile_fields_do_not_reach_the_log_raw() -> None:
    leaf = Field(HOSTILE, HOSTILE, 20, 1, raw=b"\1", value=HOSTILE)
    listed = Field(HOSTILE, "uint8", 20, 1, array_len=1, raw=b"\1", value=(HOSTILE,))
    outer = Field(HOSTILE, "struct", 10, 11, children=(leaf, listed))
    text = lines_of((0, device(5, 16, "cpu", provisional=False, fields=(outer,))), verbose=True)[0]
    assert all(" " <= character <= "~" for character in text.replace("\n", ""))


# ---------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (memory(4096), "4 KiB"),
        (memory(67_641_344), "64.5 MiB"),
        (memory(1 << 40), "1 TiB"),
        (wire(999), "999 B"),
        (wire(31_127_840), "31.1 MB"),
        (wire(1_230), "1.23 kB"),
        (wire(500_000), "500.0 kB"),
        (wire(0), "0 B"),
        (rate(None), "-"),
        (rate(2_500_000_000), "2.50 GB/s"),
        (number(None), "-"),
        (number(65_535), "65535"),
        (number(245_310.7), "245.3k"),
        (number(5_524_439), "5.52M"),
        (seconds(None), "-"),
        (seconds(999), "999 us"),
        (seconds(68_249), "68.2 ms"),
        (seconds(12_345_678), "12.35 s"),
        (seconds(7_384_000_000), "2:03:04"),
    ],
)
def test_quantity(shown: str, text: str) -> None:
    assert shown == text
