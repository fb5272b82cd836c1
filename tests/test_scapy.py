"""scapy's layers: taken apart and put together, built, made wrong; and that nobody else pays for them."""

import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scapy")

from scapy.packet import NoPayload, Packet

from migsniff import scapy as layers
from migsniff.core import oldstyle
from migsniff.core.events import (
    DeviceSection,
    MultifdPacket,
    RamSection,
    ReturnPathMessage,
    Undecodable,
)
from migsniff.core.livesections import LIVE_SECTIONS
from migsniff.core.messages import COMMANDS, RETURN_PATH
from migsniff.core.session import Session
from migsniff.core.tls import TLS_RECORD
from migsniff.core.wire import Command, RamFlag, ReturnPathType
from migsniff.scapy import (
    COMMAND_LAYERS,
    MESSAGE_LAYERS,
    TAGGED_LAYERS,
    CommandItem,
    CompressedPage,
    ConfigurationSection,
    EndOfFile,
    EndOfRecords,
    FlushMultifd,
    MigrationHeader,
    MigrationStream,
    MultifdDeviceState,
    MultifdHelloPacket,
    MultifdPages,
    MultifdStream,
    NormalPage,
    RamBlock,
    RamBlockList,
    Raw,
    Record,
    ReturnPathStream,
    SectionEnd,
    SectionFooter,
    SectionFull,
    SectionPart,
    SectionStart,
    Subsection,
    VmDescription,
    XbzrlePage,
    ZeroPage,
    fuzz,
)
from tests.catalogue import STREAMS
from tests.playing import Stream, arrivals, decode, of, play_bytes, verdict
from tests.rawsamples import NAMES, raw
from tests.scapying import kept, rebuilt


def made(name: str, **fields: Any) -> Any:
    """A record of a live section, an old-style device or TLS."""
    return next(layer for layer in TAGGED_LAYERS.values() if layer.__name__ == name)(**fields)


DOC = Path(__file__).parents[1] / "docs" / "scapy.md"


WELL_FORMED = [name for name, stream in STREAMS.items() if stream.outcome == "completed"]


@pytest.mark.parametrize("name", WELL_FORMED)
def test_streams_come_back(name: str) -> None:
    data = STREAMS[name].main
    if not data.startswith(b"QEVM"):
        data = b"".join(d for number, way, d in STREAMS[name].pieces if (number, way) == (0, "fwd"))
    packet = MigrationStream(data)
    assert rebuilt(packet) == data
    assert packet.records[0].magic == 0x5145564D


@pytest.mark.parametrize("name", NAMES)
def test_real_streams_come_back(name: str) -> None:
    """What is not a layer's is device state and what a stream was cut off in."""
    data = raw(name).main[: 1 << 19]
    packet = MigrationStream(data)
    assert rebuilt(packet) == data
    records = packet.records
    if len(raw(name).main) == len(data) and verdict(play_bytes(data)).ok:
        before = [type(records[number - 1]) for number, record in enumerate(records) if type(record) is Raw]
        assert set(before) <= {SectionFull, SectionStart, SectionPart, SectionEnd}
        kinds = set(map(type, records))
        assert {RamBlockList, EndOfRecords, EndOfFile} <= kinds
        assert "multifd" in name or {NormalPage, ZeroPage} <= kinds


@pytest.mark.parametrize("name", ["return path", "postcopy", "resumed"])
def test_return_paths_come_back(name: str) -> None:
    number = 1 if name == "resumed" else 0
    data = b"".join(d for n, way, d in STREAMS[name].pieces if (n, way) == (number, "rev"))
    packet = ReturnPathStream(data)
    assert rebuilt(packet) == data
    assert all(isinstance(record, tuple(MESSAGE_LAYERS.values())) for record in packet.records)


def sent(stream: Stream, number: int) -> bytes:
    return b"".join(data for other, way, data in stream.pieces if (other, way) == (number, "fwd"))


