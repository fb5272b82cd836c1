"""What an expression takes out of a record: fields, parts of them, functions of them, literals.

An operand is bound to a type of record once, before any record is looked at: most have nothing of it, and
cost nothing there. What is bound gives values that are of one Kind, whatever a stream holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from migsniff.core.events import SEVERITIES, DeviceSection, Event
from migsniff.filter.devices import Device, Found
from migsniff.filter.names import Get, Kind, Name, Scalar, Source
from migsniff.filter.tree import Span

_RANK: Final = {word: rank for rank, word in enumerate(SEVERITIES)}
Values = Callable[[Any, int, str], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class Bound:
    """An operand for one type of record. `one`: gives a value or None, and not an iterable of values."""

    get: Get
    one: bool = False

    @property
    def values(self) -> Values:
        """All values of a record."""
        if not self.one:
            return self.get
        get = self.get

        def values(event: Any, time: int, migration: str) -> Sequence[Any]:
            value = get(event, time, migration)
            return () if value is None else (value,)

        return values


class Operand:
    """Something that has values. `constant`: it is a literal, of this value."""

    kind: Kind
    choices: tuple[str, ...] = ()
    constant: Scalar | None = None

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        """Its values in records of type `cls`, or None. `shown`: as a column shows them."""
        raise NotImplementedError

    def as_kind(self, kind: Kind) -> "Operand":
        """The same as values of another kind, where a device's field is what its type makes it."""
        return self


class Field(Operand):
    """A field of records."""

    def __init__(self, name: Name) -> None:
        self.kind = name.kind
        self.choices = name.choices
        self.name = name

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        sources = [one for one in self.name.sources.get(cls, ()) if not (shown and one.hidden)]
        if not sources:
            return None
        bound = [Bound(one.get, one=not one.many) if shown else self._ranked(one) for one in sources]
        if len(bound) == 1:
            return bound[0]
        each = [one.values for one in bound]

        def values(event: Any, time: int, migration: str) -> list[Any]:
            return [value for get in each for value in get(event, time, migration)]

        return Bound(values)

    def _ranked(self, source: Source) -> Bound:
        if self.kind is not Kind.SEVERITY:
            return Bound(source.get, one=not source.many)
        get = source.get
        return Bound(lambda event, time, migration: _RANK.get(get(event, time, migration)), one=True)


class Literal(Operand):
    """A value that stands in the expression."""

    def __init__(self, kind: Kind, value: Scalar) -> None:
        self.kind = kind
        self.constant = value

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound:
        value = self.constant
        return Bound(lambda event, time, migration: value, one=True)


class DeviceField(Operand):
    """A field of device state, or (without a path) whether a record is of the device.

    `kind` is what its values are to be compared with; one without that kind has none. It is put into `seen`
    when a record has it.
    """

    def __init__(
        self, device: Device, seen: set[Device], kind: Kind = Kind.DEVICE, *, searched: bool = False
    ) -> None:
        self.device = device
        self._seen = seen
        self.kind = kind if device.path else Kind.RECORD
        self._searched = searched

    def as_kind(self, kind: Kind) -> Operand:
        return DeviceField(self.device, self._seen, kind) if self.device.path else self

    def to_search(self) -> Operand:
        """Its texts, and the bytes of what has none."""
        return DeviceField(self.device, self._seen, Kind.TEXT, searched=True)

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        if cls is not DeviceSection:
            return None
        device = self.device
        if not device.path:
            return Bound(lambda event, time, migration: True if device.has(event) else None, one=True)
        seen, turn = self._seen, plain if shown else _searched if self._searched else _AS[self.kind]

        def values(event: Any, time: int, migration: str) -> list[Any]:
            found = device.found(event)
            if found:
                seen.add(device)
            return [value for one in found for value in turn(one)]

        return Bound(values)


def _numbers(found: Found) -> list[Any]:
    value = found.value
    if isinstance(value, tuple):
        return [element for element in value if isinstance(element, int | float)]
    return [value] if isinstance(value, int | float) else []


