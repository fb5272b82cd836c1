"""How fast the decoder alone is, on a recorded stream and on the streams that are hardest for it.

Decides whether decoding can keep up with the wire at all, and with what it fails first: the number of records
or of sections, or the bytes. To reach: 4 GB/s and 2.5 million page records a second on the recorded stream, 2
million records a second of the hard ones, 0.1 million nearly empty sections a second; 5 GB/s of multifd, be
its pages compressed or not, for they are counted without being inflated.
"""

import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import synthetic
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median
from migsniff.core.arrivals import Arrival, Chunk, Opened
from migsniff.core.events import DirtySync, RamSection, Verdict
from migsniff.core.session import Session
from migsniff.core.wire import FILE_MAGIC

CHUNK = 1 << 20  # what the relay reads at once
HEAD = 300  # bytes of a main channel that hold the list of RAM blocks
MAIN = struct.pack(">I", FILE_MAGIC)


@dataclass
class Decoded:
    """What was found in a stream, and in how many seconds."""

    seconds: float
    records: int
    sections: int


def decode(stream: Sequence[bytes]) -> Decoded:
    """Decode a stream of one connection or more as it comes from the wire, all accounting included."""
    session = Session()
    sections, records, verdict = 0, 0, None
    began = time.perf_counter()
    for arrival in stream_arrivals(stream):
        for event in session.feed(arrival):
            if isinstance(event, RamSection):
                sections += 1
            elif isinstance(event, DirtySync):
                records += event.counts.pages
    for event in session.finish():
        verdict = event
    seconds = time.perf_counter() - began
    if not isinstance(verdict, Verdict) or verdict.outcome in ("undecodable", "not-a-stream"):
        raise RuntimeError(f"not decoded: {verdict}")
    return Decoded(seconds, records, sections)


def stream_arrivals(stream: Sequence[bytes]) -> Iterator[Arrival]:
    """Every connection in turn, but the main one, which tells the page size first and has the last word."""
    ends = [0] * len(stream)
    for number in range(len(stream)):
        yield Opened(0, number, "source", "destination")

    def chunk(number: int, size: int) -> Chunk:
        data = memoryview(stream[number])[ends[number] : ends[number] + size]
        ends[number] += len(data)
        return Chunk(0, number, "fwd", data, ends[number])

    main = next(number for number, data in enumerate(stream) if data.startswith(MAIN))
    channels = [number for number in range(len(stream)) if number != main]
    if channels:
        yield chunk(main, HEAD)
    while any(ends[number] < len(stream[number]) for number in channels):
        yield from (chunk(number, CHUNK) for number in channels if ends[number] < len(stream[number]))
    while ends[main] < len(stream[main]):
        yield chunk(main, CHUNK)


def measure(work: Work) -> Table:
    """Decode each stream, in turn."""
    streams = {
        "recorded, precopy": [work.big().read_bytes()],
        "recorded, XBZRLE": [work.xbzrle().read_bytes()],
        "recorded, multifd, 8 channels": [path.read_bytes() for path in work.multifd()],
        "recorded, multifd zstd, 8 channels": [path.read_bytes() for path in work.multifd("zstd")],
        "single zero between single normal pages": [synthetic.alternating(200_000)],
        "nearly empty sections": [synthetic.nearly_empty(200_000)],
    }
    results = in_turn(work.rounds, {name: partial(decode, stream) for name, stream in streams.items()})
    table = Table(
        f"Decoding in one process, median of {work.rounds}",
        ["stream", "MB", "records", "sections", "GB/s", "M records/s", "k sections/s"],
    )
    for name, each in results.items():
        seconds = median(one.seconds for one in each)
        size, found = sum(map(len, streams[name])), each[0]
        rates = [size / seconds / 1e9, found.records / seconds / 1e6, found.sections / seconds / 1e3]
        table.rows.append([name, size // 10**6, found.records, found.sections, *rates])
        table.samples[name] = [one.seconds for one in each]
    return table
