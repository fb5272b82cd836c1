"""The disk side of a capture: one folder, its files, and what is still to be written to them.

Plain and synchronous: feed.capture calls it in a thread of its own. Everything reaches the kernel in
flush(), the bytes before the timeline that speaks of them, so that whatever ends the process leaves a
readable capture.
"""

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

import migsniff
from migsniff.core.arrivals import (
    Direction,
    Ended,
    Learned,
    LearnedTls,
    Opened,
)
from migsniff.feed.capturefile import CaptureFile, WriteParts, replace_file
from migsniff.feed.captureformat import (
    FORMAT,
    MANIFEST,
    MAX_CONNECTIONS,
    MERGE_TIME,
    SUFFIXES,
    TIMELINE,
    VERSION,
    ChunkLine,
    ConnectionFacts,
    DirectionFacts,
    EndedLine,
    FileLine,
    LearnedLine,
    LearnedTlsLine,
    Line,
    Manifest,
    NoteLine,
    OpenedLine,
    RamMode,
    Stopped,
    StoppedLine,
)
from migsniff.feed.container import DIRECTIONS, MAX_STORED, block_header, file_header


class _Stream:
    """One direction of a connection: its file, and the block that is being filled."""

    def __init__(self, connection: int, direction: Direction) -> None:
        self.connection = connection
        self.direction: Direction = direction
        self.file: CaptureFile | None = None
        self.file_name: str | None = None
        self.end = 0  # wire offset up to which everything was handed to the file or stands in parts
        self.saved = 0  # wire offset up to which the kernel has it
        self.block_start = 0
        self.parts: list[bytes] = []
        self.stored = 0
        self.ended: Ended | None = None


