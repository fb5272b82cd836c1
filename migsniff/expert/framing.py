"""Where sections and footers disagree, and what came in an order in which it cannot be right."""

import re
from collections.abc import Iterator
from typing import ClassVar

from migsniff.core.events import (
    ColoMessage,
    DeviceSection,
    Event,
    Finding,
    LiveSection,
    LoosePages,
    Package,
    RamSection,
    Section,
    Undecodable,
)
from migsniff.expert.codes import finding
from migsniff.expert.evidence import section_footer, section_header
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import name, several

WHERE = re.compile(r"\bsection (\S+) instance (\d+)")
OTHERWISE = {"POSTCOPY_LISTEN", "POSTCOPY_RUN", "ENABLE_COLO"}  # where memory comes behind devices
MAX_TOLD = 32  # findings of a kind: a hostile stream has as many sections as it likes


def called(section: Section) -> str:
    """A section as findings name it: idstr/instance."""
    return f"{section.idstr}/{section.instance_id}"


def section_in(where: str) -> str:
    """The section that the decoder was in, idstr/instance; "" if in none."""
    found = WHERE.search(where)
    return f"{found[1]}/{found[2]}" if found else ""


@rule("section-misfit", "footer-missing")
class Framing(Rule):
    """What stands where a section or its footer should: which section came before it, and its last bytes."""

    watches: ClassVar = (Undecodable,)

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        assert isinstance(event, Undecodable)
        if event.channel == "main" and event.direction == "fwd":
            found = bytes.fromhex(event.evidence)
            last = self.past.section
            if event.code == "item-type" and last is not None and found:
                end = last.offset + last.size
                if end != event.offset:
                    return
                footer = section_footer(last)
                yield finding(
                    "section-misfit",
                    event,
                    section=called(last),
                    offset=end - len(footer),
                    size=len(footer) + 1,
                    evidence=footer + found[:1],
                    found=found[0],
                    name=name(called(last)),
                    at=end,
                )
            elif event.code == "footer":
                yield finding(
                    "footer-missing",
                    event,
                    section=section_in(event.where),
                    evidence=found,
                    size=len(found),
                    name=name(section_in(event.where)),
                    at=event.offset,
                    found=found.hex(" ") or "nothing",
                )


@rule("section-unknown-format")
class Opaque(Rule):
    """Sections of which nothing but the frame is known."""

    watches: ClassVar = (LiveSection, DeviceSection)

    def __init__(self) -> None:
        self._told: set[str] = set()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one section into account: a live one not known, a device that the description leaves out."""
        if isinstance(event, LiveSection):
            opaque = event.provisional
        else:
            opaque = isinstance(event, DeviceSection) and not event.provisional and not event.described
        assert isinstance(event, Section)
        if not opaque or called(event) in self._told or len(self._told) >= MAX_TOLD:
            return
        self._told.add(called(event))
        yield finding(
            "section-unknown-format",
            event,
            section=called(event),
            evidence=section_header(event),
            name=name(called(event)),
            kind=event.section_type,
            bytes=event.size,
        )


@rule("ram-after-device")
class Order(Rule):
    """Guest memory that was sent again behind the state of a device, while the guest stood still.

    Not in postcopy, nor in COLO, where that is how it works; state that is sent early (virtio-mem's) stands
    before the first PART, and for multifd the main channel's order says nothing.
    """

    watches: ClassVar = (RamSection, LoosePages, Package, ColoMessage)

    def __init__(self) -> None:
        self._other = False
        self._told = 0

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        match event:
            case Package() | ColoMessage():
                self._other = True
            case RamSection() | LoosePages():
                device = self.past.device
                if (
                    device is None
                    or self._other
                    or self.past.commands & OTHERWISE
                    or not event.counts.pages
                    or (event.channel, device.channel) != ("main", "main")
                    or event.offset < device.offset
                    or self._told >= MAX_TOLD
                ):
                    return
                self._told += 1
                blocks = ", ".join(name(part.block) for part in event.blocks[:3])
                yield finding(
                    "ram-after-device",
                    event,
                    section=called(device),
                    field=event.blocks[0].block if event.blocks else "",
                    evidence=section_header(event) if isinstance(event, RamSection) else b"",
                    pages=several(event.counts.pages, "page"),
                    block=blocks,
                    device=name(called(device)),
                    at=device.offset,
                )
