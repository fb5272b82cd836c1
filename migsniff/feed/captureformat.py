"""What stands in a capture: the manifest, and the lines of the timeline. See docs/capture-format.md.

Both are JSON under exactly these names. Offsets are wire offsets in bytes, times are microseconds since the
migration's first connection. Whoever reads a capture trusts none of it: hence the bounds in the types.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from migsniff.core.arrivals import (
    Direction,
    EndKind,
    Party,
    TlsFacts,
)
from migsniff.feed.container import MAX_OFFSET

FORMAT: Final = "migsniff-capture"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
TIMELINE: Final = "timeline.ndjson"
MERGE_TIME: Final = 1000  # microseconds for which chunks that completed no event share a line
MAX_CONNECTIONS: Final = 4096
MAX_MANIFEST: Final = 4 << 20
MAX_LINE: Final = 64 << 10
MAX_TIME: Final = 1 << 48  # microseconds: almost nine years
MAX_DEPTH: Final = 32  # of the JSON in a manifest

RamMode = Literal["strip", "keep"]
"""strip: no contents of guest pages. keep: the wire's bytes."""
SUFFIXES: Final[dict[RamMode, dict[Direction, str]]] = {
    "strip": {"fwd": ".strip", "rev": ".rev.strip"},
    "keep": {"fwd": ".fwd", "rev": ".rev"},
}

Time = Annotated[int, Meta(ge=0, le=MAX_TIME)]
Count = Annotated[int, Meta(ge=0, le=MAX_OFFSET)]
Number = Annotated[int, Meta(ge=0, lt=1 << 31)]
Text = Annotated[str, Meta(max_length=4096)]
FileName = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,79}(\.rev)?\.(strip|fwd|rev)\Z")]


class Line(msgspec.Struct, frozen=True, tag_field="kind"):
    """One line of the timeline."""


class OpenedLine(Line, frozen=True, tag="opened"):
    """A connection was accepted."""

    time: Time
    connection: Number
    source: Text
    destination: Text


class FileLine(Line, frozen=True, tag="file"):
    """The bytes of this direction stand in `file`; `channel` is the connection's name, if it has one."""

    connection: Number
    direction: Direction
    channel: Text | None
    file: FileName


class ChunkLine(Line, frozen=True, tag="chunk"):
    """The bytes up to wire offset `end` had arrived by `time`."""

    time: Time
    connection: Number
    direction: Direction
    end: Count


class EndedLine(Line, frozen=True, tag="ended"):
    """One direction of a connection ended."""

    time: Time
    connection: Number
    direction: Direction
    how: EndKind
    by: Party
    error: Text | None = None


class LearnedLine(Line, frozen=True, tag="learned"):
    """The guest's page size, found in page contents that a stripped capture does not have."""

    time: Time
    connection: Number
    page_size: Annotated[int, Meta(ge=1, le=1 << 30)]


class LearnedTlsLine(Line, frozen=True, tag="learned-tls"):
    """What the TLS record at a wire offset said in the clear, in a stripped capture."""

    time: Time
    connection: Number
    direction: Direction
    offset: Count
    facts: TlsFacts


class NoteLine(Line, frozen=True, tag="note"):
    """Something about the connection that is no arrival: `what` is "pause", "resume", "tcp_info" ..."""

    time: Time
    connection: Number
    what: Text
    facts: dict[str, Any] = {}


class StoppedLine(Line, frozen=True, tag="stopped"):
    """Saving stopped here, while the migration went on."""

    time: Time
    reason: Text


TimelineLine = (
    OpenedLine | FileLine | ChunkLine | EndedLine | LearnedLine | LearnedTlsLine | NoteLine | StoppedLine
)


class DirectionFacts(msgspec.Struct, omit_defaults=True):
    """One direction of a connection. `length`: its bytes on the wire; `saved`: how far the file covers them.

    `how`, `by`, `error` and `time` tell how it ended, as in the timeline.
    """

    length: Count
    saved: Count
    file: FileName | None = None
    time: Time | None = None
    how: EndKind | None = None
    by: Party | None = None
    error: Text | None = None


class ConnectionFacts(msgspec.Struct):
    """One connection: `time` is when it was accepted, `channel` its name, None if it had none."""

    connection: Number
    channel: Text | None
    source: Text
    destination: Text
    time: Time
    fwd: DirectionFacts
    rev: DirectionFacts


class Stopped(msgspec.Struct, frozen=True):
    """When and why saving stopped before the migration ended."""

    time: Time
    reason: Text


class Manifest(msgspec.Struct):
    """`start` is the wall clock at time 0 (UTC, ISO 8601). `complete`: everything up to the end was saved.

    `facts` is what was known at the start (endpoints ...), `result` what was known at the end (verdict ...).
    """

    format: str
    version: int
    migsniff: Text
    migration: Text
    start: Text
    ram: RamMode
    complete: bool
    facts: dict[str, Any] = {}
    connections: Annotated[list[ConnectionFacts], Meta(max_length=MAX_CONNECTIONS)] = []
    stopped: Stopped | None = None
    result: dict[str, Any] | None = None


class _Identity(msgspec.Struct):
    format: str
    version: int


def read_manifest(text: bytes) -> Manifest:
    """The manifest in `text`. Raises ValueError with a reason in words."""
    if len(text) > MAX_MANIFEST:
        raise ValueError(f"larger than {MAX_MANIFEST} bytes")
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nests deeper than {MAX_DEPTH} levels")
    identity = msgspec.json.decode(text, type=_Identity)
    if identity.format != FORMAT:
        raise ValueError("not the manifest of a migsniff capture")
    if identity.version != VERSION:
        raise ValueError(f"capture format version {identity.version}, only version {VERSION} is known")
    return msgspec.json.decode(text, type=Manifest)


def start_time(manifest: Manifest) -> datetime:
    """The wall clock at time 0, in UTC. Raises ValueError if it is none that every time can be added to."""
    try:
        start = datetime.fromisoformat(manifest.start)
        start = start.replace(tzinfo=UTC) if start.tzinfo is None else start.astimezone(UTC)
        start + timedelta(microseconds=MAX_TIME)
    except (ValueError, OverflowError):
        raise ValueError("start: not a time") from None
    return start


def _depth(text: bytes) -> int:
    """How deep JSON text nests, found without a parser that could be nested to death."""
    depth = deepest = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', text, re.DOTALL):
        first = text[token.start()]
        if first in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in b"]}":
            depth -= 1
    return deepest


def printable(name: str) -> str:
    """A file's name as it may be shown: control characters are escaped."""
    return name if name.isprintable() else ascii(name)
