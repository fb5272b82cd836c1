"""The rules and who runs them: expert info as Wireshark has it.

A rule is a class, registered with `@rule(CODE, ...)`, of which each migration has an instance: it watches
some types of events, sees them with their times, and yields findings. What it yields depends on events and
times alone, so that a capture, read later, has the findings of the live log.

Some events come by the hundred thousand a second: what rules want of them is kept in the Past, and no rule is
called for them but where it may find something.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final, NamedTuple

from msgspec import UNSET

from migsniff.core.events import (
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirtySync,
    Draining,
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
    SectionType,
    TlsMessage,
    TlsRecords,
)
from migsniff.expert.codes import CODES, finding

RULES: Final[list[type["Rule"]]] = []
LONG: Final = 10_000_000  # µs between two items that are worth a look
MAX_CHANNELS: Final = 256
MAX_SECTIONS: Final = 65536
FREQUENT: Final = frozenset((RamSection, MultifdPacket, DeviceSection, CommandSent))
ITEMS: Final = FREQUENT | {
    *(LiveSection, ReturnPathMessage, RamBlocks, Header, Configuration, EndOfStream, DescriptionFound),
    *(MultifdHello, TlsMessage, TlsRecords),
}
"""What comes over the wire, and is not told twice."""


class Began(NamedTuple):
    """Where a section begins, and with its name what its header says."""

    offset: int
    kind: SectionType
    number: int
    version: int


class Past:
    """What has been, for rules to look back at.

    `item` is the last item that came on any channel, `time` when it, or a pass inside of it, ended. Of the
    main channel: `section` is the last one, `sections` are all but those of ram, `last_device` is the last of
    a device, `device` the first one behind a PART of ram; `parts` counts the sections of ram; `described`: a
    description has come; `commands` are their names. `packets` has the last packet of each multifd channel.
    `drained`: channel -> the offset from which on it did not reach the destination; what stands there is no
    section, device or packet of the past.
    """

    __slots__ = (
        *("commands", "described", "device", "drained", "item", "last_device", "packets", "parts", "section"),
        *("sections", "time"),
    )

    def __init__(self) -> None:
        self.item: Event | None = None
        self.time: int | None = None
        self.packets: dict[str, MultifdPacket] = {}
        self.drained: dict[str, int] = {}
        self.begin()

    def begin(self) -> None:
        """A main channel begins: the first one, or that of another try."""
        self.section: Section | None = None
        self.sections: dict[tuple[str, int], Began] = {}
        self.device: DeviceSection | None = None
        self.last_device: DeviceSection | None = None
        self.described = False
        self.parts = 0
        self.commands: set[str] = set()

    def lost(self, event: Event) -> bool:
        """Whether nothing of a record of a source reached the destination."""
        return event.channel in self.drained and event.offset >= self.drained[event.channel]

    def frequent(self, event: Event) -> bool:
        """Take in an event of FREQUENT; whether rules are to see it."""
        self.item = event
        if self.drained and self.lost(event):
            return False
        if isinstance(event, RamSection):
            self.section = event
            self.parts += 1
            return self.device is not None
        if isinstance(event, MultifdPacket):
            if event.channel in self.packets or len(self.packets) < MAX_CHANNELS:
                self.packets[event.channel] = event
        elif isinstance(event, CommandSent):
            self.commands.add(event.name)
        elif isinstance(event, DeviceSection):
            if not event.provisional:  # it is told once more, now that its description has come
                self.described |= event.described
                return not event.described or event.image is not UNSET
            self.section = self.last_device = event
            self._began(event)
            if self.device is None and self.parts > 1:
                self.device = event
            return event.image is not UNSET
        return False

    def see(self, event: Event) -> None:
        """Take in another item."""
        if isinstance(event, Header):
            self.begin()
        elif isinstance(event, Section) and not self.lost(event):
            self.section = event
            self._began(event)
        self.item = event

    def _began(self, event: Section) -> None:
        """Keep where a section begins, not the last of its parts."""
        key = event.idstr, event.instance_id
        if key not in self.sections and len(self.sections) < MAX_SECTIONS:
            place = Began(event.offset, event.section_type, event.section_id, event.version_id)
            self.sections[key] = place


class Pause(Event, frozen=True, kw_only=True):
    """Between this and the item before it, at `since`, was no other for LONG and more. Only for rules."""

    since: int
    before: Event


class Rule:
    """Watches the events of one migration. `watches` are the exact types that `see` is called with.

    Those that are frequent are seen where they matter: RamSection behind the first device, DeviceSection if
    the description leaves it out or it has an image, MultifdPacket and CommandSent never: see `past`.
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
        before, since = past.item, past.time
        if kind in FREQUENT:
            past.time = time
            wanted = past.frequent(event)
        else:
            if kind in ITEMS:
                past.see(event)
                past.time = time
            elif kind is DirtySync:
                past.time = time
            elif kind is Draining and len(past.drained) < MAX_CHANNELS:
                past.drained[event.channel] = event.offset
            wanted = kind in self._watching
        if wanted or (since is not None and time - since >= LONG):
            return self._see(time, event, before, since)
        return ()

    def _see(self, time: int, event: Event, before: Event | None, since: int | None) -> Iterator[Finding]:
        if before is not None and since is not None and time - since >= LONG and type(event) in ITEMS:
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
