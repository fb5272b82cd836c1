"""One difference between two migrations, and how many there were."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from migsniff.core.events import Value

Group = Literal["structure", "values", "memory"]


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one side says: `text` is already safe to show.

    `offset`: the wire offset in `channel` where it says so. `value`: the number or text itself.
    """

    text: str
    channel: str = ""
    offset: int | None = None
    value: Value = None


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """What differs; None: that side has nothing there.

    `what` says what kind of thing it is ("section", "array length", "value", ...), `path` which: the
    path that --ignore compares, or the name of a capability, command, ...: safe to show.
    """

    group: Group
    what: str
    path: str
    left: Said | None
    right: Said | None


@dataclass(slots=True)
class Tally:
    """What was found: differences by group, how many were ignored, and what could not be compared."""

    found: Counter[Group] = field(default_factory=Counter)
    ignored: int = 0
    clocks: int = 0
    """Differing values that are shown, and that the set `clocks` would ignore."""
    not_compared: list[str] = field(default_factory=list)
