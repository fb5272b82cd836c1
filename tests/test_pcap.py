"""Packet captures: the same decode as of the bytes themselves, whatever happened to the packets."""

import json
import random
import struct
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest

from migsniff.cli import main
from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.feed.flow import MAX_RUNNING
from migsniff.feed.flows import Flows
from migsniff.feed.packets import ETHERNET, segment
from migsniff.feed.pcap import PcapSource
from migsniff.feed.pcapfile import MAX_PACKET
from tests.catalogue import STREAMS
from tests.packets import (
    ACK,
    PSH,
    RST,
    SYN,
    Talk,
    Tcp,
    block,
    cut_to,
    pcap,
    pcapng,
    talks,
)
from tests.playing import Stream, decode, play, verdict
from tests.rawsamples import raw

SILENT = {"no stream", "a connection that says nothing"}
CONVERSATIONS = sorted(name for name in STREAMS if name not in SILENT and not name.startswith("tls"))


def source(data: bytes, port: int | None = None) -> PcapSource:
    return PcapSource(BytesIO(data), "test.pcap", "test", port=port)


def bytes_of(arrivals: Iterable[Arrival]) -> dict[tuple[int, str], bytes]:
    """What each direction carried."""
    found: dict[tuple[int, str], bytes] = {}
    for arrival in arrivals:
        if isinstance(arrival, Chunk):
            key = arrival.connection, arrival.direction
            found[key] = found.get(key, b"") + bytes(arrival.data)
            assert arrival.end == len(found[key])
    return found


def carried(stream: Stream) -> dict[tuple[int, str], bytes]:
    """The bytes of a stream's connections, numbered as their first bytes come."""
    numbers: dict[int, int] = {}
    found: dict[tuple[int, str], bytes] = {}
    for number, direction, data in stream.pieces:
        key = numbers.setdefault(number, len(numbers)), direction
        found[key] = found.get(key, b"") + data
    return found


def swapped(packets: list[Tcp]) -> list[Tcp]:
    """Neighbours in the other order, but for those that open a connection."""
    shuffled = [packet for packet in packets if not packet.flags & SYN]
    opening = [packet for packet in packets if packet.flags & SYN]
    chaos = random.Random(7)
    for at in range(len(shuffled) - 8):
        other = at + chaos.randrange(8)
        shuffled[at], shuffled[other] = shuffled[other], shuffled[at]
    return opening + shuffled


def doubled(packets: list[Tcp]) -> list[Tcp]:
    """Each one twice, as on a loopback interface, and some once more, later."""
    found = []
    for number, packet in enumerate(packets):
        found += [packet, packet]
        if number > 9 and number % 5 == 0:
            found.append(packets[number - 6])
    return found


def overlapping(packets: list[Tcp]) -> list[Tcp]:
    """Bytes that are sent again in other cuts, before and behind what was first."""
    found = list(packets[:4])
    for before, packet in pairwise(packets[3:]):
        follows = before.source == packet.source and before.payload and packet.payload
        if follows and before.sequence + len(before.payload) == packet.sequence:
            both = before.payload + packet.payload
            found.append(replace(before, payload=both[: len(before.payload) + 3]))
            found.append(
                replace(
                    packet,
                    sequence=packet.sequence - 5,
                    payload=packet.payload[:0] + both[-len(packet.payload) - 5 :],
                )
            )
        else:
            found.append(packet)
    return found


def unchanged(packets: list[Tcp]) -> list[Tcp]:
    return packets


HAPPENS = [unchanged, swapped, doubled, overlapping]


