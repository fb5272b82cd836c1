"""Bytes of connections become TCP packets in a pcapng file, as if they had been captured on an Ethernet.

Written here and not with scapy's PcapNgWriter: that one takes times as floats, and comments only with packets
that scapy has dissected, which is slow.
"""

import ipaddress
from collections.abc import Sequence
from struct import Struct
from typing import BinaryIO, Final

from migsniff.core.arrivals import Data
from migsniff.feed.packets import ACK, ETHERNET, FIN, RST, SYN, TCP
from migsniff.feed.pcapfile import BYTE_ORDER, INTERFACE, PACKET, SECTION
from migsniff.feed.reassembly import WRAP

PSH: Final = 0x08
MAX_PAYLOAD: Final = 60_000  # bytes of a packet: what fits into one of IP, and somewhat less
MAX_COMMENT: Final = 60_000
COMMENT: Final = 1
FALLBACK: Final = ("192.0.2.1", "192.0.2.2", 49152, 4444)  # RFC 5737: addresses for documentation
WINDOW: Final = b"\x02\x04\xff\xd7\x01\x03\x03\x0e"  # MSS, and a window that is scaled to a gibibyte
MACS: Final = (b"\2\0\0\0\0\1", b"\2\0\0\0\0\2")
_U32 = Struct("<I")
_BLOCK = Struct("<IIIIIII")
_TCP_HEAD = Struct(">HHIIBBHHH")
_IPV4_HEAD = Struct(">BBHHHBBH4s4s")
_IPV6_HEAD = Struct(">IHBB16s16s")

Address = tuple[bytes, int]


class PcapngWriter:
    """Writes packets to `file`, which need not be seekable. The last one waits for what is said last."""

    def __init__(self, file: BinaryIO, application: str) -> None:
        self._file = file
        self._last: tuple[bytes, list[str]] | None = None
        name = _option(4, application.encode())
        file.write(_block(SECTION, Struct("<IHHq").pack(BYTE_ORDER, 1, 0, -1) + name))
        file.write(_block(INTERFACE, Struct("<HHI").pack(ETHERNET, 0, 0) + _option(2, b"migsniff")))

    def packet(self, time: int, data: bytes, wire: int, comments: Sequence[str] = ()) -> None:
        """A packet of `wire` bytes of which the first are in `data`. `time`: µs since the epoch."""
        self._write()
        head = _BLOCK.pack(PACKET, 0, 0, time >> 32, time & 0xFFFFFFFF, len(data), wire)[8:]
        self._last = head + data + bytes(-len(data) % 4), list(comments)

    def finish(self, comments: Sequence[str]) -> None:
        """Write the last packet, with these comments too."""
        if self._last is not None:
            self._last[1].extend(comments)
        self._write()

    def _write(self) -> None:
        if self._last is None:
            return
        body, comments = self._last
        options = b"".join(_comment(comment) for comment in comments)
        self._file.write(_block(PACKET, body + (options + bytes(4) if options else b"")))


def _block(kind: int, body: bytes) -> bytes:
    length = _U32.pack(len(body) + 12)
    return _U32.pack(kind) + length + body + length


def _comment(text: str) -> bytes:
    value = text.encode()[:MAX_COMMENT]
    return Struct("<HH").pack(COMMENT, len(value)) + value + bytes(-len(value) % 4)


def _option(code: int, value: bytes) -> bytes:
    """The only option of a block."""
    return Struct("<HH").pack(code, len(value)) + value + bytes(-len(value) % 4) + bytes(4)


class Conversation:
    """A TCP connection that never was: its packets go to `writer`. Sides: 0 the source, 1 the destination."""

    def __init__(self, writer: PcapngWriter, source: str, destination: str, number: int) -> None:
        self._writer = writer
        self._ends = _ends(source, destination, number)
        self._next = [0x10000000, 0x20000000]
        self._acked = [0, 0]
        self._closed = False

    def open(self, time: int) -> None:
        """The handshake."""
        self._send(time, 0, SYN, options=WINDOW)
        self._send(time, 1, SYN | ACK, options=WINDOW)
        self._send(time, 0, ACK)

    def data(self, time: int, side: int, data: Data, wire: int, comments: Sequence[str] = ()) -> None:
        """Bytes that one side sent, `wire` of which the first are in `data`."""
        self._send(time, side, ACK | PSH, bytes(data), wire, comments=comments)

    def acknowledge(self, time: int, side: int) -> None:
        """What a side has received so far, unless it has said so."""
        if not self._closed and self._acked[side] != self._next[1 - side]:
            self._send(time, side, ACK)

    def end(self, time: int, side: int, *, reset: bool, comments: Sequence[str] = ()) -> None:
        """A side closes or resets the connection."""
        self._send(time, side, RST | ACK if reset else FIN | ACK, comments=comments)
        self._closed = self._closed or reset

    def _send(
        self,
        time: int,
        side: int,
        flags: int,
        data: bytes = b"",
        wire: int = 0,
        *,
        options: bytes = b"",
        comments: Sequence[str] = (),
    ) -> None:
        (source, port), (destination, other) = self._ends[side], self._ends[1 - side]
        sequence, expected = self._next[side], self._next[1 - side] if flags & ACK else 0
        size = (20 + len(options)) // 4 << 4
        tcp = _TCP_HEAD.pack(port, other, sequence, expected, size, flags, 0xFFFF, 0, 0) + options
        length = len(tcp) + wire
        head = MACS[1 - side] + MACS[side]
        if len(source) == 4:
            head += b"\x08\x00" + _ipv4(source, destination, length)
        else:
            head += b"\x86\xdd" + _IPV6_HEAD.pack(6 << 28, length, TCP, 64, source, destination)
        self._writer.packet(time, head + tcp + data, len(head) + length, comments)
        self._next[side] = (sequence + wire + bool(flags & (SYN | FIN))) % WRAP
        self._acked[side] = expected


def _ipv4(source: bytes, destination: bytes, length: int) -> bytes:
    """The header, with its checksum; TCP's is left out, as where a network card computes it."""
    head = _IPV4_HEAD.pack(0x45, 0, 20 + length, 0, 0x4000, 64, TCP, 0, source, destination)
    total = sum(Struct(">10H").unpack(head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + Struct(">H").pack(total ^ 0xFFFF) + head[12:]


def _ends(source: str, destination: str, number: int) -> tuple[Address, Address]:
    """The ends of a connection, if they are addresses of one family; else made-up ones."""
    first, second = _address(source), _address(destination)
    if first is None or second is None or len(first[0]) != len(second[0]):
        host, other, port, other_port = FALLBACK
        return (
            (ipaddress.ip_address(host).packed, port + number % 16384),
            (ipaddress.ip_address(other).packed, other_port),
        )
    return first, second


def _address(text: str) -> Address | None:
    host, _, port = text.rpartition(":")
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return (found.packed, int(port)) if port.isdecimal() and 0 < int(port) < 65536 else None
