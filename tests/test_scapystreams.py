"""All channels of a migration as scapy's packets: of captures, of dumps, and one by one."""

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scapy")

from migsniff.core.arrivals import Direction
from migsniff.core.errors import CaptureError
from migsniff.core.events import DeviceSection
from migsniff.core.tls import TLS_RECORD
from migsniff.core.wire import RECV_BITMAP_END, Command, ItemType
from migsniff.scapy import (
    COMMAND_LAYERS,
    KINDS,
    TAGGED_LAYERS,
    ColoMessage,
    DeviceState,
    EndOfFile,
    MappedRamBlock,
    MigrationStream,
    MultifdDeviceState,
    MultifdHelloPacket,
    MultifdPages,
    Package,
    RamBlockList,
    Raw,
    ReceivedBitmap,
    ReturnPathStream,
    SectionFull,
    UnknownStream,
    fuzz,
    streams,
)
from tests.catalogue import STREAMS
from tests.playing import Stream, of, play, play_bytes, precopy
from tests.rawsamples import NAMES, raw
from tests.scapying import kept, layers, rebuilt
from tests.streams import EOF, HEADER, section, u64
from tests.test_livesections import HEAD, PAYLOADS, VFIO, stream_of

ROLES = {"multifd": "multifd", "preempt": "preempt", "tls": "tls"}
CommandPackaged = COMMAND_LAYERS[Command.PACKAGED]
TlsRecord = TAGGED_LAYERS[TLS_RECORD]
FOLDER = Path(__file__).parents[1] / "captures" / "samples"


def sent(stream: Stream) -> dict[tuple[int, Direction], bytes]:
    """What each direction carried."""
    found: dict[tuple[int, Direction], bytes] = {}
    for number, way, data in stream.pieces:
        found[number, way] = found.get((number, way), b"") + data
    return {key: data for key, data in found.items() if data}


# ---------------------------------------------------------------- captures


@pytest.mark.parametrize("name", STREAMS)
def test_captures_come_back(name: str, tmp_path: Path) -> None:
    """Each direction comes back byte by byte, of a class that finds the same records in them by itself."""
    stream = STREAMS[name]
    found = streams(str(kept(tmp_path, stream)))
    assert sorted(rebuilt(packet) for packet in found.values()) == sorted(sent(stream).values())
    main = rebuilt(found["main.fwd"]) if "main.fwd" in found else b""
    for channel, packet in found.items():
        again = type(packet)(rebuilt(packet), main=b"" if channel == "main.fwd" else main)
        assert [record.name for record in layers(again)] == [record.name for record in layers(packet)]
        assert (type(packet) is UnknownStream) == channel.startswith("unknown")
        packet.show(dump=True)
        if stream.outcome == "completed":
            assert_no_raw(packet, stream)


def assert_no_raw(packet: Any, stream: Stream) -> None:
    """What of a whole stream is not known: devices without a description, and a handler of nobody's."""
    records = list(layers(packet))
    described = {
        section.section_id
        for section in of(play(stream, fields=True), DeviceSection)
        if section.described and section.size > 19 + len(section.idstr)
    }
    for before, record in zip([None, *records], records, strict=False):
        if isinstance(before, SectionFull) and before.section_id in described:
            assert isinstance(record, DeviceState), before.idstr
        elif type(record) is Raw and record is not records[-1]:
            assert isinstance(before, SectionFull) or getattr(before, "section_id", None) in (21, 25)


EVERY_KIND = {
    "colo": {"main.fwd": {ColoMessage}, "main.rev": {ColoMessage}},
    "postcopy": {"main.fwd": {CommandPackaged}},
    "multifd": {
        "multifd-1.fwd": {MultifdHelloPacket, MultifdPages},
        "multifd-0.fwd": {MultifdHelloPacket, MultifdPages, MultifdDeviceState},
    },
    "tls": {"tls-0.fwd": {TlsRecord}, "tls-0.rev": {TlsRecord}},
    "mapped-ram": {"main.fwd": {RamBlockList}},
    "resumed": {"resumed-1.fwd": {EndOfFile}},
}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_what_stands_in_them(name: str, tmp_path: Path) -> None:
    found = streams(str(kept(tmp_path, STREAMS[name])))
    for channel, kinds in EVERY_KIND[name].items():
        assert kinds <= {type(record) for record in found[channel].records}


def test_inside_of_records(tmp_path: Path) -> None:
    """What has a payload, or elements, of its own."""
    (mapped,) = streams(str(kept(tmp_path / "a", STREAMS["mapped-ram"]))).values()
    blocks = next(record for record in mapped.records if type(record) is RamBlockList).blocks
    assert [(type(block), block.block, len(block.pages), block.bitmap[0]) for block in blocks] == [
        (MappedRamBlock, b"ram", 3 * 256, 0b101),
        (MappedRamBlock, b"rom", 256, 0),
    ]
    packet = streams(str(kept(tmp_path / "b", STREAMS["postcopy"])))["main.fwd"]
    package = next(record for record in packet.records if type(record) is CommandPackaged)
    assert [record.name for record in package[Package].records][::14] == [
        "CommandPostcopyListen",
        "CommandPostcopyRun",
    ]
    back = streams(str(kept(tmp_path / "c", STREAMS["resumed"])))["resumed-1.rev"]
    assert [record[ReceivedBitmap].data for record in back.records[:2]] == [b"\xff" * 8, bytes(8)]


