"""-z channels: each direction of each channel, how much, how fast, how it was held up, how it ended."""

from dataclasses import dataclass
from typing import Final

from migsniff.core.events import (
    Blocked,
    ChannelFound,
    DirectionEnded,
    Event,
    LoosePages,
    MultifdPacket,
    RamSection,
    TcpInfo,
)
from migsniff.show.migration import MigrationStats
from migsniff.show.words import from_whom
from migsniff.statistics.statistic import MAX_ROWS, Statistic, statistic
from migsniff.statistics.table import Column, Table

COLUMNS: Final = (
    Column("channel", "channel", "text"),
    Column("direction", "", "text"),
    Column("bytes", "bytes", "offset"),
    Column("share", "of all", "share"),
    Column("records", "records"),
    Column("pages", "pages"),
    Column("began", "began", "time"),
    Column("duration", "lasted", "time"),
    Column("rate", "rate", "rate"),
    Column("waited", "receiver full", "time"),
    Column("rtt", "rtt", "time"),
    Column("retransmitted", "sent again", "bytes"),
    Column("ended", "ended", "text"),
)


@dataclass(slots=True)
class _Way:
    """One direction of one channel."""

    began: int
    last: int
    bytes: int = 0
    records: int = 0
    pages: int = 0
    waited: int | None = None
    rtt: int | None = None
    retransmitted: int | None = None
    ended: str = ""


@statistic("channels")
class Channels(Statistic):
    """Channel by channel and way by way."""

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self._ways: dict[tuple[str, str], _Way] = {}

    def update(self, time: int, event: Event) -> None:
        """Take one event into account."""
        key = event.channel, event.direction
        way = self._ways.get(key)
        if way is None:
            if len(self._ways) >= MAX_ROWS:
                return
            way = self._ways[key] = _Way(time, time)
        way.bytes = max(way.bytes, event.offset + event.size)
        match event:
            case TcpInfo():
                _told(way, event)
                return
            case Blocked():
                return
            case DirectionEnded():
                way.ended = event.how + from_whom(event.by) + (f" ({event.error})" if event.error else "")
            case ChannelFound():
                pass
            case RamSection() | LoosePages():
                way.pages += event.counts.pages
                way.records += 1
            case MultifdPacket():
                way.pages += event.normal + event.zero
                way.records += 1
            case _:
                way.records += event.size > 0
        way.last = time

    def table(self, stats: MigrationStats) -> Table:
        """A row for each way that carried something, or ended unlike an idle one."""
        total = sum(way.bytes for way in self._ways.values())
        rows = []
        for (channel, direction), way in sorted(self._ways.items(), key=lambda one: (len(one[0][0]), one[0])):
            lasted = way.last - way.began
            arrow, part = {"fwd": ">", "rev": "<"}[direction], way.bytes / total if total else None
            rows.append(
                (
                    channel, arrow, way.bytes, part,
                    way.records, way.pages, way.began if stats.elapsed else None,
                    lasted if stats.elapsed else None, way.bytes * 1e6 / lasted if lasted else None,
                    way.waited, way.rtt, way.retransmitted, way.ended,
                )
            )  # fmt: skip
        notes = (
            "receiver full: how long that side took no more bytes",
            "rtt: of the leg on which it is sent on",
        )
        return Table("channels", "Channels", COLUMNS, rows, notes)


def _told(way: _Way, event: TcpInfo) -> None:
    """What the kernel says of the leg on which this way is sent on."""
    facts = event.facts
    for attribute, name in (("waited", "waited"), ("rtt", "rtt"), ("retransmitted", "bytes_retrans")):
        if isinstance(value := facts.get(name), int):
            setattr(way, attribute, value)
