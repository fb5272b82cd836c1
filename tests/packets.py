"""Packet captures made in tests: connections become TCP packets, to be reordered, doubled, cut and lost."""

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from tests.playing import Stream

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MICROSECONDS: Final = b"\xd4\xc3\xb2\xa1"
START: Final = 1_700_000_000
SEQUENCES: Final = (0xFFFFF000, 1000)  # of the first bytes: source, destination


@dataclass(frozen=True)
class Tcp:
    """A TCP packet: between two (address, port), at `time` µs. `lost` bytes at its end are not captured."""

    source: tuple[str, int]
    destination: tuple[str, int]
    sequence: int
    acknowledged: int
    flags: int
    payload: bytes = b""
    time: int = 0
    lost: int = 0

    def ip(self) -> bytes:
        """From the IP header on, cut short by `lost`."""
        tcp = struct.pack(
            ">HHIIBBHHH",
            self.source[1],
            self.destination[1],
            self.sequence % (1 << 32),
            self.acknowledged % (1 << 32),
            0x50,
            self.flags,
            65535,
            0,
            0,
        )
        segment = tcp + self.payload
        if ":" in self.source[0]:
            addresses = [
                socket.inet_pton(socket.AF_INET6, host) for host, _ in (self.source, self.destination)
            ]
            head = struct.pack(">IHBB16s16s", 6 << 28, len(segment), 6, 64, *addresses)
        else:
            addresses = [socket.inet_aton(host) for host, _ in (self.source, self.destination)]
            head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, *addresses)
        whole = head + segment
        return whole[: len(whole) - self.lost]

    def ethernet(self, *vlans: int) -> bytes:
        kind = b"\x86\xdd" if ":" in self.source[0] else b"\x08\0"
        tags = b"".join(struct.pack(">HH", 0x8100, vlan) for vlan in vlans)
        return bytes(12) + tags + kind + self.ip()


@dataclass
class Talk:
    """A TCP connection as it is made, talks, and ends; `packets` is what a sniffer sees of it."""

    source: tuple[str, int] = ("192.0.2.1", 49152)
    destination: tuple[str, int] = ("192.0.2.2", 4444)
    size: int = 1448
    packets: list[Tcp] = field(default_factory=list)
    next: list[int] = field(default_factory=lambda: list(SEQUENCES))

    def send(self, side: int, flags: int = ACK, payload: bytes = b"", time: int = 0) -> None:
        ends = (self.source, self.destination)
        self.packets.append(
            Tcp(ends[side], ends[1 - side], self.next[side], self.next[1 - side], flags, payload, time)
        )
        self.next[side] += len(payload) + bool(flags & (SYN | FIN))

    def open(self, time: int = 0) -> None:
        self.send(0, SYN, time=time)
        self.send(1, SYN | ACK, time=time)
        self.send(0, time=time)

    def say(self, side: int, data: bytes, time: int = 0) -> None:
        for at in range(0, len(data), self.size):
            self.send(side, ACK | PSH, data[at : at + self.size], time)
        self.send(1 - side, time=time)

    def close(self, time: int = 0) -> None:
        self.send(0, FIN | ACK, time=time)
        self.send(1, FIN | ACK, time=time)
        self.send(0, time=time)


def talks(stream: Stream, size: int = 1448, port: int = 4444) -> list[Tcp]:
    """What a sniffer sees of a migration."""
    found: dict[int, Talk] = {}
    packets: list[Tcp] = []
    time = 0
    for number, direction, data in stream.pieces:
        if number not in found:
            found[number] = Talk(("192.0.2.1", 49152 + number), ("192.0.2.2", port), size)
            found[number].open(time)
        talk = found[number]
        talk.say(0 if direction == "fwd" else 1, data, time)
        packets += talk.packets
        talk.packets.clear()
        time += 5000
    for talk in found.values():
        talk.close(time)
        packets += talk.packets
    return packets


def pcap(packets: Iterable[Tcp], magic: bytes = MICROSECONDS, link: int = 1) -> bytes:
    """A pcap file of Ethernet (1) or raw IP (101) packets."""
    order = "<" if magic[0] in (0xD4, 0x4D) else ">"
    unit = 1 if b"\xc3" in magic else 1000
    parts = [magic + struct.pack(order + "HHiIII", 2, 4, 0, 0, 262144, link)]
    for packet in packets:
        data = packet.ethernet() if link == 1 else packet.ip()
        seconds, part = divmod(packet.time, 1_000_000)
        head = struct.pack(order + "IIII", START + seconds, part * unit, len(data), len(data) + packet.lost)
        parts.append(head + data)
    return b"".join(parts)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of a pcapng file."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def pcapng(packets: Iterable[Tcp], order: str = "<", resolution: int | None = None) -> bytes:
    """A pcapng file of Ethernet packets. `resolution`: the option if_tsresol, a power of ten."""
    option = b"" if resolution is None else struct.pack(order + "HHB3xHH", 9, 1, resolution, 0, 0)
    parts = [
        block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order),
        block(5, b"statistics, which nobody reads", order),
        block(1, struct.pack(order + "HHI", 1, 0, 0) + option, order),
    ]
    scale = 10 ** ((6 if resolution is None else resolution) - 6)
    for packet in packets:
        data = packet.ethernet(7)
        ticks = (START * 1_000_000 + packet.time) * scale
        head = struct.pack(
            order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data) + packet.lost
        )
        parts.append(block(6, head + data, order))
    return b"".join(parts)


def cut_to(packets: Sequence[Tcp], snaplen: int) -> Iterator[Tcp]:
    """The packets as a sniffer keeps them that takes `snaplen` bytes of each, Ethernet header included."""
    for packet in packets:
        yield replace(packet, lost=max(0, len(packet.ethernet()) - snaplen))
