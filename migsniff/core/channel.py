"""One direction of a connection: its parser is driven, and replaced when the bytes stop making sense."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from migsniff.core.arrivals import Chunk, Direction
from migsniff.core.bytequeue import ByteQueue, Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import (
    EVIDENCE,
    Event,
    Opaque,
    Undecodable,
)
from migsniff.core.ram import RamReader
from migsniff.core.wire import (
    FILE_MAGIC,
    MULTIFD_HELLO,
    MULTIFD_MAGIC,
    TLS_HANDSHAKE,
    TLS_MAJOR,
    U32,
    U64,
    RamFlag,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECORD = 8  # bytes of a page record that are no guest memory: address and flags
CLASSIFY = 8  # bytes that tell what a connection is; a multifd channel has its number behind them


class Reader(Protocol):
    """A parser: `run` is its generator, `where` what it is at."""

    @property
    def where(self) -> str: ...

    @property
    def head(self) -> bytes:
        """The header of a record whose contents are being stepped over."""


class DirectionDecoder:
    """Feeds a parser and turns what it cannot read into events.

    After an error, or behind the parser's end, bytes are only counted. `problem` is the error,
    `problem_where` what was being read.
    """

    def __init__(self, channel: str, direction: Direction, queue: ByteQueue) -> None:
        self.channel = channel
        self.direction: Direction = direction
        self.queue = queue
        self.reader: Reader | None = None
        self.steps: Steps | None = None
        self.problem: StreamProblem | None = None
        self.problem_where = ""
        self.opaque_from = 0
        self.opaque_as = "bytes of an unknown protocol"
        self._leftover: Callable[[], Iterator[Event]] = lambda: iter(())

    def parse(
        self, reader: Reader, steps: Steps, leftover: Callable[[], Iterator[Event]] = lambda: iter(())
    ) -> None:
        """Use this parser from here on; `leftover` tells what it has of a record when no more is read."""
        self.reader, self.steps, self._leftover = reader, steps, leftover

    @property
    def where(self) -> str:
        """What the stream is in the middle of."""
        return self.where_at(self.queue.wire_end)

    def where_at(self, offset: int) -> str:
        """What it is in the middle of if it has come to `offset`, of which not all bytes need be here yet."""
        if self.steps is None or self.reader is None:
            return self.opaque_as if self.opaque_from < offset else ""
        into = offset - self.queue.mark
        return f"{self.reader.where}, {into} bytes into it" if into else self.reader.where

    @property
    def inside(self) -> tuple[int, str]:
        """How many bytes came of the record that is being read, and the first of them in hexadecimal.

        They are its header, and nothing that stands behind it: that may be guest memory.
        """
        queue = self.queue
        if self.steps is None or self.reader is None or queue.wire_end <= queue.mark:
            return 0, ""
        head = self.reader.head if queue.at > queue.mark else self._looked_at()
        return queue.wire_end - queue.mark, head[:EVIDENCE].hex()

    def _looked_at(self) -> bytes:
        """The unread bytes that the reader has looked at, of what cannot be guest memory."""
        most = RECORD if self.reader is not None and " ram instance " in self.reader.where else EVIDENCE
        return self.queue.peek(max(0, min(self.queue.looked - self.queue.at, most)))

    def feed(self, chunk: Chunk) -> Iterator[Event]:
        """Decode a chunk. Its bytes are not needed any more when the iterator is exhausted."""
        queue = self.queue
        if chunk.kept == "all" and queue.at + queue.size < queue.wire_end and self.steps is not None:
            yield from self._give_up(queue.hole())  # whoever waits for something else has not noticed it
            queue.discard()
        queue.push(chunk)
        yield from self._drive()
        queue.detach()

    def resume(self) -> Iterator[Event]:
        """Decode what the queue holds already."""
        yield from self._drive()
        self.queue.detach()

    def close(self) -> Iterator[Event]:
        """No more bytes will come."""
        self.queue.closed = True
        yield from self._drive()
        yield from self._leftover()
        if self.steps is None and self.opaque_from < self.queue.wire_end:
            yield Opaque(
                channel=self.channel,
                direction=self.direction,
                offset=self.opaque_from,
                size=self.queue.wire_end - self.opaque_from,
                what=self.opaque_as,
            )

    def _drive(self) -> Iterator[Event]:
        while self.steps is not None:
            try:
                event = next(self.steps)
            except StopIteration:
                self._count_only("bytes behind the end of the stream", self.queue.at)
            except StreamProblem as problem:
                yield from self._give_up(problem)
            except Exception as bug:  # whatever goes wrong in here, the rest of migsniff goes on
                detail = f"{type(bug).__name__}: {bug}"
                yield from self._give_up(StreamProblem("decoder-bug", detail=detail))
            else:
                if event is None:
                    return
                yield event
        self.queue.discard()

    def _give_up(self, problem: StreamProblem) -> Iterator[Event]:
        where = self.reader.where if self.reader else ""
        self.problem, self.problem_where = problem, where
        offset = self.queue.mark
        size = max(0, self.queue.at - offset)
        evidence = "" if size else self._looked_at()[:EVIDENCE].hex()
        self._count_only("bytes behind an error", self.queue.at)
        yield from self._leftover()
        yield Undecodable(
            channel=self.channel,
            direction=self.direction,
            offset=offset,
            size=size,
            code=problem.code,
            message=problem.text,
            where=where,
            evidence=evidence,
        )

    def stop(self, code: str, **details: object) -> Iterator[Event]:
        """Stop decoding from outside: it was too slow, or it failed."""
        yield from self._give_up(StreamProblem(code, **details))

    def _count_only(self, what: str, start: int) -> None:
        self.steps = None
        self.opaque_from, self.opaque_as = start, what

    def settled(self) -> int:
        """The wire offset up to which it is decided what is guest memory and what is not."""
        undecided = self.queue.undecided
        return self.queue.wire_end if undecided is None or self.steps is None else undecided

    def take_omitted(self) -> "list[tuple[int, int]] | NDArray[np.uint64]":
        """The spans of guest memory, and of bytes only counted, since the last call."""
        pieces = self.queue.omitted
        if not pieces:
            return []
        self.queue.omitted = []
        if len(pieces) == 1 and isinstance(pieces[0], np.ndarray):
            return pieces[0]
        if np.ndarray in map(type, pieces):
            return np.concatenate([np.asarray(piece, np.uint64).reshape(-1, 2) for piece in pieces])
        return cast("list[tuple[int, int]]", pieces)


class PreemptReader:
    """A preempt channel: page records without any framing."""

    def __init__(self, channel: str, queue: ByteQueue, context: Context) -> None:
        self.ram = RamReader(channel, queue, context)

    @property
    def where(self) -> str:
        """What is being read."""
        return self.ram.where or "between pages"

    @property
    def head(self) -> bytes:
        """The header of the page record whose contents are being read."""
        return self.ram.head

    def run(self) -> Steps:
        """Records; some versions send an EOS at the end."""
        while True:
            yield from self.ram.payload(start=False, framed=False)


def classify(
    head: bytes, context: Context, *, ended: bool, beside_main: bool = False
) -> tuple[str, str] | None:
    """(role, detail) of a connection that begins with `head`; None if more bytes are needed.

    `beside_main`: the migration has a main channel, so that this is none by a part of the magic.
    """
    if len(head) >= 4:
        (magic,) = U32.unpack_from(head)
        if magic == FILE_MAGIC:
            return "main", ""
        if magic == MULTIFD_MAGIC:
            if len(head) < MULTIFD_HELLO.size and not ended:
                return None
            return "multifd", ""
        if head[0] == TLS_HANDSHAKE and head[1] == TLS_MAJOR:
            return "tls", f"TLS handshake, record version {head[1]}.{head[2]}"
        resumed = _is_resumed(head, context)
        if resumed is None and not ended:
            return None
        if resumed:
            what = "postcopy goes on over a new connection"
            return "resumed", what if context.postcopy else f"{what}; what was before was not seen"
    if ended and head and not beside_main and U32.pack(FILE_MAGIC).startswith(head):
        return "main", ""  # and cut off in its header
    if len(head) >= CLASSIFY:
        if _is_page_record(U64.unpack_from(head)[0], context):
            return "preempt", "pages that the destination asked for"
        return "unknown", f"begins with {head[:CLASSIFY].hex(' ')}"
    return ("unknown", f"ended after {head.hex(' ')}") if ended else None


def _is_resumed(head: bytes, context: Context) -> bool | None:
    """Whether a connection begins as a recovery does: a command that asks for a block's received bitmap.

    If postcopy was seen before, that is enough; otherwise its length must fit too, for which 6 bytes must
    have come (None: they have not).
    """
    if head[:3] not in (b"\x08\x00\x0a", b"\x08\x00\x09"):
        return False
    if context.postcopy:
        return True
    if len(head) < 6:
        return None
    return head[3] == 0 and 1 < head[4] == head[5] + 1


def _is_page_record(word: int, context: Context) -> bool:
    if not context.page_size or not context.memory.blocks:
        return False
    # without a page, 7.2 still says that no more will come
    return word == RamFlag.EOS or word & (context.page_size - 1) in (RamFlag.PAGE, RamFlag.ZERO)
