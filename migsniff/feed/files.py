"""Opening anything that is to be read later: a capture, a dump, standard input, compressed or not."""

from collections.abc import Iterator
from datetime import datetime
from io import SEEK_END, BufferedReader, FileIO, RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.feed.captureformat import MANIFEST, TIMELINE, printable
from migsniff.feed.captureread import Capture, find_capture, open_capture
from migsniff.feed.container import MAGIC, read_blocks, read_direction
from migsniff.feed.libvirt import MAGICS as LIBVIRT
from migsniff.feed.libvirt import read_header
from migsniff.feed.pcap import PcapSource
from migsniff.feed.pcapfile import MAGICS as PACKETS
from migsniff.feed.pieces import pieces
from migsniff.feed.qcow2 import MAGIC as QCOW2
from migsniff.feed.qcow2 import Image, SnapshotState
from migsniff.feed.recognise import STREAM, stream_within
from migsniff.feed.unpack import FORMATS, SUFFIXES, Peeked, Unpacked, compression

HEAD: Final = 512  # first bytes that are remembered to recognise what is no stream
SEARCHED: Final = 1 << 20  # first bytes of a file in which a stream is looked for
SKIPPED_AT_ONCE: Final = 1 << 20
Facts = tuple[tuple[str, str], ...]


class Source(Protocol):
    """Something to read arrivals from, once.

    `describe`: what it is, in words. `migration`: the id for its records. `contents`: page contents are in
    it. `start_time`: the wall clock at time 0, None if unknown. `capture`: the capture, if it is one.
    `head`: the first bytes of a plain file, as far as arrivals() gave them already, for recognise().
    `facts`: what else is known of the file, label and text. `hint`: what to do if it holds no stream.
    """

    describe: str
    migration: str
    contents: bool
    start_time: datetime | None
    capture: Capture | None
    head: bytes
    facts: Facts
    hint: str

    def arrivals(self) -> Iterator[Arrival]:
        """What arrived. A chunk's data is valid until the next arrival is asked for. Raises CaptureError."""


def look_into(path: str) -> Peeked | None:
    """What `open_source` would open, to see first what it is: a pipe gives its bytes once. None: no file."""
    try:
        return Peeked(_open(path))
    except OSError:  # a folder, or not there: open_source tells it in its own words
        return None


def open_source(
    path: str,
    *,
    port: int | None = None,
    offset: int = 0,
    snapshot: str | None = None,
    file: Peeked | None = None,
) -> Source:
    """Open a capture's folder, a file of one, a file that holds a stream, or "-" for standard input.

    A folder in which there is one capture, and no more, is that capture.
    `port`: which connections of a packet capture to read. `offset`: where in the file to begin. `snapshot`:
    the name or id of that of a qcow2 image. `file`: what `look_into` has opened. Raises CaptureError.
    """
    opener = Opener(port, offset, snapshot)
    if path == "-":
        return opener.open(file or _open(path), "standard input", "-", None)
    name = printable(path)
    place = Path(path)
    try:
        if place.is_dir() or place.name in (MANIFEST, TIMELINE):
            opener.refuse(name, "a capture")
            if file is not None:
                file.close()
            return CaptureSource(find_capture(place) if place.is_dir() else open_capture(place.parent))
        return opener.open(file or _open(path), name, printable(place.name), place)
    except OSError as error:
        raise CaptureError(f"{name}: {error.strerror or error}") from None


def _open(path: str) -> FileIO:
    return FileIO(0, closefd=False) if path == "-" else FileIO(path)


class CaptureSource:
    """A capture, or one channel of it: that of `file`."""

    facts: Facts = ()
    hint = ""

    def __init__(self, capture: Capture, file: str | None = None) -> None:
        self.capture: Capture | None = capture
        self.contents = capture.contents
        self.start_time: datetime | None = capture.start
        self.migration = capture.manifest.migration
        self.head = b""
        what = "capture" if capture.contents else "stripped capture"
        if not capture.manifest.complete:
            what = "incomplete " + what
        self.describe = what + (f", only {file}" if file else "")
        self._arrivals = capture.arrivals(file)

    def arrivals(self) -> Iterator[Arrival]:
        return self._arrivals


class StreamSource:
    """A file or a pipe that holds, from here on, the bytes of one direction and nothing else: a dump."""

    capture: Capture | None = None
    start_time: datetime | None = None
    contents = True

    def __init__(
        self,
        file: RawIOBase,
        name: str,
        migration: str,
        describe: str = "a stream",
        *,
        facts: Facts = (),
        hint: str = "",
    ) -> None:
        self.describe = describe
        self.facts = facts
        self.hint = hint
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
        yield Ended(0, 0, "fwd", "eof", "file")


class ChannelSource:
    """One channel of a stripped capture without the capture: its times are lost."""

    capture: Capture | None = None
    start_time: datetime | None = None
    contents = False
    facts: Facts = ()
    hint = ""

    def __init__(self, file: RawIOBase, name: str, migration: str) -> None:
        self.describe = "a channel of a stripped capture, alone"
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
        yield Ended(0, 0, direction, "eof", "file")


