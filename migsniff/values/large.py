"""Device state that is too much to be looked through, explained or shown while others wait."""

from collections.abc import Sequence
from operator import is_ as _is
from typing import Final

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field

MAX_FIELDS: Final = 1 << 15
"""Fields of a section that are compared or shown live, blocks of a list: more would hold up others for long.

The most that a device seen has are the 24577 of an interrupt controller of pseries: what a live log shows is
to be what is read later.
"""
MAX_BYTES: Final = 1 << 22
"""Bytes that these may have (real ones: up to the 2 MB of a spapr_iommu)."""
FIELD_COST: Final = 1 << 8
BYTE_COST: Final = 1 << 4
"""What a field and a byte of one take in memory: an array has its bytes, and an object for each value."""
LEFT_OUT: Final = "omitted"
"""Type of the Field that stands for what was left out."""


def many(fields: Sequence[Field]) -> bool:
    """Whether there are more than MAX_FIELDS."""
    return _counted(fields) > MAX_FIELDS


def large(section: DeviceSection) -> bool:
    """Whether it may have more than is shown live."""
    # a byte may stand in a field, and in the group around it
    return 2 * section.size > MAX_BYTES or many(section.fields)


def cost(section: DeviceSection) -> int:
    """The bytes of memory, about, that a limited section takes."""
    return _counted(section.fields) * FIELD_COST + min(section.size, MAX_BYTES) * BYTE_COST


def _counted(fields: Sequence[Field]) -> int:
    """How many there are; once that is more than MAX_FIELDS, some."""
    count, waiting = 0, [fields]
    while waiting and count <= MAX_FIELDS:
        some = waiting.pop()
        count += len(some)
        waiting += [one.children for one in some if one.children]
    return count


def limited(section: DeviceSection) -> DeviceSection:
    """The section with MAX_FIELDS of its fields, those with MAX_BYTES of their bytes and values.

    If that leaves something out, one more Field says so. A section that is small comes back as it is.
    """
    room = _Room()
    fields = room.taken(section.fields)
    if fields is section.fields:
        return section
    note = _note(section, f"what is beyond {MAX_FIELDS} fields or {MAX_BYTES} bytes")
    return replace(section, fields=(*fields, note))


def bare(section: DeviceSection) -> DeviceSection:
    """The section without its fields, for when those of others wait; one more Field says so."""
    return replace(section, fields=(_note(section, "all fields, because those of other sections wait"),))


def _note(section: DeviceSection, what: str) -> Field:
    return Field(
        name="left out",
        type=LEFT_OUT,
        offset=section.offset + section.size,
        size=0,
        meaning=f"{what}; migsniff read shows all",
    )


class _Room:
    """What may still be shown of a section."""

    def __init__(self) -> None:
        self.fields = MAX_FIELDS
        self.bytes = MAX_BYTES

    def taken(self, fields: tuple[Field, ...]) -> tuple[Field, ...]:
        """The first of these that there is room for; the same tuple if there is for all of them."""
        taken = []
        for field in fields:
            if not self.fields:
                break
            self.fields -= 1
            taken.append(self.one(field))
        whole = len(taken) == len(fields) and all(map(_is, taken, fields))
        return fields if whole else tuple(taken)

    def one(self, field: Field) -> Field:
        """A field without its bytes if they are too many, and with those inside that there is room for."""
        if len(field.raw) > self.bytes:
            field = replace(field, raw=b"", value=None)
        self.bytes -= len(field.raw)
        if not field.children:
            return field
        children = self.taken(field.children)
        return field if children is field.children else replace(field, children=children)
