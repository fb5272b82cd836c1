"""-z devices: the sections other than ram, in the order of the stream."""

from typing import Final

from migsniff.core.events import DeviceSection, Event, LiveSection
from migsniff.show.migration import MigrationStats
from migsniff.statistics.statistic import MAX_ROWS, Statistic, statistic
from migsniff.statistics.table import Column, Table

COLUMNS: Final = (
    Column("section", "section", "text"),
    Column("section_id", "id"),
    Column("version_id", "version"),
    Column("parts", "parts"),
    Column("size", "bytes", "offset"),
    Column("offset", "offset", "offset"),
    Column("time", "came at", "time"),
    Column("since", "after the one before", "time"),
    Column("undescribed", "undescribed", "offset"),
    Column("state", "", "text"),
)


class _Section:
    """What has come of one section. `size` is that of all its parts."""

    def __init__(self, time: int, since: int | None, event: DeviceSection | LiveSection) -> None:
        self.event = event
        self.parts = 0
        self.size = 0
        self.time = time
        self.since = since


@statistic("devices")
class Devices(Statistic):
    """Section by section: its size, its place, and how long it let wait for itself."""

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self._sections: dict[tuple[str, str, int, int], _Section] = {}
        self._last: int | None = None
        self._omitted = 0

    def update(self, time: int, event: Event) -> None:
        """A device is told twice, the second time exactly; a live section comes in parts."""
        if not isinstance(event, DeviceSection | LiveSection):
            return
        place = event.offset if isinstance(event, DeviceSection) else -1
        key = event.channel, event.idstr, event.instance_id, place
        section = self._sections.get(key)
        if section is None:
            if len(self._sections) >= MAX_ROWS:
                self._omitted += 1
                return
            since = None if self._last is None or not time else time - self._last
            section = self._sections[key] = _Section(time, since, event)
            self._last = time
        if isinstance(event, DeviceSection):
            section.event, section.parts, section.size = event, 1, event.size
        else:
            section.parts += 1
            section.size += event.size

    def table(self, stats: MigrationStats) -> Table:
        """A row a section."""
        rows = []
        for section in self._sections.values():
            event = section.event
            rows.append(
                (
                    f"{event.idstr}/{event.instance_id}", event.section_id, event.version_id, section.parts,
                    section.size, event.offset, section.time if stats.elapsed else None, section.since,
                    event.undescribed if isinstance(event, DeviceSection) else None, _state(event),
                )
            )  # fmt: skip
        notes = [f"and {self._omitted} sections more"] if self._omitted else []
        return Table("devices", "Sections but ram, as they came", COLUMNS, rows, tuple(notes))


def _state(event: DeviceSection | LiveSection) -> str:
    if isinstance(event, LiveSection):
        return "provisional" if event.provisional else ""
    if event.cut:
        return "cut off"
    if event.provisional:
        return "assumed" if event.assumed else "provisional"
    return "" if event.described else "not described"
