"""The main channel: header, configuration, sections in their order, EOF, description, where everything is."""

import struct

import pytest

from migsniff.core import wire
from migsniff.core.events import (
    ChannelFound,
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    Opaque,
    Package,
    PageFault,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Undecodable,
    Verdict,
)
from migsniff.core.layout import Layout
from migsniff.core.wire import Command, ItemType
from tests import catalogue, rawsamples, streams
from tests.catalogue import LIVE_SECTIONS, SMALL, SMALL_BLOCKS, SMALL_HEAD, STREAMS, page
from tests.playing import Stream, by_direction, of, play, precopy, verdict
from tests.streams import (
    EOF,
    HEADER,
    capabilities,
    command,
    configuration,
    description,
    full,
    package,
    page_bits,
    ping,
    ram_end,
    ram_part,
    ram_start,
    section,
    subsection,
    uuid,
    zero,
)


class TestBeginning:
    def test_header(self) -> None:
        (header,) = of(play(precopy(HEADER, EOF)), Header)
        assert (header.offset, header.size, header.version) == (0, 8, 3)

    @pytest.mark.parametrize("version", [0, 2, 4, 0x03000000])
    def test_versions(self, version: int) -> None:
        events = play(precopy(b"QEVM" + struct.pack(">I", version), EOF))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.where) == ("version", "the header")
        assert problem.message == f"migration stream version {version}: only version 3 is known"

    def test_no_configuration(self) -> None:
        events = play(precopy(HEADER, streams.TIMER.item(), EOF))
        assert not of(events, Configuration)
        assert verdict(events).ok

    def test_configuration(self) -> None:
        item = configuration(
            b"pc-q35-7.2",
            page_bits(12),
            capabilities(b"x-ignore-shared", b"mapped-ram"),
            uuid(bytes.fromhex("00112233445566778899aabbccddeeff")),
        )
        (found,) = of(play(precopy(HEADER, item, EOF)), Configuration)
        assert found == Configuration(
            channel="main",
            direction="fwd",
            offset=8,
            size=len(item),
            machine="pc-q35-7.2",
            page_bits=12,
            capabilities=("x-ignore-shared", "mapped-ram"),
            uuid="00112233-4455-6677-8899-aabbccddeeff",
        )

    def test_a_stream_that_ends_behind_the_machine_type(self) -> None:
        events = play(precopy(HEADER, configuration(b"pc-q35-7.2")))
        assert of(events, Configuration)[0].machine == "pc-q35-7.2"
        assert not verdict(events).ok

    @pytest.mark.parametrize(
        ("item", "code"),
        [
            (configuration(b""), "string-empty"),
            (configuration(b"pc\n"), "string-text"),
            (configuration(b"pc\x1b[2J"), "string-text"),
            (configuration(b"m" * 256), "length"),
            (configuration(b"pc", subsection(b"configuration/new", b"")), "subsection"),
            (configuration(b"pc", page_bits(12), page_bits(12)), "subsection-again"),
            (configuration(b"pc", *[uuid(bytes(16))] * 3), "subsection-again"),
            (configuration(b"pc", *[capabilities(b"x")] * 2, page_bits(12)), "subsection-again"),
            (configuration(b"pc", subsection(b"something/else", b"")), "string-text"),
            (configuration(b"pc", subsection(b"", b"")), "string-text"),
            (configuration(b"pc", capabilities(*[b"x"] * 65)), "count"),
            (configuration(b"pc", capabilities(b"")), "string-empty"),
            (configuration(b"pc", capabilities(b"a\0")), "string-text"),
        ],
    )
    def test_wrong(self, item: bytes, code: str) -> None:
        events = play(precopy(HEADER, item, bytes(300)))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.where) == (code, "the configuration")
        assert problem.message.isprintable()


HEAD = SMALL_HEAD + ram_start(SMALL_BLOCKS)


@pytest.mark.parametrize(
    ("layout", "record"),
    [
        (wire.ANNOUNCED, full(1, b"", b"", footer=False)),
        (wire.CONTINUED, section(ItemType.SECTION_PART, 1, b"", b"", footer=False)),
        (wire.COMMAND_HEADER, command(Command.POSTCOPY_LISTEN)),
        (wire.VMDESCRIPTION, description(b"")),
        (wire.FOOTER, section(ItemType.SECTION_PART, 1, b"")[5:]),
        (wire.SUBSECTION, subsection(b"", b"")),
        (wire.CONFIGURATION, configuration(b"")[:5]),
    ],
)
def test_layouts_have_the_size_of_records_that_hold_nothing(layout: Layout, record: bytes) -> None:
    assert layout.least == len(record)