LIVE = {
    "htab": ["HashTableHeader", "HashTableChunk"],
    "storage attributes": ["StorageAttributes"],
    "block": ["BlockMigration"],
    "dirty bitmap": ["DirtyBitmapChunk"],
    "vfio": ["VfioRecord"],
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_live_sections(name: str) -> None:
    """Their payloads are records and nothing else."""
    idstr, kind, payload = PAYLOADS[name]
    data = precopy(*stream_of(idstr, kind, payload)[0]).main
    packet = MigrationStream(data)
    assert rebuilt(packet) == data
    names = LIVE[name.partition(":")[0]]
    records = [record for record in packet.records if record.name in names]
    assert Raw not in map(type, packet.records)
    assert b"".join(map(bytes, records)).endswith(payload)
    for record in records:
        assert bytes(type(record)(bytes(record) + b"and what follows")).startswith(bytes(record))


def test_a_live_section_that_stops_making_sense() -> None:
    """Records up to there, and then bytes."""
    payload = u64(VFIO + 3, VFIO + 4, 3) + b"abc" + u64(VFIO + 2) + b"a configuration"
    data = precopy(HEAD, section(ItemType.SECTION_START, 50, payload, b"x/vfio"), EOF).main
    packet = MigrationStream(data)
    assert rebuilt(packet) == data
    names = [record.name for record in packet.records][-6:]
    assert names == ["SectionStart", "VfioRecord", "VfioRecord", "Raw", "SectionFooter", "EndOfFile"]


def test_another_try_takes_nothing_from_the_first(tmp_path: Path) -> None:
    """What is known of pages is the migration's that they belong to."""
    stream = Stream((*STREAMS["multifd"].pieces, (9, "fwd", HEADER)))
    found = streams(str(kept(tmp_path, stream)))
    assert sorted(rebuilt(packet) for packet in found.values()) == sorted(sent(stream).values())
    assert MultifdPages in map(type, found["multifd-1.fwd"].records)


def test_a_device_is_changed() -> None:
    """Its fields are set by name, and the decoder reads what was set."""
    packet = MigrationStream(STREAMS["precopy"].main)
    state = next(record for record in packet.records if record.name == "globalstate")
    assert isinstance(state, DeviceState)
    state.data = b"stopped\0"
    (device,) = [
        section
        for section in of(play_bytes(bytes(packet), fields=True), DeviceSection)
        if section.described and section.idstr == "globalstate"
    ]
    assert [field.raw for field in device.fields] == [b"stopped\0"]
    random.seed(1)
    assert len(bytes(fuzz(type(state)()))) == len(b"running\0")


def test_a_stripped_capture_is_refused() -> None:
    with pytest.raises(CaptureError, match="--ram keep"):
        streams(str(FOLDER / NAMES[0]))


def test_a_dump_in_a_file(tmp_path: Path) -> None:
    data = STREAMS["precopy"].main
    (tmp_path / "dump").write_bytes(b"in front" + data)
    (packet,) = streams(str(tmp_path / "dump"), offset=8).values()
    assert rebuilt(packet) == data


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("name", NAMES)
def test_every_channel_of_a_sample_comes_back(name: str, tmp_path: Path) -> None:
    stream = raw(name)
    if sum(len(data) for _, _, data in stream.pieces) > 16 << 20:
        stream = Stream(tuple((number, way, data[: 1 << 20]) for (number, way), data in sent(stream).items()))
    found = streams(str(kept(tmp_path, stream)))
    assert sorted(rebuilt(packet) for packet in found.values()) == sorted(sent(stream).values())


# ---------------------------------------------------------------- one channel with what the main one told


@pytest.mark.parametrize("name", ["multifd", "preempt", "resumed", "colo"])
def test_with_the_main_channel(name: str) -> None:
    stream = STREAMS[name]
    channels = sent(stream)
    for (number, way), data in channels.items():
        role = ROLES.get(name, "resumed") if number else "main"
        packet = KINDS[role, way](data, main=b"" if (number, way) == (0, "fwd") else channels[0, "fwd"])
        assert rebuilt(packet) == data
        if number or way == "rev":
            assert Raw not in map(type, packet.records)


def test_a_resumed_channel_alone() -> None:
    """Its commands are read, its sections are those of another connection."""
    packet = MigrationStream(sent(STREAMS["resumed"])[1, "fwd"])
    assert [record.name for record in packet.records][:3] == [
        "CommandRecvBitmap",
        "CommandRecvBitmap",
        "CommandPostcopyResume",
    ]
    assert type(packet.records[-1]) is Raw


# ---------------------------------------------------------------- broken ones


@pytest.mark.parametrize("name", STREAMS)
def test_broken_streams_come_back(name: str) -> None:
    """Whatever cannot be read stays as it is, and is shown; nothing is raised."""
    dice = random.Random(name)
    channels = sent(STREAMS[name])
    for (number, way), whole in channels.items():
        first = name.split()[0]
        role = ROLES.get(first, "resumed") if number or first == "tls" else "main"
        for _ in range(25):
            data = bytearray(whole)
            for _ in range(dice.randint(1, 4)):
                at = dice.randrange(len(data))
                data[at] = dice.choice([0, 1, 2, 0xFF, data[at] ^ 1 << dice.randrange(8)])
            broken = bytes(data[: dice.choice([len(data), dice.randrange(1, len(data) + 1)])])
            main = b"" if (number, way) == (0, "fwd") else channels.get((0, "fwd"), b"")
            packet = KINDS[role, way](broken, main=main)
            assert rebuilt(packet) == broken
            assert packet.show(dump=True)


@pytest.mark.parametrize(
    "message",
    [
        b"\0\5\0\4\1ram" + u64(8) + bytes(8) + u64(RECV_BITMAP_END),
        b"\0\3\0\x10" + u64(0) + b"\0\0\1\0\1ram",
    ],
)
def test_what_the_decoder_takes_and_a_layer_cannot(message: bytes) -> None:
    """A name that is shorter than its message says."""
    packet = ReturnPathStream(message)
    assert rebuilt(packet) == message
    assert list(map(type, packet.records)) == [Raw]
