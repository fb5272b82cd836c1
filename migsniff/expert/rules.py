"""The rules and who runs them: expert info as Wireshark has it.

A rule is a class, registered with `@rule(CODE, ...)`, of which each migration has an instance: it watches
some types of events, sees them with their times, and yields findings. What it yields depends on events and
times alone, so that a capture, read later, has the findings of the live log.

Sections of ram and multifd packets come by the hundred thousand a second: what rules want of them is kept in
the Past, and no rule is called, unless it watches them behind the first device.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final

from migsniff.core.events import (
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirtySync,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    MultifdHello,
    MultifdPacket,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    Section,
    TlsMessage,
    TlsRecords,
)
from migsniff.expert.codes import CODES, finding

RULES: Final[list[type["Rule"]]] = []
LONG: Final = 10_000_000  # µs between two items that are worth a look
MAX_CHANNELS: Final = 256
ITEMS: Final = (
    *(RamSection, MultifdPacket, LiveSection, DeviceSection, CommandSent, ReturnPathMessage, RamBlocks),
    *(Header, Configuration, EndOfStream, DescriptionFound, MultifdHello, TlsMessage, TlsRecords),
)
"""What comes over the wire, and is not told twice."""


class Past:
    """What has been, for rules to look back at.

    `item` is the last item that came on any channel; `time` when it, or a pass inside of it, ended; `section`
    is the last section of the main channel, `device` the first one of a device, `parts` counts those of ram;
    `packets` has the last packet of each multifd channel.
    """

    __slots__ = ("device", "item", "packets", "parts", "section", "time")

    def __init__(self) -> None:
        self.item: Event | None = None
        self.time: int | None = None
        self.packets: dict[str, MultifdPacket] = {}
        self.begin()

    def begin(self) -> None:
        """A main channel begins: the first one, or that of another try."""
        self.section: Section | None = None
        self.device: DeviceSection | None = None
        self.parts = 0

    def see(self, time: int, event: Event) -> None:
        """Take in an event that is none of the frequent ones."""
        if isinstance(event, DirtySync):
            self.time = time
        elif isinstance(event, ITEMS):
            self.time = time
            if isinstance(event, Header):
                self.begin()
            elif isinstance(event, DeviceSection):
                if not event.provisional:
                    return  # told once more, now that its description has come
                self.device = self.device or event
            if isinstance(event, Section):
                self.section = event
            self.item = event


class Pause(Event, frozen=True, kw_only=True):
    """Between this and the item before it, at `since`, was no other for LONG and more. Only for rules."""

    since: int
    before: Event


class Rule:
    """Watches the events of one migration. `watches` are the exact types that `see` is called with.

    RamSection is seen only behind the first device, MultifdPacket never: see `past`.
    """

    watches: ClassVar[tuple[type[Event], ...]] = ()
    past: Past

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account, `time` microseconds after the migration began."""
        raise NotImplementedError


def rule(*codes: str) -> Callable[[type[Rule]], type[Rule]]:
    """Register a rule by the codes of its findings; raises ValueError for one that CODES has not."""

    def register(made: type[Rule]) -> type[Rule]:
        if unknown := set(codes) - set(CODES):
            raise ValueError(f"no such code: {', '.join(sorted(unknown))}")
        RULES.append(made)
        return made

    return register


class Expert:
    """The rules of one migration. Whatever goes wrong in one ends that rule, and nothing else."""

    def __init__(self) -> None:
        self.past = Past()
        self._watching: dict[type[Event], list[Rule]] = {}
        for each in RULES:
            made = each()
            made.past = self.past
            for watched in each.watches:
                self._watching.setdefault(watched, []).append(made)

    def see(self, time: int, event: Event) -> Iterable[Finding]:
        """What the rules find with this event; those on a verdict are to be shown before it."""
        past, kind = self.past, type(event)
        if kind is RamSection or kind is MultifdPacket:
            before, since = past.item, past.time
            past.item, past.time = event, time
            if kind is RamSection:
                past.section = event  # type: ignore[assignment]
                past.parts += 1
            else:
                packets = past.packets
                if event.channel in packets or len(packets) < MAX_CHANNELS:
                    packets[event.channel] = event  # type: ignore[assignment]
            if past.device is None and (since is None or time - since < LONG):
                return ()
            return self._see(time, event, before, since)
        before, since = past.item, past.time
        past.see(time, event)
        if kind not in self._watching and (since is None or time - since < LONG):
            return ()
        return self._see(time, event, before, since)

    def _see(self, time: int, event: Event, before: Event | None, since: int | None) -> Iterator[Finding]:
        if before is not None and since is not None and time - since >= LONG and isinstance(event, ITEMS):
            pause = Pause(
                channel=event.channel,
                direction=event.direction,
                offset=event.offset,
                size=event.size,
                since=since,
                before=before,
            )
            yield from self._call(time, pause)
        yield from self._call(time, event)

    def _call(self, time: int, event: Event) -> Iterator[Finding]:
        for each in tuple(self._watching.get(type(event), ())):
            try:
                yield from each.see(time, event)
            except Exception as bug:
                for rules in self._watching.values():
                    rules[:] = [other for other in rules if other is not each]
                yield finding(
                    "expert-bug", event, name=type(each).__name__, detail=f"{type(bug).__name__}: {bug}"
                )