class TestItems:
    @pytest.mark.parametrize("kind", [5, 6, 7, 9, 0x7D, 0x7E, 0x7F, 0xFF])
    def test_no_such_item(self, kind: int) -> None:
        events = play(precopy(HEAD, bytes([kind]), bytes(20)))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.offset, problem.where) == ("item-type", len(HEAD), "between sections")
        assert problem.message == f"unknown section type {kind:#04x}"

    def test_no_ram_at_all(self) -> None:
        assert verdict(play(precopy(SMALL_HEAD, EOF))).ok

    def test_a_section_that_begins_again(self) -> None:
        """The same handler may: block migration, COLO, the START of vfio and its FULL."""
        vfio = section(
            catalogue.START, 24, struct.pack(">QQ", *[0xFFFFFFFFEF100003, 0xFFFFFFFFEF100001]), b"a/vfio"
        )
        events = play(precopy(HEAD, vfio, vfio, full(24, b"a/vfio", b"config"), EOF))
        assert verdict(events).ok
        assert [type(event) for event in events if isinstance(event, LiveSection | DeviceSection)] == [
            LiveSection,
            LiveSection,
            DeviceSection,
        ]

    def test_an_id_of_another_section(self) -> None:
        events = play(precopy(HEAD, full(2, b"timer", b""), EOF))
        (problem,) = of(events, Undecodable)
        assert problem.message == "section 2 begins again as 'timer': it is 'ram' already"

    def test_sections_of_many_bytes_of_name(self) -> None:
        name = b"/".join([b"0000:00:1f.7"] * 19)[:255]
        events = play(precopy(HEAD, full(7, name, b"state", instance=0x80000000, version=0xFFFF), EOF))
        (device,) = of(events, DeviceSection)
        assert (device.idstr, device.instance_id, device.version_id) == (name.decode(), 1 << 31, 0xFFFF)

    @pytest.mark.parametrize(
        ("footer", "code"),
        [
            (b"\x7e\0\0\0\3", "footer"),
            (b"\x7d\0\0\0\2", "footer"),
            (b"", "footer"),
            (b"\x7e\0\0\0", "footer"),
        ],
    )
    def test_footers(self, footer: bytes, code: str) -> None:
        """Once there was one, each section has one."""
        part = ram_part(zero(0, b"ram"), footer=False)
        events = play(precopy(HEAD, part, footer, ram_end(), EOF))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.offset) == (code, len(HEAD + part))

    def test_no_footers_and_then_one(self) -> None:
        head = SMALL_HEAD + ram_start(SMALL_BLOCKS, footer=False)
        events = play(precopy(head, ram_part(zero(0, b"ram")), EOF))
        (problem,) = of(events, Undecodable)
        assert problem.message == "unknown section type 0x7e"


class TestPackage:
    def test_empty(self) -> None:
        events = play(precopy(HEAD, package(), ping(1), EOF))
        assert of(events, Package)[0].length == 0
        assert verdict(events).ok

    def test_what_it_holds(self) -> None:
        items = [
            command(Command.POSTCOPY_LISTEN),
            full(7, b"timer", b"t"),
            ping(3),
            command(Command.POSTCOPY_RUN),
        ]
        before = len(HEAD + command(Command.PACKAGED, bytes(4)))
        events = play(precopy(HEAD, package(*items), ram_end(zero(0, b"ram")), EOF))
        (begin,) = of(events, Package)
        assert (begin.offset, begin.size, begin.length) == (before, 0, sum(map(len, items)))
        inside = [event for event in events if before <= event.offset < before + begin.length and event.size]
        assert [(event.offset, event.size) for event in inside] == [
            (before + sum(map(len, items[:i])), len(item)) for i, item in enumerate(items)
        ]

    @pytest.mark.parametrize("length", [-1, 1, 4])
    def test_a_length_that_does_not_fit(self, length: int) -> None:
        items = ping(1) + ping(2)
        data = command(Command.PACKAGED, struct.pack(">I", len(items) + length)) + items
        events = play(precopy(HEAD, data, ping(3), EOF))
        assert [event.code for event in of(events, Undecodable)] == ["package-end"]

    @pytest.mark.parametrize("step", [1, 1 << 20])
    def test_what_is_behind_its_last_command_is_not_read(self, step: int) -> None:
        """As the destination does it, which has the package in a buffer."""
        items = command(Command.POSTCOPY_LISTEN) + command(Command.POSTCOPY_RUN)
        data = command(Command.PACKAGED, struct.pack(">I", len(items) + 9)) + items
        stream = precopy(HEAD, data, b"whatever\x04", ram_end(zero(0, b"ram")), EOF)
        events = play(stream, lambda whole: [whole[at : at + step] for at in range(0, len(whole), step)])
        (finding,) = of(events, Finding)
        assert (finding.code, finding.offset) == ("package-long", len(HEAD + data))
        assert "9 bytes behind POSTCOPY_RUN" in finding.message
        assert verdict(events).outcome == "completed"

    def test_an_eof_in_it(self) -> None:
        (problem,) = of(play(precopy(HEAD, package(ping(1), EOF, ping(2)), EOF)), Undecodable)
        assert (problem.code, problem.where) == ("package-eof", "the package, between sections")

    def test_a_device_that_does_not_end_in_it(self) -> None:
        cut = full(7, b"timer", b"t" * 50)
        data = command(Command.PACKAGED, struct.pack(">I", 40)) + cut
        (problem,) = of(play(precopy(HEAD, data, ping(3), EOF)), Undecodable)
        assert problem.code == "package-end"
        assert problem.where == "the package, section timer instance 0 (FULL)"


