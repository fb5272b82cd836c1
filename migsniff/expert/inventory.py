"""What the destination had been told when it refused or failed: its own log names one of these."""

from collections.abc import Iterator
from typing import ClassVar, Final

from migsniff.core.events import (
    Configuration,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    Event,
    Finding,
    Header,
    RamBlock,
    RamBlocks,
    ReturnPathMessage,
    Verdict,
)
from migsniff.core.wire import EARLY, PROMPT
from migsniff.expert.board import FIRMWARE, is_of_board, likeliest
from migsniff.expert.codes import finding
from migsniff.expert.evidence import block_entry, first_header, section_footer
from migsniff.expert.framing import called
from migsniff.expert.rules import Rule, rule
from migsniff.show.words import memory, name, several

BLOCKS: Final = 8  # that are named
SECTIONS: Final = 6
FAILURES: Final = ("failed", "refused", "reset")


@rule("refused-early", "load-failed")
class Inventory(Rule):
    """On a destination that gave up: what it may have given up at.

    It reads the machine type and the RAM blocks first, and says nothing over the wire of what it minds; then
    guest memory, at which it has nothing to mind; then each section, by its name and instance.
    """

    watches: ClassVar = (
        Header,
        Configuration,
        RamBlocks,
        ReturnPathMessage,
        DirtySync,
        DirectionEnded,
        Verdict,
    )

    def __init__(self) -> None:
        self._sent = 0
        self._began = 0
        self._begin()

    def _begin(self) -> None:
        """A migration begins, which may be another try: nothing of the first holds."""
        self._configuration: Configuration | None = None
        self._blocks: RamBlocks | None = None
        self._end: DirectionEnded | None = None
        self._prompt = True  # it ended soon enough to have refused what comes first
        self._shut: int | None = None
        self._passed = False

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account."""
        match event:
            case Header():
                self._began = time
                self._begin()
            case Configuration() | RamBlocks() | DirtySync() if self.past.lost(event):
                pass
            case Configuration():
                self._configuration = event
            case RamBlocks():
                self._blocks = event
            case ReturnPathMessage() if event.name == "SHUT":
                value = event.arguments.get("value")
                self._shut = value if isinstance(value, int) else None
            case DirtySync():
                self._passed = True
            case DirectionEnded():
                if event.direction == "fwd":
                    self._sent += self.past.drained.get(event.channel, event.offset)
                if self._end is None and event.by == "destination":
                    self._end = event
                    self._prompt = time - self._began <= PROMPT
            case Verdict() if event.outcome in FAILURES and (self._end is not None or self._shut):
                yield from self._failed(event)

    def _failed(self, event: Verdict) -> Iterator[Finding]:
        how = self._how()
        if (last := self.past.last_device) is not None:
            yield self._devices(last, how)
        elif self._prompt and not self._passed and self._sent < EARLY and self._blocks is not None:
            read = [f"the RAM block list ({several(len(self._blocks.blocks), 'block')})"]
            if (configuration := self._configuration) is not None:
                read.insert(0, f"machine type {name(configuration.machine)}")
                if configuration.capabilities:
                    read.insert(1, f"capabilities {', '.join(map(name, configuration.capabilities))}")
            least = min(self._blocks.blocks, key=_likely)
            offset, evidence = block_entry(self._blocks, least)
            yield finding(
                "refused-early",
                self._blocks,
                section="ram/0",
                field=least.name,
                offset=offset,
                size=len(evidence),
                evidence=evidence,
                how=how,
                sent=f"{event.offset} bytes",
                read=", ".join(read),
                blocks=self._named_blocks(self._blocks),
            )

    def _devices(self, last: DeviceSection, how: str) -> Finding:
        footers = "Nothing in the stream tells whether its sections fit"
        if self.past.described and last.footer:
            footers = (
                "Each footer stands where the source's own description puts it, so what does not fit is the "
                "destination's schema or command line"
            )
        sections = sorted(self.past.sections, key=likeliest)
        shown = ", ".join(f"{name(idstr)}/{instance}" for idstr, instance in sections[:SECTIONS])
        more = len(sections) - SECTIONS
        section, offset, evidence = self._suspect(sections[0], last)
        return finding(
            "load-failed",
            last,
            section=section,
            offset=offset,
            size=len(evidence),
            evidence=evidence,
            how=how,
            footers=footers,
            count=several(len(sections), "section"),
            sections=shown if more <= 0 else f"{shown} and {more} more",
        )

    def _suspect(self, first: tuple[str, int], last: DeviceSection) -> tuple[str, int, bytes]:
        """Where to look first: the header of what was added to the board, else the end of what was sent."""
        if is_of_board(first):
            footer = section_footer(last)
            return called(last), last.offset + last.size - len(footer), footer
        began, (idstr, instance) = self.past.sections[first], first
        header = first_header(began.kind, began.number, idstr, instance, began.version)
        return f"{idstr}/{instance}", began.offset, header

    def _how(self) -> str:
        end = self._end
        if self._shut:
            return f"it said SHUT {self._shut}"
        assert end is not None
        if end.how == "reset":
            error = f" ({end.error})" if end.error else ""
            return f"it reset the connection{error}, so it had not read all"
        return "it closed the connection" if end.how == "eof" else f"it {end.how}"

    def _named_blocks(self, blocks: RamBlocks) -> str:
        listed = sorted(blocks.blocks, key=_likely)
        shown = ", ".join(f"{name(block.name)} {memory(block.length)}" for block in listed[:BLOCKS])
        more = len(listed) - BLOCKS
        return shown if more <= 0 else f"{shown} and {more} more"


def _likely(block: RamBlock) -> tuple[int, int]:
    """The order in which blocks come into question: of devices, which come and go; guest memory; firmware."""
    if "/" in block.name and not block.name.startswith("/"):
        return 0, -block.length
    return 1 + block.name.startswith(FIRMWARE), -block.length
