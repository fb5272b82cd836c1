"""Long silence: who is silent, what came last, who has bytes that are not taken.

The clock is TcpInfo, which comes once a second also while nothing moves. Packet captures have none: there a
silence is told of when it is over.
"""

from collections.abc import Iterator
from typing import ClassVar, Final

from migsniff.core.arrivals import Direction
from migsniff.core.events import (
    Blocked,
    CommandSent,
    Configuration,
    DescriptionFound,
    DirectionEnded,
    Draining,
    EndOfStream,
    Event,
    Finding,
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
from migsniff.expert.rules import LONG, Pause, Rule, rule
from migsniff.show.words import name, several, wire

SILENT: Final = LONG  # µs without a byte: the first time that it is told, then after twice as long
LITTLE: Final = 1 << 16  # bytes that are no sign of life if they came at last
CHANNELS: Final = 256


@rule("silence", "silence-over")
class Silence(Rule):
    """Tells of silence after 10 s, and after each time as long again; and how long it was."""

    watches: ClassVar = (TcpInfo, Blocked, Draining, DirectionEnded, Pause, Verdict)

    def __init__(self) -> None:
        self._offsets: dict[tuple[str, Direction], int] = {}
        self._moved: int | None = None  # when the last byte was seen to have moved
        self._next = SILENT
        self._told = False
        self._blocked: dict[tuple[str, Direction], bool] = {}
        self._unsent: dict[str, int] = {}  # bytes that a channel's destination has not acknowledged
        self._ended: set[tuple[str, Direction]] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        key = event.channel, event.direction
        if isinstance(event, TcpInfo):
            yield from self._second(time, key, event)
        elif isinstance(event, Blocked):
            self._blocked[key] = event.blocked
        elif isinstance(event, Draining):  # there is no destination that could read
            self._unsent.pop(event.channel, None)
        elif isinstance(event, DirectionEnded):
            self._ended.add(key)
        elif isinstance(event, Pause):
            before = event.before
            came = event.size
            if (before.channel, before.direction) == key:
                came = event.offset + event.size - (before.offset + before.size)
            if self._moved is None and came < LITTLE:  # what is larger may have come in the meantime
                yield self._over(time - event.since, key, event)
        elif isinstance(event, Verdict) and not (event.ok or self._told) and self.past.time is not None:
            since = max(self.past.time, self._moved or 0)
            last = self.past.item
            # without a clock: a section that is not complete may have come in the meantime
            if time - since >= SILENT and last and event.offset - last.offset - last.size < LITTLE:
                yield self._silent(time - since, event)

    def _second(self, time: int, key: tuple[str, Direction], event: TcpInfo) -> Iterator[Finding]:
        """The clock: whether anything has moved since the last second."""
        if event.leg == "destination":
            waiting = [event.facts.get(each, 0) for each in ("unacked", "notsent_bytes")]
            unacked, unsent = (each if isinstance(each, int) else 0 for each in waiting)
            self._unsent[event.channel] = unsent or (1 if unacked else 0)
        if self._offsets.get(key, -1) != event.offset:
            if key in self._offsets or len(self._offsets) < CHANNELS:
                self._offsets[key] = event.offset
            if self._told and self._moved is not None:
                yield self._over(time - self._moved, key, event)
            self._moved, self._told, self._next = time, False, SILENT
        elif self._moved is not None and time - self._moved >= self._next and not self._complete:
            silent = time - self._moved
            while self._next <= silent:
                self._next *= 2
            self._told = True
            yield self._silent(silent, event)

    @property
    def _complete(self) -> bool:
        """Whether nothing more is to come on the main channel."""
        last = self.past.item
        return isinstance(last, EndOfStream | DescriptionFound) or ("main", "fwd") in self._ended

    def _over(self, silent: int, key: tuple[str, Direction], event: Event) -> Finding:
        who = "the source" if key[1] == "fwd" else "the destination"
        what = f"{who} went on at offset {event.offset} of {name(key[0])}"
        return finding("silence-over", event, size=0, time=_time(silent), what=what)

    def _silent(self, silent: int, event: Event) -> Finding:
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
            opened = "OPEN_RETURN_PATH" in self.past.commands
            back = "the return path is open" if opened else "there is no return path"
        last = self.past.item
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
                part = (
                    f", part {self.past.parts - 1}"
                    if last.section_type == "PART"
                    else f" {last.section_type}"
                )
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
