"""What one stream says of its guest: one side of a comparison."""

from dataclasses import dataclass, field
from typing import Final

from migsniff.core.events import (
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    EndOfStream,
    Event,
    Field,
    LiveSection,
    RamBlock,
    RamBlocks,
    RamSection,
    Section,
    Verdict,
)

MAX_SECTIONS: Final = 65536
RECENT: Final = b'{"configuration"'
PRELAUNCH: Final = b"prelaunch\0"  # of RunState, qapi/run-state.json


@dataclass(slots=True)
class Inventory:
    """A show sink that keeps what comparisons need; the session must decode fields.

    `sections` are by (idstr, instance id), in the order in which they began; of a device the last word that
    was said of it (exact where there was a description), of a live section its first. `omitted`: sections
    beyond MAX_SECTIONS. `all_sent`: the EOF has come. `tails`: what stands behind the device's path in the
    names that have one. `recent`: the description tells the configuration too, as QEMU's do since 8.2.
    """

    configuration: Configuration | None = None
    page_size: int | None = None
    blocks: dict[str, RamBlock] = field(default_factory=dict)
    sections: dict[tuple[str, int], Section] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    described: bool = False
    all_sent: bool = False
    verdict: Verdict | None = None
    omitted: int = 0
    tails: set[str] = field(default_factory=set)
    recent: bool = False

    @property
    def machine(self) -> str:
        """The machine type, "" if the stream does not tell it."""
        return self.configuration.machine if self.configuration else ""

    @property
    def at_reset(self) -> bool:
        """Whether no CPU of this guest has run yet (-S).

        A guest that was stopped and reset is "prelaunch" too, with registers that no reset clears; but its
        virtual clock has run (QEMU 5.2 to 11.1), which no reset sets back.
        """
        state, clock = self._field("globalstate", "runstate"), self._field("timer", "cpu_clock_offset")
        return (
            state is not None and state.raw.startswith(PRELAUNCH) and clock is not None and clock.value == 0
        )

    @property
    def devices(self) -> dict[tuple[str, int], DeviceSection]:
        """The FULL sections."""
        return {key: one for key, one in self.sections.items() if isinstance(one, DeviceSection)}

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        match event:
            case DeviceSection():
                self._section(event, newer=True)
            case LiveSection() | RamSection():
                self._section(event, newer=False)
            case Configuration():
                self.configuration = event
            case RamBlocks():
                self.page_size = event.page_size
                self.blocks = {block.name: block for block in event.blocks}
            case CommandSent() if event.name not in self.commands:
                self.commands.append(event.name)
            case DescriptionFound():
                self.described = True
                self.recent = event.text.startswith(RECENT)
            case EndOfStream():
                self.all_sent = True
            case Verdict():
                self.verdict = event

    def _field(self, idstr: str, label: str) -> Field | None:
        section = self.sections.get((idstr, 0))
        fields = section.fields if isinstance(section, DeviceSection) else ()
        return next((one for one in fields if one.name == label), None)

    def _section(self, event: Section, *, newer: bool) -> None:
        key = event.idstr, event.instance_id
        if key not in self.sections and len(self.sections) >= MAX_SECTIONS:
            self.omitted += 1
        elif newer or key not in self.sections:
            self.sections[key] = event
            _, slash, tail = event.idstr.rpartition("/")
            if slash:
                self.tails.add(tail)

    def close(self) -> None:
        """Nothing is pending."""
