"""Packets out of a pcap or a pcapng file. Nothing that the file says of itself is believed without a limit.

Formats: the IETF drafts draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple, Protocol

from migsniff.core.errors import CaptureError

PCAP_MAGICS: Final = {
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}
"""First bytes -> byte order, nanoseconds in the smaller unit of time."""
PCAPNG_MAGIC: Final = b"\x0a\x0d\x0d\x0a"
MAGICS: Final = (*PCAP_MAGICS, PCAPNG_MAGIC)
INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET, SECTION = 1, 2, 3, 6, 0x0A0D0D0A
BYTE_ORDER: Final = 0x1A2B3C4D
TSRESOL, TSOFFSET = 9, 14
MAX_PACKET: Final = 1 << 20  # bytes captured of one: none is larger than BIG TCP's half a megabyte
MAX_INTERFACES: Final = 4096
MAX_TIME: Final = 253_402_300_000 * 1_000_000_000  # ns: the year 9999, the last that has a date
READ: Final = 1 << 20


Packet = tuple[int, bytes, int, int, int, int]
"""Time (ns since the epoch), data, start, end, wire, link: data[start:end] of a packet of `wire` bytes."""


class Interface(NamedTuple):
    """An interface of a pcapng section: its link layer, its clock's ticks a second and offset in seconds."""

    link: int
    snaplen: int
    ticks: int
    offset: int


class Readable(Protocol):
    """What packets are read from."""

    def read(self, size: int, /) -> bytes | None: ...


class Buffered:
    """A file read in large pieces; `data` from `pos` on is what has been read and not been taken."""

    def __init__(self, file: Readable, name: str) -> None:
        self.name = name
        self.data = b""
        self.pos = 0
        self._file = file
        self._before = 0  # bytes of the file before data

    @property
    def at(self) -> int:
        """The file's offset of what is taken next."""
        return self._before + self.pos

    def need(self, count: int) -> bool:
        """Make `count` bytes stand at data[pos]; False if the file ends before."""
        while len(self.data) - self.pos < count:
            try:
                more = self._file.read(READ)
            except OSError as error:
                raise CaptureError(f"{self.name}: at {self.at}: {error.strerror or error}") from None
            if not more:
                return False
            self._before += self.pos
            self.data = self.data[self.pos :] + more
            self.pos = 0
        return True

    def skip(self, count: int) -> bool:
        """Step over `count` bytes; False if the file ends before."""
        while count > len(self.data) - self.pos:
            count -= len(self.data) - self.pos
            self.pos = len(self.data)
            if not self.need(1):
                return False
        self.pos += count
        return True

    def broken(self, what: str, at: int | None = None) -> CaptureError:
        """The error for what stands at `at`, or here."""
        return CaptureError(f"{self.name}: at {self.at if at is None else at}: {what}")


def packets(file: Readable, name: str) -> Iterator[Packet]:
    """All packets. Raises CaptureError, behind the packets that could be read."""
    source = Buffered(file, name)
    source.need(4)
    magic = source.data[:4]
    if magic in PCAP_MAGICS:
        yield from _pcap(source, *PCAP_MAGICS[magic])
    elif magic == PCAPNG_MAGIC:
        yield from _pcapng(source)
    else:
        raise CaptureError(f"{name}: neither pcap nor pcapng: it begins with {magic.hex(' ')}")


def _pcap(source: Buffered, order: str, unit: int) -> Iterator[Packet]:
    if not source.need(24):
        raise source.broken("the file ends in its header")
    link = Struct(order + "I").unpack_from(source.data, 20)[0] & 0xFFFF
    source.pos = 24
    record = Struct(order + "IIII")
    while source.need(16):
        seconds, part, captured, wire = record.unpack_from(source.data, source.pos)
        if captured > MAX_PACKET:
            raise source.broken(
                f"a packet of {captured} bytes: more than the {MAX_PACKET} that migsniff reads"
            )
        if not source.need(16 + captured):
            raise source.broken("the file ends in a packet")
        start = source.pos + 16
        source.pos = end = start + captured
        if wire < captured:
            wire = captured
        yield seconds * 1_000_000_000 + part * unit, source.data, start, end, wire, link
    if len(source.data) > source.pos:
        raise source.broken("the file ends in the header of a packet")