class TestDiscard:
    def test_pages(self) -> None:
        sent = catalogue.POSTCOPY_HEAD
        events = play(precopy(sent))
        (found,) = (event for event in of(events, CommandSent) if event.name == "POSTCOPY_RAM_DISCARD")
        assert found.arguments == {
            "block": "ram",
            "ranges": ((0, SMALL), (3 * SMALL, 2 * SMALL)),
            "pages": 3,
        }

    @pytest.mark.parametrize(
        ("block", "span", "why"),
        [
            (b"acme", (0, SMALL), "there is no such block"),
            (b"ram", (15 * SMALL, 2 * SMALL), "the block is 0x1000 bytes long"),
            (b"ram", ((1 << 64) - SMALL, SMALL), "the block is 0x1000 bytes long"),
            (b"ram", (1, SMALL), "not whole pages of 256 bytes"),
            (b"ram", (0, 1), "not whole pages of 256 bytes"),
        ],
    )
    def test_that_cannot_be(self, block: bytes, span: tuple[int, int], why: str) -> None:
        (finding,) = of(play(precopy(HEAD, streams.discard(block, (0, SMALL), span), EOF)), Finding)
        assert finding.code == "discard"
        assert finding.message.endswith(why)


class TestEnd:
    @pytest.mark.parametrize("behind", [b"", b"\0", b"\x05more", b"\x06"[:0]])
    def test_without_a_description(self, behind: bytes) -> None:
        events = play(precopy(HEAD, ram_end(), EOF, behind))
        (end,) = of(events, EndOfStream)
        assert (end.offset, end.size) == (len(HEAD + ram_end()), 1)
        assert verdict(events).ok
        assert sum(event.size for event in of(events, Opaque)) == len(behind)

    def test_with_a_description(self) -> None:
        text = b'{"page_size": 256, "devices": []}'
        at = len(HEAD + ram_end() + EOF)
        events = play(precopy(HEAD, ram_end(), EOF, description(text), b"behind"))
        (found,) = of(events, DescriptionFound)
        assert (found.offset, found.size, found.page_size, found.devices) == (at, 5 + len(text), 256, 0)
        assert found.text == text
        (opaque,) = of(events, Opaque)
        assert (opaque.offset, opaque.size) == (at + 5 + len(text), 6)

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            (b"", "description-json"),
            (b"{", "description-json"),
            (b"[]", "description-shape"),
            (b"{}", "description-shape"),
        ],
    )
    def test_a_wrong_description(self, text: bytes, code: str) -> None:
        events = play(precopy(HEAD, ram_end(), EOF, description(text)))
        (problem,) = of(events, Undecodable)
        assert (problem.code, problem.where) == (code, "the description")
        assert (problem.offset, problem.size) == (len(HEAD + ram_end() + EOF), 5 + len(text))

    def test_another_page_size(self) -> None:
        events = play(STREAMS["another page size in the description"])
        (finding,) = of(events, Finding)
        assert finding.message == "the description says page size 4096, the stream was read with 256"


