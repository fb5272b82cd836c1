"""Which events a reader asked for with --section, and (`Wanted`) with -Y."""

from collections.abc import Callable

from migsniff.core.events import (
    DirtySync,
    Event,
    Finding,
    MultifdPacket,
    MultifdSync,
    RamBlocks,
    Section,
    Undecodable,
    Verdict,
)

Wanted = Callable[[str, int, Event], bool]
"""(the migration's id, time in microseconds, event) -> whether a display filter lets it through."""


def selected(sections: set[str] | None, event: Event) -> bool:
    """Whether to show `event` when only `sections` are wanted (None: everything is).

    A section is named as in the log, with or without its instance (`timer`, `timer/0`), or by the last part
    of its name (`ide` for `0000:00:01.1/ide`). Errors and the verdict are always shown.
    """
    if sections is None or isinstance(event, (Undecodable, Verdict)):
        return True
    if isinstance(event, Section | Finding):
        called = event.section if isinstance(event, Finding) else f"{event.idstr}/{event.instance_id}"
        idstr = called.rpartition("/")[0]
        names = (idstr, called, idstr.rpartition("/")[2])
        return any(wanted in sections for wanted in names)
    return isinstance(event, (RamBlocks, DirtySync, MultifdPacket, MultifdSync)) and "ram" in sections
