"""How records are laid out: the form in which each of them is defined once, for reading and for building."""

from collections.abc import Callable
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, NamedTuple

Names = type[IntEnum] | type[IntFlag]


class Named(str):
    """A code of struct for a number whose values have names, or whose bits have."""

    __slots__ = ("names",)
    names: Names

    def __new__(cls, code: str, names: Names) -> "Named":
        """The code, with the enumeration of its values or flags."""
        named = super().__new__(cls, code)
        named.names = names
        return named


class Contents(NamedTuple):
    """Bytes that are stepped over: `unit` for each that field `counter` counts, or `unit` if none does."""

    counter: str = ""
    unit: int = 1


LENGTHS: Final = {"str8": "B", "str32": "I", "rest": ""}
"""What stands of an open field when it is empty: its length, or nothing."""


class Layout:
    """The fields of a record in their order: the one definition for reading it and for building it.

    A field is a name and how it stands there: a code of struct (`39x` is left empty), "str8" and "str32"
    (text behind its length of one or four bytes), Contents, "rest" (what the record has left), or a Layout,
    repeated up to the end. `struct` reads the fields that have a fixed size, up to the first that has not:
    `fixed` are their names, `open` the fields behind them. `least` is its size when all of
    those are empty.
    """

    def __init__(self, *fields: "tuple[str, str | Contents | Layout]") -> None:
        self.fields = fields
        codes = [how if isinstance(how, str) else "rest" for _, how in fields]
        fixed = next((n for n, code in enumerate(codes) if code in ("str8", "str32", "rest")), len(codes))
        self.struct = Struct(">" + "".join(codes[:fixed]))
        self.fixed = tuple(
            name for (name, _), code in zip(fields, codes[:fixed], strict=False) if code[-1] != "x"
        )
        self.open = fields[fixed:]
        self.least = Struct(">" + "".join(LENGTHS.get(code, code) for code in codes)).size


class Part(NamedTuple):
    """Fields that stand in a record if `there` says so of its first number."""

    there: Callable[[int], bool]
    layout: Layout


class Tagged:
    """A record whose first number tells which parts follow its head."""

    def __init__(self, name: str, head: Layout, *parts: Part) -> None:
        self.name = name
        self.head = head
        self.parts = parts
        self.tag = head.fields[0][0]
