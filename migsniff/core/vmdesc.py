"""Device bytes read by their description: where a device ends, and what its fields are.

The layout is that of vmstate_save_state (migration/vmstate.c, migration/vmstate-types.c).
"""

import math
import reprlib
import struct
from collections.abc import Generator
from contextlib import suppress
from itertools import chain
from typing import Final, TypeVar, cast

import msgspec
from msgspec.structs import replace

from migsniff.core import fieldtypes
from migsniff.core.arrivals import Data
from migsniff.core.budget import Budget
from migsniff.core.description import (
    LISTS,
    DeviceDescription,
    FieldDescription,
    Vmsd,
    shape_problem,
)
from migsniff.core.errors import StreamProblem
from migsniff.core.events import BREATH, Event, Field, Value
from migsniff.core.oldstyle import meaning
from migsniff.core.registry import field_type
from migsniff.core.wire import IMAGE, MAX_FIELDS, U32, ItemType

NULL_POINTER: Final = b"0"  # VMS_NULLPTR_MARKER, include/migration/vmstate.h
UNNAMED: Final = "undescribed"
BREATHS: Final = 256  # fields, about a millisecond of a walk, between one BREATH and the next
PIECE: Final = 2048  # elements of an array, which take as long

T = TypeVar("T")
Walking = Generator[Event, None, T]
"""A walk or a part of one: nothing but BREATH comes out of it, and that only if wanted."""


class Walk(msgspec.Struct, frozen=True):
    """Where a description leads: `end` is the index behind the last byte that it explains.

    `fields` are there if they were wanted, else those alone that are images.
    `undescribed`: bytes before `end` that it gives a size but no meaning (Fields of type "opaque").
    """

    end: int
    fields: tuple[Field, ...]
    problem: StreamProblem | None
    undescribed: int