@pytest.mark.parametrize("happens", HAPPENS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_streams(name: str, happens: Callable[[list[Tcp]], list[Tcp]]) -> None:
    """Every kind of stream, its sequence numbers wrapping: the bytes, and what is decoded of them."""
    stream = STREAMS[name]
    packets = happens(talks(stream, size=100))
    assert bytes_of(source(pcap(packets)).arrivals()) == {k: v for k, v in carried(stream).items() if v}


@pytest.mark.parametrize("happens", HAPPENS)
@pytest.mark.parametrize("name", ["x86-100-postcopy", "x86-100-multifd", "x86-72-return-path"])
def test_real_streams(name: str, happens: Callable[[list[Tcp]], list[Tcp]]) -> None:
    stream = raw(name)
    stream = Stream(stream.pieces[:200])
    packets = happens(talks(stream))
    # which connection has spoken first is another one now
    assert sorted(bytes_of(source(pcap(packets)).arrivals()).values()) == sorted(carried(stream).values())


@pytest.mark.parametrize("name", ["precopy", "postcopy", "multifd", "resumed", "preempt"])
def test_events(name: str) -> None:
    """The decode is that of the stream; connections may be numbered otherwise."""
    stream = STREAMS[name]

    def lasting(events: list[Event]) -> list[str]:
        return sorted(repr(event) for event in events if "connection=" not in repr(event))

    found = decode(Session(), source(pcap(talks(stream, size=90))).arrivals())
    assert lasting(found) == lasting(play(stream))
    assert verdict(found).outcome == stream.outcome


FORMATS: dict[str, Callable[[list[Tcp]], bytes]] = {
    "pcap, little-endian": pcap,
    "pcap, big-endian": lambda packets: pcap(packets, b"\xa1\xb2\xc3\xd4"),
    "pcap, nanoseconds": lambda packets: pcap(packets, b"\x4d\x3c\xb2\xa1"),
    "pcap, raw IP": lambda packets: pcap(packets, link=101),
    "pcapng": pcapng,
    "pcapng, big-endian": lambda packets: pcapng(packets, ">"),
    "pcapng, nanoseconds": lambda packets: pcapng(packets, resolution=9),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("hosts", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_formats(form: str, hosts: tuple[str, str]) -> None:
    stream = STREAMS["return path"]
    packets = [
        replace(
            p,
            source=(hosts[p.source[1] == 4444], p.source[1]),
            destination=(hosts[p.destination[1] == 4444], p.destination[1]),
        )
        for p in talks(stream, size=100)
    ]
    found = source(FORMATS[form](packets))
    arrivals = [replace_data(arrival) for arrival in found.arrivals()]
    assert bytes_of(arrivals) == carried(stream)
    assert found.start_time is not None
    assert found.start_time.timestamp() == 1_700_000_000
    assert [arrival.time for arrival in arrivals if isinstance(arrival, Ended)] == [20_000] * 2
    assert arrivals[0] == Opened(
        0,
        0,
        *(
            f"{host if '.' in host else f'[{host}]'}:{port}"
            for host, port in zip(hosts, (49152, 4444), strict=True)
        ),
    )


def replace_data(arrival: Arrival) -> Arrival:
    if isinstance(arrival, Chunk):
        return Chunk(arrival.time, arrival.connection, arrival.direction, bytes(arrival.data), arrival.end)
    return arrival


# ---------------------------------------------------------------- connections


def test_a_reset() -> None:
    talk = Talk()
    talk.open()
    talk.say(0, STREAMS["precopy"].main[:500])
    talk.send(1, RST | ACK)
    arrivals = list(source(pcap(talk.packets)).arrivals())
    assert [(a.direction, a.how, a.by) for a in arrivals if isinstance(a, Ended)] == [
        ("rev", "reset", "destination"),
        ("fwd", "reset", "destination"),
    ]


def test_a_capture_that_begins_behind_the_handshake() -> None:
    """Who sends the magic number is the source."""
    packets = [packet for packet in talks(STREAMS["return path"], size=100) if not packet.flags & SYN][1:]
    assert bytes_of(source(pcap(packets)).arrivals()) == carried(STREAMS["return path"])


def test_a_capture_that_begins_later_still() -> None:
    """Only the port tells that it is a migration; what it is cannot be told from its middle."""
    packets = talks(STREAMS["return path"], size=100)[6:]
    with pytest.raises(CaptureError, match="no migration in it"):
        list(source(pcap(packets)).arrivals())
    events = decode(Session(), source(pcap(packets), port=4444).arrivals())
    assert verdict(events).outcome == "not-a-stream"


def test_other_connections(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are counted; so is what is no TCP at all."""
    packets = talks(STREAMS["precopy"], size=100)
    for number in range(12):
        other = Talk(("192.0.2.9", 1000 + number), ("192.0.2.2", 80))
        other.open()
        other.say(0, b"GET / HTTP/1.1\r\n\r\n")
        other.close()
        packets[number:number] = other.packets
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    assert main(["read", str(tmp_path / "a.pcap")]) == 0
    said = capfd.readouterr()
    assert "COMPLETED" in said.out
    assert said.err == "migsniff: 12 other connections\n"


def test_a_port_is_all_that_counts() -> None:
    port = 80
    packets = talks(STREAMS["precopy"], size=100)
    other = Talk(("192.0.2.9", 1000), ("192.0.2.2", port))
    other.open()
    other.say(0, b"GET / HTTP/1.1\r\n\r\n")
    found = source(pcap(packets + other.packets), port=port)
    assert bytes_of(found.arrivals()) == {(0, "fwd"): b"GET / HTTP/1.1\r\n\r\n"}


def test_two_migrations(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """At the same time to two ports, and a third to the first port behind it."""
    first, second = (talks(STREAMS[name], 100, port) for name, port in (("precopy", 4444), ("multifd", 5555)))
    third = [
        replace(
            p,
            source=("192.0.2.7", p.source[1]) if p.source[1] != 4444 else p.source,
            destination=("192.0.2.7", p.destination[1]) if p.destination[1] != 4444 else p.destination,
        )
        for p in talks(STREAMS["return path"], 100)
    ]
    mixed = [packet for pair in zip(first, second, strict=False) for packet in pair]
    mixed += first[len(second) :] + second[len(first) :] + third
    (tmp_path / "a.pcap").write_bytes(pcap(mixed))
    assert main(["read", "-T", "ndjson", str(tmp_path / "a.pcap")]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    verdicts = {r["migration"]: r["outcome"] for r in records if r["type"] == "verdict"}
    assert list(verdicts.values()) == ["completed"] * 3
    names = {
        r["migration"]: {e["channel"] for e in records if e["migration"] == r["migration"]} for r in records
    }
    assert sorted(map(sorted, names.values())) == [["main"], ["main"], ["main", "multifd-0", "multifd-1"]]
    assert main(["info", str(tmp_path / "a.pcap")]) == 0
    assert capfd.readouterr().out.count("COMPLETED") == 3
    assert main(["read", str(tmp_path / "a.pcap")]) == 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("20231114T221320Z-3 ")


# ---------------------------------------------------------------- what was not captured


def test_a_lost_packet_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    packets = talks(raw("x86-72-return-path"))
    at = next(n for n, packet in enumerate(packets) if n > 30 and len(packet.payload) == 1448)
    (tmp_path / "a.pcap").write_bytes(pcap(packets[:at] + packets[at + 1 :]))
    main(["read", str(tmp_path / "a.pcap")])
    said = capfd.readouterr()
    offset = (packets[at].sequence - packets[3].sequence) % (1 << 32)
    assert f"1448 bytes were not captured, in 1 hole: 1448 at {offset:#x} from 192.0.2.1:49152" in said.err


def test_packets_cut_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As `tcpdump -s 128` leaves them: what cannot be read is said, and it ends well."""
    (tmp_path / "a.pcap").write_bytes(pcap(list(cut_to(talks(raw("x86-72-return-path")), 128))))
    assert main(["read", str(tmp_path / "a.pcap")]) == 1
    said = capfd.readouterr()
    assert "packets were cut short when captured" in said.err
    assert "which are needed here, are not in this capture" in said.out
    assert "machine=pc-i440fx-7.2" in said.out


def test_pages_that_are_missing_are_no_loss() -> None:
    """Each page a packet whose contents were not kept, as `migsniff export` writes stripped captures."""
    stream = STREAMS["pages of 4096 bytes"]
    data, talk = stream.main, Talk(size=1 << 15)
    talk.open()
    at = 0
    while at < len(data):
        end = data.find(bytes([data[at + 8]]) * 4096, at + 8) if at + 4104 < len(data) else -1
        stop = end + 4096 if end >= 0 else len(data)
        talk.say(0, data[at:stop])
        talk.packets[-2] = replace(talk.packets[-2], lost=4096 if end >= 0 else 0)
        at = stop
    talk.close()
    found = decode(Session(), source(pcap(talk.packets)).arrivals())
    assert verdict(found).outcome in ("completed", "undecodable")


# ---------------------------------------------------------------- files made to harm


HEADER = pcap([])
NG = pcapng([])


def enhanced(captured: int, wire: int, data: bytes = b"", interface: int = 0) -> bytes:
    return block(6, struct.pack("<IIIII", interface, 0, 0, captured, wire) + data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER[:10], "at 0: the file ends in its header"),
        (HEADER + bytes(7), "at 24: the file ends in the header of a packet"),
        (HEADER + struct.pack("<IIII", 0, 0, 100, 100) + b"x", "at 24: the file ends in a packet"),
        (
            HEADER + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 100),
            f"a packet of 4294967295 bytes: more than the {MAX_PACKET}",
        ),
        (NG[:20], "at 0: the file ends in the header of a section"),
        (b"\x0a\x0d\x0d\x0a" + bytes(30), "a section of no byte order"),
        (NG + struct.pack("<II", 6, 0xFFFFFFF0) + bytes(40), "a block of 4294967280 bytes: more than"),
        (NG + struct.pack("<II", 9, 0xFFFFFFF0) + bytes(40), "the file ends in a block"),
        (NG + struct.pack("<II", 6, 7) + bytes(40), "a block of 7 bytes"),
        (NG + struct.pack("<II", 6, 0) + bytes(40), "a block of 0 bytes"),
        (NG + enhanced(100, 100, bytes(20)), "a packet that does not fit its block"),
        (NG + enhanced(0, 0, interface=1), "or of no interface"),
        (NG + block(1, b"\0" * 8) * 5000, "more than 4096 interfaces"),
        (
            NG + block(1, bytes(8) + struct.pack("<HHB3x", 9, 1, 0x7F)),
            "a clock is too fine|clock is too fine",
        ),
        (NG + enhanced(0, 0)[:-4] + b"abcd", "that does not end as it began"),
        (NG + bytes(5), "the file ends in the header of a block"),
    ],
)
def test_files_that_lie(data: bytes, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        list(source(data).found())


@pytest.mark.parametrize("offset", [0, 1 << 62, -(1 << 62)])
def test_clocks_that_lie(offset: int) -> None:
    """Times that no calendar has."""
    options = struct.pack("<HHB3xHHqHH", 9, 1, 0, 14, 8, offset, 0, 0)
    data = NG[:28] + block(1, struct.pack("<HHI", 1, 0, 0) + options)
    for packet in talks(STREAMS["precopy"], 200):
        frame = packet.ethernet()
        head = struct.pack("<IIIII", 0, 0xFFFFFFFF, packet.time, len(frame), len(frame))
        data += block(6, head + frame)
    found = source(data)
    assert verdict(decode(Session(), found.arrivals())).outcome == "completed"
    assert found.start_time is not None
    assert found.start_time.year in (1970, 9999)


def ethernet(data: bytes, kind: int = 0x0800) -> bytes:
    return bytes(12) + struct.pack(">H", kind) + data


GOOD = Talk()
GOOD.open()
IP = GOOD.packets[0].ip()


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"", "other"),
        (ethernet(b""), "malformed"),
        (ethernet(IP[:19]), "malformed"),
        (ethernet(IP[:30]), "malformed"),
        (ethernet(b"\x41" + IP[1:]), "malformed"),
        (ethernet(IP[:2] + b"\xff\xff" + IP[4:]), "malformed"),
        (ethernet(IP[:2] + b"\0\x05" + IP[4:]), "malformed"),
        (ethernet(IP[:6] + b"\x20\0" + IP[8:]), "fragment"),
        (ethernet(IP[:6] + b"\0\x09" + IP[8:]), "fragment"),
        (ethernet(IP[:9] + b"\x11" + IP[10:]), "other"),
        (ethernet(IP[:32] + b"\x40" + IP[33:]), "malformed"),
        (ethernet(IP[:32] + b"\xf0" + IP[33:]), "malformed"),
        (ethernet(IP, 0x0806), "other"),
        (bytes(12) + b"\x81\0\0\1" * 5000, "other"),
        (ethernet(b"\x60" + bytes(3) + b"\xff\xff\0\x40" + bytes(32), 0x86DD), "malformed"),
        (ethernet(b"\x60" + bytes(5) + b"\0\x40" + bytes(32) + b"\0\0" * 4000, 0x86DD), "malformed"),
        (ethernet(b"\x60" + bytes(5) + b"\x2c\x40" + bytes(40), 0x86DD), "fragment"),
        (ethernet(b"\x60" + bytes(5) + b"\x3b\x40" + bytes(40), 0x86DD), "other"),
    ],
)
def test_packets_that_lie(packet: bytes, why: str) -> None:
    data = packet + bytes(4096)  # of the packet behind it, which is not looked at
    found = segment(data, 0, len(packet), len(packet), ETHERNET)
    assert found == why


