"""How fast the decoder alone is, on a recorded stream and on the streams that are hardest for it.

Decides whether decoding can keep up with the wire at all, and with what it fails first: the number of records
or of sections, or the bytes. To reach: 4 GB/s and 2.5 million page records a second on the recorded stream, 2
million records a second of the hard ones, 0.1 million nearly empty sections a second.
"""

import time
from dataclasses import dataclass
from functools import partial

from benchmarks import synthetic
from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median
from migsniff.core.events import Chunk, DirtySync, Opened, RamSection, Verdict
from migsniff.core.session import Session

CHUNK = 1 << 20  # what the relay reads at once


@dataclass
class Decoded:
    """What was found in a stream, and in how many seconds."""

    seconds: float
    records: int
    sections: int


def decode(stream: bytes) -> Decoded:
    """Decode a whole stream as it comes from the wire, all accounting included."""
    session = Session()
    sections, records, verdict = 0, 0, None
    view = memoryview(stream)
    began = time.perf_counter()
    for _ in session.feed(Opened(0, 0, "source", "destination")):
        pass
    for at in range(0, len(view), CHUNK):
        data = view[at : at + CHUNK]
        for event in session.feed(Chunk(at, 0, "fwd", data, at + len(data))):
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


def measure(work: Work) -> Table:
    """Decode each stream, in turn."""
    streams = {
        "recorded, precopy": work.big().read_bytes(),
        "recorded, XBZRLE": work.xbzrle().read_bytes(),
        "single zero between single normal pages": synthetic.alternating(200_000),
        "nearly empty sections": synthetic.nearly_empty(200_000),
    }
    results = in_turn(work.rounds, {name: partial(decode, stream) for name, stream in streams.items()})
    table = Table(
        f"Decoding in one process, median of {work.rounds}",
        ["stream", "MB", "records", "sections", "GB/s", "M records/s", "k sections/s"],
    )
    for name, each in results.items():
        seconds = median(one.seconds for one in each)
        size, found = len(streams[name]), each[0]
        rates = [size / seconds / 1e9, found.records / seconds / 1e6, found.sections / seconds / 1e3]
        table.rows.append([name, size // 10**6, found.records, found.sections, *rates])
        table.samples[name] = [one.seconds for one in each]
    return table
