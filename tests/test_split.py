"""What is decoded does not depend on how the bytes were cut, nor on what a stripped capture leaves out."""

import os
import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.arrivals import Direction
from migsniff.core.events import Event, Finding, PageFault
from migsniff.core.session import Session
from tests import rawsamples, streams
from tests.catalogue import SMALL_HEAD, STREAMS, passes
from tests.playing import (
    Cut,
    Stream,
    arrivals,
    by_direction,
    bytewise,
    decode,
    pieces_of,
    play,
    precopy,
    strip,
    verdict,
    whole,
)

LONG = bool(os.environ.get("MIGSNIFF_LONG_TESTS"))
TINY = (64 << 10) if LONG else 2 << 10  # bytes at both ends of each real chunk that pass in tiny pieces
MAIN: tuple[int, Direction] = (0, "fwd")

CUTS = {"whole": whole, "bytewise": bytewise, "by 3": pieces_of(3), "by 64": pieces_of(64)}


def cut_at(*places: int) -> Cut:
    def cut(data: bytes) -> list[bytes]:
        edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
        return [data[low:high] for low, high in pairwise(edges)]

    return cut


@pytest.mark.parametrize("name", STREAMS)
def test_bytewise(name: str) -> None:
    assert play(STREAMS[name], bytewise) == play(STREAMS[name])


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("name", STREAMS)
def test_stripped(name: str, cut: Cut) -> None:
    expected = play(STREAMS[name])
    live, kept = strip(arrivals(STREAMS[name], cut))
    assert live == expected
    assert decode(Session(), kept) == expected


def test_an_error_where_an_end_was_looked_for() -> None:
    """What told that a device ends is kept, although what stands there cannot be read."""
    wrong = streams.EOF + b"\x06\xff\0\0\0{"
    stream = precopy(SMALL_HEAD, passes(), streams.TIMER.item(), wrong, b"and so on")
    expected = play(stream)
    live, kept = strip(arrivals(stream, pieces_of(30)))
    assert live == expected
    assert decode(Session(), kept) == expected


@settings(max_examples=2000 if LONG else 150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(list(STREAMS)), places=st.lists(st.integers(0, 1 << 16), max_size=12))
def test_random_pieces(name: str, places: list[int]) -> None:
    expected = play(STREAMS[name])
    live, kept = strip(arrivals(STREAMS[name], cut_at(*places)))
    assert live == expected
    assert decode(Session(), kept) == expected


@settings(max_examples=300 if LONG else 40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.parametrize("name", ["return path", "postcopy", "wrong return path"])
def test_the_directions_do_not_depend_on_each_other(name: str, seed: int) -> None:
    """Both directions of a connection, interleaved at random: each gives the same events.

    But for what depends on which was first: whether a page was sent before it was asked for.
    """
    chance = random.Random(seed)
    stream = STREAMS[name]
    rest = {key: list(pieces_of(50)(data)) for key, data in joined(stream).items()}
    first = [(*MAIN, rest[MAIN].pop(0))]  # the destination does not speak before it has heard
    pieces = first + [
        (*key, rest[key].pop(0)) for key in shuffled(chance, {key: len(data) for key, data in rest.items()})
    ]
    shuffled_events = play(Stream(tuple(pieces)))
    assert alone(shuffled_events) == alone(play(stream))


def alone(events: list[Event]) -> dict[tuple[str, Direction], list[Event]]:
    """The events of each direction without what says something of both."""
    return by_direction([event for event in events if not isinstance(event, PageFault | Finding)])


def joined(stream: Stream) -> dict[tuple[int, Direction], bytes]:
    """All bytes of each direction."""
    found: dict[tuple[int, Direction], bytes] = {}
    for number, direction, data in stream.pieces:
        found[number, direction] = found.get((number, direction), b"") + data
    return found


def shuffled(chance: random.Random, counts: dict[tuple[int, Direction], int]) -> list[tuple[int, Direction]]:
    order = [key for key, count in counts.items() for _ in range(count)]
    chance.shuffle(order)
    return order


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
class TestRealStreams:
    @pytest.mark.parametrize("name", rawsamples.NAMES)
    def test_tiny_pieces(self, name: str) -> None:
        """Guest memory and device state, in pieces of 1 to 20 bytes and what is between."""
        stream = rawsamples.raw(name)
        expected = play(stream)
        assert verdict(expected).outcome == stream.outcome
        chance = random.Random(name)
        live, kept = strip(arrivals(stream, lambda data: tiny(chance, data)))
        assert live == expected
        assert decode(Session(), kept) == expected


def tiny(chance: random.Random, data: bytes) -> list[bytes]:
    pieces = []
    at = 0
    while at < len(data):
        step = chance.randint(1, 20)
        if TINY <= at < len(data) - TINY:
            step = len(data) - TINY - at
        pieces.append(data[at : at + step])
        at += step
    return pieces
