"""What -z can ask for: each statistic is one registered class, fed with a migration's events."""

from collections.abc import Callable
from typing import Final

from migsniff.core.errors import UsageError
from migsniff.core.events import Event
from migsniff.show.migration import MigrationStats
from migsniff.show.words import escape
from migsniff.statistics.table import Table

MAX_ROWS: Final = 10_000
"""Rows that a statistic keeps; what comes beyond is merged or counted."""


class Statistic:
    """One statistic of one migration. `argument` is what stands behind the comma of `-z NAME,ARGUMENT`."""

    def __init__(self, argument: str = "") -> None:
        if argument:
            raise ValueError("it takes no argument")

    def update(self, time: int, event: Event) -> None:
        """Take one event into account, `time` microseconds after the migration began."""

    def table(self, stats: MigrationStats) -> Table:
        """The table so far; `stats` is the model of the same migration."""
        raise NotImplementedError


STATISTICS: Final[dict[str, type[Statistic]]] = {}


def statistic(name: str) -> Callable[[type[Statistic]], type[Statistic]]:
    """Register a class under the name that -z knows it by."""

    def register(made: type[Statistic]) -> type[Statistic]:
        if name in STATISTICS:
            raise ValueError(f"statistic {name!r} is registered already")
        STATISTICS[name] = made
        return made

    return register


def parse(text: str) -> Callable[[], Statistic]:
    """What -z names, to be made for each migration. Raises UsageError."""
    name, _, argument = text.partition(",")
    made = STATISTICS.get(name)
    if made is None:
        shown = escape(text)
        raise UsageError(f"-z {shown}: there is {', '.join(STATISTICS)}, no {escape(name)!r}")
    try:
        made(argument)
    except ValueError as error:
        raise UsageError(f"-z {escape(text)}: {error}") from None
    return lambda: made(argument)
