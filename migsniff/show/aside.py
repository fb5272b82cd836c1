"""A thread in which records are made aside: what takes long there delays no caller."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from msgspec import UNSET
from msgspec.structs import astuple, replace

from migsniff.core.events import DeviceSection, Event, Verdict
from migsniff.show.words import several
from migsniff.values.large import bare, cost, large, limited

LIMIT: Final = 128 << 20
"""About as many bytes may wait: the fields of a pseries, which come all at once, are a third of that."""
ENTRY_COST: Final = 1 << 10
ITEM_COST: Final = 1 << 9
"""What an event, and each block or range that it lists, take in memory, and more than that."""
GATHER_SECONDS: Final = 0.02
"""How long events are gathered before their records are made, unless each is to be flushed."""
CLOSING: Final = 5.0  # seconds for what waits
LAST: Final = 0.5  # seconds for the record that is then being made, and for the verdicts

Show = Callable[[str, int, Event], None]
Thing = tuple[int, Callable[..., None], tuple[object, ...]]


class Aside:
    """Calls `show` with events, and other functions, in a thread of its own, in the order in which they came.

    About `limit` bytes may wait, whatever the events hold, and as many beside for what is no device state:
    fields that are more come without (values/large.py); events that are more are counted, and in their place
    comes `lost(count)`; verdicts never are. No event keeps its `image`.
    What fails there is a bug of ours and told to `report`, the first time.
    """

    def __init__(
        self,
        name: str,
        show: Show,
        *,
        lost: Callable[[int], None],
        report: Callable[[str], None] | None = None,
        at_once: bool = False,
        limit: int = LIMIT,
    ) -> None:
        self.failed: str | None = None
        self._show = show
        self._lost = lost
        self._report = report
        self._missing = 0
        self._late = False  # only what must not be missing is done any more
        self._skipped = 0  # since then, and not told to `lost` yet
        self._unmade = 0
        self._limit = limit
        self._things: deque[Thing] = deque()
        self._queued = 0  # written by the callers' thread alone, as `_done` by the other
        self._done = 0
        self._pause = 0.0 if at_once else GATHER_SECONDS
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def show(self, migration: str, time: int, event: Event) -> None:
        """Have the record of an event made."""
        room = self._limit - (self._queued - self._done)
        if isinstance(event, DeviceSection) and event.image is not UNSET:
            event = replace(event, image=UNSET)  # megabytes, of which a record has nothing
        if isinstance(event, DeviceSection) and event.fields:
            event = limited(event) if large(event) else event
            holds = cost(event)
            if holds > room:
                event, holds = bare(event), 0
        else:
            holds = sum(map(_held, astuple(event)))
        # room that large sections have taken does not keep out small events
        if room < -self._limit and not isinstance(event, Verdict):
            self._missing += 1
        else:
            self._put(holds, self._show, (migration, time, event))

    def do(self, call: Callable[..., None], *arguments: object) -> None:
        """Have something done in its turn; it is never left out."""
        self._put(0, call, arguments)

    def close(self, timeout: float = CLOSING) -> int:
        """Do what waits, for at most so many seconds; tells for how many events there was no time.

        They are `lost`, but verdicts are shown all the same, and what else waits is done.
        """
        self._tell_missing()
        self._ending.set()
        self._wake.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._late = True
            self._thread.join(LAST)
        if self._thread.is_alive():  # one record takes as long as that: it will be too late
            self._unmade += 1
            self._skipped += 1
            self._work()
        return self._unmade

    def _put(self, holds: int, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self._tell_missing()
        if self._ending.is_set():
            return
        self._queued += holds + ENTRY_COST
        self._things.append((holds + ENTRY_COST, call, arguments))
        if not self._wake.is_set():
            self._wake.set()

    def _tell_missing(self) -> None:
        if self._missing:
            missing, self._missing = self._missing, 0
            self._put(0, self._lost, (missing,))

    def _run(self) -> None:
        while not self._ending.is_set() or self._things:
            self._wake.wait()
            if self._pause:
                self._ending.wait(self._pause)
            self._wake.clear()
            self._work()

    def _work(self) -> None:
        """Do what waits. When it is too late for the rest of the records, they are counted."""
        while (thing := self._taken()) is not None:
            holds, call, arguments = thing
            del thing
            if self._late and call is self._show and not isinstance(arguments[2], Verdict):
                self._unmade += 1
                self._skipped += 1
            else:
                self._tell_skipped()
                self._try(call, arguments)
            del arguments  # an event may be large
            self._done += holds
        self._tell_skipped()

    def _taken(self) -> Thing | None:
        try:
            return self._things.popleft()
        except IndexError:
            return None

    def _tell_skipped(self) -> None:
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            self._try(self._lost, (skipped,))

    def _try(self, call: Callable[..., None], arguments: tuple[object, ...]) -> None:
        try:
            call(*arguments)
        except Exception as bug:
            if self.failed is None:
                self.failed = f"{type(bug).__name__}: {bug}"
                if self._report is not None:
                    self._report(
                        f"a record could not be shown ({self.failed}): a bug, please report it; "
                        "the forwarding is not touched"
                    )


def unmade_text(count: int) -> str:
    """What the user is told of records for which there was no time at the end."""
    records = several(count, "record")
    return f"no time was left to show {records}: migsniff read shows all, if a capture was saved"


def _held(value: object) -> int:
    """The bytes of memory, about, that an attribute of an event may take beside those of any event."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, tuple):
        return len(value) * ITEM_COST
    if isinstance(value, dict):
        return sum(map(_held, value.values()))
    return 0
