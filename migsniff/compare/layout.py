"""Where the fields of a section do not have the places in which the destination reads them.

A description tells what was sent, not what would have been. Of two streams that differ something is certain
only if nothing in them can have made the difference: see `Fit`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import gcd
from typing import Final, NamedTuple

from migsniff.core.events import Field
from migsniff.feed.dumpvmstate import State, StateField
from migsniff.show.words import name

MAX_DEPTH: Final = 16
MAX_RENAMED: Final = 1024
FIXED: Final = re.compile(
    r"u?int(8|16|32|64)\b.*|bool|buffer|unused_buffer|timer|struct|pci config|pci irq state"
)
"""Types whose size on the wire is that of the field; others write what they like."""
INTEGER: Final = re.compile(r"u?int(8|16|32|64)|bool")
"""Types that have as many bytes in memory as on the wire; "int32 le" has a limit besides."""
VARYING: Final = ("qtailq", "qlist", "gtree", "virtio", "opaque")
"""Types that say themselves in the stream how long they are, or of which nothing is known."""
INDEX: Final = re.compile(r"\[\d+\]$")
"""What QEMU adds to a name that several fields of a vmstate have, of which some may be for old versions."""
CONFIGURED: Final = re.compile(r"acpi_pci_hotplug\..+")
"""Fields of which properties of the machine alone say whether they are there, nothing in the stream."""


class Misfit(NamedTuple):
    """The first field that does not fit, in words; `certain`: no stream can make it fit."""

    path: str
    words: str
    certain: bool


Array = list[Field]
"""A field, or the elements of an array."""
Ratio = tuple[int, int]


@dataclass(slots=True)
class Fit:
    """Compares a section with the destination's own: its fields, and then its subsections.

    The number of elements of an array, or of bytes of a buffer, may stand in the stream: in a number before
    it that differs in the same ratio. Whether a field is there at all may depend on any value before it.
    """

    stream: Sequence[Field]
    device: Sequence[Field]
    older: bool = False
    """The stream's version is: for it the destination may have fields that its own stream does not show."""
    differs: bool = False
    counts: set[Ratio] = field(default_factory=set)
    """Numbers that differ, here and there, and that the destination takes as they are."""
    ratios: set[Ratio] = field(default_factory=set)
    """Of the numbers that differ so far, reduced."""

    def misfit(self) -> Misfit | None:
        """Of the fields; names may differ, bytes may not."""
        if _handmade(self.stream) and _handmade(self.device):
            return None
        return self._first(self.stream, self.device, "", older=self.older)

    def subsection(self, stream: Field, device: Field) -> Misfit | None:
        """Of a subsection that both have, which is loaded when all the fields have been."""
        if _total(stream.children) == _total(device.children):
            return None
        self._note_all(self.stream, self.device, 0)
        older = (stream.version or 0) < (device.version or 0)
        return self._first(stream.children, device.children, f"{stream.name}.", older=older)

    def _first(
        self, stream: Sequence[Field], device: Sequence[Field], above: str, *, older: bool
    ) -> Misfit | None:
        """The first that is certain, or else the first."""
        doubtful = None
        for found in self._fields(stream, device, above, older=older, depth=0):
            if found.certain:
                return found
            doubtful = doubtful or found
        return doubtful

    def _fields(
        self, stream: Sequence[Field], device: Sequence[Field], above: str, *, older: bool, depth: int
    ) -> Iterator[Misfit]:
        if depth > MAX_DEPTH:
            return
        if _total(stream) == _total(
            device
        ):  # a field may have been divided, or one that is unused given a use
            self._note_all(stream, device, depth)
            return
        before: tuple[Array, Array] | None = None
        for here, there in _aligned(stream, device):
            if here and there:
                yield from self._array(here, there, above, older=older, depth=depth)
                self._note(here, there)
                before = here, there
            elif not _told_before(before, bool(here)):
                yield from self._alone(here, there, above, older=older)
                self.differs = True

    def _alone(self, here: Array, there: Array, above: str, *, older: bool) -> Iterator[Misfit]:
        """What one side has; of an array the other may have no elements, which do not show."""
        one = (here or there)[0]
        size = _total(here or there)
        if one.type in VARYING or not size or (older and there):  # what came with a later version is not read
            return
        words = f"{'the destination' if here else 'the stream'} has no such field ({size} bytes)"
        path = f"{above}{one.name}"
        if one.index is not None or one.array_len is not None:
            yield from self._lengths(path, words, (_elements(here), _elements(there)), sure=not older)
        else:
            yield Misfit(path, words, self._sure(one.name, older=older))

    def _array(self, here: Array, there: Array, above: str, *, older: bool, depth: int) -> Iterator[Misfit]:
        """Compare a field, or the elements of an array of structs."""
        one, other = here[0], there[0]
        own, its = _total(here), _total(there)
        if own == its or one.type in VARYING or other.type in VARYING:
            self._note_inside(here, there, depth)
            return
        path = f"{above}{one.name}"
        fixed = FIXED.fullmatch(one.type) is not None and FIXED.fullmatch(other.type) is not None
        if one.name != other.name:
            words = f"{own} bytes in the stream, where the destination has {name(other.name)}, {its} bytes"
            sure = self._sure(one.name, older=older) and self._sure(other.name, older=older)
            yield Misfit(path, words, fixed and sure)
            return
        sure = fixed and not (older and INDEX.search(one.name))
        lengths = _elements(here), _elements(there)
        if lengths[0] != lengths[1]:
            words = f"{lengths[0]} elements in the stream, {lengths[1]} at the destination"
            yield from self._lengths(path, words, lengths, sure=sure)
            return
        for element, its_own in zip(here, there, strict=False):
            if element.children and its_own.children:
                yield from self._fields(
                    element.children, its_own.children, f"{path}.", older=False, depth=depth + 1
                )
        words = f"{own} bytes in the stream, {its} at the destination"
        if INTEGER.fullmatch(one.type) and INTEGER.fullmatch(other.type):
            yield Misfit(path, words, sure)
        elif not one.children or not other.children:
            plain = "struct" not in (one.type, other.type)
            yield from self._lengths(path, words, (own, its), sure=sure and plain)

    def _lengths(self, path: str, words: str, lengths: Ratio, *, sure: bool) -> Iterator[Misfit]:
        """Lengths that differ, unless the destination reads them in the stream."""
        if lengths not in self.counts:
            yield Misfit(path, words, sure and _reduced(lengths) not in self.ratios)

    def _sure(self, label: str, *, older: bool) -> bool:
        """Whether nothing in the streams can have made a field come or not."""
        return CONFIGURED.fullmatch(label) is not None or not (older or self.differs)

    # ------------------------------------------------------------ what may tell of what comes

    def _note_all(self, stream: Sequence[Field], device: Sequence[Field], depth: int) -> None:
        for here, there in _aligned(stream, device):
            self._note(here, there)
            self._note_inside(here, there, depth)

    def _note_inside(self, here: Array, there: Array, depth: int) -> None:
        for one, other in zip(here, there, strict=False):
            if depth < MAX_DEPTH and one.children and other.children:
                self._note_all(one.children, other.children, depth + 1)

    def _note(self, here: Array, there: Array) -> None:
        for one, other in zip(here, there, strict=False):
            values = one.value, other.value
            if values[0] == values[1] and (one.size, one.raw) == (other.size, other.raw):
                continue
            self.differs = True
            if isinstance(values[0], int) and isinstance(values[1], int) and values[0] != values[1]:
                pair = values[0], values[1]
                self.ratios.add(_reduced(pair))
                if INTEGER.fullmatch(one.type) and INTEGER.fullmatch(other.type):
                    self.counts.add(pair)


