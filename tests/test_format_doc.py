"""docs/format.md: its bytes decode as it says, its tables have the decoder's numbers and names."""

import json
import re
import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest
import zstandard

from migsniff.core import wire
from migsniff.core.contents import apply_delta
from migsniff.core.description import LISTS
from migsniff.core.events import (
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    Event,
    LiveSection,
    MultifdHello,
    MultifdPacket,
    Package,
    RamSection,
    ReturnPathMessage,
    Undecodable,
)
from migsniff.core.livesections import LIVE_SECTIONS
from migsniff.core.messages import COMMANDS, RETURN_PATH, Message
from migsniff.core.multifdmethods import METHODS
from migsniff.core.pageencodings import PAGE_ENCODINGS
from migsniff.core.registry import Registry, field_type
from migsniff.core.wire import ItemType, MultifdFlag
from tests.playing import Stream, of, play, precopy, verdict
from tests.streams import (
    EOF,
    EOS,
    HEADER,
    block_list,
    configuration,
    description,
    ram_part,
    ram_start,
    section,
)

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "captures/samples"
TEXT = (ROOT / "docs/format.md").read_text()
LINE = re.compile(
    r"(?:(?P<at>[0-9a-f]{4,6})  )?"
    r"(?:\| (?P<text>.*)|(?P<byte>[0-9a-f]{2}) \* (?P<times>\d+)|(?P<hex>[0-9a-f]{2}(?: [0-9a-f]{2})*))"
    r"(?: {2,}(?P<says>.*))?"
)
BLOCKS = {
    f"{kind} {name}": body.splitlines()
    for kind, name, body in re.findall(r"^```(\S+) (\S+)\n(.*?)^```$", TEXT, re.M | re.S)
}
MEMORY = {b"pc.ram": 64 << 20}


def lines(block: str) -> Iterator[tuple[int | None, bytes, str]]:
    """(offset as written, bytes, remark) of each line."""
    for line in BLOCKS[block]:
        found = LINE.fullmatch(line)
        assert found, line
        if found["text"] is not None:
            data = found["text"].encode()
        elif found["byte"]:
            data = bytes.fromhex(found["byte"]) * int(found["times"])
        else:
            data = bytes.fromhex(found["hex"])
        yield (int(found["at"], 16) if found["at"] else None), data, found["says"] or ""


def bytes_of(block: str) -> bytes:
    return b"".join(data for _, data, _ in lines(block))


