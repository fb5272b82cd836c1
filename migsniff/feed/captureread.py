"""Reading a capture back: the arrivals as they were, in their order and with their times.

Nothing in a capture is trusted: names stay inside the folder, lengths are checked before they are believed,
and memory does not depend on what the files say. A capture whose writer was killed is read as far as it goes.
"""

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Final, Literal, Protocol

import msgspec

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Direction,
    Ended,
    Learned,
    LearnedTls,
    Noted,
    Opened,
)
from migsniff.core.errors import CaptureError
from migsniff.feed.captureformat import (
    MANIFEST,
    MAX_CONNECTIONS,
    MAX_LINE,
    MAX_MANIFEST,
    SUFFIXES,
    TIMELINE,
    ChunkLine,
    EndedLine,
    FileLine,
    LearnedLine,
    LearnedTlsLine,
    NoteLine,
    OpenedLine,
    StoppedLine,
    TimelineLine,
    printable,
    read_manifest,
    start_time,
)
from migsniff.feed.container import DIRECTIONS, Block, read_blocks, read_direction
from migsniff.feed.unpack import SUFFIXES as PACKED_SUFFIXES
from migsniff.feed.unpack import Unpacked

PIECE: Final = 1 << 20  # bytes of a chunk at most
FILE_BUFFER: Final = 64 << 10
MAX_PACKED: Final = 32  # compressed files open at once: each may take PACKED_WINDOW
PACKED_WINDOW: Final = 16 << 20
LISTED: Final = 10  # captures of a folder, the last ones by name
READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Torn(Exception):
    """A file has less than the timeline says: no error if its writer was killed."""


def open_capture(path: Path) -> "Capture":
    """The capture in folder `path`. Raises CaptureError."""
    return Capture(path)


def find_capture(path: Path) -> "Capture":
    """The capture that folder `path` is, or the only one in it. Raises CaptureError."""
    if os.path.lexists(path / MANIFEST):
        return Capture(path)
    try:
        found = sorted(entry for entry in path.iterdir() if (entry / MANIFEST).is_file())
    except OSError as error:
        raise CaptureError(f"{printable(str(path))}: {_reason(error)}") from None
    if not found:
        raise CaptureError(f"{printable(str(path))}: no capture, nor one in it")
    if len(found) > 1:
        names = ", ".join(printable(entry.name) for entry in found[-LISTED:])
        others = f"{len(found) - LISTED} more and " if len(found) > LISTED else ""
        raise CaptureError(
            f"{printable(str(path))}: {len(found)} captures are in it, name one: {others}{names}"
        )
    return Capture(found[0])


