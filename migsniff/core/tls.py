"""TLS: the records of a connection, which only their sender and receiver can read.

Seen from outside are the records' headers, and what the two sides say before they encrypt: hellos, alerts.
Only headers are kept in a stripped capture; what the messages in the clear told is kept in its timeline.

Formats: RFC 5246 and RFC 8446. QEMU speaks it through GnuTLS (crypto/tlssession.c), from the first byte of
each connection on (migration/tls.c); the source is the client.
"""

from collections import deque
from collections.abc import Generator, Iterator
from enum import IntEnum
from typing import Final

from migsniff.core.arrivals import Direction, TlsFacts
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    NOT_CLOSED,
    Event,
    TlsEnded,
    TlsMessage,
    TlsRecords,
)
from migsniff.core.layout import Contents, Layout, Named, Tagged
from migsniff.core.text import readable
from migsniff.core.wire import TLS_HANDSHAKE, TLS_MAJOR


class ContentType(IntEnum):
    """What a record holds (RFC 8446, 5.1; RFC 6520)."""

    CHANGE_CIPHER_SPEC = 20
    ALERT = 21
    HANDSHAKE = TLS_HANDSHAKE
    APPLICATION_DATA = 23
    HEARTBEAT = 24


TLS_RECORD: Final = Tagged(
    "TlsRecord",
    Layout(
        ("content_type", Named("B", ContentType)),
        ("major", "B"),
        ("minor", "B"),
        ("length", "H"),
        ("fragment", Contents("length")),
    ),
)
HEADER: Final = TLS_RECORD.head.struct
# plain numbers: an operation on an enumeration's members costs as much as reading a record's header
CHANGE_CIPHER, ALERT, HANDSHAKE, APPLICATION, HEARTBEAT = map(int, ContentType)
MAX_RECORD: Final = (1 << 14) + 2048  # RFC 5246, 6.2.3; with 1.3 it is less
CLIENT_HELLO, SERVER_HELLO = 1, 2
MAX_MESSAGES: Final = 4  # in the clear, of one direction: two hellos and an alert are all there can be
MAX_SHOWN: Final = 16
MAX_NAME: Final = 255
PROGRESS: Final = 8192  # records between two lines: 16 to 128 MiB
# what an alert of two bytes takes encrypted: with its type and the tag of 16 bytes, or the short tag of CCM_8
SEALED_ALERTS: Final = (2 + 1 + 16, 2 + 1 + 8)
RETRY_RANDOM: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

VERSIONS: Final = {0x0300: "SSL 3.0", 0x0301: "1.0", 0x0302: "1.1", 0x0303: "1.2", 0x0304: "1.3"}
CIPHERS: Final = {
    0x1301: "AES_128_GCM_SHA256",
    0x1302: "AES_256_GCM_SHA384",
    0x1303: "CHACHA20_POLY1305_SHA256",
    0x1304: "AES_128_CCM_SHA256",
    0x1305: "AES_128_CCM_8_SHA256",
    0x009C: "RSA_AES_128_GCM_SHA256",
    0x009D: "RSA_AES_256_GCM_SHA384",
    0x00A6: "DH_anon_AES_128_GCM_SHA256",
    0x00A7: "DH_anon_AES_256_GCM_SHA384",
    0x00A8: "PSK_AES_128_GCM_SHA256",
    0x00A9: "PSK_AES_256_GCM_SHA384",
    0x00AA: "DHE_PSK_AES_128_GCM_SHA256",
    0x00AB: "DHE_PSK_AES_256_GCM_SHA384",
    0xC02B: "ECDHE_ECDSA_AES_128_GCM_SHA256",
    0xC02C: "ECDHE_ECDSA_AES_256_GCM_SHA384",
    0xC02F: "ECDHE_RSA_AES_128_GCM_SHA256",
    0xC030: "ECDHE_RSA_AES_256_GCM_SHA384",
    0xCCA8: "ECDHE_RSA_CHACHA20_POLY1305_SHA256",
    0xCCA9: "ECDHE_ECDSA_CHACHA20_POLY1305_SHA256",
    0xCCAB: "PSK_CHACHA20_POLY1305_SHA256",
    0xCCAC: "ECDHE_PSK_CHACHA20_POLY1305_SHA256",
    0xCCAD: "DHE_PSK_CHACHA20_POLY1305_SHA256",
}
ALERTS: Final = {
    0: "close_notify",
    10: "unexpected_message",
    20: "bad_record_mac",
    40: "handshake_failure",
    42: "bad_certificate",
    43: "unsupported_certificate",
    45: "certificate_expired",
    46: "certificate_unknown",
    47: "illegal_parameter",
    48: "unknown_ca",
    49: "access_denied",
    50: "decode_error",
    51: "decrypt_error",
    70: "protocol_version",
    71: "insufficient_security",
    80: "internal_error",
    90: "user_canceled",
    112: "unrecognized_name",
    115: "unknown_psk_identity",
    116: "certificate_required",
}
SERVER_NAME, ALPN, PRE_SHARED_KEY, SUPPORTED_VERSIONS = 0, 16, 41, 43


