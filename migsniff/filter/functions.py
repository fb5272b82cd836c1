"""The functions of the filter language, under Wireshark's names: each registered with what it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from migsniff.filter.names import Kind
from migsniff.filter.operands import text_of

ANYTHING: Final = (Kind.NUMBER, Kind.SECONDS, Kind.BOOLEAN, Kind.TEXT, Kind.BYTES, Kind.SEVERITY)


@dataclass(frozen=True, slots=True)
class Function:
    """`takes`: kinds of values; a field of device state is taken as the first. `gives`: None: as it takes.

    `whole`: it is called with the list of all values, not with each; `most`: arguments that it takes.
    """

    call: Callable[[Any], Any]
    takes: tuple[Kind, ...]
    gives: Kind | None
    whole: bool = False
    most: int = 1


FUNCTIONS: Final[dict[str, Function]] = {
    "len": Function(len, (Kind.BYTES, Kind.TEXT), Kind.NUMBER),
    "count": Function(len, (Kind.DEVICE, Kind.RECORD, *ANYTHING), Kind.NUMBER, whole=True),
    "lower": Function(str.lower, (Kind.TEXT,), Kind.TEXT),
    "upper": Function(str.upper, (Kind.TEXT,), Kind.TEXT),
    "string": Function(text_of, (Kind.DEVICE, *ANYTHING), Kind.TEXT),
    "abs": Function(abs, (Kind.NUMBER, Kind.SECONDS), None),
    "max": Function(lambda all_of: max(all_of, default=None), (Kind.NUMBER, Kind.SECONDS), None, True, 16),
    "min": Function(lambda all_of: min(all_of, default=None), (Kind.NUMBER, Kind.SECONDS), None, True, 16),
    "meaning": Function(lambda found: found.meaning, (Kind.DEVICE,), Kind.TEXT),
}
