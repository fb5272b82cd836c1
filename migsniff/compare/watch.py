"""A migration that is running, compared with its destination: findings among those of the expert's rules."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from migsniff.compare.checker import Checker, Local
from migsniff.core.events import (
    Configuration,
    DeviceSection,
    EndOfStream,
    Event,
    Field,
    Finding,
    LiveSection,
    RamBlocks,
    RamSection,
    Verdict,
)
from migsniff.expert.codes import finding
from migsniff.expert.framing import called
from migsniff.show.words import name

WATCHED: Final = frozenset(
    (Configuration, DeviceSection, EndOfStream, LiveSection, RamBlocks, RamSection, Verdict)
)
MAX_FIELDS: Final = 1 << 13
"""Fields of a section that is compared, blocks of a list: more would hold up others for over 10 ms.

Of the devices seen only the interrupt controllers of pseries have more (16457 and 24577).
"""
MAX_TOLD: Final = 10_000


class Watch:
    """A finder of the pipeline: what stands against the destination, each thing once.

    Whatever goes wrong in it ends it, and nothing else.
    """

    def __init__(self, destination: Local) -> None:
        self._checker: Checker | None = Checker(destination)
        self._told: set[tuple[str, str, str]] = set()

    def see(self, time: int, event: Event) -> Iterable[Finding]:
        """What this event shows."""
        if self._checker is None or type(event) not in WATCHED:
            return ()
        if isinstance(event, RamSection) and event.section_type != "START":
            return ()
        return self._see(self._checker, event)

    def _see(self, checker: Checker, event: Event) -> Iterator[Finding]:
        try:
            if isinstance(event, RamBlocks) and len(event.blocks) > MAX_FIELDS:
                yield _too_large(event, "ram/0")
                return
            if isinstance(event, DeviceSection):
                local = checker.local(event)
                if _many(event.fields) or (local is not None and _many(local.fields)):
                    yield from self._new([_too_large(event, called(event))])
                    event = replace(event, fields=(), cut=True)
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


def _many(fields: Sequence[Field]) -> bool:
    """Whether there are more than MAX_FIELDS, which is all that is counted."""
    count, waiting = 0, [fields]
    while waiting and count <= MAX_FIELDS:
        some = waiting.pop()
        count += len(some)
        waiting += [one.children for one in some if one.children]
    return count > MAX_FIELDS