class Capture:
    """A capture folder. `contents`: page contents were kept. `start`: the wall clock at time 0 (UTC)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with BufferedReader(FileIO(self._open(MANIFEST))) as file:
                self.manifest = read_manifest(file.read(MAX_MANIFEST + 1))
            self.start = start_time(self.manifest)
        except (ValueError, RecursionError) as error:
            raise CaptureError(f"{self.name(MANIFEST)}: {error}") from None
        except FileNotFoundError:
            raise CaptureError(f"{printable(str(path))}: no capture") from None
        except OSError as error:
            raise CaptureError(f"{self.name(MANIFEST)}: {_reason(error)}") from None
        self.contents = self.manifest.ram == "keep"

    @property
    def cut_short(self) -> str | None:
        """Why the capture is not the whole migration, None if it is."""
        if self.manifest.complete:
            return None
        stopped = self.manifest.stopped
        why = f"saving stopped: {printable(stopped.reason)}" if stopped else "migsniff did not end it"
        return f"{printable(str(self.path))}: the capture is incomplete, {why}"

    def name(self, file: str) -> str:
        """How messages call a file of the capture."""
        return printable(str(self.path / file))

    def arrivals(self, file: str | None = None) -> Iterator[Arrival]:
        """What arrived: all of it, or what `file` belongs to: one connection.

        A chunk's data is valid until the next arrival is asked for. If saving was cut short, directions that
        did not end are ended at last: closed by the proxy. Raises CaptureError where the capture does not
        make sense, and gives everything before it first.
        """
        return _Replay(self, None if file is None else self._connection_of(file)).arrivals()

    def lines(self) -> Iterator[tuple[int, TimelineLine]]:
        """The lines of the timeline, each with its position in the file; see arrivals() for errors."""
        decoder = msgspec.json.Decoder(TimelineLine)
        position = 0
        with self.file(TIMELINE) as file:
            while line := file.readline(MAX_LINE + 1):
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE:
                        raise self.error(TIMELINE, position, f"a line of more than {MAX_LINE} bytes")
                    if not self.manifest.complete:
                        return
                    raise self.error(TIMELINE, position, "the file ends inside a line")
                try:
                    yield position, decoder.decode(line)
                except (ValueError, RecursionError) as error:
                    raise self.error(TIMELINE, position, str(error)) from None
                position += len(line)

    def file(self, name: str) -> BufferedReader:
        """Open a file of the capture, which may be compressed by itself (NAME.zst and so on)."""
        return BufferedReader(self.raw(name), FILE_BUFFER)

    def raw(self, name: str) -> RawIOBase:
        """As file(), without a buffer."""
        for suffix, form in {"": None, **PACKED_SUFFIXES}.items():
            try:
                file = FileIO(self._open(name + suffix))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CaptureError(f"{self.name(name + suffix)}: {_reason(error)}") from None
            if form is None:
                return file
            return Unpacked(file, self.name(name + suffix), form, window=PACKED_WINDOW)
        raise CaptureError(f"{self.name(name)}: the file is missing")

    def error(self, file: str, position: int, reason: str) -> CaptureError:
        """The error for something at a position in one of the files."""
        return CaptureError(f"{self.name(file)}: at {position}: {reason}")

    def _open(self, name: str) -> int:
        """A file descriptor for a regular file in the folder itself: no path, no link, no device."""
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            descriptor = os.open(name, READ, dir_fd=folder)
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CaptureError(f"{self.name(name)}: not a regular file")
        return descriptor

    def _connection_of(self, file: str) -> int:
        for _, line in self.lines():
            if isinstance(line, FileLine) and line.file == file:
                return line.connection
        raise CaptureError(f"{self.name(TIMELINE)}: does not mention {printable(file)}")


class _Stored(Protocol):
    """The bytes of one direction, read once from start to end."""

    def chunks(self, time: int, end: int | None) -> Iterator[Chunk]:
        """What comes up to wire offset `end`, or all that is left. Raises Torn if it is not all there."""


class _Stripped:
    """From a container."""

    def __init__(self, capture: Capture, line: FileLine, file: RawIOBase) -> None:
        self._name = capture.name(line.file)
        self._connection = line.connection
        self._direction: Direction = line.direction
        self._end = 0
        buffered = BufferedReader(file, FILE_BUFFER)
        torn = not capture.manifest.complete
        direction = read_direction(buffered, self._name, torn=torn)
        if direction not in (None, line.direction):
            raise CaptureError(f"{self._name}: holds the direction {direction}, not {line.direction}")
        self._blocks: Iterator[Block] = read_blocks(buffered, self._name, torn=torn)

    def chunks(self, time: int, end: int | None) -> Iterator[Chunk]:
        while end is None or self._end < end:
            block = next(self._blocks, None)
            if block is None:
                if end is None:
                    return
                raise _torn(self._name, self._end, end)
            if end is not None and block.end > end:
                raise CaptureError(
                    f"{self._name}: the block from wire offset {block.start} to {block.end} goes past {end},"
                    " where the timeline has an entry"
                )
            self._end = block.end
            kept: Literal["none", "framed"] = "none" if block.stored is None else "framed"
            yield Chunk(time, self._connection, self._direction, block.stored or b"", block.end, kept)


class _Verbatim:
    """The wire's bytes."""

    def __init__(self, capture: Capture, line: FileLine, file: RawIOBase, buffer: memoryview) -> None:
        self._name = capture.name(line.file)
        self._connection = line.connection
        self._direction: Direction = line.direction
        self._end = 0
        self._file = file
        self._buffer = buffer

    def chunks(self, time: int, end: int | None) -> Iterator[Chunk]:
        while end is None or self._end < end:
            size = PIECE if end is None else min(PIECE, end - self._end)
            taken = self._file.readinto(self._buffer[:size])
            if not taken:
                if end is None:
                    return
                raise _torn(self._name, self._end, end)
            self._end += taken
            yield Chunk(time, self._connection, self._direction, self._buffer[:taken], self._end)


def _torn(name: str, has: int, end: int) -> Torn:
    return Torn(f"{name}: ends at wire offset {has}; the timeline goes on to {end}")


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a symbolic link, which is not followed"
    return error.strerror or str(error)


class _Track:
    """One direction of a connection while it is read."""

    def __init__(self) -> None:
        self.end = 0
        self.file: RawIOBase | None = None
        self.stored: _Stored | None = None
        self.ended = False

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.file = self.stored = None


