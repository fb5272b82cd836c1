"""Memory out of streams built record by record: what the tests of extraction share."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from migsniff.core.events import Event
from migsniff.core.session import Session
from migsniff.pipeline import Sink
from migsniff.show.extract import RamFiles
from migsniff.show.folder import Folder
from migsniff.show.memorydump import MemoryDump
from tests.catalogue import SMALL, SMALL_HEAD
from tests.playing import Cut, Stream, arrivals, bytewise, pieces_of, precopy, whole
from tests.streams import (
    EOF,
    filled,
    normal,
    ram_end,
    ram_part,
    ram_start,
    xbzrle,
    zero,
)

Record = tuple[bytes, int, int | bytes]
"""Block, page number, and what comes: the byte that fills the page (0: a zero page) or an XBZRLE delta."""


def stream_of(blocks: dict[bytes, int], records: Sequence[Record], per_section: int = 7) -> Stream:
    """A precopy of these records, in sections of ram of so many records each."""
    items = []
    block = None
    for name, page, fill in records:
        named = None if name == block else name
        block = name
        if isinstance(fill, bytes):
            items.append(xbzrle(page * SMALL, named, fill))
        else:
            items.append(
                normal(page * SMALL, named, filled(SMALL, fill)) if fill else zero(page * SMALL, named)
            )
    parts = [ram_part(*items[at : at + per_section]) for at in range(0, len(items), per_section)]
    return precopy(SMALL_HEAD, ram_start(blocks), *parts, ram_end(), EOF)


def show(stream: Stream, *sinks: Sink, cut: Cut = whole) -> None:
    """Give a stream's events to sinks while the bytes they lend are there."""
    session = Session(contents=True)

    def events() -> Iterator[Event]:
        for arrival in arrivals(stream, cut):
            yield from session.feed(arrival)
        yield from session.finish()

    for event in events():
        for sink in sinks:
            sink.show("m", 0, event)


def extracted(stream: Stream, path: Path, cut: Cut = whole) -> RamFiles:
    with Folder(str(path)) as folder:
        files = RamFiles(folder)
        show(stream, files, cut=cut)
        files.close()
    return files


def dumped(stream: Stream, path: Path, cut: Cut = whole) -> tuple[dict[str, str], list[str]]:
    out = io.StringIO()
    with Folder(str(path)) as folder:
        memory = MemoryDump(folder)
        show(stream, memory, cut=cut)
        memory.write(out.write, "")
        memory.close()
    pairs = json.loads(out.getvalue(), object_pairs_hook=list)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs), memory.problems


def on_disk(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


BLOCKS = {b"ram": 64 * SMALL, b"/rom@etc/acpi/tables": 8 * SMALL, b"vga": 16 * SMALL}
CUTS: list[Cut] = [whole, bytewise, pieces_of(300), pieces_of(5000)]


def number(value: int) -> bytes:
    """ULEB128 of one or two bytes."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])


def delta(*runs: tuple[int, bytes]) -> bytes:
    """Runs: bytes that stay, bytes that are new; as much of them as fits into a page."""
    encoded, left = b"", SMALL
    for stay, new in runs:
        if stay + len(new) <= left:
            encoded += number(stay) + number(len(new)) + new
            left -= stay + len(new)
    return encoded
