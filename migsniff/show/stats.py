"""The models of all migrations that run, and of the last that did."""

from dataclasses import dataclass, field
from typing import Final

from migsniff.core.arrivals import Direction
from migsniff.core.events import Event
from migsniff.show.migration import LAST_PASSES, MigrationStats

MAX_FINISHED: Final = 16


@dataclass(slots=True)
class Stats:
    """A show sink that keeps the model of each migration: all that run, and the last MAX_FINISHED others."""

    by_migration: dict[str, MigrationStats] = field(default_factory=dict)
    keep_passes: int = LAST_PASSES

    def begins(self, migration: str, source: str = "", destination: str = "") -> MigrationStats:
        """A migration begins between these two ends."""
        for finished in [key for key, stats in self.by_migration.items() if stats.verdict][
            : -MAX_FINISHED or None
        ]:
            del self.by_migration[finished]
        stats = MigrationStats(
            migration, source=source, destination=destination, keep_passes=self.keep_passes
        )
        self.by_migration[migration] = stats
        return stats

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        stats = self.by_migration.get(migration)
        if stats is None:
            stats = self.begins(migration)
        stats.update(time, event)

    def progress(self, migration: str, time: int, channel: str, direction: Direction, offset: int) -> None:
        """Bytes up to `offset` have arrived."""
        stats = self.by_migration.get(migration)
        if stats is None:
            stats = self.begins(migration)
        stats.progress(time, channel, direction, offset)

    def close(self) -> None:
        """Nothing is pending."""
