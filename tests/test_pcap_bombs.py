"""Packets made to take memory: segments that overlap, holes without end, connections without end, decoded."""

import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from migsniff.core.session import Session
from migsniff.feed.flows import Flows
from migsniff.feed.packets import ETHERNET, segment
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD, page
from tests.packets import ACK, PSH, RST, SYN, Tcp
from tests.streams import hello, ram_part, ram_start

MIB = 1 << 20
MAIN = SMALL_HEAD + ram_start(SMALL_BLOCKS)
OPEN = Tcp(("10.0.0.0", 1000), ("192.0.2.2", 4444), 0, 0, SYN)


def begun(number: int, data: bytes) -> Iterator[Tcp]:
    """A connection of a host of its own, and its first bytes."""
    opening = replace(OPEN, source=(f"10.0.{number >> 8 & 255}.{number & 255}", 1000))
    yield opening
    yield replace(opening, sequence=1, flags=ACK | PSH, payload=data)


def overlapping(count: int) -> Iterator[Tcp]:
    """Behind a hole, segments of all lengths wherever there is room, with other bytes each time."""
    chance = random.Random(5)
    yield from begun(0, MAIN)
    for number in range(count):
        sequence = 2000 + chance.randrange(1 << 23)
        size = chance.choice((1, 2, 700, 1400))
        yield replace(OPEN, sequence=sequence, flags=ACK, payload=bytes([number % 251]) * size)


def covered(count: int) -> Iterator[Tcp]:
    """Every other byte, then all of them at once, again and again."""
    yield from begun(0, MAIN)
    for number in range(count):
        yield replace(OPEN, sequence=2000 + 2 * number, flags=ACK, payload=b"x")
    for _ in range(50):
        yield replace(OPEN, sequence=2000, flags=ACK, payload=b"y" * 1400)


def holes(count: int) -> Iterator[Tcp]:
    """Pages of which every other one is missing, on each of 20 channels."""
    for channel in range(20):
        yield from begun(channel, MAIN if not channel else hello(channel, b"0123456789abcdef"))
    part = ram_part(page(0, b"ram"))
    for number in range(count):
        host = f"10.0.0.{number % 20}"
        sequence = 2000 + 2 * len(part) * (number // 20)
        yield replace(OPEN, source=(host, 1000), sequence=sequence, flags=ACK, payload=part)


def junk(count: int) -> Iterator[Tcp]:
    """One connection behind the other to the port of a migration that runs."""
    yield from begun(0, MAIN)
    for number in range(1, count):
        *opened, last = begun(number, b"GET / HTTP/1.1\r\n\r\n")
        yield from (*opened, last, replace(last, sequence=19, flags=RST | ACK, payload=b""))


def again(count: int) -> Iterator[Tcp]:
    """One connection with the addresses of the one before it, again and again."""
    yield from begun(0, MAIN)
    for number in range(1, count):
        opening = replace(OPEN, source=("10.9.9.9", 9), sequence=number * 1000)
        yield opening
        yield replace(opening, sequence=number * 1000 + 1, flags=ACK | PSH, payload=b"GET / HTTP/1.1\r\n\r\n")
        yield replace(opening, sequence=number * 1000 + 19, flags=RST | ACK)


BOMBS = {
    "overlapping segments": (overlapping, 8000, 24, "bytes came twice and differed"),
    "segments that cover what waits": (covered, 6000, 8, "bytes came twice and differed"),
    "holes on many channels": (holes, 5000, 24, "bytes were not captured, in"),
    "connections without end": (junk, 1200, 8, "1000 connections were left out"),
    "one connection again and again": (again, 1200, 8, "1000 connections were left out"),
}
"""Packets, how many, MiB that they may take at most, and what is said of them."""


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migsniff.feed.flows.MAX_CONNECTIONS", 200)
    packets, count, most, said = BOMBS[name]
    flows, session = Flows(4444), Session()
    codes = set()
    tracemalloc.start()
    try:
        for packet in packets(count):
            data = packet.ethernet()
            for _, arrival in flows.packet(
                packet.time, segment(data, 0, len(data), len(data), ETHERNET), data
            ):
                if arrival is not None:
                    codes |= {getattr(event, "code", "") for event in session.feed(arrival)}
        for _, arrival in flows.finish():
            if arrival is not None:
                codes |= {getattr(event, "code", "") for event in session.feed(arrival)}
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    codes |= {getattr(event, "code", "") for event in session.finish()}
    assert taken < most * MIB, f"{taken / MIB:.1f} MiB"
    assert "decoder-bug" not in codes
    assert any(said in note for note in flows.counts.notes()), list(flows.counts.notes())