class TlsConnection:
    """What the two directions know together: the version that the server chose, whether it asked once more.

    `told`: messages of a capture that has not their bytes, by direction, with their wire offsets.
    """

    def __init__(self) -> None:
        self.version = ""
        self.retry = False
        self.told: dict[Direction, deque[tuple[int, TlsFacts]]] = {
            "fwd": deque(maxlen=MAX_MESSAGES),
            "rev": deque(maxlen=MAX_MESSAGES),
        }


class TlsReader:
    """Walks the records of one direction. `learned`: messages read, for a capture that will not have them."""

    def __init__(
        self, channel: str, direction: Direction, queue: ByteQueue, connection: TlsConnection
    ) -> None:
        self.channel = channel
        self.direction: Direction = direction
        self.queue = queue
        self.connection = connection
        self.told = connection.told[direction]
        self.learned: list[tuple[int, TlsFacts]] = []
        self.records = self.handshake = self.alerts = self.application = 0
        self.payload = 0
        self.closed = ""
        self.torn = False
        self._where = "between TLS records"
        self.head = b""  # the header of the record that is being read
        self._messages = 0
        self._encrypted = False
        self._last = APPLICATION, 0
        self._progress = 0, 0  # records, wire offset

    @property
    def where(self) -> str:
        """What is being read."""
        return self._where

    # ------------------------------------------------------------ records

    def run(self) -> Steps:
        """Records, for as long as the connection lasts."""
        queue = self.queue
        while True:
            if self._encrypted and queue.kept == "all":
                self._scan()
            if self.records - self._progress[0] == PROGRESS:
                yield self._told_progress()
            yield from queue.record()
            start = queue.at
            if not queue.ensure(HEADER.size):
                yield from queue.wait(HEADER.size)
            kind, major, _, length = HEADER.unpack_from(queue.data, queue.pos)
            if not CHANGE_CIPHER <= kind <= HEARTBEAT or major != TLS_MAJOR or length > MAX_RECORD:
                raise StreamProblem("tls-record", found=queue.peek(HEADER.size).hex(" "))
            self.head = bytes(queue.data[queue.pos : queue.pos + HEADER.size])
            queue.advance(HEADER.size)
            self._where = "a TLS record"
            if self._is_clear(kind, length):
                yield from self._message(kind, start, length)
            elif length := queue.skip_contents(length):
                yield from queue.contents(length)
            self._where = "between TLS records"
            self._count(kind, queue.at - start - HEADER.size)

    def _scan(self) -> None:
        """Walk the records of data that stand complete in the current piece: nearly all that ever come."""
        queue = self.queue
        data, begin, end = queue.data, queue.pos, queue.end
        pos, last = begin, end - HEADER.size
        behind = queue.at - begin
        unpack = HEADER.unpack_from
        spans: list[tuple[int, int]] = []
        length = self._last[1]
        records = 0
        most = PROGRESS - (self.records - self._progress[0])
        while pos <= last and records < most:
            kind, major, _, size = unpack(data, pos)
            stop = pos + HEADER.size + size
            if kind != APPLICATION or major != TLS_MAJOR or size > MAX_RECORD or stop > end:
                break
            if size:
                spans.append((behind + pos + HEADER.size, behind + stop))
            pos, length = stop, size
            records += 1
        if not records:
            return
        self.records += records
        self.application += records
        self.payload += pos - begin - records * HEADER.size
        self._last = APPLICATION, length
        if queue.omitted is not None:
            queue.omitted += spans
        queue.advance(pos - begin)

    def _is_clear(self, kind: int, length: int) -> bool:
        """Whether a record may hold a message in the clear."""
        if kind not in (HANDSHAKE, ALERT) or self._encrypted or self._messages >= MAX_MESSAGES:
            return False
        return kind == HANDSHAKE or length == 2

    def _count(self, kind: int, length: int) -> None:
        self.records += 1
        self.payload += length
        self._last = kind, length
        if kind == APPLICATION:
            self.application += 1
            self._encrypted = True
        elif kind == CHANGE_CIPHER:
            self._encrypted = not self.connection.retry  # after which it is there for the sake of old proxies
        elif kind == HANDSHAKE:
            self.handshake += 1
        elif kind == ALERT:
            self.alerts += 1

    def _told_progress(self) -> TlsRecords:
        (records, at), self._progress = self._progress, (self.records, self.queue.at)
        return TlsRecords(
            channel=self.channel,
            direction=self.direction,
            offset=at,
            size=self.queue.at - at,
            records=self.records - records,
            total=self.records,
        )

    # ------------------------------------------------------------ messages in the clear

    def _message(self, kind: int, start: int, length: int) -> Steps:
        facts: TlsFacts | None
        if self.queue.kept == "all":
            body = yield from self._body(length)
            facts = _alert(body) if kind == ALERT else _hello(body)
            if facts is not None:
                self.learned.append((start, facts))
        else:
            yield from self.queue.contents(length)
            facts = self.told.popleft()[1] if self.told and self.told[0][0] == start else None
        if facts is None:
            return
        self._messages += 1
        if facts.message == "ServerHello":
            self.connection.version = facts.version
        elif facts.message == "HelloRetryRequest":
            self.connection.retry = True
        elif facts.message == "alert":
            self.closed = facts.alert
        yield TlsMessage(
            channel=self.channel,
            direction=self.direction,
            offset=start,
            size=HEADER.size + length,
            facts=facts,
        )

    def _body(self, length: int) -> Generator[Event | None, None, bytes]:
        body = bytearray()
        while len(body) < length:
            if not (some := self.queue.take_contents(length - len(body))):
                self.queue.check_hole()
                yield None
            body += some
        return bytes(body)

    # ------------------------------------------------------------ the end

    def ended(self, *, sound: bool) -> TlsEnded:
        """What is to be said of the direction as a whole; `sound`: all of it were records."""
        self.torn = sound and self.queue.wire_end > self.queue.mark
        kind, length = self._last
        if self.closed or self.torn:
            pass
        elif kind == ALERT:
            self.closed = "an encrypted alert"
        elif self.connection.version == "1.3" and kind == APPLICATION and length in SEALED_ALERTS:
            self.closed = "probably close_notify"
        return TlsEnded(
            channel=self.channel,
            direction=self.direction,
            offset=0,
            size=self.queue.wire_end,
            records=self.records,
            handshake=self.handshake,
            alerts=self.alerts,
            application=self.application,
            payload=self.payload,
            closed=self.closed or NOT_CLOSED,
            torn=self.torn,
        )