def syns(count: int) -> Iterator[Tcp]:
    for number in range(count):
        host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        yield Tcp((host, 1000), ("192.0.2.2", 4444), 0, 0, SYN)


def greetings(count: int) -> Iterator[Tcp]:
    for packet in syns(count):
        yield packet
        yield replace(packet, sequence=1, flags=ACK | PSH, payload=b"QEVM\0\0\0\3")


def gaps(count: int) -> Iterator[Tcp]:
    """Each connection holds bytes behind a hole."""
    for packet in syns(count):
        yield packet
        yield replace(packet, sequence=100, flags=ACK, payload=bytes(1400))


BOMBS: dict[str, Iterator[Tcp]] = {
    "connections without a byte": syns(6_000),
    "migrations without end": greetings(3_000),
    "bytes behind holes": gaps(12_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_bounded(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than are remembered, each with something to remember."""
    monkeypatch.setattr("migsniff.feed.flows.MAX_OTHERS", 1000)
    monkeypatch.setattr("migsniff.feed.flows.MAX_FOLLOWED", 100)
    flows = Flows()
    tracemalloc.start()
    try:
        for packet in BOMBS[bomb]:
            data = packet.ethernet()
            flows.packet(0, segment(data, 0, len(data), len(data), ETHERNET), data)
        flows.finish()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert flows._found <= MAX_RUNNING


def test_mutated_captures() -> None:
    """Whatever bytes are changed: an error that is ours, or none, never anything else."""
    good = pcapng(talks(STREAMS["postcopy"], size=200)), pcap(talks(STREAMS["multifd"], size=200))
    chaos = random.Random(23)
    outcomes = set()
    for number in range(600):
        data = bytearray(good[number % 2])
        for _ in range(chaos.choice((1, 3, 20))):
            data[chaos.randrange(len(data))] = chaos.randrange(256)
        if number % 5 == 0:
            del data[chaos.randrange(len(data)) :]
        try:
            events = decode(Session(), source(bytes(data), port=chaos.choice((None, 4444))).arrivals())
        except CaptureError:
            outcomes.add("error")
        else:
            assert "decoder-bug" not in {getattr(event, "code", "") for event in events}
            outcomes.add(verdict(events).outcome)
    assert {"error", "completed"} < outcomes