def _pcapng(source: Buffered) -> Iterator[Packet]:
    order = ">"
    interfaces: list[Interface] = []
    time = 0
    while source.need(8):
        begin = source.at
        if source.data[source.pos : source.pos + 4] == PCAPNG_MAGIC:
            order, interfaces = _section(source), []
        kind, length = Struct(order + "II").unpack_from(source.data, source.pos)
        if length < 12 or length % 4:
            raise source.broken(f"a block of {length} bytes")
        if kind not in (INTERFACE, OLD_PACKET, SIMPLE_PACKET, PACKET):
            if not source.skip(length):
                raise source.broken("the file ends in a block", begin)
            continue
        if length > MAX_PACKET + 4096:
            raise source.broken(f"a block of {length} bytes: more than the {MAX_PACKET} that migsniff reads")
        if not source.need(length):
            raise source.broken("the file ends in a block")
        data, at = source.data, source.pos
        source.pos = at + length
        if Struct(order + "I").unpack_from(data, at + length - 4) != (length,):
            raise source.broken(f"a block of {length} bytes that does not end as it began", begin)
        if kind == INTERFACE:
            if len(interfaces) >= MAX_INTERFACES:
                raise source.broken(f"more than {MAX_INTERFACES} interfaces", begin)
            interfaces.append(_interface(source, data[at + 8 : at + length - 4], order, begin))
        else:
            packet = _packet(data, at, length, kind, order, interfaces, time)
            if packet is None:
                raise source.broken("a packet that does not fit its block, or of no interface", begin)
            time = packet[0]
            yield packet
    if len(source.data) > source.pos:
        raise source.broken("the file ends in the header of a block")


def _section(source: Buffered) -> str:
    """The byte order of the section whose header stands here."""
    if not source.need(28):
        raise source.broken("the file ends in the header of a section")
    for order in (">", "<"):
        if Struct(order + "I").unpack_from(source.data, source.pos + 8) == (BYTE_ORDER,):
            return order
    raise source.broken("a section of no byte order")


def _interface(source: Buffered, body: bytes, order: str, begin: int) -> Interface:
    if len(body) < 8:
        raise source.broken("an interface of too few bytes", begin)
    link, snaplen = Struct(order + "HxxI").unpack_from(body)
    ticks, offset = 1_000_000, 0
    at = 8
    while at + 4 <= len(body):
        code, length = Struct(order + "HH").unpack_from(body, at)
        value = body[at + 4 : at + 4 + length]
        if code == TSRESOL and len(value) == 1:
            power = value[0] & 0x7F
            if power > (63 if value[0] & 0x80 else 19):
                raise source.broken("an interface whose clock is too fine", begin)
            ticks = 1 << power if value[0] & 0x80 else 10**power
        elif code == TSOFFSET and len(value) == 8:
            (offset,) = Struct(order + "q").unpack(value)
        elif code == 0:
            break
        at += 4 + (length + 3) // 4 * 4
    return Interface(link, snaplen, ticks, offset)


_CACHED = {order: (Struct(order + "IIIII"), Struct(order + "HHIIII"), Struct(order + "I")) for order in "<>"}


def _packet(
    data: bytes, at: int, length: int, kind: int, order: str, interfaces: list[Interface], last: int
) -> Packet | None:
    """The packet in the block at data[at:], None if it does not fit."""
    enhanced, old, simple = _CACHED[order]
    if kind == SIMPLE_PACKET:  # of the first interface, without a time: that of the one before
        if length < 16 or not interfaces:
            return None
        (wire,) = simple.unpack_from(data, at + 8)
        interface = interfaces[0]
        captured = min(wire, interface.snaplen or wire)
        start = at + 12
        if captured > length - 16:
            return None
        return last, data, start, start + captured, wire, interface.link
    if length < 32:
        return None
    if kind == PACKET:
        number, high, low, captured, wire = enhanced.unpack_from(data, at + 8)
    else:
        number, _, high, low, captured, wire = old.unpack_from(data, at + 8)
    if number >= len(interfaces) or captured > length - 32:
        return None
    interface = interfaces[number]
    time = ((high << 32) | low) * 1_000_000_000 // interface.ticks + interface.offset * 1_000_000_000
    time = max(0, min(time, MAX_TIME))
    start = at + 28
    return time, data, start, start + captured, max(wire, captured), interface.link
