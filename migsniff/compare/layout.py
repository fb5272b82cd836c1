"""Where the fields of a section do not have the places in which the destination reads them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest
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
"""Types that have as many bytes in memory as on the wire."""
VARYING: Final = ("qtailq", "qlist", "gtree", "virtio", "opaque")
"""Types that say themselves in the stream how long they are, or of which nothing is known."""
INDEX: Final = re.compile(r"\[\d+\]$")


class Misfit(NamedTuple):
    """The first field that does not fit, in words; `certain`: its length is not told by the stream."""

    path: str
    words: str
    certain: bool


def misfit(stream: Sequence[Field], device: Sequence[Field], above: str = "") -> Misfit | None:
    """Compare a section with the destination's own; names may differ, bytes may not."""
    return _fields(stream, device, above, set(), 0)


def least_size(fields: Sequence[Field]) -> int | None:
    """The bytes that a section like this has in any case; None if that depends on what stands in it."""
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
        field = waiting.pop()
        if field.type == "subsection":
            yield field
        waiting += reversed(field.children)


def _fields(
    stream: Sequence[Field], device: Sequence[Field], above: str, counts: set[int], depth: int
) -> Misfit | None:
    if _total(stream) == _total(device):  # a field may have been divided, or one that is unused given a use
        return None
    for here, there in zip_longest(_arrays(stream), _arrays(device)):
        if there is None:
            return _alone(here, above, "the destination has no such field")
        if here is None:
            return _alone(there, above, "the stream has no such field")
        if (found := _array(here, there, above, counts, depth)) is not None:
            return found
        counts.update(one.value for one in here if isinstance(one.value, int))
    return None


def _alone(array: list[Field], above: str, words: str) -> Misfit | None:
    if array[0].type in VARYING or not (size := _total(array)):
        return None
    # an array without elements does not show at all
    return Misfit(f"{above}{array[0].name}", f"{words} ({size} bytes)", array[0].index is None)


def _array(here: list[Field], there: list[Field], above: str, counts: set[int], depth: int) -> Misfit | None:
    """Compare a field, or the elements of an array of structs."""
    one, other = here[0], there[0]
    own, its = _total(here), _total(there)
    if one.type in VARYING or other.type in VARYING or own == its or depth > MAX_DEPTH:
        return None
    path = f"{above}{one.name}"
    if one.name != other.name:
        words = f"{own} bytes in the stream, where the destination has {name(other.name)}, {its} bytes"
        return Misfit(path, words, bool(FIXED.fullmatch(one.type) and FIXED.fullmatch(other.type)))
    lengths = _elements(here), _elements(there)
    if lengths[0] != lengths[1]:
        words = f"{lengths[0]} elements in the stream, {lengths[1]} at the destination"
        told = lengths[0] in counts  # the stream itself may have said how many there are
        return Misfit(path, words, not told and FIXED.fullmatch(one.type) is not None)
    for element, its_own in zip(here, there, strict=True):
        if element.children and its_own.children:
            inner = _fields(element.children, its_own.children, f"{path}.", counts, depth + 1)
            if inner is not None:
                return inner
    words = f"{own} bytes in the stream, {its} at the destination"
    return Misfit(path, words, not one.children and FIXED.fullmatch(one.type) is not None)


def _arrays(fields: Sequence[Field]) -> Iterator[list[Field]]:
    """Fields without subsections, the elements of an array together."""
    plain = (one for one in fields if one.type != "subsection")
    for _, group in groupby(plain, key=lambda one: (one.name, one.index is None)):
        yield list(group)


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
    for field in fields:
        if field.type not in ("subsection", "opaque"):
            group = found.setdefault(INDEX.sub("", field.name), Group(field))
            group.elements += 1 if field.array_len is None else field.array_len
            group.size += field.size
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