class _Replay:
    """One pass over a capture. `only`: the connection to deliver, None for all."""

    def __init__(self, capture: Capture, only: int | None) -> None:
        self._capture = capture
        self._only = only
        self._tracks: dict[tuple[int, Direction], _Track] = {}
        self._time = 0
        self._packed = 0  # compressed files that are open
        self._buffer = memoryview(bytearray(PIECE))

    def arrivals(self) -> Iterator[Arrival]:
        try:
            yield from self._recorded()
            if self._capture.manifest.complete:
                self._check_complete()
            else:
                for (connection, direction), track in self._tracks.items():
                    if not track.ended:
                        yield Ended(self._time, connection, direction, "closed", "proxy")
        except OSError as error:
            raise CaptureError(f"{printable(str(self._capture.path))}: {_reason(error)}") from None
        finally:
            for track in self._tracks.values():
                track.close()

    def _recorded(self) -> Iterator[Arrival]:
        """What the timeline has, and what stands in the files behind its last line."""
        try:
            for position, line in self._capture.lines():
                if not isinstance(line, FileLine):
                    if line.time < self._time:
                        raise self._error(position, f"time {line.time} after time {self._time}")
                    self._time = line.time
                if isinstance(line, StoppedLine):
                    return
                if self._only in (None, line.connection):
                    yield from self._line(position, line)
            for track in self._tracks.values():
                if track.stored is not None and not track.ended:
                    yield from track.stored.chunks(self._time, None)
        except Torn as torn:
            if self._capture.manifest.complete:
                raise CaptureError(str(torn)) from None

    def _line(self, position: int, line: TimelineLine) -> Iterator[Arrival]:
        match line:
            case OpenedLine():
                self._open(position, line)
                yield Opened(line.time, line.connection, line.source, line.destination)
            case FileLine():
                self._attach(position, line)
            case ChunkLine():
                yield from self._chunk(position, line)
            case NoteLine():
                yield Noted(line.time, line.connection, line.what, line.facts)
            case LearnedLine():
                yield Learned(line.time, line.connection, line.page_size)
            case LearnedTlsLine():
                yield LearnedTls(line.time, line.connection, line.direction, line.offset, line.facts)
            case EndedLine():
                self._end(self._track(position, line), position)
                yield Ended(line.time, line.connection, line.direction, line.how, line.by, line.error)

    def _check_complete(self) -> None:
        """A timeline may have been cut between two lines: the manifest knows what should be there."""
        for facts in self._capture.manifest.connections:
            for direction, expected in zip(DIRECTIONS, (facts.fwd, facts.rev), strict=True):
                track = self._tracks.get((facts.connection, direction))
                if self._only not in (None, facts.connection):
                    continue
                if track is None or track.end != expected.saved or track.ended != (expected.how is not None):
                    raise CaptureError(
                        f"{self._capture.name(TIMELINE)}: ends before {direction} of connection"
                        f" {facts.connection} is at {expected.saved}, where the manifest has its end"
                    )

    def _open(self, position: int, line: OpenedLine) -> None:
        if (line.connection, "fwd") in self._tracks:
            raise self._error(position, f"connection {line.connection} is opened again")
        if len(self._tracks) >= MAX_CONNECTIONS * len(DIRECTIONS):
            raise self._error(position, f"more than {MAX_CONNECTIONS} connections")
        for direction in DIRECTIONS:
            self._tracks[line.connection, direction] = _Track()

    def _attach(self, position: int, line: FileLine) -> None:
        track = self._track(position, line)
        if track.file is not None:
            raise self._error(position, f"a second file for {line.direction} of connection {line.connection}")
        if not line.file.endswith(SUFFIXES[self._capture.manifest.ram][line.direction]):
            raise self._error(position, f"{line.file} is no file for {line.direction}")
        track.file = self._capture.raw(line.file)
        self._packed += isinstance(track.file, Unpacked)
        if self._packed > MAX_PACKED:
            raise self._error(position, f"more than {MAX_PACKED} compressed files at once")
        if self._capture.contents:
            track.stored = _Verbatim(self._capture, line, track.file, self._buffer)
        else:
            track.stored = _Stripped(self._capture, line, track.file)

    def _end(self, track: _Track, position: int) -> None:
        if track.stored is not None and any(track.stored.chunks(self._time, None)):
            raise self._error(position, "the direction ends here, but its file goes on")
        self._packed -= isinstance(track.file, Unpacked)
        track.ended = True
        track.close()

    def _chunk(self, position: int, line: ChunkLine) -> Iterator[Arrival]:
        track = self._track(position, line)
        if line.end < track.end:
            raise self._error(position, f"wire offset {line.end} after {track.end}")
        track.end = line.end
        if track.stored is None:
            raise self._error(position, f"bytes of connection {line.connection}, which has no file")
        yield from track.stored.chunks(line.time, line.end)

    def _track(self, position: int, line: FileLine | ChunkLine | EndedLine) -> _Track:
        track = self._tracks.get((line.connection, line.direction))
        if track is None:
            raise self._error(position, f"connection {line.connection} was not opened")
        if track.ended:
            raise self._error(position, f"{line.direction} of connection {line.connection} has ended")
        return track

    def _error(self, position: int, reason: str) -> CaptureError:
        return self._capture.error(TIMELINE, position, reason)
