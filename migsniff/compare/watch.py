"""A migration that is running, compared with its destination: findings among those of the expert's rules."""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.structs import replace

from migsniff.compare.checker import Checker, Local
from migsniff.core.events import (
    BREATH,
    Configuration,
    DeviceSection,
    EndOfStream,
    Event,
    Finding,
    LiveSection,
    RamBlocks,
    RamSection,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.framing import called
from migsniff.show.words import name
from migsniff.values.large import MAX_FIELDS, many

WATCHED: Final = frozenset(
    (Configuration, DeviceSection, EndOfStream, LiveSection, RamBlocks, RamSection, Verdict)
)
MAX_TOLD: Final = 10_000


class Watch:
    """A finder of the pipeline: what stands against the destination, each thing once.

    Whatever goes wrong in it ends it, and nothing else.
    """

    def __init__(self, destination: Local) -> None:
        self._checker: Checker | None = Checker(destination)
        self._told: set[tuple[str, str, str]] = set()

    def see(self, time: int, event: Event) -> Iterable[Event]:
        """What this event shows; BREATH comes between the two looks at a section, which may be large."""
        if self._checker is None or type(event) not in WATCHED:
            return ()
        if isinstance(event, RamSection) and event.section_type != "START":
            return ()
        return self._see(self._checker, event)

    def _see(self, checker: Checker, event: Event) -> Iterator[Event]:
        try:
            if isinstance(event, RamBlocks) and len(event.blocks) > MAX_FIELDS:
                yield _too_large(event, "ram/0")
                return
            if isinstance(event, DeviceSection):
                local = checker.local(event)
                if many(event.fields) or (local is not None and many(local.fields)):
                    yield from self._new([_too_large(event, called(event))])
                    event = replace(event, fields=(), cut=True)
                yield BREATH
            yield from self._new(checker.see(event))
        except Exception as bug:
            self._checker = None
            detail = f"{type(bug).__name__}: {bug}"
            yield finding("expert-bug", event, name=type(self).__name__, detail=detail)

    def _new(self, found: Iterable[Finding]) -> Iterator[Finding]:
        for one in found:
            key = one.code, one.section, one.field
            if key not in self._told:
                if len(self._told) < MAX_TOLD:
                    self._told.add(key)
                yield one


def _too_large(event: Event, section: str) -> Finding:
    return finding("check-too-large", event, section=section, size=0, name=name(section), limit=MAX_FIELDS)