def least_size(fields: Sequence[Field]) -> int | None:
    """The bytes of a section like this if each field comes; None if that depends on what stands in it."""
    counts: set[int] = set()
    for array in _arrays(fields):
        told = (array[0].index is not None or array[0].array_len is not None) and _elements(array) in counts
        if told or any(not FIXED.fullmatch(one.type) or one.children for one in array):
            return None
        counts.update(one.value for one in array if isinstance(one.value, int))
    return _total(fields)


def subsections(fields: Sequence[Field]) -> Iterator[Field]:
    """The subsections at any depth, in stream order."""
    waiting = list(reversed(fields))
    while waiting:
        one = waiting.pop()
        if one.type == "subsection":
            yield one
        waiting += reversed(one.children)


def each_name(found: Iterable[Field]) -> Iterator[Field]:
    """The first field of each name."""
    seen = set[str]()
    for one in found:
        if one.name not in seen:
            seen.add(one.name)
            yield one


def grown(stream: Sequence[Field], device: Sequence[Field]) -> bool:
    """Whether the destination has all these fields, and perhaps more, as a later version has."""
    return {one.name for one in stream} <= {one.name for one in device}


def _handmade(fields: Sequence[Field]) -> bool:
    """Whether code of its own wrote the section, of which QEMU tells the size (vmstate_save_old_style)."""
    return [(one.name, one.type) for one in fields[:2]] == [("data", "buffer")]


def _told_before(before: tuple[Array, Array] | None, sent: bool) -> bool:
    """Whether the number right before a field that one side has is 0 on the other, and only there."""
    if before is None:
        return False
    here, there = before[0][-1], before[1][-1]
    numbers = all(isinstance(one.value, int) and INTEGER.fullmatch(one.type) for one in (here, there))
    return numbers and bool(here.value) is sent and bool(there.value) is not sent


