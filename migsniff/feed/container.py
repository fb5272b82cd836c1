"""The stripped container: one direction of one channel, without the contents of guest pages.

A file header, then blocks, each with its wire offset and wire length: a FRAMED block holds what is left of
that stretch once the contents are taken out, a LENGTH block nothing. docs/capture-format.md has the layout.
"""

from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from migsniff.core.arrivals import Data, Direction
from migsniff.core.errors import CaptureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Spans = Sequence[tuple[int, int]] | NDArray[np.uint64]

MAGIC: Final = b"\x89migsniff-strip\n"
VERSION: Final = 1
FILE_HEADER: Final = Struct(">16sHBx")  # magic, version, direction
BLOCK_HEADER: Final = Struct(">B3xIQQ")  # kind, stored length, wire offset, wire length
FRAMED: Final = 1
LENGTH: Final = 2
DIRECTIONS: Final[tuple[Direction, Direction]] = ("fwd", "rev")
MAX_STORED: Final = 1 << 20  # bytes of one block: what a reader must hold at once
MAX_OFFSET: Final = (1 << 63) - 1

SOME_SPANS: Final = 50  # below it, slicing in Python is faster than numpy's dozen of calls
MANY_SPANS: Final = 1000  # from here on it pays to look for pieces of one length
FEW_LENGTHS: Final = 8  # more different lengths than this among MANY_SPANS are as well sliced in Python
SHORT_PIECE: Final = 64  # longer pieces are copied one by one


class Block(NamedTuple):
    """`stored` is what is kept of the wire's bytes from `start` to `end`; None: only the length is known."""

    start: int
    end: int
    stored: bytes | None


def file_header(direction: Direction) -> bytes:
    """The first bytes of a container."""
    return FILE_HEADER.pack(MAGIC, VERSION, DIRECTIONS.index(direction))


def block_header(start: int, end: int, stored: int) -> bytes:
    """The header of a block for the wire's bytes from `start` to `end`; `stored` bytes follow it."""
    return BLOCK_HEADER.pack(FRAMED if stored else LENGTH, stored, start, end - start)


def read_direction(file: BufferedIOBase, name: str, *, torn: bool) -> Direction | None:
    """Read the file header: which direction the container holds; None if not even it is there (`torn`).

    Raises CaptureError.
    """
    header = file.read(FILE_HEADER.size)
    if torn and len(header) < FILE_HEADER.size:
        return None
    if len(header) < FILE_HEADER.size or not header.startswith(MAGIC):
        raise CaptureError(f"{name}: not a stripped channel of a capture")
    _, version, direction = FILE_HEADER.unpack(header)
    if version != VERSION:
        raise CaptureError(f"{name}: container version {version}, only version {VERSION} is known")
    if direction >= len(DIRECTIONS):
        raise CaptureError(f"{name}: unknown direction {direction}")
    return DIRECTIONS[direction]


def read_blocks(file: BufferedIOBase, name: str, *, torn: bool) -> Iterator[Block]:
    """The blocks behind the file header. `torn`: the last one may be cut short; it is left out.

    Raises CaptureError, with the position in the file, for a block that does not fit.
    """
    position = FILE_HEADER.size
    at = 0
    while header := file.read(BLOCK_HEADER.size):
        if len(header) < BLOCK_HEADER.size:
            if torn:
                return
            raise CaptureError(f"{name}: at {position}: the file ends inside a block")
        kind, size, start, length = BLOCK_HEADER.unpack(header)
        if reason := _misfit(kind, size, start, length, at):
            raise CaptureError(f"{name}: at {position}: {reason}")
        stored = file.read(size)
        if len(stored) < size:
            if torn:
                return
            raise CaptureError(f"{name}: at {position}: the file ends inside a block of {size} bytes")
        at = start + length
        yield Block(start, at, stored if kind == FRAMED else None)
        position += BLOCK_HEADER.size + size