def table(marker: str) -> list[list[str]]:
    """The cells of the table behind a comment."""
    body = TEXT.split(f"<!-- {marker} -->\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in body.splitlines()]
    return rows[2:]


def decodes(stream: Stream) -> list[Event]:
    events = play(stream, fields=True)
    assert not of(events, Undecodable)
    return events


class TestTables:
    @pytest.mark.parametrize(
        "numbers",
        [
            wire.ItemType,
            wire.RamFlag,
            wire.BlockFlag,
            wire.DirtyBitmapFlag,
            wire.CmmaFlag,
            wire.VfioTag,
            wire.MultifdFlag,
            wire.ColoMessageType,
        ],
    )
    def test_numbers(self, numbers: type[IntEnum] | type[IntFlag]) -> None:
        rows = table(f"enum {numbers.__name__}")
        assert {row[1]: int(row[0], 16) for row in rows} == {
            name: int(member) for name, member in numbers.__members__.items()
        }

    @pytest.mark.parametrize(("marker", "registered"), [("commands", COMMANDS), ("return path", RETURN_PATH)])
    def test_messages(self, marker: str, registered: Registry[int, Message]) -> None:
        rows = {int(row[0]): row for row in table(marker)}
        assert list(rows) == sorted(registered)
        for number, (_, name, length, *_) in rows.items():
            entry = registered.get(number)
            assert entry is not None
            assert name == entry.name
            if entry.least == entry.most:
                assert length == str(entry.least)
            else:
                assert length in (f"{entry.least} or {entry.most}", f"{entry.least} or more")

    def test_methods(self) -> None:
        assert {int(row[0], 16): row[1] for row in table("methods")} == {
            number: entry.name for number in METHODS if (entry := METHODS.get(number))
        }

    def test_page_encodings(self) -> None:
        rows = {int(row[0], 16): (row[1], int(row[2].split()[0])) for row in table("encodings")}
        found = {flag: PAGE_ENCODINGS.get(flag) for flag in PAGE_ENCODINGS}
        assert rows == {flag: (entry.kind, entry.header) for flag, entry in found.items() if entry}

    def test_live_sections(self) -> None:
        named = " ".join(row[0] for row in table("live sections"))
        assert [name for name in LIVE_SECTIONS if f"{name}`" not in named] == []

    def test_field_types(self) -> None:
        named = set(re.findall(r"`([^`]+)`", " ".join(row[0] for row in table("field types"))))
        assert {*field_type, *LISTS} - named == set()

    @pytest.mark.parametrize(
        ("marker", "size"),
        [
            ("header 8", 8),
            ("MULTIFD_HELLO", wire.MULTIFD_HELLO.size),
            ("MULTIFD_PACKET", wire.MULTIFD_PACKET.size),
            ("MULTIFD_DEVICE_STATE", wire.MULTIFD_DEVICE_STATE.size),
            ("MAPPED_RAM_HEADER", wire.MAPPED_RAM_HEADER.size),
        ],
    )
    def test_layouts(self, marker: str, size: int) -> None:
        at = 0
        for offset, length, *_ in table(f"layout {marker}"):
            assert int(offset) == at
            at += int(length)
        assert at == size

    def test_magic_numbers(self) -> None:
        named = " ".join(row[0] for row in table("magics"))
        for number in (
            struct.pack(">I", wire.FILE_MAGIC),
            struct.pack(">I", wire.MULTIFD_MAGIC),
            struct.pack(">Q", wire.RECV_BITMAP_END),
            bytes((wire.TLS_HANDSHAKE, wire.TLS_MAJOR)),
            bytes((ItemType.SECTION_FOOTER,)),
            struct.pack(">Q", wire.VfioTag.END_OF_STATE)[:6],
        ):
            assert f"`{number.hex(' ')}`" in named

    def test_sizes_of_multifd_headers(self) -> None:
        sizes = {
            kib: wire.MULTIFD_PACKET.size + 8 * (wire.MULTIFD_PACKET_BYTES // (kib << 10))
            for kib in (1, 4, 8, 64)
        }
        assert sizes == {1: 4416, 4: 1344, 8: 832, 64: 384}
        for size in sizes.values():
            assert str(size) in TEXT


class TestStructure:
    def test_contents(self) -> None:
        """Links lead somewhere, and every section is in the list."""
        headings = re.findall(r"^#{2,3} (.*)$", TEXT, re.M)
        anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
        links = re.findall(r"\]\(#([^)]*)\)", TEXT)
        assert [link for link in links if link not in anchors] == []
        listed = re.findall(r"^\d+\. \[.*\]\(#(.*)\)$", TEXT, re.M)
        assert listed == [
            re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
            for heading in re.findall(r"^## (\d+\. .*)$", TEXT, re.M)
        ]

    def test_recordings(self) -> None:
        """A tag names recordings of section 23 and versions that they were made with, or has a star."""
        rows = re.findall(r"^\| ([a-z-]+) \| ([\d. ]+) \|", TEXT.split("## 23. Evidence")[1], re.M)
        recorded = {(name, version) for name, versions in rows for version in versions.split()}
        cited = set()
        for tag in re.findall(r"\[seen (.*?)\]", TEXT.split("## 2. ")[1], re.S):
            for part in tag.replace("\n", " ").split("; "):
                found = re.fullmatch(r"((?:\d+\.\d+ ?)+): ([\w*-]+(?:, [\w*-]+)*)", part)
                assert found, tag
                cited |= {(name, version) for version in found[1].split() for name in found[2].split(", ")}
        assert {(name, version) for name, version in cited if not name.endswith("*")} - recorded == set()
        starred = {
            name.replace("\\", "") for name in re.findall(r"[\w-]+\\\*", TEXT.split("## 23. Evidence")[1])
        }
        assert {name for name, _ in cited if name.endswith("*")} == starred

    def test_samples(self) -> None:
        named = re.findall(
            r"`((?:x86|aarch64|ppc64|riscv64|s390x)-\d[\w.-]*)`", TEXT.split("## 23. Evidence")[1]
        )
        assert len(named) > 30
        assert [name for name in named if not (SAMPLES / name / "manifest.json").exists()] == []

    def test_files(self) -> None:
        root = ROOT / "migsniff/core"
        for name in re.findall(r"`(\w+\.py)`", TEXT.split("## 25.")[1]):
            assert (root / name).exists(), name

    def test_every_byte_block_is_tested(self) -> None:
        assert set(BLOCKS) == {
            "stream tiny",
            "reverse tiny-rev",
            "items configuration",
            "record xbzrle",
            "delta by-hand",
            "excerpt switch",
            "excerpt package",
            "excerpt run",
            "excerpt-reverse answers",
            "multifd multifd",
            "heads multifd-7.2",
            "inflate zlib",
            "inflate zstd",
            "excerpt-section bitmap",
            "excerpt-mapped mapped-ram",
            "device pckbd",
            "json pckbd",
        }

    @pytest.mark.parametrize(
        ("block", "begin"),
        [("stream tiny", 0), ("reverse tiny-rev", 0), ("items configuration", 8), ("multifd multifd", 0)],
    )
    def test_offsets(self, block: str, begin: int) -> None:
        for at, data, _ in lines(block):
            assert at == begin, f"{block}: {begin:#x} is missing"
            begin += len(data)


class TestWholeStream:
    def played(self) -> list[Event]:
        return decodes(
            Stream(((0, "fwd", bytes_of("stream tiny")), (0, "rev", bytes_of("reverse tiny-rev"))))
        )

    def test_it_is_complete(self) -> None:
        events = self.played()
        assert len(bytes_of("stream tiny")) == 5268
        assert (verdict(events).ok, verdict(events).outcome) == (True, "completed")

    def test_events_stand_at_lines(self) -> None:
        """What the decoder finds begins where the document begins a line, and is named there."""
        events = self.played()
        remarks = {at: says for at, _, says in lines("stream tiny")}
        for event in events:
            if event.direction == "fwd" and event.size:
                assert event.offset in remarks, event
        for command in of(events, CommandSent):
            assert remarks[command.offset] == "COMMAND"
            assert command.name in remarks[command.offset + 1]
        for ram in of(events, RamSection):
            assert remarks[ram.offset] == f"SECTION_{ram.section_type}"
        answers = {at: says for at, _, says in lines("reverse tiny-rev")}
        assert [(m.name, answers[m.offset]) for m in of(events, ReturnPathMessage)] == [
            ("PONG", "PONG"),
            ("SHUT", "SHUT"),
        ]

    def test_fields_stand_at_lines(self) -> None:
        events = self.played()
        remarks = {at: says for at, _, says in lines("stream tiny")}
        devices = [device for device in of(events, DeviceSection) if device.described]
        assert [device.idstr for device in devices] == ["timer", "globalstate"]
        for device in devices:
            for field in device.fields:
                assert remarks[field.offset].startswith(f"field {field.name}"), field

    def test_pages(self) -> None:
        ram = of(self.played(), RamSection)
        assert [(r.section_type, r.counts.normal, r.counts.zero) for r in ram] == [
            ("START", 0, 0),
            ("PART", 1, 3),
            ("END", 0, 0),
        ]
        (description,) = of(self.played(), DescriptionFound)
        assert description.page_size == 4096


class TestExcerpts:
    def test_configuration(self) -> None:
        events = decodes(precopy(HEADER, bytes_of("items configuration")))
        (found,) = of(events, Configuration)
        assert found.machine == "none"
        assert found.capabilities == ("x-ignore-shared",)
        assert found.uuid == "01234567-89ab-cdef-0123-456789abcdef"
        (ram,) = of(events, RamSection)
        assert ram.section_type == "START"

    def test_xbzrle_records(self) -> None:
        first = struct.pack(">Q", wire.RamFlag.ZERO) + b"\6pc.ram\0"
        records = bytes_of("record xbzrle")
        events = decodes(precopy(HEADER, configuration(), ram_start(MEMORY), ram_part(first, records)))
        assert of(events, RamSection)[-1].counts.xbzrle == 2
        page = bytearray(b"\xf3" * 4096)
        apply_delta(page, records, 11, 14)
        assert page == b"\x3a" + b"\xf3" * 4095

    def test_delta_by_hand(self) -> None:
        page, delta = bytearray(4096), bytes_of("delta by-hand")
        apply_delta(page, delta, 0, len(delta))
        expected = bytearray(4096)
        expected[7:10], expected[300:302] = b"abc", b"de"
        assert page == expected

    def test_switch_to_postcopy(self) -> None:
        """The excerpts leave out ten ranges of the discard, and the devices in the package."""
        switch = bytes_of("excerpt switch")
        switch += bytes(201 - (len(switch) - switch.index(b"\x08\0\6") - 5))
        package, run = bytes_of("excerpt package"), bytes_of("excerpt run")
        within = package[-5:] + run[:-9]
        assert struct.unpack_from(">I", package, 14) == (13499,)
        package = package[:14] + struct.pack(">I", len(within)) + within + run[-9:]
        head = (
            HEADER
            + configuration()
            + section(ItemType.SECTION_START, 1, block_list(MEMORY) + EOS, b"ram", version=4)
        )
        events = decodes(precopy(head, switch, package))
        assert [(c.name, c.arguments.get("value")) for c in of(events, CommandSent)] == [
            ("SWITCHOVER_START", None),
            ("POSTCOPY_RAM_DISCARD", None),
            ("PING", 2),
            ("PACKAGED", None),
            ("POSTCOPY_LISTEN", None),
            ("PING", 3),
            ("PING", 0x42),
            ("POSTCOPY_RUN", None),
            ("PING", 4),
        ]
        assert len(of(events, Package)) == 1
        ranges = of(events, CommandSent)[1].arguments["ranges"]
        assert isinstance(ranges, tuple)
        assert ranges[:2] == ((0x100000, 0x1000), (0x102000, 0x1000))

    def test_answers(self) -> None:
        stream = Stream(
            ((0, "fwd", HEADER + configuration()), (0, "rev", bytes_of("excerpt-reverse answers")))
        )
        found = of(decodes(stream), ReturnPathMessage)
        remarks = [says for _, _, says in lines("excerpt-reverse answers")]
        assert len(found) == len(remarks)
        for message, says in zip(found, remarks, strict=True):
            assert says.startswith(message.name)
            if message.name.startswith("REQ_PAGES"):
                assert says.startswith(f"{message.name} {message.arguments['start']:#x}")

    def test_multifd(self) -> None:
        stream = Stream(((0, "fwd", bytes_of("stream tiny")), (1, "fwd", bytes_of("multifd multifd"))))
        events = decodes(stream)
        assert [hello.channel_id for hello in of(events, MultifdHello)] == [0]
        packets = [(p.packet_num, p.flags, p.normal, p.zero, p.data_size) for p in of(events, MultifdPacket)]
        sync = int(MultifdFlag.SYNC)
        assert packets == [(1, sync, 0, 0, 0), (3, 0, 1, 3, 4096), (4, sync, 0, 0, 0), (6, sync, 0, 0, 0)]
        starts = {at for at, _, _ in lines("multifd multifd")}
        assert {p.offset for p in of(events, MultifdPacket)} <= starts

    def test_heads_of_packets(self) -> None:
        found = [head[2:] for head in struct.iter_unpack(">IIIIIIQ", bytes_of("heads multifd-7.2"))]
        assert found == [(1, 128, 1, 4096, 3), (0, 128, 0, 4096, 3), (1, 128, 0, 4096, 5)]

    @pytest.mark.parametrize("method", ["zlib", "zstd"])
    def test_compressed_data(self, method: str) -> None:
        data = bytes_of(f"inflate {method}")
        inflater = zlib.decompressobj() if method == "zlib" else zstandard.ZstdDecompressor().decompressobj()
        assert inflater.decompress(data) == b"hello, destination".ljust(4096, b"\0")

    def test_dirty_bitmap(self) -> None:
        (found,) = of(
            decodes(precopy(HEADER, configuration(), bytes_of("excerpt-section bitmap"))), LiveSection
        )
        assert (found.idstr, found.section_type, found.provisional) == ("dirty-bitmap", "START", False)

    def test_device(self) -> None:
        """The fields that the description finds are the lines of the block, in their order."""
        devices = {"devices": [json.loads("".join(BLOCKS["json pckbd"]))]}
        told = description(json.dumps(devices).encode())
        events = decodes(precopy(HEADER, configuration(), bytes_of("device pckbd"), EOF, told))
        (device,) = (device for device in of(events, DeviceSection) if device.described)
        assert (device.section_id, device.idstr, device.version_id) == (28, "pckbd", 3)
        (kbd,) = device.fields
        *fields, extended = kbd.children
        assert (kbd.size, extended.name, extended.version) == (40, "pckbd/extended_state", 0)
        written = [
            (name, data)
            for _, data, says in lines("device pckbd")
            for name, _, kind in [says.partition(", ")]
            if kind in ("uint8", "uint32")
        ]
        assert [(field.name, field.raw) for field in (*fields, *extended.children)] == written

    def test_mapped_ram(self) -> None:
        block = bytes_of("excerpt-mapped mapped-ram")
        assert wire.MAPPED_RAM_HEADER.unpack_from(block, 12) == (1, 4096, 0x81, 0x100000)
        payload = struct.pack(">Q", 0x4000 | wire.RamFlag.MEM_SIZE) + block
        name = b"\1\0\0\0\1\3ram\0\0\0\0\0\0\0\4"
        announced = configuration(b"none", b"\5\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0amapped-ram")
        head = HEADER + announced + name + payload
        stream = (
            head.ljust(0x100000, b"\0") + bytes(0x4000) + EOS + section(ItemType.SECTION_START, 1, b"")[-5:]
        )
        assert head.index(b"\1", len(head) - 8) == 0x81
        (ram,) = of(decodes(precopy(stream)), RamSection)
        assert (ram.counts.normal, ram.counts.zero) == (1, 3)