@pytest.mark.parametrize("stream", [STREAMS["multifd"], raw("x86-100-multifd")])
def test_multifd_comes_back(stream: Stream) -> None:
    channels = {number: sent(stream, number) for number, _, _ in stream.pieces}
    told = next(data for data in channels.values() if data.startswith(b"QEVM"))
    for data in channels.values():
        if data == told:
            continue
        packet = MultifdStream(data, main=told)
        assert rebuilt(packet) == data
        kinds = {type(record) for record in packet.records}
        assert (
            {MultifdHelloPacket, MultifdPages}
            <= kinds
            <= {MultifdHelloPacket, MultifdPages, MultifdDeviceState}
        )
        alone = MultifdStream(data)
        assert rebuilt(alone) == data
        assert MultifdPages not in map(type, alone.records)


def test_what_cannot_be_read_is_raw() -> None:
    data = STREAMS["wrong item"].main
    packet = MigrationStream(data)
    assert isinstance(packet.records[-1], Raw)
    assert rebuilt(packet) == data


# ---------------------------------------------------------------- building

PAGES = [
    NormalPage(word=RamFlag.PAGE, block=b"pc.ram", data=bytes(range(256)) * 16),
    ZeroPage(word=0x1000 | RamFlag.ZERO | RamFlag.CONTINUE),
    XbzrlePage(word=RamFlag.XBZRLE | RamFlag.CONTINUE, length=3, data=b"\1\1x"),
    CompressedPage(word=0x2000 | RamFlag.COMPRESS_PAGE | RamFlag.CONTINUE, length=4, data=b"zlib"),
    FlushMultifd(),
]


def built() -> list[Any]:
    """A stream of every layer."""
    ping = COMMAND_LAYERS[Command.PING](value=7)
    return [
        MigrationHeader(),
        ConfigurationSection(machine=b"pc-i440fx-7.2"),
        ping,
        COMMAND_LAYERS[Command.POSTCOPY_ADVISE](block_page_sizes=4096, page_size=4096),
        COMMAND_LAYERS[Command.OPEN_RETURN_PATH](),
        SectionStart(section_id=2, idstr=b"ram", version_id=4),
        RamBlockList(word=0x10000 | RamFlag.MEM_SIZE, blocks=[RamBlock(block=b"pc.ram", length=0x10000)]),
        EndOfRecords(),
        SectionFooter(section_id=2),
        SectionPart(section_id=2),
        *PAGES,
        EndOfRecords(),
        SectionFooter(section_id=2),
        SectionEnd(section_id=2),
        EndOfRecords(),
        SectionFooter(section_id=2),
        SectionFull(section_id=3, idstr=b"timer", version_id=2) / Raw(bytes(24)),
        SectionFooter(section_id=3),
        EndOfFile(),
        VmDescription(text=b'{"page_size": 4096, "devices": []}'),
    ]


def test_what_is_built_is_what_the_decoder_reads() -> None:
    data = b"".join(map(bytes, built()))
    events = play_bytes(data)
    assert verdict(events).ok, verdict(events)
    counts = [section.counts for section in of(events, RamSection)][1]
    assert (counts.normal, counts.zero, counts.xbzrle, counts.compressed) == (1, 1, 1, 1)
    assert of(events, DeviceSection)[0].idstr == "timer"
    found = [type(layer) for record in MigrationStream(data).records for layer in (record, record.payload)]
    made = [type(layer) for record in built() for layer in (record, record.payload)]
    assert [kind for kind in found if kind not in (Raw, NoPayload)] == [
        kind for kind in made if kind not in (Raw, NoPayload)
    ]
    assert bytes(MigrationStream(records=built())) == data


def test_subsections_are_built_behind_the_configuration() -> None:
    bits = Subsection(subsection=b"configuration/target-page-bits", data=struct.pack(">I", 12))
    data = bytes(MigrationHeader() / ConfigurationSection(machine=b"virt") / bits / EndOfFile())
    assert verdict(play_bytes(data)).ok
    packet = MigrationStream(data)
    assert packet.records[1].machine == b"virt"
    assert packet.records[1][Subsection].data == struct.pack(">I", 12)