def _texts(found: Found) -> list[str]:
    """Text, and what a value means."""
    value = found.value
    texts = [element for element in value if isinstance(element, str)] if isinstance(value, tuple) else []
    if isinstance(value, str):
        texts.append(value)
    if found.meaning:
        texts.append(found.meaning)
    return texts


def _octets(found: Found) -> list[bytes]:
    return [found.raw] if found.raw else []


def _searched(found: Found) -> list[Any]:
    return _texts(found) or _octets(found)


def plain(found: Found) -> list[Any]:
    """The values as a column shows them: a NULL is none, what is only bytes is bytes."""
    value = found.value
    if isinstance(value, tuple):
        return [element for element in value if element is not None]
    if value is not None:
        return [value]
    return [found.meaning] if found.meaning else _octets(found)


_AS: Final[dict[Kind, Callable[[Found], list[Any]]]] = {
    Kind.NUMBER: _numbers,
    Kind.SECONDS: _numbers,
    Kind.BOOLEAN: _numbers,
    Kind.TEXT: _texts,
    Kind.BYTES: _octets,
    Kind.SEVERITY: lambda found: [],
    Kind.DEVICE: lambda found: [found],
}


class Sliced(Operand):
    """Bytes of a field, or characters of a text."""

    def __init__(self, of: Operand, spans: tuple[Span, ...]) -> None:
        self._of = of.as_kind(Kind.BYTES)
        self._spans = spans
        self.kind = self._of.kind

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        bound = self._of.bind(cls)
        if bound is None:
            return None
        all_of, spans = bound.values, self._spans

        def values(event: Any, time: int, migration: str) -> list[Any]:
            cut = [
                type(whole)().join(whole[span.of(len(whole))] for span in spans)
                for whole in all_of(event, time, migration)
            ]
            return [part for part in cut if part]

        return Bound(values)


class Masked(Operand):
    """The bits that two numbers have in common."""

    kind = Kind.NUMBER

    def __init__(self, left: Operand, right: Operand) -> None:
        self._left = left.as_kind(Kind.NUMBER)
        self._right = right.as_kind(Kind.NUMBER)

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        left, right = self._left.bind(cls), self._right.bind(cls)
        if left is None or right is None:
            return None
        lefts, rights = left.values, right.values

        def values(event: Any, time: int, migration: str) -> list[int]:
            masks = [mask for mask in rights(event, time, migration) if isinstance(mask, int)]
            numbers = lefts(event, time, migration)
            return [number & mask for number in numbers if isinstance(number, int) for mask in masks]

        return Bound(values)


class Called(Operand):
    """A function of each value, or (`whole`) of all values together."""

    def __init__(
        self, kind: Kind, arguments: Sequence[Operand], function: Callable[[Any], Any], *, whole: bool
    ) -> None:
        self.kind = kind
        self._arguments = arguments
        self._function = function
        self._whole = whole

    def bind(self, cls: type[Event], *, shown: bool = False) -> Bound | None:
        bound = [one for argument in self._arguments if (one := argument.bind(cls)) is not None]
        function = self._function
        if not bound:
            nothing = function([]) if self._whole else None
            return None if nothing is None else Bound(lambda event, time, migration: nothing, one=True)
        each = [one.values for one in bound]
        if self._whole:

            def together(event: Any, time: int, migration: str) -> Any:
                return function([value for get in each for value in get(event, time, migration)])

            return Bound(together, one=True)

        def values(event: Any, time: int, migration: str) -> list[Any]:
            return [function(value) for get in each for value in get(event, time, migration)]

        return Bound(values)


def text_of(value: object) -> str:
    """A value as text: numbers decimal, bytes in hexadecimal."""
    match value:
        case bool():
            return "true" if value else "false"
        case bytes():
            return value.hex()
        case float():
            return f"{value:.6f}".rstrip("0").rstrip(".") if abs(value) < 1e15 else repr(value)
        case Found():
            return ",".join(map(text_of, plain(value)))
        case _:
            return str(value)