class Opener(NamedTuple):
    """Opens what a file holds, told by its first bytes, in the way that was asked for."""

    port: int | None
    offset: int
    snapshot: str | None

    def open(self, file: RawIOBase, name: str, migration: str, place: Path | None) -> Source:
        """A source for `file`; `place` is where it can be opened once more, if it can."""
        if self.offset:
            _skip(file, self.offset, name)
        packed = Peeked(file)
        form = compression(packed.peek(QCOW2, MAGIC, *LIBVIRT, *(magic for magic, _, _ in FORMATS.values())))
        plain = Peeked(Unpacked(packed, name, form)) if form else packed
        head = plain.peek(QCOW2, MAGIC, STREAM, *LIBVIRT, *PACKETS)
        again = place if form is None and place is not None and place.is_file() else None
        if head.startswith(QCOW2):
            plain.close()
            return self._snapshot(again, name, migration)
        self._no_snapshot(name)
        if head.startswith(LIBVIRT):
            return _saved(plain, name, migration, again, self.offset)
        if head.startswith(PACKETS):
            return PcapSource(plain, name, migration, port=self.port)
        if head.startswith(MAGIC):
            return _channel(plain, name, migration, place)
        describe = (
            "a stream" + (f", {form}" if form else "") + (f" from {self.offset} on" * bool(self.offset))
        )
        hint = "" if head.startswith(STREAM) else _hint(head, again, self.offset)
        if again is not None:  # it is read faster where it can be mapped
            plain.close()
            return StreamSource(_at(again, self.offset), name, migration, describe, hint=hint)
        return StreamSource(plain, name, migration, describe, hint=hint)

    def refuse(self, name: str, what: str) -> None:
        """Say so if a part of it was asked for that `what` has not."""
        if self.offset:
            raise CaptureError(f"{name}: {what} is read from its beginning, not from offset {self.offset}")
        self._no_snapshot(name)

    def _no_snapshot(self, name: str) -> None:
        if self.snapshot is not None:
            raise CaptureError(f"{name}: no qcow2 disk image: it has no snapshots")

    def _snapshot(self, place: Path | None, name: str, migration: str) -> Source:
        if place is None or self.offset:
            raise CaptureError(
                f"{name}: a qcow2 disk image: it can only be read as a file of its own, not out of a"
                " pipe, packed or from an offset on"
            )
        image = Image(FileIO(place), name)
        try:
            snapshot = image.snapshot(self.snapshot)
            facts = (
                ("Snapshot", str(snapshot)),
                *(("Also in it", str(s)) for s in image.snapshots if s != snapshot),
            )
            state = SnapshotState(image, snapshot)
        except CaptureError:
            image.close()
            raise
        return StreamSource(state, name, migration, "a snapshot in a qcow2 disk image", facts=facts)


def _channel(plain: Peeked, name: str, migration: str, place: Path | None) -> Source:
    """A channel of a stripped capture, with its capture if that is there."""
    if place is not None and (place.parent / MANIFEST).is_file():
        plain.close()
        channel = place.name.removesuffix(place.suffix) if place.suffix in SUFFIXES else place.name
        return CaptureSource(open_capture(place.parent), channel)
    return ChannelSource(plain, name, migration)


def _saved(plain: Peeked, name: str, migration: str, again: Path | None, offset: int) -> Source:
    """What libvirt saved."""
    image = read_header(plain, name)
    describe = f"{'a' if image.complete else 'an unfinished'} libvirt save file, {image.form}"
    if image.packed is not None:
        file: RawIOBase = Unpacked(plain, name, image.packed)
    elif again is not None:
        plain.close()
        file = _at(again, offset + image.end)
    else:
        file = plain
    return StreamSource(file, name, migration, describe, facts=image.facts)


def _at(place: Path, offset: int) -> FileIO:
    file = FileIO(place)
    file.seek(offset)
    return file


def _skip(file: RawIOBase, offset: int, name: str) -> None:
    """Go to `offset`, which must not be behind the end."""
    try:
        size = file.seek(0, SEEK_END)
        file.seek(min(offset, size))
        missing = max(0, offset - size)
    except (UnsupportedOperation, OSError):  # a pipe
        missing = offset
        while missing and (some := file.read(min(missing, SKIPPED_AT_ONCE))):
            missing -= len(some)
    if missing:
        raise CaptureError(f"{name}: the file ends {missing} bytes before offset {offset}")


def _hint(head: bytes, place: Path | None, offset: int) -> str:
    """Where a stream seems to begin instead, if it is near."""
    if place is not None:
        with _at(place, offset) as file:
            head = file.read(SEARCHED)
    found = stream_within(head)
    return (
        "" if found is None else f"a stream begins at offset {offset + found}: use --offset {offset + found}"
    )