def test_replies_are_built() -> None:
    """A destination that confirms, and asks for a page."""
    main = STREAMS["return path"].main
    replies = b"".join(
        bytes(MESSAGE_LAYERS[number](**values))
        for number, values in (
            (2, {"value": 1}),
            (4, {"start": 4096, "size": 4096}),
            (3, {"start": 0, "size": 4096, "block": b"pc.ram"}),
            (7, {}),
            (1, {"value": 0}),
        )
    )
    events = decode(Session(), arrivals(Stream(((0, "fwd", main), (0, "rev", replies)))))
    names = [event.name for event in of(events, ReturnPathMessage)]
    assert names == ["PONG", "REQ_PAGES", "REQ_PAGES_ID", "SWITCHOVER_ACK", "SHUT"]


def test_multifd_is_built() -> None:
    hello = MultifdHelloPacket(uuid=bytes(16), channel_id=1)
    pages = MultifdPages(normal_pages=1, next_packet_size=4096, block=b"pc.ram", offsets=[0] * 128)
    state = MultifdDeviceState(idstr=b"0000:00:04.0/vfio", next_packet_size=5) / Raw(b"state")
    channel = bytes(hello) + bytes(pages) + bytes(4096) + bytes(state)
    main = b"".join(map(bytes, built()))
    events = decode(Session(), arrivals(Stream(((0, "fwd", main), (1, "fwd", channel)))))
    assert [packet.method for packet in of(events, MultifdPacket)] == ["none", "device-state"]


def test_a_record_alone() -> None:
    """Layers are chosen by their first bytes where these tell."""
    packet = MigrationHeader(STREAMS["precopy"].main)
    assert [layer.name for layer in (packet, packet.payload, packet.payload.payload)][:2] == [
        "MigrationHeader",
        "ConfigurationSection",
    ]
    assert "0x1000 ZERO|CONTINUE" in str(PAGES[1].show(dump=True))
    assert PAGES[1].summary() == "ZeroPage"


# ---------------------------------------------------------------- making wrong


@pytest.mark.parametrize("seed", range(12))
def test_fuzzed_streams_are_survived(seed: int) -> None:
    """Each record in turn with random fields: errors of the format, never of ours."""
    random.seed(seed)
    layers = built()
    codes = set()
    for number in range(len(layers)):
        wrong = [
            *layers[:number],
            fuzz(layers[number].copy()),
            fuzz(type(layers[number])()),
            *layers[number:],
        ]
        events = play_bytes(b"".join(bytes(layer)[:70_000] for layer in wrong))
        codes |= {event.code for event in of(events, Undecodable)}
    assert "decoder-bug" not in codes
    assert len(codes) > 3


@pytest.mark.parametrize("seed", range(4))
def test_fuzzed_replies_are_survived(seed: int) -> None:
    random.seed(seed)
    layers: list[Any] = [fuzz(layer()) for layer in [*MESSAGE_LAYERS.values(), *COMMAND_LAYERS.values()]]
    for layer in layers:
        stream = Stream(((0, "fwd", STREAMS["precopy"].main[:300]), (0, "rev", bytes(layer)[:70_000])))
        events = decode(Session(), arrivals(stream))
        assert "decoder-bug" not in {event.code for event in of(events, Undecodable)}


def test_all_that_is_registered_has_a_layer() -> None:
    handlers = [handler for idstr in LIVE_SECTIONS if (handler := LIVE_SECTIONS.get(idstr))]
    records = {record for handler in handlers for record in handler.records}
    assert set(TAGGED_LAYERS) == records | set(oldstyle.RECORDS.values()) | {TLS_RECORD}

    assert set(COMMAND_LAYERS) == set(COMMANDS)
    assert set(MESSAGE_LAYERS) == set(RETURN_PATH)
    for layer in (*COMMAND_LAYERS.values(), *MESSAGE_LAYERS.values(), *TAGGED_LAYERS.values()):
        assert layer.__name__ in layers.__all__
        assert getattr(layers, layer.__name__) is layer
        assert issubclass(layer, Record)
    assert issubclass(COMMAND_LAYERS[2], CommandItem)