class _Link:
    """A connection."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.channel: str | None = None
        self.streams: dict[Direction, _Stream] = {
            direction: _Stream(opened.connection, direction) for direction in DIRECTIONS
        }


class CaptureFolder:
    """Writes one capture. Not thread-safe; raises OSError when the disk does not take it.

    Nothing is made before create(). After stop() only how connections end is still noted, for the manifest.
    """

    path: Path | None = None

    def __init__(
        self,
        parent: Path,
        *,
        ram: RamMode,
        migration: str,
        facts: dict[str, Any],
        start: datetime,
        write: WriteParts = os.writev,
    ) -> None:
        self._parent = parent
        self._ram: RamMode = ram
        self._migration = migration
        self._facts = facts
        self._start = start.astimezone(UTC)
        self._write = write
        self._folder = -1
        self._timeline: CaptureFile | None = None
        self._lines: list[Line] = []
        self._encoder = msgspec.json.Encoder()
        self._links: dict[int, _Link] = {}
        self._names: set[str] = set()
        self._dirty: dict[_Stream, None] = {}
        self._pending: _Stream | None = None  # the stream whose last chunks have no line yet
        self._pending_since = 0
        self._pending_time = 0
        self._time = 0
        self._stopped: Stopped | None = None

    def create(self) -> None:
        """Make the parent if it is missing, the folder, its first manifest and the timeline."""
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = self._new_folder()
        self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.fstat(self._folder).st_uid != os.geteuid():
            raise PermissionError(f"{self.path} was replaced by somebody else's folder")
        replace_file(self._folder, MANIFEST, self._manifest(complete=False, result=None, lengths={}))
        self._timeline = CaptureFile(self._folder, TIMELINE, self._write)

    def _new_folder(self) -> Path:
        name = re.sub(r"[^A-Za-z0-9-]+", "-", self._migration).strip("-")[:40] or "migration"
        for number in range(1, 1000):
            path = self._parent / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                continue
            return path
        raise FileExistsError(f"{self._parent / name} and 998 more of that name exist")

    def opened(self, opened: Opened) -> None:
        """A connection was accepted."""
        if len(self._links) >= MAX_CONNECTIONS:
            raise OSError(f"more than {MAX_CONNECTIONS} connections in one migration")
        self._links[opened.connection] = _Link(opened)
        self._line(OpenedLine(self._at(opened.time), opened.connection, opened.source, opened.destination))

    def chunk(
        self,
        time: int,
        connection: int,
        direction: Direction,
        end: int,
        kept: bytes,
        name: str | None,
        has_events: bool,
    ) -> None:
        """The bytes up to wire offset `end` arrived, of which `kept` are to be saved."""
        if self._stopped:
            return
        link = self._links[connection]
        stream = link.streams[direction]
        length = end - stream.end
        if stream.ended is not None or length < len(kept) or (length > len(kept) and self._ram == "keep"):
            raise ValueError(f"{len(kept)} of {length} bytes for {direction} of connection {connection}")
        link.channel = link.channel or name
        if stream.file is None:
            self._open(stream, link.channel)
        time = self._at(time)
        if self._pending is not stream or time - self._pending_since >= MERGE_TIME:
            self._emit()
            self._pending = stream
            self._pending_since = time
        self._pending_time = time
        self._add(stream, kept, end)
        if has_events:
            self._emit()

    def ended(self, ended: Ended) -> None:
        """One direction ended: its file is written and closed."""
        link = self._links[ended.connection]
        stream = link.streams[ended.direction]
        stream.ended = ended
        if self._stopped:
            return
        how, by, error = ended.how, ended.by, ended.error
        self._line(EndedLine(self._at(ended.time), ended.connection, ended.direction, how, by, error))
        self.flush()
        if stream.file is not None:
            stream.file.close()
            stream.file = None

    def learned(self, learned: Learned | LearnedTls) -> None:
        """What page contents or TLS told, which a stripped capture does not have."""
        if isinstance(learned, LearnedTls):
            self._line(
                LearnedTlsLine(
                    self._at(learned.time),
                    learned.connection,
                    learned.direction,
                    learned.offset,
                    learned.facts,
                )
            )
            return
        self._line(LearnedLine(self._at(learned.time), learned.connection, learned.page_size))

    def note(self, time: int, what: str, connection: int, facts: dict[str, Any]) -> None:
        """Something that is no arrival but explains them."""
        self._line(NoteLine(self._at(time), connection, what, facts))

    def stop(self, time: int, reason: str) -> None:
        """Save nothing from here on."""
        if self._stopped:
            return
        self._line(StoppedLine(self._at(time), reason))
        self._stopped = Stopped(self._time, reason)

    def flush(self) -> None:
        """Hand everything to the kernel: first the bytes, then the timeline."""
        self._emit()
        dirty, self._dirty = self._dirty, {}
        for stream in dirty:
            if stream.file is not None:
                stream.file.flush()
                stream.saved = stream.block_start
        if self._timeline is not None and self._lines:
            lines, self._lines = self._lines, []
            self._timeline.parts.append(self._encoder.encode_lines(lines))
            self._timeline.flush()

    def abandon(self, reason: str) -> None:
        """Writing failed: drop what waits, and save nothing from here on."""
        self._stopped = self._stopped or Stopped(self._time, reason)
        self._pending = None
        self._lines.clear()
        self._dirty.clear()

    def finish(self, result: dict[str, Any], lengths: dict[tuple[int, Direction], int]) -> None:
        """Write the rest and the final manifest. `lengths`: how far each direction went on the wire."""
        if self._folder < 0:
            return
        failure = None
        try:
            self.flush()
        except OSError as error:
            failure = error
            self.abandon(str(error))
        manifest = self._manifest(complete=self._stopped is None, result=result, lengths=lengths)
        replace_file(self._folder, MANIFEST, manifest)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Close what is open."""
        files = [stream.file for link in self._links.values() for stream in link.streams.values()]
        for file in (*files, self._timeline):
            if file is not None:
                file.close()
        if self._folder >= 0:
            os.close(self._folder)
        self._folder = -1
        self._links.clear()
        self._timeline = None

    # ---------------------------------------------------------------- lines and blocks

    def _at(self, time: int) -> int:
        """`time`, but never before an earlier line's."""
        self._time = max(self._time, time)
        return self._time

    def _line(self, line: Line) -> None:
        if not self._stopped:
            self._emit()
            self._lines.append(line)

    def _open(self, stream: _Stream, channel: str | None) -> None:
        """Make the stream's file, under the channel's name as far as that is one for a file."""
        stem = channel if channel and re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", channel) else "connection"
        name = stem + SUFFIXES[self._ram][stream.direction]
        if name in self._names or stem == "connection":
            name = f"{stem}-{stream.connection}" + SUFFIXES[self._ram][stream.direction]
        stream.file = CaptureFile(self._folder, name, self._write)
        stream.file_name = name
        self._names.add(name)
        if self._ram == "strip":
            stream.file.parts.append(file_header(stream.direction))
        self._line(FileLine(stream.connection, stream.direction, channel, name))

    def _add(self, stream: _Stream, kept: bytes, end: int) -> None:
        if stream.stored + len(kept) > MAX_STORED:
            self._close_block(stream)
        if kept:
            stream.parts.append(kept)
            stream.stored += len(kept)
        stream.end = end

    def _emit(self) -> None:
        """Close the block of the chunks that have no line yet, and write their line."""
        stream, self._pending = self._pending, None
        if stream is not None:
            self._close_block(stream)
            self._lines.append(ChunkLine(self._pending_time, stream.connection, stream.direction, stream.end))

    def _close_block(self, stream: _Stream) -> None:
        if stream.end == stream.block_start or stream.file is None:
            return
        if self._ram == "strip":
            stream.file.parts.append(block_header(stream.block_start, stream.end, stream.stored))
        stream.file.parts += stream.parts
        stream.parts = []
        stream.stored = 0
        stream.block_start = stream.end
        self._dirty[stream] = None

    # ---------------------------------------------------------------- manifest

    def _manifest(
        self, *, complete: bool, result: dict[str, Any] | None, lengths: dict[tuple[int, Direction], int]
    ) -> bytes:
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            migsniff=migsniff.__version__,
            migration=self._migration,
            start=self._start.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            ram=self._ram,
            complete=complete,
            facts=self._facts,
            connections=[
                ConnectionFacts(
                    number,
                    link.channel,
                    link.opened.source,
                    link.opened.destination,
                    link.opened.time,
                    *(self._direction(stream, lengths) for stream in link.streams.values()),
                )
                for number, link in self._links.items()
            ],
            stopped=self._stopped,
            result=result,
        )
        return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"

    @staticmethod
    def _direction(stream: _Stream, lengths: dict[tuple[int, Direction], int]) -> DirectionFacts:
        facts = DirectionFacts(
            length=lengths.get((stream.connection, stream.direction), stream.end),
            saved=stream.saved,
            file=stream.file_name,
        )
        if stream.ended is not None:
            facts.time, facts.how = stream.ended.time, stream.ended.how
            facts.by, facts.error = stream.ended.by, stream.ended.error
        return facts
