"""What the tests of scapy's layers share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("scapy")

from migsniff.core.arrivals import Chunk, Direction, Ended, Opened
from migsniff.scapy import Package
from tests.playing import Stream, arrivals
from tests.saving import Live, Step, save


def forget(packet: Any) -> None:
    """Forget the bytes that were read, of everything inside too: they are made anew from the fields."""
    while packet:
        packet.raw_packet_cache = None
        for name in ("records", "blocks", "ranges"):
            for inner in packet.fields.get(name) or []:
                forget(inner)
        packet = packet.payload


def rebuilt(packet: Any) -> bytes:
    forget(packet)
    return bytes(packet)


def layers(packet: Any) -> Iterator[Any]:
    """The records, and those in a package."""
    for record in packet.records:
        yield record
        if Package in record:
            yield from layers(record[Package])


def kept(parent: Path, stream: Stream) -> Path:
    """A capture of the stream as `--ram keep` makes it."""
    numbers = {number for number, _, _ in stream.pieces}
    names = {number: f"channel-{number}" if number else "main" for number in numbers}
    steps: list[Live] = []
    for arrival in arrivals(stream):
        if isinstance(arrival, Chunk):
            steps.append(
                Step(Chunk(0, *_key(arrival), bytes(arrival.data), arrival.end), names[arrival.connection])
            )
        elif isinstance(arrival, Opened | Ended):
            steps.append(arrival)
    return save(parent, steps, "keep")


def _key(arrival: Chunk) -> tuple[int, Direction]:
    return arrival.connection, arrival.direction