LAYERS = {
    name: layer
    for name in layers.__all__
    if isinstance(layer := getattr(layers, name), type) and issubclass(layer, Packet)
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_is_built_shown_and_fuzzed(name: str) -> None:
    layer = LAYERS[name]
    made = bytes(layer())
    assert rebuilt(layer(made)) == made
    assert layer().show(dump=True)
    for seed in range(20):
        random.seed(seed)
        wrong = fuzz(layer())
        assert name in str(wrong.show(dump=True))
        assert isinstance(bytes(wrong), bytes)


NAMED = [
    (layers.SectionPart(), "type", "SECTION_PART"),
    (COMMAND_LAYERS[Command.PING](), "command", "PING"),
    (MESSAGE_LAYERS[ReturnPathType.PONG](), "message", "PONG"),
    (layers.ColoMessage(message="VMSTATE_SIZE", size=7), "message", "VMSTATE_SIZE"),
    (made("VfioRecord", tag="DEV_DATA_STATE"), "tag", "DEV_DATA_STATE"),
    (made("TlsRecord", content_type="ALERT"), "content_type", "ALERT"),
    (made("DirtyBitmapChunk", flags="BITS|ZEROES"), "flags", "ZEROES|BITS"),
    (made("BlockMigration", word=0x201), "word", "0x200 DEVICE_BLOCK"),
    (made("StorageAttributes", word=0x5002), "word", "0x5000 MORE"),
    (made("StorageKeys", word="KEYS"), "word", "0x0 KEYS"),
    (MultifdPages(flags="SYNC"), "flags", "SYNC"),
    (MultifdPages(flags=5), "flags", "SYNC zstd"),
    (MultifdPages(flags=2), "flags", "zlib"),
    (MultifdPages(flags=0x80), "flags", "0x80 0"),
    (MultifdPages(), "flags", "0"),
    (MultifdDeviceState(), "flags", "DEVICE_STATE"),
    (ZeroPage(word=0x1022), "word", "0x1000 ZERO|CONTINUE"),
    (ZeroPage(word=0x122), "word", "0x100 ZERO|CONTINUE"),
]


@pytest.mark.parametrize(("packet", "field", "expected"), NAMED)
def test_numbers_have_the_names_of_the_decoder(packet: Any, field: str, expected: str) -> None:
    assert packet.get_field(field).i2repr(packet, packet.getfieldval(field)) == expected


def test_lengths_are_counted_unless_they_are_given() -> None:
    chunk = made("DirtyBitmapChunk", flags="BITS|DEVICE_NAME", node=b"disk", bits=b"abc")
    assert bytes(chunk) == b"\x48\x04disk" + bytes(12) + b"\0\0\0\0\0\0\0\3abc"
    assert bytes(made("VfioRecord", tag="DEV_DATA_STATE", size=9, data=b"x"))[8:] == bytes(7) + b"\x09x"
    assert bytes(made("HashTableChunk", index=1, entries=bytes(32)))[:8] == b"\0\0\0\1\0\2\0\0"
    packaged = COMMAND_LAYERS[Command.PACKAGED]() / layers.Package(
        records=[COMMAND_LAYERS[Command.PING](value=1)]
    )
    assert bytes(packaged)[:9] == b"\x08\0\7\0\4\0\0\0\x09"
    bitmap = MESSAGE_LAYERS[ReturnPathType.RECV_BITMAP](block=b"ram") / layers.ReceivedBitmap(data=bytes(8))
    assert ReturnPathStream(bytes(bitmap)).records[0][layers.ReceivedBitmap].size == 8


# ---------------------------------------------------------------- who pays


def test_nobody_else_loads_scapy() -> None:
    code = "import sys, migsniff.cli, migsniff.offline, migsniff.proxy; print('scapy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_scapy_one_line_says_what_is_missing() -> None:
    code = "import sys; sys.modules['scapy.fields'] = None; import migsniff.scapy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: migsniff.scapy needs scapy: pip install 'migsniff[scapy]'"
    )


def test_the_guide_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python runs, and prints what stands below it."""
    parts = DOC.read_text().split("```")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump").write_bytes(b"".join(map(bytes, built())))
    kept(tmp_path, STREAMS["multifd"]).rename(tmp_path / "captured")
    names: dict[str, Any] = {}
    shown = 0
    for code, output in zip(parts[1::4], parts[3::4], strict=True):
        lines: list[str] = []
        names["print"] = lambda *values, lines=lines: lines.append(" ".join(map(str, values)))
        exec(code.removeprefix("python\n"), names)
        assert "\n".join(lines).strip() == output.removeprefix("text\n").strip()
        shown += 1
    assert shown == 5
