"""The stripped container: gathering what is kept, and blocks."""

import random
from io import BufferedReader, BytesIO
from itertools import compress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.errors import CaptureError
from migsniff.feed.container import (
    BLOCK_HEADER,
    FILE_HEADER,
    MAX_STORED,
    Block,
    block_header,
    file_header,
    gather,
    read_blocks,
    read_direction,
)

BASE = 10_000_000_000  # beyond 32 bits


def without(data: bytes, omitted: list[tuple[int, int]]) -> bytes:
    """What gather() should give, byte by byte."""
    kept = bytearray([True]) * len(data)
    for start, stop in omitted:
        kept[start - BASE : stop - BASE] = bytes(stop - start)
    return bytes(compress(data, kept))


@st.composite
def spans(draw: st.DrawFn) -> tuple[bytes, list[tuple[int, int]]]:
    """Data, and spans of it: few or many, of few or many lengths, touching or apart."""
    seed = draw(st.integers(0, 1 << 32))
    dice = random.Random(seed)
    kept = draw(st.sampled_from(([8], [11, 8, 0], [9 * n for n in range(9)], list(range(130)))))
    gaps = draw(st.sampled_from(([3], [5, 64], list(range(40)))))
    at = 0
    omitted = []
    for _ in range(draw(st.sampled_from((0, 1, 20, 49, 50, 200, 999, 1000)))):
        start = at + dice.choice(kept)
        at = start + dice.choice(gaps)
        omitted.append((BASE + start, BASE + at))
    return dice.randbytes(at + dice.choice((0, 0, 5, 100))), omitted


@given(spans())
def test_gather(case: tuple[bytes, list[tuple[int, int]]]) -> None:
    data, omitted = case
    expected = without(data, omitted)
    assert gather(bytearray(data), BASE, omitted) == expected
    assert gather(memoryview(data), BASE, np.array(omitted, np.uint64).reshape(-1, 2)) == expected


@pytest.mark.parametrize(
    ("omitted", "expected"),
    [
        ([(BASE - 5, BASE + 2)], b"cdefgh"),
        ([(BASE + 6, BASE + 99)], b"abcdef"),
        ([(BASE - 9, BASE - 3)], b"abcdefgh"),
        ([(BASE - 9, BASE - 3), (BASE + 1, BASE + 3), (BASE + 50, BASE + 60)], b"adefgh"),
        ([(0, 2 * BASE)], b""),
    ],
)
def test_what_lies_outside_the_data_is_no_matter(omitted: list[tuple[int, int]], expected: bytes) -> None:
    assert gather(b"abcdefgh", BASE, omitted) == expected
    assert gather(b"abcdefgh", BASE, np.array(omitted, np.uint64)) == expected


def test_large_chunk_of_plain_pages() -> None:
    page = bytes(range(256)) * 16
    data = b"".join(n.to_bytes(8, "big") + page for n in range(255))
    omitted = [(BASE + n * 4104 + 8, BASE + (n + 1) * 4104) for n in range(255)]
    assert gather(data, BASE, omitted) == b"".join(n.to_bytes(8, "big") for n in range(255))


BLOCKS = [Block(0, 5000, b"headers"), Block(5000, 1 << 40, None), Block(1 << 40, (1 << 40) + 2, b"ab")]


def container(blocks: list[Block]) -> bytes:
    return file_header("rev") + b"".join(
        block_header(block.start, block.end, len(block.stored or b"")) + (block.stored or b"")
        for block in blocks
    )


def read(data: bytes, *, torn: bool = False) -> list[Block]:
    file = BufferedReader(BytesIO(data))
    assert read_direction(file, "x.strip", torn=torn) == "rev"
    return list(read_blocks(file, "x.strip", torn=torn))


def test_blocks_come_back() -> None:
    assert read(container(BLOCKS)) == BLOCKS


def test_not_a_stream() -> None:
    assert not container([]).startswith((b"QEVM", b"\x11\x22\x33\x44", b"\x16\x03"))


def test_cut_anywhere() -> None:
    whole = container(BLOCKS)
    ends = [len(container(BLOCKS[:count])) for count in range(len(BLOCKS) + 1)]
    for cut in range(FILE_HEADER.size, len(whole)):
        complete = [end for end in ends if end <= cut]
        assert read(whole[:cut], torn=True) == BLOCKS[: len(complete) - 1]
        if cut not in ends:
            with pytest.raises(
                CaptureError, match=f"x.strip: at {complete[-1]}: the file ends inside a block"
            ):
                read(whole[:cut])


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ((3, 0, 7, 5), "unknown block kind 3"),
        ((0, 0, 0, 0), "unknown block kind 0"),
        ((1, 4, 8, 5), "a block of wire offset 8 where 7 must follow"),
        ((1, 0, 7, 5), "a block of 0 bytes for 5 bytes"),
        ((1, 6, 7, 5), "a block of 6 bytes for 5 bytes"),
        ((1, MAX_STORED + 1, 7, 1 << 40), f"a block of {MAX_STORED + 1} bytes"),
        ((1, 0xFFFFFFFF, 7, 1 << 60), "a block of 4294967295 bytes"),
        ((2, 1, 7, 5), "a block without contents that holds 1 bytes"),
        ((2, 0, 7, 0), "a block of 0 bytes from"),
        ((2, 0, 7, (1 << 63) - 7), "a block of 9223372036854775801 bytes from"),
        ((2, 0, 7, (1 << 64) - 1), "a block of 18446744073709551615 bytes from"),
    ],
)
def test_blocks_that_lie(block: tuple[int, int, int, int], reason: str) -> None:
    data = container([Block(0, 7, b"1234567")])
    file = BufferedReader(BytesIO(data + BLOCK_HEADER.pack(*block) + bytes(9)))
    read_direction(file, "x.strip", torn=False)
    blocks = read_blocks(file, "x.strip", torn=True)
    assert next(blocks) == Block(0, 7, b"1234567")
    with pytest.raises(CaptureError, match=f"x.strip: at {len(data)}: {reason}"):
        next(blocks)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"", "not a stripped channel"),
        (b"QEVM\0\0\0\3" + bytes(20), "not a stripped channel"),
        (FILE_HEADER.pack(b"\x89migsniff-strip\n", 2, 0), "container version 2"),
        (FILE_HEADER.pack(b"\x89migsniff-strip\n", 1, 2), "unknown direction 2"),
    ],
)
def test_headers_that_lie(header: bytes, reason: str) -> None:
    with pytest.raises(CaptureError, match=f"x.strip: {reason}"):
        read_direction(BufferedReader(BytesIO(header)), "x.strip", torn=False)
