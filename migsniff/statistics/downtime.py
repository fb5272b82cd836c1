"""-z downtime: what the time is made of for which the guest stood still, as far as the wire shows it."""

from dataclasses import dataclass, field
from typing import Final

from migsniff.core.events import (
    CommandSent,
    DescriptionFound,
    DeviceSection,
    EndOfStream,
    Event,
    LiveSection,
    LoosePages,
    MultifdPacket,
    Package,
    RamSection,
    ReturnPathMessage,
    Section,
)
from migsniff.show.latency import REQUESTS
from migsniff.show.migration import DOWNTIME_PONG, DOWNTIME_SHUT, MigrationStats
from migsniff.show.words import seconds, several
from migsniff.statistics.statistic import MAX_ROWS, Statistic, statistic
from migsniff.statistics.table import Column, Table

COLUMNS: Final = (
    Column("step", "step", "text"),
    Column("at", "until", "time"),
    Column("took", "took", "time"),
    Column("share", "", "share"),
    Column("bytes", "bytes", "offset"),
    Column("what", "", "text"),
)
NAMES_SHOWN: Final = 6
EARLIER: Final = "QEMU stopped the guest somewhere in between, which its own downtime has and this has not"
NOTES: Final = (
    "until: since the switchover, which the wire tells by SWITCHOVER_START (QEMU 10.0) or the first byte of "
    "the first END",
    "QEMU hands over what it has gathered of devices in pieces of 32 KiB: those of one piece have one time",
)


@dataclass(slots=True)
class _Step:
    """Records of one kind that were complete at one time."""

    name: str
    time: int
    bytes: int = 0
    names: dict[str, int] = field(default_factory=dict)
    others: int = 0

    def count(self, what: str) -> None:
        """Take in one record by its name."""
        if what in self.names or len(self.names) < NAMES_SHOWN:
            self.names[what] = self.names.get(what, 0) + 1
        else:
            self.others += 1

    @property
    def what(self) -> str:
        """What came in it."""
        names = ", ".join(f"{count} {name}" if count > 1 else name for name, count in self.names.items())
        return f"{names} and {several(self.others, 'other')}" if self.others else names


@statistic("downtime")
class Downtime(Statistic):
    """Step by step from the stop of the source to the destination's word."""

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self._steps: list[_Step] = []
        self._stopped = False
        self._seen = -1  # offset of the last device: told again exactly, it is no step

    def update(self, time: int, event: Event) -> None:
        """Take one event into account; what came before the guest stood still is no step."""
        match event:
            case CommandSent(name="SWITCHOVER_START" | "POSTCOPY_RAM_DISCARD" | "POSTCOPY_LISTEN"):
                self._stopped = True
                self._add("commands", time, event, event.name)
            case Section(section_type="END"):
                self._stopped = True
        if not self._stopped:
            return
        match event:
            case RamSection() | LoosePages():
                self._add("RAM", time, event, "", lasting=True)
            case MultifdPacket() if event.loaded:
                self._add("multifd", time, event, event.channel, lasting=True)
            case LiveSection():
                self._add("live sections", time, event, event.idstr)
            case DeviceSection() if event.offset > self._seen:
                self._seen = event.offset
                self._add("devices", time, event, f"{event.idstr}/{event.instance_id}")
            case Package():
                self._add("package", time, event, "its length")
            case EndOfStream():
                self._add("EOF", time, event, "")
            case DescriptionFound():
                self._add("description", time, event, "")
            case ReturnPathMessage() if event.name not in REQUESTS:
                value = next(iter(event.arguments.values()), "")
                self._add("reply", time, event, f"{event.name} {value}".strip())

    def _add(self, name: str, time: int, event: Event, what: str, *, lasting: bool = False) -> None:
        """A record is complete: part of the step before if that is of its kind and time, or `lasting`."""
        step = self._steps[-1] if self._steps else None
        if step is None or step.name != name or not (lasting or step.time == time):
            if len(self._steps) >= MAX_ROWS:
                return
            step = _Step(name, time)
            self._steps.append(step)
        step.time = time
        step.bytes += event.size
        if what:
            step.count(what)

    def table(self, stats: MigrationStats) -> Table:
        """The steps behind the switchover, up to the sign that the guest runs again."""
        switchover, downtime = stats.switchover, stats.downtime
        if switchover is None or not stats.elapsed:
            why = "the source was not stopped" if stats.elapsed else "not known: no times"
            return Table("downtime", f"Downtime: {why}", COLUMNS, [])
        total = downtime[0] if downtime else stats.elapsed - switchover
        runs = downtime is not None and downtime[1] in (DOWNTIME_SHUT, DOWNTIME_PONG)
        failed = stats.verdict is not None and not stats.verdict.ok and not runs
        rows = []
        before = switchover
        for step in self._steps:
            if step.time < switchover or step.time - switchover > total:
                continue
            took = step.time - before
            rows.append(
                (
                    step.name,
                    step.time - switchover,
                    took,
                    took / total if total else None,
                    step.bytes,
                    step.what,
                )
            )
            before = step.time
        sign = downtime[1] if downtime else "the end: no sign that the guest runs again"
        length = f"{total / 1e3:.3f} ms, from the switchover to {sign}"
        title = f"Downtime: none, since it failed; {length}" if failed else f"Downtime {length}"
        heard = seconds(max(0, switchover - (stats.heard_before or 0)))
        earlier = f"{heard} before the switchover guest memory still came: {EARLIER}"
        return Table("downtime", title, COLUMNS, rows, (earlier, *NOTES))
