"""The records that a display filter lets through, for the live view: the last of them, and how many."""

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final

from migsniff.core.events import DeviceSection, Event
from migsniff.filter.compile import Filter
from migsniff.show.aside import CLOSING, Aside, unmade_text
from migsniff.show.text import TextLog
from migsniff.show.words import escape, several
from migsniff.values.explain import Explainer

KEPT: Final = 200


class Matching:
    """A show sink. Its filter is asked in a thread of its own; the view's thread reads it meanwhile.

    A bug in that thread goes to `report`.
    """

    def __init__(self, wanted: Filter, *, report: Callable[[str], None] | None = None) -> None:
        self.count = 0
        self.missing = ""  # what was not looked at, because there was no time for it when it was closed
        self._expression = escape(wanted.expression)
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._log = TextLog(self._write, wanted=wanted)
        self._explainer = Explainer()
        self._fields = wanted.fields
        self._missing = 0
        self._aside = Aside("migsniff-filter", self._show, lost=self._lose, report=report)

    @property
    def ignores(self) -> tuple[type[Event], ...]:
        """Types of events that make no difference here."""
        return self._log.ignores

    @property
    def failed(self) -> str | None:
        """The bug of ours for which a record is missing, if one is."""
        return self._aside.failed

    def begins(self, migration: str, start_time: datetime, *, several: bool) -> None:
        """A migration begins, beside others or not."""
        self._aside.do(self._log.begins, migration, start_time)
        if several:
            self._aside.do(setattr, self._log, "prefix", True)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Keep the line of an event that matches."""
        self._aside.show(migration, time, event)

    def close(self, timeout: float = CLOSING) -> None:
        """Look at what waits, for about so many seconds."""
        if unmade := self._aside.close(timeout):
            self.missing = unmade_text(unmade)

    # ------------------------------------------------------------ what is done in the thread

    def _show(self, migration: str, time: int, event: Event) -> None:
        if isinstance(event, DeviceSection) and self._fields:
            event = self._explainer.explained(migration, event)
        else:
            self._explainer.learn(migration, event)
        self._log.show(migration, time, event)

    def _lose(self, count: int) -> None:
        self._missing += count

    def _write(self, text: str) -> None:
        self.count += 1
        self._lines.append(text.removesuffix("\n"))

    @property
    def title(self) -> str:
        """How many there were."""
        verb = "matches" if self.count == 1 else "match"
        unseen = f", {self._missing} more could not be looked at in time" if self._missing else ""
        return f"{several(self.count, 'record')} {verb} {self._expression}{unseen}"

    def last(self, count: int) -> list[str]:
        """The lines of the last ones."""
        return list(self._lines)[-count:] if count > 0 else []
