"""-z io,INTERVAL: what passed in each stretch of time, as tshark's `-z io,stat`."""

import re
from typing import Final

from migsniff.core.events import (
    Blocked,
    Event,
    LoosePages,
    MultifdPacket,
    RamSection,
)
from migsniff.show.migration import MigrationStats
from migsniff.statistics.statistic import MAX_ROWS, Statistic, statistic
from migsniff.statistics.table import Column, Table

UNITS: Final = {"us": 1, "ms": 1000, "s": 1_000_000, "": 1_000_000, "m": 60_000_000}
MIN_INTERVAL: Final = 1000  # microseconds: the times of a capture are no finer
COLUMNS: Final = (
    Column("began", "from", "time"),
    Column("records", "records"),
    Column("fwd", "bytes >", "bytes"),
    Column("rev", "bytes <", "bytes"),
    Column("rate", "rate >", "rate"),
    Column("pages", "pages"),
    Column("blocked", "blocked", "share"),
)


@statistic("io")
class Io(Statistic):
    """Records, bytes and pages for each interval, and in which part of it the destination took nothing.

    There are MAX_ROWS at most: beyond, two intervals become one.
    """

    def __init__(self, argument: str = "") -> None:
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)(us|ms|s|m|)", argument or "1s")
        self._interval = round(float(match[1]) * UNITS[match[2]]) if match else 0
        if self._interval < MIN_INTERVAL:
            raise ValueError("an interval is a number with us, ms, s or m, of 1 ms or more")
        self._asked = self._interval
        self._rows: dict[int, list[int]] = {}  # records, bytes fwd, bytes rev, pages, µs blocked
        self._at: dict[tuple[str, str], int] = {}
        self._blocked: set[str] = set()  # channels whose destination takes nothing
        self._since = 0

    def update(self, time: int, event: Event) -> None:
        """Take one event into account."""
        row = self._row(time)
        if isinstance(event, Blocked):
            self._block(time, event)
            return
        key = event.channel, event.direction
        end = event.offset + event.size
        before = self._at.get(key, 0)
        if end > before and (before or len(self._at) < MAX_ROWS):
            row[1 if event.direction == "fwd" else 2] += end - before
            self._at[key] = end
        row[0] += event.size > 0
        if isinstance(event, RamSection | LoosePages):
            row[3] += event.counts.pages
        elif isinstance(event, MultifdPacket):
            row[3] += event.normal + event.zero

    def _block(self, time: int, event: Blocked) -> None:
        """A channel's destination takes nothing; what counts is the time in which any of them does not."""
        if event.direction != "fwd" or len(self._blocked) >= MAX_ROWS:
            return
        if event.blocked:
            self._since = self._since if self._blocked else time
            self._blocked.add(event.channel)
        elif event.channel in self._blocked:
            self._blocked.discard(event.channel)
            if not self._blocked:
                self._spread(self._since, time)

    def _spread(self, since: int, until: int) -> None:
        """Count a time of waiting for the intervals in which it was; there may be many."""
        while since < until:
            row = self._row(since)
            end = min(until, (since // self._interval + 1) * self._interval)
            row[4] += end - since
            since = end

    def _row(self, time: int) -> list[int]:
        number = time // self._interval
        row = self._rows.get(number)
        if row is None:
            while len(self._rows) >= MAX_ROWS:
                self._double()
                number = time // self._interval
            row = self._rows.setdefault(number, [0, 0, 0, 0, 0])
        return row

    def _double(self) -> None:
        self._interval *= 2
        merged: dict[int, list[int]] = {}
        for number, row in self._rows.items():
            into = merged.setdefault(number // 2, [0, 0, 0, 0, 0])
            for index, value in enumerate(row):
                into[index] += value
        self._rows = merged

    def table(self, stats: MigrationStats) -> Table:
        """A row an interval, also for those in which nothing came, as far as there is room."""
        if self._blocked:
            self._spread(self._since, stats.elapsed)
            self._since = stats.elapsed
        numbers = sorted(self._rows)
        if numbers and numbers[-1] - numbers[0] < MAX_ROWS:
            numbers = list(range(numbers[0], numbers[-1] + 1))
        rows = []
        for number in numbers:
            records, forth, back, pages, blocked = self._rows.get(number, [0, 0, 0, 0, 0])
            began = number * self._interval
            rows.append(
                (began, records, forth, back, forth * 1e6 / self._interval, pages, blocked / self._interval)
            )
        notes = ["bytes count when the record that they belong to is complete"]
        if self._interval != self._asked:
            notes.append(f"the interval is {self._interval / 1e6:g} s, for there are {MAX_ROWS} at most")
        return Table("io", f"Every {self._interval / 1e6:g} s", COLUMNS, rows, tuple(notes))
