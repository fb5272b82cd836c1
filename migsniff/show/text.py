"""The log: one line a record, as tshark prints packets, in columns that grep and awk can use.

    time  wire offset  channel and direction  type  section/instance  size  what matters

`>` is source to destination, `<` destination to source; `-` stands where there is nothing to say. A line is
made from events and their times alone, so that reading a capture prints what the live log printed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from migsniff.core.events import (
    UNLISTED,
    Argument,
    BlockPages,
    ChannelFound,
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    Draining,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    Opaque,
    Package,
    PageCounts,
    PageFault,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    Section,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Undecodable,
    Verdict,
)
from migsniff.show.fields import counts_text, tree
from migsniff.show.latency import REQUESTS, FaultStats
from migsniff.show.select import Wanted, selected
from migsniff.show.tls import end_text, facts_text
from migsniff.show.words import escape, from_whom, memory, name, place, rate, seconds, several

BLOCKS_SHOWN: Final = 3
PAIRS_SHOWN: Final = 3
RELATIVE_WIDTH: Final = 10
DEVICES_KEPT: Final = 4096  # that are not told twice
FAULTS_TOGETHER: Final = 1_000_000  # µs of page faults that share a line

_COLORS: Final = {"bad": "31", "error": "31", "warn": "33", "sync": "36", "verdict": "1;31"}
_COLOR_OF_SUCCESS: Final = "1;32"

HOW_ENDED: Final = {
    "eof": "end of file",
    "reset": "reset",
    "timeout": "timeout",
    "closed": "closed",
    "refused": "connection refused",
    "error": "error",
}

COMPARED: Final = (DeviceSection, RamBlocks, DirtySync, Verdict)
"""Records that something is kept of, for the lines of later ones."""

Line = tuple[str, str, str]
"""Type, section/instance, what matters."""


@dataclass(slots=True)
class _Past:
    """What the next line of a migration is compared with."""

    start: datetime | None
    pass_began: int | None = None
    device: int | None = None
    faults: FaultStats = field(default_factory=FaultStats)
    faults_since: int | None = None
    devices: set[tuple[str, int, int]] = field(default_factory=set)
    """Channel, offset and size of those that have a line, and no description yet."""


class TextLog:
    """A show sink that calls `write` once a record, with its line and (`verbose`) the tree below it.

    Multifd packets, which come by the thousand, have lines only if `verbose`; otherwise there is one for all
    that a channel has carried between two syncs. A device has a second one only if its
    description shows it otherwise.
    `time_format`: "r" seconds since the migration's first connection, "ad" UTC date and time, for which
    `start_time` or `begins` must have told when that was. `prefix` puts the migration's id before each line.
    `sections`: see `selected`. With `wanted`, every record that it lets through has a line, and none else.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        verbose: bool = False,
        time_format: Literal["r", "ad"] = "r",
        start_time: datetime | None = None,
        color: bool = False,
        sections: set[str] | None = None,
        wanted: Wanted | None = None,
        prefix: bool = False,
    ) -> None:
        self._write = write
        self._verbose = verbose
        self._absolute = time_format == "ad"
        self._start_time = start_time
        self._color = color
        self._sections = sections
        self._wanted = wanted
        self._each = verbose or wanted is not None  # also packets and page faults one by one
        self._twice = self._each or sections is not None  # also devices that are exactly as they were shown
        self.ignores: tuple[type[Event], ...] = UNLISTED if self._each else (*UNLISTED, MultifdPacket)
        self.prefix = prefix
        self._past: dict[str, _Past] = {}

    def begins(self, migration: str, start_time: datetime) -> None:
        """Time 0 of `migration`, in UTC."""
        self._past[migration] = _Past(start_time)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Write the record of one event; runs of pages have no line."""
        if isinstance(event, self.ignores):
            return
        past = self._past.get(migration)
        if past is None:
            past = self._past[migration] = _Past(self._start_time)
        taken = past.faults.update(time, event)
        if not self._each and self._together(migration, past, time, event):
            return
        if not self._twice and isinstance(event, DeviceSection) and self._told(past, event):
            return
        wanted = self._wanted is None or self._wanted(migration, time, event)
        # also of what is not wanted where the next line is compared with it
        if not wanted and not isinstance(event, COMPARED):
            return
        kind, section, info = _describe(past, time, event, taken)
        if isinstance(event, Verdict):
            del self._past[migration]
        if not wanted or not selected(self._sections, event):
            return
        clock = self._clock(past, time)
        arrow = ">" if event.direction == "fwd" else "<"
        width = 22 if kind == "FULL" else 7
        line = (
            f"{clock:>{RELATIVE_WIDTH}} {event.offset:>10} {name(event.channel) + arrow:<5} {kind:<7} "
            f"{section:<{width}} {event.size:>8}  {info}"
        )
        if self.prefix:
            line = f"{name(migration)} {line}"
        if self._color:
            line = _colored(line, kind, event)
        if self._verbose:
            indent = " " * (len(clock.rjust(RELATIVE_WIDTH)) + 1)
            line = "\n".join([line, *(indent + below for below in tree(event))])
        self._write(line + "\n")

    def _together(self, migration: str, past: _Past, time: int, event: Event) -> bool:
        """Page faults come by the thousand: one line a second for all. Whether this event is part of it."""
        faults = past.faults
        part = isinstance(event, PageFault) or (
            isinstance(event, ReturnPathMessage) and event.name in REQUESTS
        )
        last = isinstance(event, EndOfStream | DirectionEnded | Verdict)
        if not faults.idle and past.faults_since is None:
            past.faults_since = time
        if past.faults_since is not None and (last or time - past.faults_since >= FAULTS_TOGETHER):
            if self._sections is None:
                line = f"{_columns(self._clock(past, time), 'faults')}  {faults.text()}\n"
                self._write(f"{name(migration)} {line}" if self.prefix else line)
            faults.clear()
            past.faults_since = None
        return part

    @staticmethod
    def _told(past: _Past, event: DeviceSection) -> bool:
        """Whether a device's line stands there already, and was right."""
        key = event.channel, event.offset, event.size
        if not event.provisional:
            known = key in past.devices
            past.devices.discard(key)
            return known and event.described and not event.undescribed
        if len(past.devices) < DEVICES_KEPT:
            past.devices.add(key)
        return False

    def _clock(self, past: _Past, time: int) -> str:
        if self._absolute and past.start is not None:
            return (past.start + timedelta(microseconds=time)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return f"{time // 1_000_000}.{time % 1_000_000:06d}"

    def dropped(self, count: int) -> str:
        """The line that says how many records are missing here."""
        return f"{_columns('-', 'dropped')}  {count} records, because the log was read, or made, too slowly\n"

    def close(self) -> None:
        """Nothing is pending."""


def _columns(clock: str, kind: str) -> str:
    """What stands before the text of a line that is of no one record."""
    return f"{clock:>{RELATIVE_WIDTH}} {'-':>10} {'-':<5} {kind:<7} {'-':<7} {'-':>8}"


def _colored(line: str, kind: str, event: Event) -> str:
    color = _COLOR_OF_SUCCESS if isinstance(event, Verdict) and event.ok else _COLORS.get(kind)
    return line if color is None else f"\x1b[{color}m{line}\x1b[0m"


def _describe(past: _Past, time: int, event: Event, taken: int | None) -> Line:
    """The columns of an event's line. `taken`: how long the fault that it answers has lasted."""
    match event:
        case Section():
            return _section(past, time, event)
        case DirtySync():
            return "sync", "ram/0", _sync(past, time, event)
        case MultifdPacket():
            block = name(event.block) if event.block else "-"
            counts = counts_text(PageCounts(normal=event.normal, zero=event.zero))
            return (
                "packet",
                block,
                f"packet={event.packet_num} {counts} {name(event.method)} flags={event.flags:#x}",
            )
        case MultifdSync():
            return "multifd", "-", _multifd(event)
        case CommandSent():
            return "command", "-", _message(event.name, event.arguments)
        case ReturnPathMessage():
            return "reply", "-", _message(event.name, event.arguments)
        case ColoMessage():
            if event.begins_pass:
                past.pass_began = time
            length = "" if event.length is None else f" length={event.length}"
            return "colo", "-", f"{name(event.name)} checkpoint={event.checkpoint}{length}"
        case PageFault():
            return "fault", "-", _fault(event, taken)
        case LoosePages():
            return "pages", "ram/0", f"pass={event.iteration} {_pages(event)}, in no whole section"
        case ChannelFound():
            detail = f": {escape(event.detail)}" if event.detail else ""
            return "channel", "-", f"connection {event.connection} is {name(event.role)}{detail}"
        case Header():
            return "header", "-", f"QEMU migration stream version {event.version}"
        case Configuration():
            return "config", "-", _configuration(event)
        case RamBlocks():
            past.pass_began = time
            return "blocks", "ram/0", _ram_blocks(event)
        case Package():
            return "package", "-", f"{event.length} bytes"
        case EndOfStream():
            return "eof", "-", "all state has been sent"
        case DescriptionFound():
            page_size = "not given" if event.page_size is None else event.page_size
            return "desc", "-", f"{several(event.devices, 'device')} described, page size {page_size}"
        case MultifdHello():
            return "hello", "-", f"multifd channel {event.channel_id}, uuid {escape(event.uuid)}"
        case TlsMessage():
            return "tls", "-", facts_text(event.facts)
        case TlsRecords():
            return "tls", "-", f"{event.records} records, {event.total} so far"
        case TlsEnded():
            return "tls", "-", end_text(event)
        case Opaque():
            return "opaque", "-", escape(event.what)
        case Undecodable():
            return "bad", "-", f"{escape(event.message)} [{name(event.code)}]{place(event.where)}"
        case Finding():
            section = name(event.section) if event.section else "-"
            return event.severity, section, f"{escape(event.message)} [{name(event.code)}]"
        case Draining():
            info = "from here on nothing reaches the destination, which has gone"
            return "drain", "-", f"{info}{place(event.where)}"
        case DirectionEnded():
            error = f" ({name(event.error)})" if event.error else ""
            return "end", "-", f"{HOW_ENDED[event.how]}{from_whom(event.by)}{error}{place(event.where)}"
        case Verdict():
            return "verdict", "-", f"{name(event.outcome.upper())}: {escape(event.message)}"
        case _:
            raise TypeError(f"no line for {type(event).__name__}")


def _section(past: _Past, time: int, event: Section) -> Line:
    if isinstance(event, RamSection):
        info = f"pass={event.iteration} {_pages(event)}"
        if event.multifd_flushes:
            info += f" multifd-flushes={event.multifd_flushes}"
    elif isinstance(event, DeviceSection):
        info = _device(past, time, event)
    elif isinstance(event, LiveSection):
        info = "provisional" if event.provisional else "exact"
        if event.summary:
            info += f" {escape(event.summary)}"
    else:
        info = ""
    return event.section_type, f"{name(event.idstr)}/{event.instance_id}", info


def _pages(event: RamSection | LoosePages) -> str:
    return f"{counts_text(event.counts)}{_addresses(event.blocks)}"


def _fault(event: PageFault, taken: int | None) -> str:
    info = f"page fault {event.address:#x} of {name(event.block)}"
    if event.crossed:
        return f"{info}: the page had been sent already"
    after = "" if taken is None else f" after {seconds(taken)}"
    return f"{info} answered{after} on {name(event.channel)}"


def _addresses(blocks: tuple[BlockPages, ...]) -> str:
    text = "".join(f" {name(part.block)}[{part.first:#x}..{part.last:#x}]" for part in blocks[:BLOCKS_SHOWN])
    more = len(blocks) - BLOCKS_SHOWN
    return text if more <= 0 else f"{text} and {more} more blocks"


def _device(past: _Past, time: int, event: DeviceSection) -> str:
    if event.provisional:
        since = "" if past.device is None or time <= past.device else f" +{(time - past.device) / 1e6:.6f}"
        past.device = time
        info = "cut off" if event.cut else "provisional"
        if event.assumed:
            info += f", assumed ({escape(event.assumed_from)})"
        return f"{info}{since}"
    info = "exact" if event.described else "exact, not described"
    if event.undescribed:
        info += f", {event.undescribed} bytes not described"
    if event.corrects is not None:
        info += f", was shown as {event.corrects} bytes"
    return info


def _sync(past: _Past, time: int, event: DirtySync) -> str:
    counts = event.counts
    info = f"pass {event.iteration} done: {several(counts.pages, 'page')}"
    if counts.pages:
        info += f", {counts_text(counts)}"
    began, past.pass_began = past.pass_began, time
    if began is not None and time > began:
        taken = (time - began) / 1e6
        info += f" in {taken:.6f} s, {counts.pages / taken:.0f} pages/s, {rate(counts.bytes / taken)}"
    return f"{info}, source stopped" if event.final else info


def _multifd(event: MultifdSync) -> str:
    info = f"{several(event.packets, 'packet')}: {counts_text(event.counts)}{_addresses(event.blocks)}"
    if event.device_state:
        info += f" device-state={event.device_state}"
    return f"{info}, end of the channel" if event.last else f"{info}, sync {event.syncs}"


def _message(title: str, arguments: dict[str, Argument]) -> str:
    return name(title) + "".join(f" {name(key)}={_argument(key, value)}" for key, value in arguments.items())


def _argument(key: str, value: Argument) -> str:
    if isinstance(value, str):
        return name(value)
    if isinstance(value, int):
        return f"{value:#x}" if key == "start" else str(value)
    pairs = ",".join(f"{start:#x}+{length:#x}" for start, length in value[:PAIRS_SHOWN])
    more = len(value) - PAIRS_SHOWN
    return pairs if more <= 0 else f"{pairs} and {more} more"


def _configuration(event: Configuration) -> str:
    info = f"machine={name(event.machine)}"
    if event.page_bits is not None:
        info += f" page-bits={event.page_bits}"
    if event.capabilities is not None:
        info += f" capabilities={','.join(map(name, event.capabilities)) or '-'}"
    return info if event.uuid is None else f"{info} uuid={name(event.uuid)}"


def _ram_blocks(event: RamBlocks) -> str:
    largest = sorted(event.blocks, key=lambda block: -block.length)[:BLOCKS_SHOWN]
    page_size = (
        "not known yet" if event.page_size is None else f"{event.page_size} ({escape(event.page_size_from)})"
    )
    info = f"{memory(event.total)} in {several(len(event.blocks), 'block')}, page size {page_size}: "
    info += ", ".join(f"{name(block.name)} {memory(block.length)}" for block in largest)
    more = len(event.blocks) - len(largest)
    return info if more <= 0 else f"{info} and {more} more"
