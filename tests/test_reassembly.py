"""Segments become bytes in order, whatever became of them on their way."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.feed.reassembly import MAX_WAITING, OVERHEAD, PATIENCE, Piece, Reassembly, Room

DATA = bytes(range(256)) * 4


def joined(pieces: list[Piece]) -> list[bytes | int]:
    """Pieces, neighbours joined."""
    found: list[bytes | int] = []
    for piece in pieces:
        new = piece if isinstance(piece, int) else bytes(piece)
        if found and type(found[-1]) is type(new):
            found[-1] += new  # type: ignore[operator]
        elif new:
            found.append(new)
    return found


def begun(sequence: int = 0) -> Reassembly:
    found = Reassembly(Room())
    found.begin(sequence)
    return found


def fed(base: int, *segments: tuple[int, int]) -> list[bytes | int]:
    """What comes of segments (start, stop) of DATA."""
    found = begun(base)
    pieces: list[Piece] = []
    for start, stop in segments:
        pieces += found.segment((base + start) % (1 << 32), DATA[start:stop], stop - start, 0)
    return joined(pieces + found.flush())


@pytest.mark.parametrize("base", [0, 1000, (1 << 32) - 1, (1 << 32) - 15, (1 << 31) - 10])
@pytest.mark.parametrize(
    ("segments", "result"),
    [
        ([(0, 10), (10, 20), (20, 30)], [DATA[:30]]),
        ([(0, 10), (20, 30), (10, 20)], [DATA[:30]]),
        ([(20, 30), (10, 20), (0, 10)], [DATA[:30]]),
        ([(0, 10), (0, 10), (10, 20), (5, 15)], [DATA[:20]]),
        ([(10, 20), (5, 25), (0, 30)], [DATA[:30]]),
        ([(0, 10), (20, 30), (25, 40), (8, 22)], [DATA[:40]]),
        ([(10, 12), (14, 16), (18, 20), (0, 30)], [DATA[:30]]),
        ([(0, 10), (20, 30)], [DATA[:10], 10, DATA[20:30]]),
        ([(10, 20), (30, 40), (20, 22)], [10, DATA[10:22], 8, DATA[30:40]]),
        ([], []),
    ],
)
def test_order(base: int, segments: list[tuple[int, int]], result: list[bytes | int]) -> None:
    assert fed(base, *segments) == result


@given(st.randoms(use_true_random=False), st.integers(0, (1 << 32) - 1))
def test_any_order(random: random.Random, base: int) -> None:
    """Pieces in any order, some twice, some in other cuts: all bytes, once."""
    cuts = sorted({0, len(DATA), *(random.randrange(len(DATA)) for _ in range(30))})
    segments = list(pairwise(cuts))
    segments += [(start, min(len(DATA), start + 77)) for start, _ in segments[::3]]
    random.shuffle(segments)
    assert fed(base, *segments) == [DATA]


def test_four_gibibytes_go_by() -> None:
    found = begun(0xFFFFFF00)
    block = bytes(1 << 20)
    for number in range(4097):
        assert found.segment((0xFFFFFF00 + (number << 20)) % (1 << 32), block, len(block), 0) == [block]
    assert found.at == 4097 << 20
    assert found.segment(0xFFFFFF00, block, len(block), 0) == []  # of the turn before


def test_what_came_first_is_taken() -> None:
    found = begun()
    assert found.segment(4, b"first", 5, 0) == []
    assert found.segment(2, b"..FIRST..", 9, 0) == []
    assert joined(found.segment(0, b"ab", 2, 0)) == [b"ab..first.."]
    assert found.conflicts == 5


def test_keepalives_and_windows_probes_change_nothing() -> None:
    found = begun(100)
    assert found.segment(100, b"abc", 3, 0) == [b"abc"]
    assert found.segment(102, b"\0", 1, 0) == []
    assert found.segment(103, b"d", 1, 0) == [b"d"]


def test_packets_that_were_cut() -> None:
    """Their tails are holes, in order and out of it."""
    found = begun()
    assert found.segment(0, b"head", 10, 0) == [b"head", 6]
    assert found.segment(20, b"third", 10, 0) == []
    assert joined(found.segment(10, b"second", 10, 0)) == [b"second", 4, b"third", 5]
    assert found.at == 30


def test_a_fin() -> None:
    found = begun()
    found.finish(5)
    assert found.stop == 5
    assert found.segment(0, b"12345", 5, 0) == [b"12345"]


def test_a_hole_that_the_receiver_has_filled() -> None:
    """It acknowledged the bytes: the capture has lost them. They may still come, but not for ever."""
    found = begun()
    assert found.segment(10, b"behind", 6, 0) == []
    assert found.segment(16, b"more", 4, 10 * PATIENCE) == []  # nothing says that they are lost
    found.acknowledged(12)
    assert joined(found.segment(20, b"last", 4, 20 * PATIENCE)) == [10, b"behindmorelast"]
    assert found.segment(3, b"late", 4, 0) == []


def test_holes_that_are_never_filled_do_not_fill_memory() -> None:
    """Every other byte, for ever."""
    room = Room()
    found = Reassembly(room)
    found.begin(0)
    known = 0
    for number in range(200_000):
        for piece in found.segment(2 * number + 1, b"x", 1, 0):
            known += not isinstance(piece, int)
        assert (64 << 20) - room.left <= MAX_WAITING + OVERHEAD + 1
    assert known > 100_000
    assert len(found.flush()) == 2 * (200_000 - known)
    assert room.left == 64 << 20


def test_all_directions_share_their_room() -> None:
    room = Room(10_000)
    many = [Reassembly(room) for _ in range(100)]
    for found in many:
        found.begin(0)
        found.segment(100, bytes(1000), 1000, 0)
    assert room.left > -2000


def test_a_segment_far_away() -> None:
    """What cannot be, such as a gigabyte ahead, costs a hole at the end and nothing before it."""
    found = begun()
    assert found.segment(1 << 30, b"far", 3, 0) == []
    assert found.segment(0, b"here", 4, 0) == [b"here"]
    assert joined(found.flush()) == [(1 << 30) - 4, b"far"]
