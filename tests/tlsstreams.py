"""TLS as it is seen from outside, made by hand: records, hellos, alerts."""

import random
import struct

from migsniff.core.tls import RETRY_RANDOM

HANDSHAKE, APPLICATION, CHANGE, ALERT = 22, 23, 20, 21
SECRET = b"this is not to be kept"


def record(kind: int, body: bytes, version: int = 0x0303) -> bytes:
    return struct.pack(">BHH", kind, version, len(body)) + body


def vector(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return struct.pack(">H", kind) + vector(2, body)


def hello(kind: int, body: bytes) -> bytes:
    return record(HANDSHAKE, bytes([kind]) + vector(3, body), 0x0301)


def client(
    *versions: int,
    name: bytes = b"",
    protocols: tuple[bytes, ...] = (),
    psk: bool = False,
    ciphers: int = 3,
) -> bytes:
    extensions = b""
    if name:
        extensions += extension(0, vector(2, b"\0" + vector(2, name)))
    if protocols:
        extensions += extension(16, vector(2, b"".join(vector(1, p) for p in protocols)))
    if versions:
        extensions += extension(43, vector(1, b"".join(struct.pack(">H", v) for v in versions)))
    extensions += extension(99, SECRET)
    if psk:
        extensions += extension(41, vector(2, vector(2, b"identity") + bytes(4)) + vector(2, bytes(33)))
    head = struct.pack(">H", 0x0303) + bytes(32) + vector(1, SECRET)
    return hello(1, head + vector(2, b"\x13\1" * ciphers) + vector(1, b"\0") + vector(2, extensions))


def server(version: int = 0x0304, cipher: int = 0x1301, *, psk: bool = False, retry: bool = False) -> bytes:
    extensions = extension(43, struct.pack(">H", version)) if version > 0x0303 else b""
    extensions += extension(41, b"\0\0") if psk else b""
    chance = RETRY_RANDOM if retry else bytes(32)
    head = struct.pack(">H", min(version, 0x0303)) + chance + vector(1, SECRET)
    return hello(2, head + struct.pack(">HB", cipher, 0) + vector(2, extensions))


def data(*sizes: int) -> bytes:
    chance = random.Random(str(sizes))
    return b"".join(record(APPLICATION, chance.randbytes(size)) for size in sizes)


CHANGED = record(CHANGE, b"\1")
FORWARD = client(0x0304, 0x0303, name=b"dest.example", psk=True) + CHANGED + data(53, 300, 16401, 19)
BACK = server(psk=True) + CHANGED + data(40, 53)
