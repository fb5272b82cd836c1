"""A log's way out: a slow pipe or terminal blocks a thread of its own, never the caller."""

import os
import select
import threading
from collections.abc import Callable
from typing import Final, TextIO

LIMIT: Final = 32 << 20
"""Characters: the fields of a pseries are some 15 million, and come all at once behind its description."""
GATHER_SECONDS: Final = 0.02
"""How long records are gathered before they are written together, unless each is to be flushed."""


class Output:
    """Writes whole records to a file descriptor or text file from a thread of its own.

    Up to `limit` characters wait their turn, and the record that goes beyond: one alone may be longer than
    that (the fields of a device of a pseries are 5 million). Further ones are dropped and counted, and as
    soon as there is room again `dropped(count)` makes a record that says so; with `blocking` the caller
    waits instead.
    When the reader goes away `closed` becomes true and everything further is ignored; `error` is set when
    something else ended it.
    """

    def __init__(
        self,
        target: int | TextIO,
        *,
        limit: int = LIMIT,
        flush_each: bool = False,
        blocking: bool = False,
        dropped: Callable[[int], str] | None = None,
    ) -> None:
        self.closed = False
        self.error: OSError | None = None
        self.dropped = dropped
        self._target = target
        self._limit = limit
        self._flush_each = flush_each
        self._blocking = blocking
        self._records: list[str] = []
        self._held = 0
        self._lost = 0
        self._ending = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="migsniff-log", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Characters that wait for the thread."""
        return self._held

    def write(self, text: str) -> None:
        """Hand over one record, whole."""
        with self._changed:
            if self._held >= self._limit and not self.closed:
                if not self._blocking:
                    self._lost += 1
                    return
                self._changed.wait_for(lambda: not self._held or self.closed)
            self._hand_over(text)

    def write_last(self, text: str) -> None:
        """Hand over what must not be missing, such as the end of the log: it is never dropped."""
        with self._changed:
            self._report_lost(self._records)
            self._hand_over(text)

    def lose(self, count: int) -> None:
        """So many records are missing here, because whoever makes them came too late."""
        with self._changed:
            self._lost += count

    def close(self, timeout: float = 2.0) -> bool:
        """Write what waits, for at most `timeout` seconds; tells whether all of it was written."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(timeout)
        written = not self._thread.is_alive() and not self.closed
        self.closed = True
        return written

    def _hand_over(self, text: str) -> None:
        if self.closed or self._ending:
            return
        before, self._held = self._held, self._held + len(text)
        self._records.append(text)
        # two moments matter to the thread: there is something, and it is time to stop gathering
        if not before or self._flush_each or before < self._limit // 2 <= self._held:
            self._changed.notify_all()

    def _report_lost(self, records: list[str]) -> None:
        if self._lost and self.dropped is not None:
            records.append(self.dropped(self._lost))
        self._lost = 0

    def _run(self) -> None:
        while records := self._gather():
            try:
                self._put("".join(records))
            except (OSError, ValueError) as error:  # ValueError: the text file is closed
                if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                    self.error = error
                with self._changed:
                    self.closed = True
                    self._records, self._held = [], 0
                    self._changed.notify_all()
                return

    def _gather(self) -> list[str]:
        """Wait for records and take all of them; none: the log ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._ending)
            if not self._flush_each:
                enough = self._limit // 2
                self._changed.wait_for(lambda: self._held >= enough or self._ending, GATHER_SECONDS)
            records, self._records, self._held = self._records, [], 0
            self._report_lost(records)
            self._changed.notify_all()
            return records

    def _put(self, text: str) -> None:
        if not isinstance(self._target, int):
            self._target.write(text)
            self._target.flush()
            return
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data and not self.closed:
            try:
                data = data[os.write(self._target, data) :]
            except BlockingIOError:  # whoever shares the descriptor made it non-blocking
                select.select([], [self._target], [])
