"""The records that a display filter lets through, for the live view: the last of them, and how many."""

from collections import deque
from datetime import datetime
from typing import Final

from migsniff.core.events import DeviceSection, Event
from migsniff.filter.compile import Filter
from migsniff.show.text import TextLog
from migsniff.show.words import escape, several
from migsniff.values.explain import Explainer
from migsniff.values.large import limited

KEPT: Final = 200


class Matching:
    """A show sink. It is read by the view's thread while the event loop's fills it."""

    def __init__(self, wanted: Filter) -> None:
        self.count = 0
        self._expression = escape(wanted.expression)
        self._lines: deque[str] = deque(maxlen=KEPT)
        self._log = TextLog(self._write, wanted=wanted)
        self._explainer = Explainer()
        self._fields = wanted.fields

    def begins(self, migration: str, start_time: datetime, *, several: bool) -> None:
        """A migration begins, beside others or not."""
        self._log.begins(migration, start_time)
        self._log.prefix = self._log.prefix or several

    def show(self, migration: str, time: int, event: Event) -> None:
        """Keep the line of an event that matches."""
        if isinstance(event, DeviceSection) and self._fields:
            event = self._explainer.explained(migration, limited(event))
        else:
            self._explainer.learn(migration, event)
        self._log.show(migration, time, event)

    def close(self) -> None:
        """Nothing is pending."""

    def _write(self, text: str) -> None:
        self.count += 1
        self._lines.append(text.removesuffix("\n"))

    @property
    def title(self) -> str:
        """How many there were."""
        verb = "matches" if self.count == 1 else "match"
        return f"{several(self.count, 'record')} {verb} {self._expression}"

    def last(self, count: int) -> list[str]:
        """The lines of the last ones."""
        return list(self._lines)[-count:] if count > 0 else []
