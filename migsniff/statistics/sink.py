"""All that -z asks for: a show sink that gives the tables of each migration when it has its verdict."""

from collections.abc import Callable, Sequence

from migsniff.core.events import Event, Verdict
from migsniff.show.stats import Stats

# what registers
from migsniff.statistics import channels, devices, downtime, io, memory  # noqa: F401
from migsniff.statistics.statistic import Statistic, parse
from migsniff.statistics.table import Table


class Statistics:
    """`write` gets the tables of a migration, in the order in which they were asked for.

    `stats` is the model of the same migrations; it must be shown each event before this. Raises UsageError.
    """

    def __init__(self, asked: Sequence[str], stats: Stats, write: Callable[[str, list[Table]], None]) -> None:
        self._made = [parse(each) for each in asked]
        self._stats = stats
        self._write = write
        self._running: dict[str, list[Statistic]] = {}
        self.wants_no_more = True
        """Nothing is read on for its sake."""

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        running = self._running.get(migration)
        if running is None:
            running = self._running[migration] = [make() for make in self._made]
        for each in running:
            each.update(time, event)
        if isinstance(event, Verdict):
            self._end(migration)

    def close(self) -> None:
        """The tables of migrations without a verdict: reading ended before them."""
        for migration in list(self._running):
            self._end(migration)

    def _end(self, migration: str) -> None:
        stats = self._stats.by_migration.get(migration)
        if stats is not None:
            self._write(migration, [each.table(stats) for each in self._running[migration]])
        del self._running[migration]
