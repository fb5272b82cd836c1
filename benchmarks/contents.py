"""What page contents cost: decoding a stream of XBZRLE deltas without and with applying them, into files.

Decides whether deltas are fit to be applied one by one, in Python: half a million records a second to reach.
Beside it the same stream only counted, which has to stay as fast as if nothing could be applied.
"""

import shutil
import time
from functools import partial
from pathlib import Path

from benchmarks.table import Table
from benchmarks.work import Work, in_turn, median
from migsniff.core.arrivals import Chunk, Opened
from migsniff.core.events import DirtySync
from migsniff.core.session import Session
from migsniff.show.extract import RamFiles
from migsniff.show.folder import Folder

CHUNK = 1 << 20  # what is read of a file at once


def measure(work: Work) -> Table:
    """Decode the recorded stream both ways, in turn."""
    stream = work.xbzrle().read_bytes()
    ways = {"only counted": None, "applied, into files": work.scratch / "contents"}
    records = _decode(stream, None)[1]
    found = in_turn(work.rounds, {name: partial(_decode, stream, path) for name, path in ways.items()})
    table = Table(
        f"{records:,} XBZRLE records, {len(stream) / 1e6:.0f} MB, median of {work.rounds}",
        ["", "s", "million records/s"],
    )
    for name, results in found.items():
        seconds = [each for each, _ in results]
        table.samples[name] = seconds
        table.rows.append([name, median(seconds), records / median(seconds) / 1e6])
    return table


def _decode(stream: bytes, path: Path | None) -> tuple[float, int]:
    """Seconds, and how many XBZRLE records there were. `path`: the folder to put memory into, if any."""
    if path is None:
        return _run(stream, Session(), None)
    try:
        with Folder(str(path)) as folder:
            return _run(stream, Session(contents=True), RamFiles(folder))
    finally:
        shutil.rmtree(path)


def _run(stream: bytes, session: Session, files: RamFiles | None) -> tuple[float, int]:
    records, view = 0, memoryview(stream)
    began = time.perf_counter()
    for _ in session.feed(Opened(0, 0, "source", "destination")):
        pass
    for at in range(0, len(view), CHUNK):
        data = view[at : at + CHUNK]
        for event in session.feed(Chunk(at, 0, "fwd", data, at + len(data))):
            if files is not None:
                files.show("", 0, event)
            if isinstance(event, DirtySync):
                records += event.counts.xbzrle
    if files is not None:
        files.close()
        if files.problems:
            raise RuntimeError(f"not applied: {files.problems}")
    return time.perf_counter() - began, records