def images(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """Those of IMAGE."""
    return tuple(field for field in fields if field.type == IMAGE)


def walk(
    device: DeviceDescription,
    data: Data,
    start: int,
    wire_offset: int,
    *,
    fields: bool,
    budget: Budget,
    breathe: bool = False,
) -> Walking[Walk]:
    """Read the state of `device` from index `start` of `data`, which is wire offset `wire_offset`.

    Never raises for what bytes or description say: `problem` tells, and `fields` has what was read before it.
    With `breathe` BREATH comes about once a millisecond.
    """
    found: list[Field] = []
    problem: StreamProblem | None = None
    with memoryview(data) as view:
        walker = Walker(view, start, wire_offset - start, fields, budget, breathe=breathe)
        try:
            yield from walker.vmsd(device.vmsd, len(view), found)
            if device.vmsd.version is None and found and (what := meaning(device.name, found[0].raw)):
                found[0] = replace(found[0], value=what)
            if budget.fields < 0:
                raise StreamProblem("description-nodes", limit=MAX_FIELDS)
        except StreamProblem as error:
            problem = error.with_traceback(None)  # its frames hold the view
    return Walk(walker.at, tuple(found), problem, walker.undescribed)


def opaque(data: Data, start: int, end: int, wire_offset: int) -> Field:
    """The Field of bytes `start` to `end` that no description explains; `wire_offset` is that of `start`.

    Named by the header of a subsection, if it begins with one.
    """
    raw = bytes(memoryview(data)[start:end])
    name, version = UNNAMED, None
    if len(raw) > 6 and raw[0] == ItemType.SUBSECTION and 0 < raw[1] <= len(raw) - 6:
        header = raw[2 : 2 + raw[1]]
        if header.isascii() and header.decode().isprintable():
            name = header.decode()
            version = U32.unpack_from(raw, 2 + raw[1])[0]
    return Field(name=name, type="opaque", offset=wire_offset, size=len(raw), version=version, raw=raw)


class Walker:
    """One walk; `at` is the index of the next byte, `shift` what makes it a wire offset."""

    __slots__ = ("at", "breath_at", "breathe", "budget", "data", "fields", "inline", "shift", "undescribed")

    def __init__(
        self, data: memoryview, at: int, shift: int, fields: bool, budget: Budget, *, breathe: bool
    ) -> None:
        self.data = data
        self.at = at
        self.shift = shift
        self.fields = fields
        self.budget = budget
        self.undescribed = 0
        self.breathe = breathe
        # BREATH comes when fewer fields than this are left in the budget
        self.breath_at = budget.fields - BREATHS if breathe else -math.inf
        self.inline = False  # inside an inline group, whose raw bytes are kept by its outermost Field

    def vmsd(self, vmsd: Vmsd, limit: int, found: list[Field]) -> Walking[None]:
        """Fields and subsections, none beyond `limit`; `found` keeps what comes before a problem."""
        for field in vmsd.fields:
            self.budget.take_field()
            if self.budget.fields < self.breath_at:
                yield self.breath()
            if field.type == "capability":
                yield from self.capabilities(field, limit, found)
            elif field.type == "nullptr":
                yield from self.null_pointers(field, limit, found)
            elif field.array_len is not None and field.vmsds and field.type not in LISTS:
                yield from self.elements(field, limit, found)
            elif field.vmsds:
                yield from self.sized(field, limit, found)
            else:
                self.plain(field, limit, found)
                if self.fields and found[-1].array_len is not None:
                    found[-1] = yield from self.valued(field, found[-1])
        yield from self.subsections(vmsd, limit, found)

    def breath(self) -> Event:
        """BREATH, and when the next one is due."""
        self.breath_at = self.budget.fields - BREATHS
        return BREATH

    def subsections(self, vmsd: Vmsd, limit: int, found: list[Field]) -> Walking[None]:
        """All that are described."""
        for subsection in vmsd.subsections:
            yield from self.subsection(subsection, limit, found)

    def reach(self, name: str, size: int, limit: int) -> int:
        """The index `size` bytes on; raises StreamProblem (field-short) beyond `limit`."""
        if size > limit - self.at:
            raise StreamProblem("field-short", name=name, size=size, left=max(0, limit - self.at))
        return self.at + size

    def plain(self, field: FieldDescription, limit: int, found: list[Field]) -> None:
        """A field that holds no others, or an array of such, still without their values."""
        start = self.at
        self.at = self.end(field, limit)
        if self.fields or field.type == IMAGE:
            raw = bytes(self.data[start : self.at])
            decode = field_type.get(field.type) if field.array_len is None else None
            self.leaf(field, raw, found, field.index, field.array_len, decode(raw) if decode else None)

    def leaf(
        self,
        field: FieldDescription,
        raw: bytes,
        found: list[Field],
        index: int | None,
        array_len: int | None = None,
        value: Value = None,
    ) -> None:
        """Put the Field of `raw`, which ends at `at` and holds no others, into `found`."""
        found.append(
            Field(
                name=field.name,
                type=field.type,
                offset=self.at - len(raw) + self.shift,
                size=len(raw),
                array_len=array_len,
                index=index,
                raw=raw,
                value=value,
            )
        )

    def valued(self, field: FieldDescription, array: Field) -> Walking[Field]:
        """An array with the values of its elements, unless they are too many."""
        decode, count = field_type.get(field.type), array.array_len
        size = array.size // count if count else field.size
        if decode is None or not size or count is None:
            return array
        integers = fieldtypes.integers(decode, size)
        # what takes longer than unpacking integers counts for more
        if not self.budget.take_values(count * (1 if integers else 16)):
            return array
        values: list[Value] = []
        for at in range(0, array.size, PIECE * size):
            if at and self.breathe:
                yield self.breath()
            piece = array.raw[at : at + PIECE * size]
            if integers:
                values += struct.unpack(f">{len(piece) // size}{integers}", piece)
            else:
                values += [decode(piece[each : each + size]) for each in range(0, len(piece), size)]
        if values and isinstance(values[0], tuple):
            return array
        return replace(array, value=cast("Value", tuple(values)))

    def sized(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """A struct, an inline group or a list that ends `size` bytes on, whatever is inside."""
        start = self.at
        end = self.end(field, limit)
        children: tuple[Field, ...] = ()
        if field.array_len is None:
            children = yield from self.inside(field, end)
        self.at = end
        if self.fields:
            bare = field.type != "struct" and not self.inline
            found.append(
                Field(
                    name=field.name,
                    type=field.type,
                    offset=start + self.shift,
                    size=end - start,
                    array_len=field.array_len,
                    index=field.index,
                    version=None if field.type in LISTS else field.vmsds[0].version,
                    raw=bytes(self.data[start:end]) if bare else b"",
                    children=children,
                )
            )

    def end(self, field: FieldDescription, limit: int) -> int:
        """Where a field ends, or an array, whose elements all have its size."""
        count = 1 if field.array_len is None else field.array_len
        return self.reach(field.name, count * field.size, limit)

    def inside(self, field: FieldDescription, end: int) -> Walking[tuple[Field, ...]]:
        """What stands in a struct, an inline group or a list that ends at `end`, to where `at` moves.

        QEMU measured the size, so the walk can go on there. Bytes before it that the description inside does
        not explain become an opaque Field.
        """
        vmsd = field.vmsds[0]
        if field.type in LISTS:
            return (yield from self.list_elements(field, end))
        if not self.fields and vmsd.fixed == field.size:
            return ()
        inline, self.inline = self.inline, self.inline or field.type != "struct"
        children: list[Field] = []
        with suppress(StreamProblem):
            yield from self.vmsd(vmsd, end, children)
        self.inline = inline
        if self.at < end:
            self.undescribed += end - self.at
            if self.fields:
                children.append(opaque(self.data, self.at, end, self.at + self.shift))
        return tuple(children)

    def elements(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """An array of structs or inline groups: a Field each. `size` is the first one's, and binds none."""
        vmsd = field.vmsds[0]
        count = field.array_len or 0
        if not self.fields and vmsd.fixed is not None and count * vmsd.fixed <= limit - self.at:
            self.at += count * vmsd.fixed
            return
        outermost = field.type != "struct" and not self.inline
        inline, self.inline = self.inline, self.inline or outermost
        for index in range(count):
            self.budget.take_field()
            if self.budget.fields < self.breath_at:
                yield self.breath()
            start = self.at
            children: list[Field] = []
            try:
                yield from self.vmsd(vmsd, limit, children)
            finally:
                raw = bytes(self.data[start : self.at]) if self.fields and outermost else b""
                self.group(field.name, field.type, vmsd, start, children, found, index, raw)
        self.inline = inline

    def group(
        self,
        name: str,
        kind: str,
        vmsd: Vmsd,
        start: int,
        children: list[Field],
        found: list[Field],
        index: int | None = None,
        raw: bytes = b"",
    ) -> None:
        """Put the Field of what was read from `start` to `at` into `found`."""
        if self.fields:
            found.append(
                Field(
                    name=name,
                    type=kind,
                    offset=start + self.shift,
                    size=self.at - start,
                    index=index,
                    version=vmsd.version,
                    raw=raw,
                    children=tuple(children),
                )
            )

    def subsection(self, vmsd: Vmsd, limit: int, found: list[Field]) -> Walking[None]:
        """Byte 05, name, version, and then as its description says."""
        self.budget.take_field()
        start = self.at
        name = vmsd.name.encode()
        header = struct.pack(f">BB{len(name)}sI", ItemType.SUBSECTION, len(name), name, vmsd.version)
        seen = bytes(self.data[start : min(start + len(header), limit)])
        if seen != header:
            raise StreamProblem(
                "field-subsection", name=vmsd.name, at=start + self.shift, found=seen.hex(" ") or "the end"
            )
        self.at += len(header)
        children: list[Field] = []
        try:
            yield from self.vmsd(vmsd, limit, children)
        finally:
            self.group(vmsd.name, "subsection", vmsd, start, children, found)

    def list_elements(self, field: FieldDescription, end: int) -> Walking[tuple[Field, ...]]:
        """Elements of a list: {01, element}* 00; a gtree begins with their number, and a key before each.

        Empty if that does not end at `end`: the list is its raw bytes then.
        """
        inline, self.inline = self.inline, True
        undescribed = self.undescribed
        children: list[Field] = []
        try:
            yield from self.each_element(field, end, children)
        except StreamProblem:
            self.at = 0
        self.inline = inline
        self.undescribed = undescribed
        return tuple(children) if self.at == end else ()

    def each_element(self, field: FieldDescription, end: int, found: list[Field]) -> Walking[None]:
        key: FieldDescription | None = None
        vmsds = [[vmsd] for vmsd in field.vmsds]
        if field.type == "gtree":
            after = self.reach(field.name, U32.size, end)
            (count,) = U32.unpack(self.data[self.at : after])
            self.at = after
            if len(vmsds) == 2 * count:
                vmsds = [list(chain(*pair)) for pair in zip(vmsds[::2], vmsds[1::2], strict=True)]
            else:
                key = FieldDescription("key", "uint64", 8, None, None, ())
        for index, element in enumerate(vmsds):
            start = self.at
            children: list[Field] = []
            self.marker(field.name, 1, end)
            if key is not None:
                self.plain(key, end, children)
            for vmsd in element:
                self.budget.take_field()
                yield from self.vmsd(vmsd, end, children)
            self.group(element[-1].name, "struct", element[-1], start, children, found, index)
        self.marker(field.name, 0, end)

    def marker(self, name: str, expected: int, limit: int) -> None:
        """A list's marker byte."""
        end = self.reach(name, 1, limit)
        if self.data[self.at] != expected:
            where = f"{self.data[self.at]:#04x} at {self.at + self.shift:#x}"
            raise shape_problem(f"{reprlib.repr(name)} has no list marker: {where}")
        self.at = end

    def null_pointers(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """NULL pointers, a byte each. QEMU up to 9.x says so of an array of which only the first is."""
        left = 1 if field.array_len is None else field.array_len
        while True:
            left -= self.nulls(field, left, limit, found)
            if not left:
                return
            if not field.vmsds:
                where = f"{self.data[self.at]:#04x} at {self.at + self.shift:#x}"
                raise shape_problem(f"{reprlib.repr(field.name)} is no NULL pointer: {where}")
            self.budget.take_field()
            if self.budget.fields < self.breath_at:
                yield self.breath()
            start = self.at
            children: list[Field] = []
            try:
                yield from self.vmsd(field.vmsds[0], limit, children)
            finally:
                self.group(field.name, "struct", field.vmsds[0], start, children, found)
            left -= 1
            if not left:
                return

    def nulls(self, field: FieldDescription, count: int, limit: int, found: list[Field]) -> int:
        """How many NULL pointers stand here, up to `count`: a Field for all of them."""
        start = self.at
        end = self.reach(field.name, 1 if field.vmsds else count, limit)
        if field.vmsds:
            end = min(start + count, limit)
        raw = bytes(self.data[start:end])
        nulls = len(raw) - len(raw.lstrip(NULL_POINTER))
        self.at += nulls
        if self.fields and (nulls or not count):
            alone = field.array_len is None or (nulls == 1 and field.vmsds)
            self.leaf(field, raw[:nulls], found, field.index, None if alone else nulls)
        return nulls

    def capabilities(self, field: FieldDescription, limit: int, found: list[Field]) -> Walking[None]:
        """Names with their lengths (configuration): an array of them has elements of different sizes."""
        for index in range(1 if field.array_len is None else field.array_len):
            self.budget.take_field()
            if self.budget.fields < self.breath_at:
                yield self.breath()
            start = self.at
            length = self.data[self.reach(field.name, 1, limit) - 1]
            self.at = self.reach(field.name, 1 + length, limit)
            if not self.fields:
                continue
            raw = bytes(self.data[start : self.at])
            number = field.index if field.array_len is None else index
            self.leaf(field, raw, found, number, value=fieldtypes.capability(raw))
