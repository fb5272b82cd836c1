"""Migrations as they pass: what the relay's taps hand over is decoded, shown and saved.

All of this runs in the event loop's thread, behind the forwarding: a chunk has been sent on before it comes
here. It works a millisecond at a time; what is left then waits in a queue, and if that grows too long,
decoding ends.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    EndKind,
    Learned,
    LearnedTls,
    Noted,
    Opened,
)
from migsniff.core.errors import problem_text
from migsniff.core.reached import UNREAD
from migsniff.feed.capture import CaptureWriter
from migsniff.feed.captureformat import MAX_CONNECTIONS
from migsniff.pipeline import Pipeline

TURN: Final = 0.001  # seconds of this thread's own time for decoding before the loop may forward again
CLOSING_TURN: Final = 0.02  # the same when there is nothing to be forwarded any more
MAX_BEHIND: Final = 64 << 20  # bytes that wait for decoding before it is given up
MAX_HELD: Final = 32 << 20  # bytes of multifd channels that wait here for the list of RAM blocks
MAX_LAG: Final = 4 << 20  # bytes that wait for decoding, beyond which draining waits


@dataclass(frozen=True, slots=True)
class Question:
    """Whether a connection whose destination has gone may be drained: to be answered in its turn."""

    connection: int
    how: EndKind
    answer: Callable[[bool], None]


class Turn:
    """So many seconds of this thread's own time.

    Its clock is a system call, which is dear behind each event: the wall's, never behind it, is asked first.
    """

    def __init__(self, seconds: float) -> None:
        self._wall = time.monotonic() + seconds
        self._own = time.thread_time() + seconds

    @property
    def over(self) -> bool:
        """Whether they have passed."""
        return time.monotonic() > self._wall and time.thread_time() > self._own


class LiveMigration:
    """One running migration. `done` is called after its verdict, `say` shows migsniff's own messages."""

    def __init__(
        self,
        pipeline: Pipeline,
        capture: CaptureWriter | None,
        *,
        say: Callable[[str], None],
        done: Callable[["LiveMigration"], None],
        max_behind: int = MAX_BEHIND,
    ) -> None:
        self.pipeline = pipeline
        self.capture = capture
        self.failed: str | None = None  # why nothing is decoded any more
        self._dead = False  # not even counting works
        self.open = 0  # directions that have not ended
        self.connections = 0
        self._say = say
        self._done = done
        self._max_behind = max_behind
        self._zero = time.monotonic_ns()
        self._queue: deque[Arrival | Question] = deque()
        self._behind = 0
        self._held: list[Arrival] = []  # of multifd channels, which the main channel's may come behind
        self._held_bytes = 0
        self._chunk: Chunk | None = None  # that is being decoded
        self._running: Generator[None, None, None] | None = None
        self._scheduled = False
        self._finished = False
        self._closing = False
        self._draining: dict[int, Callable[[bool], None]] = {}
        self._refused = ""  # why one was not drained, which is told once
        self.paused = False  # broken off in postcopy: it may be resumed over new connections

    @property
    def migration(self) -> str:
        """Its id."""
        return self.pipeline.migration

    @property
    def exit_code(self) -> int:
        """What the proxy would exit with if this were its only migration."""
        return 0 if self.pipeline.verdict is None and self.failed is None else self.pipeline.exit_code

    def end(self) -> None:
        """It has no connections any more: the verdict comes when what waits is decoded."""
        self.open = 0
        self.paused = False
        self._closing = True
        self._turn()

    def close(self, until: float = math.inf) -> None:
        """End it now, whether its connections have ended or not.

        What waits is decoded until that time (of time.monotonic), and the rest only counted. How it ended is
        always told.
        """
        self.open = 0
        self.paused = False
        self._closing = True
        while self._running is not None or self._next():
            self._guarded(Turn(CLOSING_TURN))
            late = not self._finished and time.monotonic() > until
            if late and self.failed is None and (waiting := self.waiting):
                self._give_up("decoder-stopped", left=waiting)

    @property
    def waiting(self) -> int:
        """Bytes that have come and are not decoded, or not all of whose records are shown."""
        here = 0 if self._chunk is None else self.pipeline.session.unread or len(self._chunk.data)
        return self._behind + self._held_bytes + here

    @property
    def finished(self) -> bool:
        """Whether its verdict has been given, or is being given."""
        return self._finished

    def admit(self) -> int | None:
        """The number of a new connection; None if there are so many that it is only forwarded."""
        self.connections += 1
        if self.connections == MAX_CONNECTIONS + 1:
            what = "connections of one migration"
            told = problem_text("count", count=self.connections, what=what, limit=MAX_CONNECTIONS)
            self._say(f"{self.migration}: {told}; all others are only forwarded")
        return self.connections - 1 if self.connections <= MAX_CONNECTIONS else None

    def now(self) -> int:
        """Microseconds since the migration began."""
        return (time.monotonic_ns() - self._zero) // 1000

    # ------------------------------------------------------------ from the taps

    def arrive(self, arrival: Arrival | Question, *, multifd: bool = False) -> None:
        """Take what has happened. A chunk's data is borrowed for the time of the call."""
        hold = multifd and (self._held or not self.pipeline.session.knows_memory)
        if hold and not isinstance(arrival, Question):
            if isinstance(arrival, Chunk):
                self._held_bytes += len(arrival.data)
                self._check_behind()
                arrival = _owned(arrival)
            self._held.append(arrival)
            self._turn()
            return
        if self._busy:
            self._enqueue(arrival)
            return
        self._running = self._take(arrival)
        self._turn()

    @property
    def lags(self) -> bool:
        """Whether so much waits to be decoded, or saved, that who can wait should."""
        saving = self.capture is not None and self.capture.pending > MAX_LAG
        return saving or self._behind + self._held_bytes > MAX_LAG

    def _enqueue(self, arrival: Arrival | Question) -> None:
        if isinstance(arrival, Chunk):
            self._behind += len(arrival.data)
            self._check_behind()
            arrival = _owned(arrival)
        self._queue.append(arrival)

    def _check_behind(self) -> None:
        if self._behind + self._held_bytes > self._max_behind and self.failed is None:
            self._give_up("decoder-behind", limit=self._max_behind)

    # ------------------------------------------------------------ a turn of decoding

    @property
    def _busy(self) -> bool:
        return self._running is not None or bool(self._queue)

    def _turn(self) -> None:
        """Work for about a millisecond, and come back for the rest."""
        self._scheduled = False
        turn = Turn(TURN)
        while self._running is not None or self._next():
            self._guarded(turn)
            if turn.over:
                break
        ending = not self.open and not self._finished and not self.paused
        if (self._busy or ending) and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _guarded(self, turn: Turn) -> None:
        """Go on with what is running until the time is over. Nothing gets out of here into the forwarding."""
        try:
            self._work(turn)
        except Exception as bug:
            self._running = None
            self._give_up("decoder-bug", detail=f"{type(bug).__name__}: {bug}")

    def _work(self, turn: Turn) -> None:
        assert self._running is not None
        for _ in self._running:
            if turn.over:
                self.pipeline.session.detach()
                if self._chunk is not None:
                    self._chunk = _owned(self._chunk)
                return
        self._running = None

    def _release(self) -> None:
        """Let go on what is held, once it can be read, or will never be, or is too much; it has come now."""
        decodes = self.open and self.failed is None
        if self.pipeline.session.knows_memory or not decodes or self._held_bytes > MAX_HELD:
            now = self.now()
            self._behind += self._held_bytes
            self._queue.extend(msgspec.structs.replace(arrival, time=now) for arrival in self._held)
            self._held, self._held_bytes = [], 0

    def _next(self) -> bool:
        """Begin with what comes next; False if there is nothing."""
        if self._held and not self._queue:
            self._release()
        if self._queue:
            arrival = self._queue.popleft()
            if isinstance(arrival, Chunk):
                self._behind -= len(arrival.data)
            self._running = self._take(arrival)
        elif self.open or self._finished or self.paused or self._pauses():
            return False
        else:
            self._finished = True
            self._running = self._finish()
        return True

    def _pauses(self) -> bool:
        """All connections have ended. In postcopy the verdict waits: the guest does, too."""
        if self._closing or self.failed is not None or not self.pipeline.session.resumable:
            return False
        self.paused = True
        where = self.pipeline.session.where()
        self._say(f"{self.migration}: postcopy is paused at {where}; it waits to be resumed")
        return True

    # ------------------------------------------------------------ what there is to do

    def _take(self, arrival: Arrival | Question) -> Generator[None, None, None]:
        if isinstance(arrival, Question):
            return self._answer(arrival)
        return self._decode(arrival) if isinstance(arrival, Chunk) else self._other(arrival)

    def _decode(self, chunk: Chunk) -> Generator[None, None, None]:
        events = self.pipeline.events
        self._chunk = chunk
        decoded = False
        try:
            if not self._dead:
                yield from self.pipeline.feed(chunk)
                decoded = True
        finally:  # whatever happened, these bytes went over the wire
            if self.capture is not None:
                self._save(self.capture, self._chunk, events != self.pipeline.events, decoded)
            self._chunk = None
            if events != self.pipeline.events or self.failed is not None:
                self._let_go()

    def _save(self, capture: CaptureWriter, chunk: Chunk, has_events: bool, decoded: bool) -> None:
        """Hand a chunk to the capture, with what may not be kept of it: all, if it was not decoded."""
        session = self.pipeline.session
        if not decoded:
            capture.chunk(chunk, f"unknown-{chunk.connection}", None, has_events)
            return
        if page_size := session.learned_page_size():
            capture.learned(Learned(chunk.time, chunk.connection, page_size))
        for offset, facts in session.learned_tls():
            capture.learned(LearnedTls(chunk.time, chunk.connection, chunk.direction, offset, facts))
        name = session.channel(chunk.connection)
        capture.chunk(chunk, name, session.omitted, has_events, session.settled)

    def _other(self, arrival: Arrival) -> Generator[None, None, None]:
        capture = self.capture
        if isinstance(arrival, Noted) and capture is not None:
            capture.note(arrival.time, arrival.what, arrival.connection, **arrival.facts)
        if isinstance(arrival, Opened) and capture is not None:
            capture.opened(arrival)
        if not self._dead:
            yield from self.pipeline.feed(arrival)
        if isinstance(arrival, Ended) and capture is not None:
            session = self.pipeline.session
            omitted = None if self._dead else session.omitted
            capture.ended(arrival, omitted, decided=not self._dead and session.settled is None)
        if isinstance(arrival, Ended) and arrival.direction == "fwd":
            self._draining.pop(arrival.connection, None)
        self._let_go()

    def _answer(self, question: Question) -> Generator[None, None, None]:
        """Whether a connection may be drained, now that all that came before is decoded."""
        may = self._may_drain(question.connection, question.how)
        if may:
            self._draining[question.connection] = question.answer
        question.answer(may)
        yield from ()

    def _may_drain(self, connection: int, how: EndKind) -> bool:
        may, why = False, "nothing is decoded any more"
        if self.failed is None:
            may, why = self.pipeline.session.may_drain(connection)
        unseen = why == UNREAD and how == "eof"  # perhaps in order: what was said is encrypted
        if why and not unseen and not self._refused:
            self._refused = why
            self._say(f"{self.migration}: --drain-after-failure is refused: {why}")
        return may

    def _let_go(self) -> None:
        """Let those go of whose source nothing more is to be had."""
        for connection in [each for each in self._draining if not self._may_drain(each, "closed")]:
            self._draining.pop(connection)(False)

    def _finish(self) -> Generator[None, None, None]:
        """The verdict, and the end of the capture."""
        try:
            if not self._dead:
                yield from self.pipeline.finish()
        finally:
            if self.capture is not None:
                verdict = self.pipeline.verdict
                result: dict[str, object] = {
                    "verdict": None if verdict is None else msgspec.to_builtins(verdict)
                }
                if self.failed is not None:
                    result["decoding"] = self.failed
                self.capture.close(result)
            self._done(self)

    def _give_up(self, code: str, **details: object) -> None:
        """Decode no more: bytes are only counted from here on, and if that fails too, nothing is."""
        if self.failed is not None:
            self._dead = self._dead or code == "decoder-bug"
            return
        session = self.pipeline.session
        if self._running is not None and code != "decoder-stopped":  # which leaves it as it is, to be ended
            self._running.close()
            self._running = None
        try:
            self.failed = f"{problem_text(code, **details)}; decoded up to {session.where()}"
            session.detach()
            for _ in self.pipeline.show(session.stop_decoding(code, **details), self.pipeline.time):
                pass
        except Exception as bug:
            self.failed = self.failed or problem_text("decoder-bug", detail=f"{type(bug).__name__}: {bug}")
            self._dead = True
        self._say(f"{self.migration}: {self.failed}")


def close_all(migrations: Iterable[LiveMigration], seconds: float) -> None:
    """End them now. Together they have so much time for what waits: each its share, and what others left."""
    until = time.monotonic() + seconds
    shortest = sorted(migrations, key=lambda live: live.waiting)
    for left, live in zip(range(len(shortest), 0, -1), shortest, strict=True):
        now = time.monotonic()
        live.close(now + max(0.0, until - now) / left)


def _owned(chunk: Chunk) -> Chunk:
    """The chunk with bytes of its own."""
    return msgspec.structs.replace(chunk, data=bytes(chunk.data))