def _misfit(kind: int, size: int, start: int, length: int, at: int) -> str | None:
    if kind not in (FRAMED, LENGTH):
        return f"unknown block kind {kind}"
    if start != at:
        return f"a block of wire offset {start} where {at} must follow"
    if not 0 < length <= MAX_OFFSET - start:
        return f"a block of {length} bytes from wire offset {start}"
    if kind == LENGTH and size:
        return f"a block without contents that holds {size} bytes"
    if kind == FRAMED and not 0 < size <= min(length, MAX_STORED):
        return f"a block of {size} bytes for {length} bytes of the wire"
    return None


def gather(data: Data, base: int, omitted: "Spans") -> bytes:
    """What is left of `data`, which stands at wire offset `base`, without the `omitted` spans (start, stop).

    The spans are ascending and disjoint; what lies outside the data is no matter.
    """
    view = memoryview(data)
    if len(omitted) and (omitted[0][0] < base or omitted[-1][1] > base + len(view)):
        omitted = within(omitted, base, base + len(view))
    if len(omitted) < SOME_SPANS:
        return _gather_few(view, base, omitted)
    if not isinstance(omitted, np.ndarray):
        omitted = np.fromiter(chain.from_iterable(omitted), np.uint64, 2 * len(omitted)).reshape(-1, 2)
    return _gather_many(view, omitted.astype(np.int64) - base)


def within(omitted: "Spans", first: int, end: int) -> list[tuple[int, int]]:
    """The parts of the spans that lie between two wire offsets."""
    spans: Sequence[tuple[int, int]] = omitted.tolist() if isinstance(omitted, np.ndarray) else omitted
    return [(max(start, first), min(stop, end)) for start, stop in spans if stop > first and start < end]


def _gather_few(data: memoryview, base: int, omitted: "Spans") -> bytes:
    if isinstance(omitted, np.ndarray):
        starts, stops = omitted[:, 0].tolist(), omitted[:, 1].tolist()
    else:
        starts, stops = [start for start, _ in omitted], [stop for _, stop in omitted]
    starts.append(base + len(data))
    return b"".join(
        [data[at - base : start - base] for at, start in zip([base, *stops], starts, strict=True)]
    )


def _gather_many(data: memoryview, spans: "NDArray[np.int64]") -> bytes:
    """Page records leave many pieces of few lengths (8 bytes of a page's header, 11 of an XBZRLE record).

    All pieces of one length are copied at once, or of fewer pieces all bytes one by one.
    """
    begins = np.zeros(len(spans) + 1, np.int64)
    begins[1:] = spans[:, 1]
    lengths = np.full(len(spans) + 1, len(data), np.int64)
    lengths[:-1] = spans[:, 0]
    lengths -= begins
    ends = lengths.cumsum()
    targets = ends - lengths
    total = int(ends[-1])
    if len(spans) < MANY_SPANS:
        if total > SHORT_PIECE * len(spans):
            return _gather_few(data, 0, spans.astype(np.uint64))
        positions = np.repeat(begins - targets, lengths) + np.arange(total)
        return bytes(np.frombuffer(data, np.uint8)[positions])
    kept = bytearray(total)
    counts = np.bincount(np.minimum(lengths, SHORT_PIECE + 1), minlength=SHORT_PIECE + 2)
    short = counts[1:-1].nonzero()[0] + 1
    if len(short) * MANY_SPANS > len(lengths) * FEW_LENGTHS:
        return _gather_few(data, 0, spans.astype(np.uint64))
    for length in short.tolist():
        which = lengths == length
        # every position as an element of `length` bytes: one indexed copy moves all pieces of this length
        record = np.dtype((np.void, length))
        source = np.ndarray((len(data) - length + 1,), record, data, strides=(1,))
        target = np.ndarray((total - length + 1,), record, kept, strides=(1,))
        target[targets[which]] = source[begins[which]]
    if counts[-1]:
        view = memoryview(kept)
        for index in (lengths > SHORT_PIECE).nonzero()[0].tolist():
            begin, length, at = int(begins[index]), int(lengths[index]), int(targets[index])
            view[at : at + length] = data[begin : begin + length]
    return bytes(kept)
