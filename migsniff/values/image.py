"""Images: bytes with a layout of their own, taken apart to Fields at their wire offsets.

A big-endian number in an image has QEMU's type "uint8", "uint16", "uint32" or "uint64", a little-endian one
"le16", "le32" or "le64". "bytes" are bytes; their `raw` is kept unless it is all zero.
"""

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from migsniff.core.events import Field
from migsniff.values.words import shifted_down

Order = Literal["big", "little"]

_BIG: Final = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
_LITTLE: Final = {1: "uint8", 2: "le16", 4: "le32", 8: "le64"}


class Part(NamedTuple):
    """Bits of a register. `words` of their value, shifted down; None: the name, and the value if several."""

    name: str
    mask: int
    words: Callable[[int], str] | Mapping[int, str] | None = None

    def value(self, register: int) -> int:
        """These bits of the register, shifted down."""
        return shifted_down(register, self.mask)

    def text(self, register: int) -> str:
        """What they say; empty for what is not set."""
        value = self.value(register)
        if self.words is None:
            single = self.mask & (self.mask - 1) == 0
            return "" if not value else self.name if single else f"{self.name} {value}"
        if callable(self.words):
            return self.words(value)
        return self.words.get(value, f"{self.name} {value}")


def parts_text(parts: tuple[Part, ...], register: int) -> str:
    """All parts of a register in words."""
    return ", ".join(filter(None, (part.text(register) for part in parts)))


class Short(Exception):
    """The image ends before what was to be read of it, or does not fit: it is to stay as it is."""


class Image:
    """A place in an image that moves on, and the fields that were read. All reads raise Short at the end."""

    __slots__ = ("at", "fields", "offset", "raw")

    def __init__(self, raw: bytes, offset: int, at: int = 0) -> None:
        self.raw = raw
        self.offset = offset
        self.at = at
        self.fields: list[Field] = []

    @property
    def left(self) -> int:
        """Bytes up to the end."""
        return len(self.raw) - self.at

    def take(self, size: int) -> bytes:
        """The next `size` bytes, without a field."""
        if not 0 <= size <= self.left:
            raise Short
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(
        self,
        name: str,
        size: int,
        order: Order = "big",
        *,
        index: int | None = None,
        words: Callable[[int], str] | None = None,
    ) -> int:
        """A number of 1, 2, 4 or 8 bytes, and its meaning in `words`."""
        start = self.at
        value = int.from_bytes(self.take(size), order)
        kind = (_BIG if order == "big" else _LITTLE)[size]
        meaning = words(value) if words else ""
        self.fields.append(
            Field(name, kind, self.offset + start, size, index=index, value=value, meaning=meaning)
        )
        return value

    def bytes(self, name: str, size: int, meaning: str = "") -> None:
        """Bytes, without a field if there are none."""
        start = self.at
        raw = self.take(size)
        if raw:
            self.fields.append(bytes_field(name, raw, self.offset + start, meaning))

    def group(self, name: str, kind: str, start: int, first: int, **facts: object) -> None:
        """Put the fields from number `first` on into one that begins at index `start` of the image."""
        children = tuple(self.fields[first:])
        del self.fields[first:]
        self.fields.append(
            Field(name, kind, self.offset + start, self.at - start, children=children, **facts)  # type: ignore[arg-type]
        )


def bytes_field(name: str, raw: bytes, offset: int, meaning: str = "") -> Field:
    """A Field of bytes."""
    if any(raw):
        return Field(name, "bytes", offset, len(raw), raw=raw, meaning=meaning)
    return Field(name, "bytes", offset, len(raw), meaning=f"{meaning}, all zero" if meaning else "all zero")
