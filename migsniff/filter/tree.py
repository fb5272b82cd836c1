"""What an expression is made of. Every node knows its place: from index `start` to `end` of the text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal as OneOf

Quantifier = OneOf["any", "all"]
Relation = OneOf["==", "!=", "===", "!==", "<", "<=", ">", ">="]
Part = str | int
"""A part of a path: a name, or the index of an element."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """One range of a slice: from `first` on, `length` long (None: to the end); negative from the end."""

    first: int
    length: int | None = None
    last: int | None = None
    """Inclusive, where the range was written with its end."""

    def of(self, size: int) -> slice:
        """The indices in what is `size` long."""
        first = max(0, self.first + size if self.first < 0 else self.first)
        if self.last is not None:
            stop = (self.last + size if self.last < 0 else self.last) + 1
        else:
            stop = size if self.length is None else first + self.length
        return slice(first, max(first, stop))


@dataclass(frozen=True, slots=True)
class Path(Place):
    """A field, or a word that stands for a value: its `parts`, and the bytes of it that are meant."""

    parts: tuple[Part, ...]
    spans: tuple[Span, ...] = ()

    @property
    def dotted(self) -> str:
        """The name as a table has it; quoted parts and indices are as they were written."""
        return ".".join(map(str, self.parts))


@dataclass(frozen=True, slots=True)
class Value(Place):
    """A literal. Times with a unit are seconds."""

    value: int | float | str | bytes
    unit: bool = False


@dataclass(frozen=True, slots=True)
class Masked(Place):
    """`left & right`."""

    left: "Operand"
    right: "Operand"


@dataclass(frozen=True, slots=True)
class Call(Place):
    """A function of values."""

    name: str
    arguments: tuple["Operand", ...]


Operand = Path | Value | Masked | Call


@dataclass(frozen=True, slots=True)
class Exists(Place):
    """There is such a field, or (`a & b`) a bit of it is set."""

    value: Operand


@dataclass(frozen=True, slots=True)
class Compare(Place):
    """`left relation right`."""

    relation: Relation
    left: Operand
    right: Operand
    quantifier: Quantifier | None


@dataclass(frozen=True, slots=True)
class Contains(Place):
    """`left contains right`."""

    left: Operand
    right: Operand
    quantifier: Quantifier | None


@dataclass(frozen=True, slots=True)
class Matches(Place):
    """`left matches pattern`."""

    left: Operand
    pattern: Operand
    quantifier: Quantifier | None


@dataclass(frozen=True, slots=True)
class Within(Place):
    """`left in {items}`: a pair is a range, ends included."""

    left: Operand
    items: tuple[Operand | tuple[Operand, Operand], ...]
    quantifier: Quantifier | None


@dataclass(frozen=True, slots=True)
class Not(Place):
    """The opposite."""

    test: "Test"


@dataclass(frozen=True, slots=True)
class Both(Place):
    """All of `tests`."""

    tests: tuple["Test", ...]


@dataclass(frozen=True, slots=True)
class Either(Place):
    """Any of `tests`."""

    tests: tuple["Test", ...]


Test = Exists | Compare | Contains | Matches | Within | Not | Both | Either
Node = Test | Operand


def paths(node: Node) -> Iterator[Path]:
    """All paths in it."""
    match node:
        case Path():
            yield node
        case Value():
            return
        case Masked() | Compare() | Contains():
            yield from paths(node.left)
            yield from paths(node.right)
        case Matches():
            yield from paths(node.left)
        case Within():
            yield from paths(node.left)
        case Exists():
            yield from paths(node.value)
        case Call():
            for argument in node.arguments:
                yield from paths(argument)
        case Not():
            yield from paths(node.test)
        case Both() | Either():
            for test in node.tests:
                yield from paths(test)
