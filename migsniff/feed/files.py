"""Opening anything that is to be read later: a capture, a dump, standard input, compressed or not."""

from collections.abc import Iterator
from datetime import datetime
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Final, Protocol

from migsniff.core.errors import CaptureError
from migsniff.core.events import Arrival, Chunk, Ended, Opened
from migsniff.feed.captureformat import MANIFEST, TIMELINE, printable
from migsniff.feed.captureread import Capture, open_capture
from migsniff.feed.container import MAGIC, read_blocks, read_direction
from migsniff.feed.pcap import PcapSource
from migsniff.feed.pcapfile import MAGICS as PACKETS
from migsniff.feed.pieces import pieces
from migsniff.feed.unpack import FORMATS, SUFFIXES, Peeked, Unpacked, compression

HEAD: Final = 512  # first bytes that are remembered to recognise what is no stream


class Source(Protocol):
    """Something to read arrivals from, once.

    `describe`: what it is, in words. `migration`: the id for its records. `contents`: page contents are in
    it. `start_time`: the wall clock at time 0, None if unknown. `capture`: the capture, if it is one.
    `head`: the first bytes of a plain file, as far as arrivals() gave them already, for recognise().
    """

    describe: str
    migration: str
    contents: bool
    start_time: datetime | None
    capture: Capture | None
    head: bytes

    def arrivals(self) -> Iterator[Arrival]:
        """What arrived. A chunk's data is valid until the next arrival is asked for. Raises CaptureError."""


def open_source(path: str, *, port: int | None = None) -> Source:
    """Open a capture's folder, a file of one, a file that holds a stream, or "-" for standard input.

    `port`: which connections of a packet capture to read. Raises CaptureError.
    """
    if path == "-":
        return _open_file(FileIO(0, closefd=False), "standard input", "-", None, port)
    name = printable(path)
    place = Path(path)
    try:
        if place.is_dir():
            return CaptureSource(open_capture(place))
        if place.name in (MANIFEST, TIMELINE):
            return CaptureSource(open_capture(place.parent))
        return _open_file(FileIO(place), name, printable(place.name), place, port)
    except OSError as error:
        raise CaptureError(f"{name}: {error.strerror or error}") from None


class CaptureSource:
    """A capture, or one channel of it: that of `file`."""

    def __init__(self, capture: Capture, file: str | None = None) -> None:
        self.capture: Capture | None = capture
        self.contents = capture.contents
        self.start_time: datetime | None = capture.start
        self.migration = capture.manifest.migration
        self.head = b""
        what = "capture" if capture.contents else "stripped capture"
        if not capture.manifest.complete:
            what = "incomplete " + what
        self.describe = f"{printable(str(capture.path))}: {what}" + (f", only {file}" if file else "")
        self._arrivals = capture.arrivals(file)

    def arrivals(self) -> Iterator[Arrival]:
        return self._arrivals


class StreamSource:
    """A file or a pipe that holds the bytes of one direction and nothing else: a dump."""

    capture: Capture | None = None
    start_time: datetime | None = None
    contents = True

    def __init__(self, file: RawIOBase, name: str, migration: str, describe: str) -> None:
        self.describe = f"{name}: {describe}"
        self.migration = migration
        self.head = b""
        self._name = name
        self._file = file

    def arrivals(self) -> Iterator[Arrival]:
        """One connection whose bytes all have time 0."""
        end = 0
        yield Opened(0, 0, self._name, "")
        with self._file:
            try:
                for piece in pieces(self._file):
                    end += len(piece)
                    if len(self.head) < HEAD:
                        self.head += bytes(piece[: HEAD - len(self.head)])
                    yield Chunk(0, 0, "fwd", piece, end)
            except OSError as error:
                raise CaptureError(f"{self._name}: at {end}: {error.strerror or error}") from None
        yield Ended(0, 0, "fwd", "eof", "source")


class ChannelSource:
    """One channel of a stripped capture without the capture: its times are lost."""

    capture: Capture | None = None
    start_time: datetime | None = None
    contents = False

    def __init__(self, file: RawIOBase, name: str, migration: str) -> None:
        self.describe = f"{name}: a channel of a stripped capture, alone"
        self.migration = migration
        self.head = b""
        self._name = name
        self._file = file

    def arrivals(self) -> Iterator[Arrival]:
        """One connection of which this direction is known, all at time 0."""
        with BufferedReader(self._file) as file:
            direction = read_direction(file, self._name, torn=False) or "fwd"
            yield Opened(0, 0, self._name, "")
            for block in read_blocks(file, self._name, torn=True):
                if block.stored is None:
                    yield Chunk(0, 0, direction, b"", block.end, "none")
                else:
                    yield Chunk(0, 0, direction, block.stored, block.end, "framed")
        yield Ended(0, 0, direction, "closed", "proxy")


def _open_file(
    file: RawIOBase, name: str, migration: str, place: Path | None, port: int | None = None
) -> Source:
    packed = Peeked(file)
    form = compression(packed.peek(MAGIC, *(magic for magic, _, _ in FORMATS.values())))
    plain = Peeked(Unpacked(packed, name, form)) if form else packed
    if plain.peek(*PACKETS).startswith(PACKETS):
        return PcapSource(plain, name, migration, port=port)
    if not plain.peek(MAGIC).startswith(MAGIC):
        if form is None and place is not None and place.is_file():
            plain.close()
            return StreamSource(FileIO(place), name, migration, "a stream")
        return StreamSource(plain, name, migration, "a stream" + (f", {form}" if form else ""))
    if place is not None and (place.parent / MANIFEST).is_file():
        plain.close()
        channel = place.name.removesuffix(place.suffix) if place.suffix in SUFFIXES else place.name
        return CaptureSource(open_capture(place.parent), channel)
    return ChannelSource(plain, name, migration)