def _aligned(stream: Sequence[Field], device: Sequence[Field]) -> Iterator[tuple[Array, Array]]:
    """What has the same place: the same name, or another that the other side has nowhere; [] for nothing."""
    ours, theirs = list(_arrays(stream)), list(_arrays(device))
    names = [{array[0].name for array in side} for side in (ours, theirs)]
    at = [0, 0]
    while at[0] < len(ours) and at[1] < len(theirs):
        here, there = ours[at[0]], theirs[at[1]]
        if here[0].name in names[1] and there[0].name not in names[0]:
            here = []
        elif here[0].name not in names[1] and there[0].name in names[0]:
            there = []
        at = [at[0] + bool(here), at[1] + bool(there)]
        yield here, there
    yield from ((here, []) for here in ours[at[0] :])
    yield from (([], there) for there in theirs[at[1] :])


def _arrays(fields: Sequence[Field]) -> Iterator[Array]:
    """Fields without subsections, the elements of an array together.

    Some QEMUs tell the index of each element, some of none, and 10.0 of all but the last.
    """
    plain = (one for one in fields if one.type != "subsection")
    for _, group in groupby(plain, key=lambda one: one.name):
        yield list(group)


def _reduced(numbers: Ratio) -> Ratio:
    common = gcd(*numbers) or 1
    return numbers[0] // common, numbers[1] // common


def _total(fields: Sequence[Field]) -> int:
    return sum(_size(one, 0) for one in fields if one.type != "subsection")


def _elements(array: Sequence[Field]) -> int:
    return sum(1 if one.array_len is None else one.array_len for one in array)


def _size(field: Field, depth: int) -> int:
    """Bytes without subsections, which come only when they are needed."""
    if not field.children or depth > MAX_DEPTH:
        return field.size
    inner = [one for one in field.children if one.type == "subsection"]
    if inner:
        return field.size - sum(one.size for one in inner)
    return field.size - sum(one.size - _size(one, depth + 1) for one in field.children if one.children)


# ---------------------------------------------------------------- against a schema


@dataclass(slots=True)
class Group:
    """The fields of a section that have one name, the elements of an array; what is inside of the first."""

    first: Field
    elements: int = 0
    size: int = 0
    _inside: "Groups | None" = None

    def inside(self) -> "Groups":
        """What is inside, put together once for all that it is compared with."""
        if self._inside is None:
            self._inside = grouped(self.first.children)
        return self._inside


Groups = dict[str, Group]


def grouped(fields: Sequence[Field]) -> Groups:
    """The fields of a section as `schema_misfit` compares them."""
    found: Groups = {}
    for one in fields:
        if one.type not in ("subsection", "opaque"):
            group = found.setdefault(INDEX.sub("", one.name), Group(one))
            group.elements += 1 if one.array_len is None else one.array_len
            group.size += one.size
    return found


def schema_misfit(
    here: Groups, state: State, version: int, renamed: dict[str, None], above: str = "", depth: int = 0
) -> Misfit | None:
    """Compare a section with its vmstate in -dump-vmstate: names, sizes of integers, array lengths if told.

    `renamed` is told the structs whose names differ on both sides: nothing can be said of those.
    """
    there = state.by_name
    extra = next((label for label in here if label not in there), None)
    if extra is not None:
        if all(label in here for label in there):  # else it may be another's new name
            return Misfit(above + extra, "the destination has no such field", certain=True)
        if len(renamed) < MAX_RENAMED:
            renamed[above + extra] = None
        return None
    for label, fields in there.items():
        if label not in here and _always(fields, version):
            # -dump-vmstate tells since QEMU 10.0 only which are arrays of a length that may be 0
            return Misfit(above + label, "the stream has no such field", fields[0].num is not None)
    for label, group in here.items():
        if len(there[label]) == 1:
            found = _field_misfit(group, there[label][0], above + label, renamed, depth)
            if found is not None:
                return found
    return None


def _field_misfit(
    here: Group, there: StateField, path: str, renamed: dict[str, None], depth: int
) -> Misfit | None:
    kind = here.first.type
    if there.num is not None and there.num > 1 and here.elements != there.num and kind != "null":
        words = f"{here.elements} elements in the stream, {there.num} at the destination"
        return Misfit(path, words, certain=True)
    if INTEGER.fullmatch(kind) and here.elements and there.size:
        size = here.size // here.elements
        if size != there.size:
            words = f"{size} bytes in the stream, {there.size} at the destination"
            return Misfit(path, words, certain=True)
    if there.inside is not None and here.first.children and depth < MAX_DEPTH:
        inner = there.inside
        return schema_misfit(here.inside(), inner, inner.version_id, renamed, f"{path}.", depth + 1)
    return None


def _always(fields: Sequence[StateField], version: int) -> bool:
    """Whether one always comes: structs without a number may be an array, which may have no elements."""
    return any(
        not (one.exists or one.num == 0 or (one.num is None and one.inside is not None))
        and one.version_id <= version
        and one.size > 0
        for one in fields
    )