class _Fields:
    """The parts of a message, which is not longer than a record. Raises IndexError where it is too short."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at]

    def vector(self, size: int) -> "_Fields":
        """A part whose length stands before it, in `size` bytes."""
        return _Fields(self.take(self.number(size)))

    @property
    def left(self) -> int:
        return len(self.data) - self.at


def _alert(body: bytes) -> TlsFacts:
    level = {1: "warning", 2: "fatal"}.get(body[0], f"level {body[0]}")
    name = ALERTS.get(body[1], f"alert {body[1]}")
    return TlsFacts(message="alert", alert=name if name == "close_notify" else f"{level} {name}")


def _hello(body: bytes) -> TlsFacts | None:
    """What a handshake record says, None if it holds no hello: then it may be anything, also encrypted."""
    fields = _Fields(body)
    if len(body) < 4 or body[0] not in (CLIENT_HELLO, SERVER_HELLO):
        return None
    message = "ClientHello" if fields.number(1) == CLIENT_HELLO else "ServerHello"
    try:
        hello = fields.vector(3)
        return _client(hello) if message == "ClientHello" else _server(hello)
    except IndexError:
        return TlsFacts(message=message, problem="it does not fit into its record")


def _client(hello: _Fields) -> TlsFacts:
    version = hello.number(2)
    hello.take(32)
    hello.vector(1)
    ciphers = len(hello.vector(2).data) // 2
    hello.vector(1)
    versions, name, psk = [version], "", False
    protocols: list[str] = []
    for kind, body in _extensions(hello):
        if kind == SUPPORTED_VERSIONS:
            offered = body.vector(1)
            versions = [offered.number(2) for _ in range(min(offered.left // 2, MAX_SHOWN))]
        elif kind == SERVER_NAME:
            names = body.vector(2)
            names.take(1)
            name = readable(names.vector(2).data[:MAX_NAME])
        elif kind == ALPN:
            listed = body.vector(2)
            while listed.left and len(protocols) < MAX_SHOWN:
                protocols.append(readable(listed.vector(1).data)[:MAX_NAME])
        elif kind == PRE_SHARED_KEY:
            psk = True
    return TlsFacts(
        message="ClientHello",
        version=_version(max(versions, default=version)),
        versions=tuple(map(_version, versions)),
        name=name[:MAX_NAME],
        ciphers=ciphers,
        protocols=tuple(protocols),
        psk=psk,
    )


def _server(hello: _Fields) -> TlsFacts:
    version = hello.number(2)
    retry = hello.take(32) == RETRY_RANDOM
    hello.vector(1)
    cipher = hello.number(2)
    hello.take(1)
    name = CIPHERS.get(cipher, f"{cipher:#06x}")
    psk = "PSK" in name
    for kind, body in _extensions(hello):
        if kind == SUPPORTED_VERSIONS:
            version = body.number(2)
        elif kind == PRE_SHARED_KEY:
            psk = True
    message = "HelloRetryRequest" if retry else "ServerHello"
    return TlsFacts(message=message, version=_version(version), cipher=name, psk=psk)


def _extensions(hello: _Fields) -> Iterator[tuple[int, _Fields]]:
    listed = hello.vector(2) if hello.left else _Fields(b"")
    while listed.left:
        kind = listed.number(2)
        yield kind, listed.vector(2)


def _version(number: int) -> str:
    return VERSIONS.get(number, f"{number:#06x}")
