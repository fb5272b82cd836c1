"""Long silence: who is silent, what came last, who has bytes that are not taken.

The clock is TcpInfo, which comes once a second also while nothing moves. Packet captures have none: there a
silence is told of when it is over.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

from migsniff.core.events import (
    Blocked,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    Direction,
    DirectionEnded,
    DirtySync,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    MultifdPacket,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    Section,
    TcpInfo,
    TlsRecords,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.evidence import command, message, section_footer
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name, several, wire

SILENT: Final = 10_000_000  # µs without a byte: the first time that it is told, then after twice as long
LITTLE: Final = 1 << 16  # bytes that are no sign of life if they came at last
CHANNELS: Final = 256
LISTED = (RamSection, DeviceSection, LiveSection, CommandSent, ReturnPathMessage, Header, Configuration)
ITEMS = (*LISTED, RamBlocks, DirtySync, EndOfStream, DescriptionFound, MultifdPacket, TlsRecords)


@rule("silence", "silence-over")
class Silence(Rule):
    """Tells of silence after 10 s, and after each time as long again; and how long it was."""

    watches: ClassVar = (*ITEMS, TcpInfo, Blocked, DirectionEnded, Verdict)

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, Direction], int] = {}
        self._moved: int | None = None  # when the last byte was seen to have moved
        self._said: Direction = "fwd"  # in which direction
        self._last: Event | None = None
        self._parts = 0
        self._next = SILENT
        self._told = False
        self._clock = False
        self._blocked: dict[tuple[str, Direction], bool] = {}
        self._unsent: dict[str, int] = {}  # bytes that a channel's destination has not acknowledged
        self._return_path = False
        self._ended: set[tuple[str, Direction]] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        key = event.channel, event.direction
        if isinstance(event, TcpInfo):
            self._clock = True
            if event.leg == "destination":
                facts = event.facts
                waiting = [facts.get(each, 0) for each in ("unacked", "notsent_bytes")]
                unacked, unsent = (each if isinstance(each, int) else 0 for each in waiting)
                self._unsent[event.channel] = unsent or (1 if unacked else 0)
            if self._offsets.get(key, 0) != event.offset:
                yield from self._moves(time, key, event)
            elif self._moved is not None and time - self._moved >= self._next and not self._over:
                yield self._silent(time, event)
        elif isinstance(event, Blocked):
            self._blocked[key] = event.blocked
        elif isinstance(event, DirectionEnded):
            self._ended.add(key)
        elif isinstance(event, Verdict):
            late = self._moved is not None and time - self._moved >= SILENT and not (self._told or event.ok)
            # without a clock: a section that is not complete may have come in the meantime
            if late and event.offset - self._offsets.get(("main", "fwd"), 0) < LITTLE:
                yield self._silent(time, event)
        else:
            yield from self._item(time, key, event)

    @property
    def _over(self) -> bool:
        """Whether nothing more is to come on the main channel."""
        return isinstance(self._last, EndOfStream | DescriptionFound) or ("main", "fwd") in self._ended

    def _item(self, time: int, key: tuple[str, Direction], event: Event) -> Iterator[Finding]:
        if self._offsets.get(key, 0) < event.offset + event.size:
            yield from self._moves(time, key, event)
        if isinstance(event, DeviceSection) and not event.provisional:
            return  # told once more, when its description came
        if isinstance(event, DirtySync):
            return  # inside a section
        if isinstance(event, RamSection):
            self._parts = self._parts + 1 if event.section_type == "PART" else 0
        self._return_path |= isinstance(event, CommandSent) and event.name == "OPEN_RETURN_PATH"
        self._last = event

    def _moves(self, time: int, key: tuple[str, Direction], event: Event) -> Iterator[Finding]:
        """A byte has moved since the last look."""
        came = event.offset + event.size - self._offsets.get(key, 0)
        if key in self._offsets or len(self._offsets) < CHANNELS:
            self._offsets[key] = max(self._offsets.get(key, 0), event.offset + event.size)
        silent = 0 if self._moved is None else time - self._moved
        # without a clock: what is larger may have come in the meantime
        if self._told or (silent >= SILENT and not self._clock and came < LITTLE):
            what = f"{self._who(key)} went on at offset {event.offset} of {name(key[0])}"
            yield finding("silence-over", event, size=0, time=_time(silent), what=what)
        self._moved, self._said = time, key[1]
        self._told, self._next = False, SILENT

    def _who(self, key: tuple[str, Direction]) -> str:
        return "the source" if key[1] == "fwd" else "the destination"

    def _silent(self, time: int, event: Event) -> Finding:
        assert self._moved is not None
        silent = time - self._moved
        while self._next <= silent:
            self._next *= 2
        self._told = True
        waiting = [channel for (channel, way), held in self._blocked.items() if held and way == "fwd"]
        if waiting or any(self._unsent.values()):
            unsent = sum(size for size in self._unsent.values() if size > 1)
            size = f"{wire(unsent)} wait for it" if unsent else "bytes wait for it"
            who = f"the destination does not read: {size}"
        else:
            who = "the source is silent, nothing waits for the destination"
        if ("main", "rev") in self._ended:
            back = "the return path has ended"
        else:
            back = "the return path is open" if self._return_path else "there is no return path"
        last = self._last
        offset, evidence = (event.offset, b"") if last is None else _evidence(last)
        return finding(
            "silence",
            last or event,
            section=f"{last.idstr}/{last.instance_id}" if isinstance(last, Section) else "",
            offset=offset,
            evidence=evidence,
            time=_time(silent),
            last="nothing" if last is None else self._described(last),
            who=who,
            back=back,
        )

    def _described(self, last: Event) -> str:
        match last:
            case RamSection():
                part = f", part {self._parts}" if last.section_type == "PART" else f" {last.section_type}"
                return f"section {last.idstr}{part}"
            case Section():
                return f"section {name(last.idstr)}/{last.instance_id} ({last.section_type})"
            case CommandSent():
                return f"command {last.name}"
            case ReturnPathMessage():
                return f"message {last.name} of the destination"
            case MultifdPacket():
                return f"packet {last.packet_num} of {name(last.channel)}"
            case TlsRecords():
                return f"{several(last.total, 'TLS record')} of {name(last.channel)}"
            case RamBlocks():
                return "the list of RAM blocks"
            case Configuration():
                return "the configuration"
            case EndOfStream():
                return "the end of the stream"
            case DescriptionFound():
                return "the description"
            case _:
                return "the header"


def _evidence(last: Event) -> tuple[int, bytes]:
    """Wire offset and bytes of the end of what came last, or of its header."""
    match last:
        case Section():
            footer = section_footer(last)
            return last.offset + last.size - len(footer), footer
        case CommandSent():
            return last.offset, command(last)
        case ReturnPathMessage():
            return last.offset, message(last)
        case _:
            return last.offset, b""


def _time(microseconds: int) -> str:
    return f"{microseconds / 1e6:.0f} s"
