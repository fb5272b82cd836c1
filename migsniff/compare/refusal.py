"""What QEMU refuses in code of its own, once it has read a device: what is told of each."""

from collections.abc import Iterator
from typing import NamedTuple

from migsniff.core.events import Field


class Refusal(NamedTuple):
    """A code of the expert, the field it is about, where in the stream that stands, and its bytes there."""

    code: str
    field: str
    offset: int
    size: int
    evidence: bytes
    details: dict[str, object]


def refusal(code: str, at: Field, /, index: int = 0, size: int | None = None, **details: object) -> Refusal:
    """A Refusal for a field, or for `size` bytes of it, its element `index`."""
    if size is None:
        return Refusal(code, at.name, at.offset, at.size, at.raw, details)
    start = index * size
    return Refusal(code, at.name, at.offset + start, size, at.raw[start : start + size], details)


def named(fields: tuple[Field, ...], name: str) -> Iterator[Field]:
    """The fields of this name."""
    return (field for field in fields if field.name == name)
