"""Saving a migration while it passes: a bounded queue between the event loop and a thread that writes.

Nothing here waits for the disk. When it cannot keep up, or fails, saving stops and says so; the forwarding
never learns of it.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from migsniff.core.arrivals import (
    Chunk,
    Direction,
    Ended,
    Learned,
    LearnedTls,
    Opened,
)
from migsniff.core.errors import problem_text
from migsniff.feed.capturefile import WriteParts
from migsniff.feed.capturefolder import CaptureFolder
from migsniff.feed.captureformat import RamMode
from migsniff.feed.container import MAX_STORED, gather, within

if TYPE_CHECKING:
    from migsniff.feed.container import Spans

MAX_PENDING: Final = 64 << 20  # bytes that wait for the disk
FLUSH_INTERVAL: Final = 0.25  # seconds; with the time that writing takes, under half a second
FLUSH_SIZE: Final = 1 << 20  # bytes that wake the thread before that
UNNAMED: Final = 64  # bytes of a connection that are held back until its name is known
ENTRY_COST: Final = 512  # what a queue entry takes beside its bytes
BREATH: Final = 64  # entries after which the thread lets the event loop run
BREATH_TIME: Final = 50e-6


class CaptureWriter:
    """Saves one migration in a new folder under `parent`, which is made if it is missing.

    To be called from one thread (the event loop's); no method waits or raises. Nothing is made on disk before
    the first chunk. `facts` go into the manifest as they are; `start` is the wall clock at time 0 (now, if
    not given). When saving stops early, `problem` says why, and `on_problem` is called with it once, in
    either thread. `write` is how bytes reach a file (as os.writev).
    """

    def __init__(
        self,
        parent: Path,
        *,
        ram: RamMode,
        migration: str,
        facts: dict[str, Any],
        start: datetime | None = None,
        on_problem: Callable[[str], None] | None = None,
        max_pending: int = MAX_PENDING,
        flush_interval: float = FLUSH_INTERVAL,
        write: WriteParts = os.writev,
    ) -> None:
        self.problem: str | None = None
        self.start = start or datetime.now(UTC)
        self._folder = CaptureFolder(
            parent, ram=ram, migration=migration, facts=facts, start=self.start, write=write
        )
        self._strip = ram == "strip"
        self._on_problem = on_problem
        self._max_pending = max_pending
        self._flush_interval = flush_interval
        self._queue: deque[tuple[int, Callable[..., None], tuple[object, ...]]] = deque()
        self._queued = 0  # bytes ever queued, counted by the caller's thread
        self._done = 0  # bytes ever written or dropped, counted by the saver's thread
        self._time = 0
        self._lengths: dict[tuple[int, Direction], int] = {}
        self._held: dict[
            tuple[int, Direction], bytes
        ] = {}  # bytes at the end of a direction, not decided yet
        self._named: set[int] = set()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._finished = False

    @property
    def path(self) -> Path | None:
        """The capture's folder, once it has been made."""
        return self._folder.path

    @property
    def pending(self) -> int:
        """Bytes that wait for the disk; 0 once nothing is saved any more."""
        return 0 if self.problem is not None else self._queued - self._done

    def opened(self, opened: Opened) -> None:
        """A connection was accepted."""
        self._time = opened.time
        self._put(0, self._folder.opened, opened)

    def chunk(
        self,
        chunk: Chunk,
        name: str | None,
        omitted: "Spans | None",
        has_events: bool,
        settled: int | None = None,
    ) -> None:
        """Bytes arrived, on the connection called `name`, if that is known by now.

        `omitted`: the wire spans up to `settled` that a stripped capture must not keep, ascending and
        disjoint, as a list of (start, stop) or an array of shape (n, 2); None: nothing tells any more, and
        all that was not saved yet is left out. `settled`: the bytes behind this wire offset may still turn
        out to be guest memory (None: all is decided); they are held back, and a later `omitted` tells.
        `has_events`: the chunk completed an event, so that its time must be kept.
        The chunk's data is copied as far as it is saved.
        """
        self._time = chunk.time
        key = chunk.connection, chunk.direction
        self._lengths[key] = chunk.end
        if self.problem is not None or self._closed:
            return
        try:
            held = self._held.pop(key, b"")
            data = memoryview(held + chunk.data if held else chunk.data)
            if omitted is None:
                omitted = [(chunk.end - len(data), chunk.end)]
            decided = len(data)
            if settled is not None and self._strip:
                decided = max(0, decided + settled - chunk.end)
            if name is None and chunk.direction == "fwd" and len(data) <= UNNAMED:
                decided = 0
            if name is not None:
                self._named.add(chunk.connection)
            if decided < len(data):
                self._held[key] = bytes(data[decided:])
            self._save(chunk, data[:decided], chunk.end - len(data), name, omitted, has_events)
        except Exception as error:  # whatever is wrong with what came, the caller is the relay
            self._stop("saver-failed", detail=repr(error))
        if self._thread is None:
            self._start()

    def learned(self, learned: Learned | LearnedTls) -> None:
        """What page contents or TLS have told the decoder. To be called before the chunk that told it."""
        if self._strip:
            self._put(0, self._folder.learned, learned)

    def ended(self, ended: Ended, omitted: "Spans | None" = None, *, decided: bool = False) -> None:
        """One direction of a connection ended. `omitted`: what the end decided of the bytes held back.

        `decided`: of all of them, also if `omitted` is empty.
        """
        self._time = ended.time
        self._let_go(ended.connection, ended.direction, omitted, decided=decided)
        self._put(0, self._folder.ended, ended)

    def note(self, time: int, kind: str, connection: int, **facts: object) -> None:
        """Something that explains the arrivals: a pause, a connection's tcp_info. `facts` must fit JSON."""
        self._time = time
        if self._admit(0):
            self._put(0, self._folder.note, time, kind, connection, facts)

    def flush(self) -> None:
        """Have everything handed to the kernel now, not at the next interval."""
        self._wake.set()

    def close(self, result: dict[str, Any]) -> None:
        """The migration is over: write the rest and the final manifest with `result` in it. See join()."""
        for connection, direction in list(self._held):
            self._let_go(connection, direction, None)
        self._put(0, self._finish, result, self._lengths)
        self._closed = True
        self._wake.set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait (blocking) until close() has reached the disk, at most `timeout` seconds; whether it has."""
        if self._thread is not None:
            self._thread.join(timeout)
            return not self._thread.is_alive()
        return self._closed  # with nothing to be saved; otherwise the first chunk is still to come

    # ---------------------------------------------------------------- the caller's side

    def _let_go(
        self, connection: int, direction: Direction, omitted: "Spans | None", *, decided: bool = False
    ) -> None:
        """Save what was held back: nothing will decide it any more. What may be guest memory is left out.

        That is all of it, unless `omitted` speaks of these very bytes, all of them are `decided`, or the
        connection never had a name.
        """
        held = self._held.pop((connection, direction), None)
        if held is None or self.problem is not None:
            return
        end = self._lengths[connection, direction]
        base = end - len(held)
        if connection not in self._named:
            omitted = []
        elif (
            omitted is None
            or not (len(omitted) or decided)
            or (len(omitted) and (omitted[0][0] < base or omitted[-1][1] > end))
        ):
            omitted = [(base, end)]
        chunk = Chunk(self._time, connection, direction, held, end)
        try:
            self._save(chunk, memoryview(held), base, None, omitted, True)
        except Exception as error:
            self._stop("saver-failed", detail=repr(error))

    def _save(
        self, chunk: Chunk, data: memoryview, base: int, name: str | None, omitted: "Spans", has_events: bool
    ) -> None:
        """Queue `data`, which stands at wire offset `base`, in pieces that fit a block."""
        for first in range(0, len(data), MAX_STORED):
            piece = data[first : first + MAX_STORED]
            start, end = base + first, base + first + len(piece)
            if not self._strip:
                kept = bytes(piece)
            elif len(data) > MAX_STORED:
                kept = gather(piece, start, within(omitted, start, end))
            else:
                kept = gather(piece, start, omitted)
            if not self._admit(len(kept)):
                return
            last = first + len(piece) == len(data)
            self._put(
                len(kept),
                self._folder.chunk,
                *(chunk.time, chunk.connection, chunk.direction),
                *(end, kept, name, has_events and last),
            )

    def _admit(self, size: int) -> bool:
        """Whether there is still room in the queue; if not, saving stops here."""
        held = sum(map(len, self._held.values())) if self._held else 0
        if self.problem is None and self._queued - self._done + held + size > self._max_pending:
            self._stop("saver-behind", limit=self._max_pending)
        return self.problem is None

    def _put(self, size: int, call: Callable[..., None], *arguments: object) -> None:
        if self._closed:
            return
        size += ENTRY_COST
        self._queued += size
        self._queue.append((size, call, arguments))
        if self._queued - self._done > FLUSH_SIZE and not self._wake.is_set():
            self._wake.set()

    def _stop(self, code: str, **details: object) -> None:
        self._report(problem_text(code, **details))
        self._put(0, self._folder.stop, self._time, self.problem)

    def _report(self, problem: str) -> None:
        if self.problem is None:
            self.problem = problem
            if self._on_problem is not None:
                with contextlib.suppress(Exception):  # such as an event loop that is closed already
                    self._on_problem(problem)

    def _start(self) -> None:
        # a daemon: a disk that hangs must not keep the process from ending
        thread = threading.Thread(target=self._run, name="migsniff-saver", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._stop("saver-failed", detail=str(error))
        else:
            self._thread = thread

    # ---------------------------------------------------------------- the saver's side

    def _run(self) -> None:
        self._try(self._folder.create)
        while not self._finished:
            self._wake.wait(self._flush_interval)
            self._wake.clear()
            self._work()
        self._try(self._folder.close)

    def _work(self) -> None:
        """Do what is queued, and hand it to the kernel."""
        size = taken = 0
        while self._queue:
            cost, call, arguments = self._queue.popleft()
            self._try(call, *arguments)
            size += cost
            taken += 1
            if size > FLUSH_SIZE:
                self._try(self._folder.flush)
                self._done += size
                size = 0
            if taken % BREATH == 0:
                sleep(BREATH_TIME)
        self._try(self._folder.flush)
        self._done += size

    def _finish(self, result: dict[str, Any], lengths: dict[tuple[int, Direction], int]) -> None:
        self._finished = True
        self._folder.finish(result, lengths)

    def _try(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception as error:  # a disk's error, or our own: either way only the saving stops
            detail = (error.strerror or str(error)) if isinstance(error, OSError) else repr(error)
            self._report(problem_text("saver-failed", detail=detail))
            self._folder.abandon(self.problem or detail)
