"""Compressed packets of multifd channels: each method against its own packer, bombs."""

import resource
import struct
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from migsniff.core.errors import StreamProblem
from migsniff.core.inflaters import MAX_WINDOW, Qatzip, Qpl, Uadk, Zlib, Zstd
from migsniff.core.multifdmethods import Inflater

PAGE = 1024
Pack = Callable[[bytes], bytes]

# ---------------------------------------------------------------- packing, as QEMU does


def zlib_stream() -> Pack:
    stream = zlib.compressobj(1)
    return lambda pages: stream.compress(pages) + stream.flush(zlib.Z_SYNC_FLUSH)


def zstd_stream() -> Pack:
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    return lambda pages: stream.compress(pages) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def page_by_page(form: int) -> Callable[[], Pack]:
    def deflated(page: bytes) -> bytes:
        stream = zlib.compressobj(1, wbits=form)
        packed = stream.compress(page) + stream.flush()
        return packed if len(packed) < PAGE else page

    def pack(pages: bytes) -> bytes:
        packed = [deflated(pages[at : at + PAGE]) for at in range(0, len(pages), PAGE)]
        return struct.pack(f">{len(packed)}I", *map(len, packed)) + b"".join(packed)

    return lambda: pack


def gzip_members() -> Pack:
    def member(data: bytes) -> bytes:
        stream = zlib.compressobj(1, wbits=31)
        packed = stream.compress(data) + stream.flush()
        extra = b"QZ" + struct.pack("<HII", 8, len(data), len(packed) - 18)
        return packed[:3] + b"\x04" + packed[4:10] + struct.pack("<H", len(extra)) + extra + packed[10:]

    return lambda pages: b"".join(member(pages[at : at + 1500]) for at in range(0, len(pages), 1500))


METHODS: dict[str, tuple[Callable[[], Inflater], Callable[[], Pack]]] = {
    "zlib": (Zlib, zlib_stream),
    "zstd": (Zstd, zstd_stream),
    "qpl": (Qpl, page_by_page(-15)),
    "uadk": (Uadk, page_by_page(15)),
    "qatzip": (Qatzip, gzip_members),
}
methods = pytest.mark.parametrize("method", METHODS)
any_page = st.one_of(
    st.randoms(use_true_random=False).map(lambda random: random.randbytes(PAGE)),
    st.integers(0, 255).map(lambda fill: bytes([fill]) * PAGE),
    st.binary(min_size=8, max_size=8).map(lambda word: word * (PAGE // 8)),
)
any_packets = st.lists(st.lists(any_page, min_size=1, max_size=9).map(b"".join), max_size=8)


def made(method: str) -> tuple[Inflater, Pack]:
    inflater, packer = METHODS[method]
    return inflater(), packer()


def told(inflater: Inflater, data: bytes, count: int) -> str:
    with pytest.raises(StreamProblem) as caught:
        inflater.pages(memoryview(data), count, PAGE)
    return caught.value.text


# ---------------------------------------------------------------- what fits


@methods
@settings(max_examples=30, deadline=None)
@given(packets=any_packets)
def test_packets_give_their_pages(method: str, packets: list[bytes]) -> None:
    inflater, pack = made(method)
    for pages in packets:
        assert bytes(inflater.pages(memoryview(pack(pages)), len(pages) // PAGE, PAGE)) == pages


@pytest.mark.parametrize("level", [3, 9, 19, 20])
def test_zstd_of_every_level(level: int) -> None:
    stream = zstandard.ZstdCompressor(level=level).compressobj()
    inflater = Zstd()
    for fill in range(3):
        pages = bytes([fill]) * 3 * PAGE + bytes(range(256)) * 4
        packed = stream.compress(pages) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        assert bytes(inflater.pages(memoryview(packed), 4, PAGE)) == pages
        window = zstandard.ZstdCompressionParameters.from_level(level).window_log
        assert inflater.history == 1 << window


# ---------------------------------------------------------------- what does not


@methods
def test_more_than_the_packet_says(method: str) -> None:
    inflater, pack = made(method)
    assert told(inflater, pack(bytes(4 * PAGE)), 3)


@methods
def test_one_byte_more(method: str) -> None:
    inflater, pack = made(method)
    data = b"".join(bytes([number % 251]) for number in range(2 * PAGE + 1))
    assert told(inflater, pack(data), 2)


@pytest.mark.parametrize("method", ["zlib", "zstd", "qatzip"])
def test_less_than_the_packet_says(method: str) -> None:
    inflater, pack = made(method)
    assert told(inflater, pack(bytes(2 * PAGE)), 3) == "the packet decompresses to 2048 bytes instead of 3072"


@methods
def test_a_packet_cut_anywhere(method: str) -> None:
    """Never an exception but a StreamProblem; what a stream has made by then may be all of it."""
    make, packing = METHODS[method]
    pages = bytes(range(256)) * 4 + bytes(PAGE) + b"some words " * 93 + b"x"
    packed = packing()(pages)
    whole = 0
    for cut in range(len(packed)):
        try:
            assert bytes(make().pages(memoryview(packed)[:cut], 3, PAGE)) == pages
            whole += 1
        except StreamProblem:
            continue
    assert whole == 0 or method in ("zlib", "zstd")


@methods
@pytest.mark.parametrize("junk", [b"", b"junk", b"\xff" * 4000, bytes(4000)])
def test_junk(method: str, junk: bytes) -> None:
    inflater, _ = made(method)
    assert told(inflater, junk, 3).startswith("the packet")


@methods
def test_bytes_behind_the_end(method: str) -> None:
    pages = bytes(range(256)) * 8
    inflater, pack = made(method)
    ended: dict[str, Pack] = {"zlib": zlib.compress, "zstd": zstandard.ZstdCompressor().compress}
    assert told(inflater, ended.get(method, pack)(pages) + b"more", 2).startswith("the packet")


@pytest.mark.parametrize("method", ["zlib", "zstd", "uadk", "qatzip"])
def test_a_bomb_takes_no_memory(method: str) -> None:
    size = 128 << 20
    if method == "zstd":
        stream = zstandard.ZstdCompressor().compressobj(size=size)
        bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(size >> 20)) + stream.flush()
    else:
        packer = zlib.compressobj(1, wbits=31 if method == "qatzip" else 15)
        bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
        if method == "uadk":
            bomb = struct.pack(">I", len(bomb)) + bomb
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    inflater, _ = made(method)
    assert told(inflater, bomb, 1) == "the packet decompresses to more than its 1024 bytes"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10


def test_a_zstd_frame_that_needs_much_history() -> None:
    needs = zstandard.ZstdCompressionParameters(window_log=MAX_WINDOW.bit_length())
    stream = zstandard.ZstdCompressor(compression_params=needs).compressobj()
    packed = stream.compress(bytes(PAGE)) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert told(Zstd(), packed, 1).startswith("the packet cannot be decompressed: zstd ")


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_a_packet_that_was_missed(method: str) -> None:
    """These go on from packet to packet: one alone says nothing."""
    inflater, pack = made(method)
    first, second = (pack(bytes([fill]) * 3000 + bytes(72)) for fill in (1, 2))
    assert first != second
    assert told(inflater, second, 3).startswith("the packet")


def test_the_highest_level_of_qemu() -> None:
    assert 1 << zstandard.ZstdCompressionParameters.from_level(20).window_log == MAX_WINDOW
