"""The migrations in a packet capture."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from migsniff.core.arrivals import Arrival
from migsniff.core.errors import CaptureError
from migsniff.feed.captureread import Capture
from migsniff.feed.flow import Found, Migration
from migsniff.feed.flows import Flows
from migsniff.feed.packets import LINKS, segment
from migsniff.feed.pcapfile import Readable, packets

NO_MIGRATION: Final = (
    "no migration in it: no connection begins as one does; --port N says which ones to decode"
)


class PcapSource:
    """A pcap or pcapng file. It may hold several migrations: `found` gives all, `arrivals` the first."""

    capture: Capture | None = None
    start_time: datetime | None = None
    contents = True
    head = b""
    facts: tuple[tuple[str, str], ...] = ()
    hint = ""

    def __init__(self, file: Readable, name: str, migration: str, *, port: int | None = None) -> None:
        self.describe = "packets"
        self.migration = migration
        self.port = port
        self._file = file
        self._name = name
        self._notes: list[str] = []

    def found(self) -> Iterator[Found]:
        """What arrived, for which migration. Raises CaptureError behind all that could be read."""
        flows = Flows(self.port)
        links: set[int] = set()
        migrations = 0
        damage: CaptureError | None = None
        try:
            for time, data, start, end, wire, link in packets(self._file, self._name):
                if link not in LINKS:
                    links.add(link)
                    continue
                for item in flows.packet(time, segment(data, start, end, wire, link), data):
                    migrations += item[1] is None
                    yield item
        except CaptureError as error:
            damage = error
        for item in flows.finish():
            migrations += item[1] is None
            yield item
        self._notes = list(flows.counts.notes())
        if links:
            self._notes.append(
                f"link layers that migsniff does not know: {', '.join(map(str, sorted(links)))}"
            )
        if damage is not None:
            raise damage
        if not migrations:
            raise CaptureError(f"{self._name}: {NO_MIGRATION}")

    def arrivals(self) -> Iterator[Arrival]:
        """What arrived for the first migration."""
        first: Migration | None = None
        others = set()
        for migration, arrival in self.found():
            if first is None:
                first = migration
                self.migration, self.start_time = migration.name, migration.start_time
            if migration is not first:
                others.add(migration.name)
            elif arrival is not None:
                yield arrival
        if others:
            self._notes.append(f"only the first migration was read, not {', '.join(sorted(others)[:16])}")

    def notes(self) -> list[str]:
        """What is to be said of the file, once it has been read."""
        return self._notes