WHERE: dict[str, tuple[bytes, int, str]] = {
    # what comes behind the start of ram, how much of it, and where that ends
    "nothing": (b"", 0, "between sections"),
    "the type of an item": (
        full(7, b"timer", b"1234567"),
        1,
        "the header of a FULL section, 1 bytes into it",
    ),
    "a header": (full(7, b"timer", b"1234567"), 9, "the header of a FULL section, 9 bytes into it"),
    "a device": (full(7, b"timer", b"1234567"), 22, "section timer instance 0 (FULL), 22 bytes into it"),
    "a footer of a device": (
        full(7, b"timer", b"1234567"),
        29,
        "section timer instance 0 (FULL), 29 bytes into it",
    ),
    "a part": (ram_part(zero(0, b"ram")), 5, "section ram instance 0 (PART)"),
    "a record's word": (ram_part(zero(0, b"ram")), 8, "section ram instance 0 (PART), 3 bytes into it"),
    "a record's name": (ram_part(zero(0, b"ram")), 15, "section ram instance 0 (PART), 10 bytes into it"),
    "between records": (ram_part(zero(0, b"ram"), zero(SMALL)), 18, "section ram instance 0 (PART)"),
    "the next record": (
        ram_part(zero(0, b"ram"), zero(SMALL)),
        20,
        "section ram instance 0 (PART), 2 bytes into it",
    ),
    "a page": (
        ram_part(page(0, b"ram"), page(5 * SMALL)),
        5 + 12 + SMALL + 8 + 99,
        "section ram instance 0 (PART), page 0x500 of ram, 107 bytes into it",
    ),
    "behind many records": (
        ram_part(zero(0, b"ram"), *[zero(i % 16 * SMALL) for i in range(3000)], page(0)),
        5 + 13 + 9 * 3000 + 3,
        "section ram instance 0 (PART), 3 bytes into it",
    ),
    "a header of ram": (ram_part(), 3, "the header of a PART section, 3 bytes into it"),
    "before a footer of ram": (ram_part(), 5 + 8, "section ram instance 0 (PART)"),
    "a footer of ram": (
        ram_part(),
        5 + 8 + 4,
        "the footer of section ram instance 0 (PART), 4 bytes into it",
    ),
    "a command": (ping(1), 3, "a command, 3 bytes into it"),
    "a command's payload": (ping(1), 8, "command PING, 8 bytes into it"),
    "a live section's footer": (
        LIVE_SECTIONS[0],
        30,
        "the footer of section spapr/htab instance 0 (START), 2 bytes into it",
    ),
    "a package": (package(ping(1), ping(2)), 9 + 9 + 4, "the package, a command, 4 bytes into it"),
    "the description": (ram_end() + EOF + description(b"{}"), 18 + 1 + 6, "the description, 6 bytes into it"),
}


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize("name", WHERE)
def test_where_a_stream_ends(name: str, step: int) -> None:
    items, length, where = WHERE[name]
    data = HEAD + items[:length]
    events = play(precopy(data), lambda data: [data[at : at + step] for at in range(0, len(data), step)])
    (end,) = (event for event in of(events, DirectionEnded) if event.direction == "fwd")
    assert end.where == where
    assert end.offset == len(data)
    assert where in verdict(events).message


# ---------------------------------------------------------------- every byte belongs to one event

COVERING = (
    ColoMessage,
    Header,
    Configuration,
    RamSection,
    LoosePages,
    LiveSection,
    DeviceSection,
    CommandSent,
    ReturnPathMessage,
    EndOfStream,
    DescriptionFound,
    MultifdHello,
    MultifdPacket,
    Opaque,
    TlsEnded,
    Undecodable,
)
WITHIN = (
    ChannelFound,
    RamBlocks,
    DirtySync,
    MultifdSync,
    Package,
    PageFault,
    DirectionEnded,
    TlsMessage,
    TlsRecords,
    Verdict,
)
"""These say something of bytes that others cover, or of none."""


def spans(events: list[Event], *, exact: bool) -> list[tuple[int, int]]:
    """(offset, end) of the events that cover bytes; devices as they were found, or as they were described."""
    described = {event.offset for event in of(events, DeviceSection) if not event.provisional}
    found = []
    for event in events:
        if isinstance(event, DeviceSection):
            if event.provisional == (exact and event.offset in described):
                continue
        elif isinstance(event, Finding):
            if event.code != "command":  # an unknown one, which has no other event
                continue
        elif isinstance(event, WITHIN):
            continue
        else:
            assert isinstance(event, COVERING)
        found.append((event.offset, event.offset + event.size))
    return sorted(found)


WHOLE = {name: stream for name, stream in STREAMS.items() if stream.outcome in ("completed", "opaque")}
# the first main channel of "resumed" breaks off
WHOLE = {
    name: stream
    for name, stream in WHOLE.items()
    if name not in ("resumed", "a live section that does not fit")
}


def tiled(stream: Stream) -> None:
    events = play(stream)
    ends = {(end.channel, end.direction): end.offset for end in of(events, DirectionEnded)}
    for key, told in by_direction(events).items():
        for exact in (False, True):
            at = 0
            for start, stop in spans(told, exact=exact):
                assert start == at, f"{key}: {start} after {at}"
                at = stop
            assert at == ends.get(key, 0)


@pytest.mark.parametrize("name", WHOLE)
def test_events_cover_every_byte_once(name: str) -> None:
    tiled(WHOLE[name])


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
@pytest.mark.parametrize(
    "name", [name for name in rawsamples.NAMES if not name.endswith(("cancelled", "recovered"))]
)
def test_events_cover_every_byte_of_real_streams_once(name: str) -> None:
    tiled(rawsamples.raw(name))
