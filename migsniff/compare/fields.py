"""Two trees of fields: what is not the same in their make, and what in their values."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from msgspec.structs import replace

from migsniff.compare.difference import Difference, Said, Tally
from migsniff.compare.ignore import CLOCKS, Ignore
from migsniff.core.events import Field, Value
from migsniff.show.fields import value_text
from migsniff.show.words import escape, name, several

MOST_OF_A_FIELD: Final = 16
"""Differing elements, stretches of bytes and lonely parts of a field that are told one by one."""
MOST_BYTES_NAMED: Final = 4096
"""Differing bytes of a field that patterns may name one by one."""
BYTES_SHOWN: Final = 32


class Place(NamedTuple):
    """Where two fields stand: their path, the channels of both sides, and whether values here are ignored.

    `clock`: the set `clocks` would ignore them.
    """

    path: str
    channels: tuple[str, str]
    ignored: bool = False
    clock: bool = False

    def below(self, step: str) -> "Place":
        """The place of a field in here."""
        return self._replace(path=f"{self.path}.{step}")


class Trees(NamedTuple):
    """How two trees are compared: what is left out, and where that is counted."""

    ignore: Ignore
    tally: Tally

    # ------------------------------------------------------------ make

    def make(
        self, left: Sequence[Field], right: Sequence[Field], place: Place, *, whole: bool = True
    ) -> Iterator[Difference]:
        """Fields and subsections that one side alone has, or that are not of the same make.

        Not `whole`: one side breaks off in here, so that what it lacks means nothing.
        """
        counts = [Counter(field.name for field in side) for side in (left, right)]
        arrays = {field.name for field in (*left, *right) if field.index is not None}
        told: set[str] = set()
        for step, one, other in paired(left, right):
            here = place.below(step)
            if self.ignore.all_of(here.path):
                continue
            field = one or other
            if one is not None and other is not None:
                yield from self._pair(one, other, here, whole=whole)
            elif field is None or not whole:
                continue
            elif field.name not in arrays:
                what = "subsection" if field.type == "subsection" else "field"
                yield _difference("structure", what, here, one, other, *map(_make_text, (one, other)))
            elif field.name not in told:
                told.add(field.name)
                lengths = [several(count[field.name], "element") for count in counts]
                array = place.below(name(field.name))
                yield _difference("structure", "array length", array, one, other, *lengths)

    def _pair(self, one: Field, other: Field, place: Place, *, whole: bool) -> Iterator[Difference]:
        for what, left, right in _facts(one, other):
            if left != right:
                yield _difference("structure", what, place, one, other, left, right)
        if one.children and other.children:
            yield from self.make(one.children, other.children, place, whole=whole)

    # ------------------------------------------------------------ values

    def values(self, left: Sequence[Field], right: Sequence[Field], place: Place) -> Iterator[Difference]:
        """The leaves that both sides have and in which other values stand."""
        for step, one, other in paired(left, right):
            if one is None or other is None or same_field(one, other):
                continue
            here = place.below(step)
            if self.ignore.all_of(here.path):
                self.tally.ignored += 1
                continue
            here = self._regarded(here, self.ignore.timers(one, other), CLOCKS.timers(one, other))
            if not (one.children and other.children):
                yield from self._leaf(one, other, here)
            elif one.raw and other.raw:
                yield from self._image(one, other, here)
            else:
                yield from self.values(one.children, other.children, here)

    def _regarded(self, place: Place, ignored: bool = False, clock: bool = False) -> Place:
        return place._replace(
            ignored=place.ignored or ignored or self.ignore.value(place.path),
            clock=place.clock or clock or CLOCKS.value(place.path),
        )

    def _image(self, one: Field, other: Field, place: Place) -> Iterator[Difference]:
        """Bytes that were taken apart: their parts, then bytes that differ and are in no part."""
        yield from self.values(one.children, other.children, place)
        alone = [pair for pair in paired(one.children, other.children) if None in pair]
        for step, mine, its in alone[:MOST_OF_A_FIELD]:
            texts = (None if part is None else _part_text(part) for part in (mine, its))
            yield from self._told(place.below(step), mine, other=its, texts=tuple(texts))
        if len(alone) > MOST_OF_A_FIELD:
            yield from self._more(place, len(alone) - MOST_OF_A_FIELD, "part")
        yield from self._bytes(one, other, place, [*_spans(one), *_spans(other)])

    def _leaf(self, one: Field, other: Field, place: Place) -> Iterator[Difference]:
        if isinstance(one.value, tuple) and isinstance(other.value, tuple):
            yield from self._array(one, other, one.value, other.value, place)
        elif (
            None in (one.value, other.value)
            and one.raw
            and other.raw
            and "timer" not in (one.type, other.type)
        ):
            yield from self._bytes(one, other, place, [])
        elif one.value is None or not _equal(one.value, other.value):
            yield from self._told(place, one, other, (value_text(one), value_text(other)))
        elif one.size == other.size:  # another byte for the same value, or another meaning
            yield from self._bytes(one, other, place, [])

    def _array(
        self, one: Field, other: Field, left: Sequence[Value], right: Sequence[Value], place: Place
    ) -> Iterator[Difference]:
        """The elements that differ, of as many as both have."""
        sizes = [field.size // max(1, len(values)) for field, values in ((one, left), (other, right))]
        differing = [
            index for index, (mine, its) in enumerate(zip(left, right, strict=False)) if not _equal(mine, its)
        ]
        for index in differing[:MOST_OF_A_FIELD]:
            pair = (
                replace(
                    field,
                    offset=field.offset + index * size,
                    size=size,
                    array_len=None,
                    raw=field.raw[index * size : (index + 1) * size],
                    value=values[index],
                    meaning="",
                )
                for field, values, size in zip((one, other), (left, right), sizes, strict=True)
            )
            mine, its = pair
            here = self._regarded(
                place._replace(path=f"{place.path}[{index}]"),
                self.ignore.timers(mine, its),
                CLOCKS.timers(mine, its),
            )
            yield from self._told(here, mine, its, (value_text(mine), value_text(its)))
        if len(differing) > MOST_OF_A_FIELD:
            yield from self._more(place, len(differing) - MOST_OF_A_FIELD, "element")
        elif not differing and len(left) == len(right):  # equal numbers, other bytes: NaN, say
            yield from self._bytes(one, other, place, [])

    def _bytes(
        self, one: Field, other: Field, place: Place, told: Sequence[tuple[int, int]]
    ) -> Iterator[Difference]:
        """The stretches of bytes that differ and are not in `told`, spans within the field."""
        length = min(len(one.raw), len(other.raw))
        differ = np.frombuffer(one.raw, np.uint8, length) != np.frombuffer(other.raw, np.uint8, length)
        for start, stop in told:
            differ[start:stop] = False
        indices = np.flatnonzero(differ)
        if len(indices) <= MOST_BYTES_NAMED and not place.ignored:
            for index in indices.tolist():
                if self.ignore.value(path := f"{place.path}[{index}]") or self.ignore.all_of(path):
                    differ[index] = False
                    self.tally.ignored += 1
        edges = np.flatnonzero(np.diff(differ, prepend=False, append=False)).reshape(-1, 2)
        for start, stop in islice(edges.tolist(), MOST_OF_A_FIELD):
            span = f"[{start}]" if stop == start + 1 else f"[{start}..{stop - 1}]"
            here = place._replace(path=place.path + span)
            clock = all(
                CLOCKS.value(f"{place.path}[{index}]") for index in range(start, min(stop, start + 16))
            )
            pair = (
                replace(
                    field,
                    offset=field.offset + start,
                    size=stop - start,
                    raw=field.raw[start:stop],
                    value=None,
                )
                for field in (one, other)
            )
            mine, its = pair
            yield from self._told(
                self._regarded(here, clock=clock), mine, its, (_hex(mine.raw), _hex(its.raw))
            )
        if len(edges) > MOST_OF_A_FIELD:
            yield from self._more(place, len(edges) - MOST_OF_A_FIELD, "stretch of bytes")

    def _told(
        self, place: Place, one: Field | None, other: Field | None, texts: tuple[str | None, ...]
    ) -> Iterator[Difference]:
        """A difference, unless it is ignored."""
        if place.ignored or self.ignore.all_of(place.path):
            self.tally.ignored += 1
            return
        self.tally.clocks += place.clock
        yield _difference("values", "value", place, one, other, *texts)

    def _more(self, place: Place, count: int, what: str) -> Iterator[Difference]:
        """Differences that are only counted."""
        if place.ignored:
            self.tally.ignored += count
            return
        said = Said(f"{count} more: {what}", value=count)
        yield Difference(group="values", what="more", path=place.path, left=said, right=said)


def paired(left: Sequence[Field], right: Sequence[Field]) -> Iterator[tuple[str, Field | None, Field | None]]:
    """The fields that have the same name, and number among those of that name, with the step to them."""
    mine, its = dict(_keyed(left)), dict(_keyed(right))
    arrays = {field.name for field in (*left, *right) if field.index is not None}
    arrays |= {text for text, number in (*mine, *its) if number}
    for key in mine | its:
        text, number = key
        step = f"{name(text)}[{number}]" if text in arrays else name(text)
        yield step, mine.get(key), its.get(key)


def same(left: Sequence[Field], right: Sequence[Field]) -> bool:
    """Whether two trees say the same, wherever it stands."""
    return len(left) == len(right) and all(map(same_field, left, right))


def same_field(one: Field, other: Field) -> bool:
    """Whether two fields say the same."""
    return (
        one.raw == other.raw
        and one.name == other.name
        and one.type == other.type
        and one.size == other.size
        and one.array_len == other.array_len
        and one.version == other.version
        and (bool(one.raw) or _equal(one.value, other.value))
        and same(one.children, other.children)
    )


Key = tuple[str, int]


def _keyed(fields: Sequence[Field]) -> Iterator[tuple[Key, Field]]:
    """Each field with its name, and how many of that name came before it.

    That is an array's index: QEMU 10 describes the last element of some arrays as a field of its own.
    """
    seen: Counter[str] = Counter()
    for field in fields:
        yield (field.name, seen[field.name]), field
        seen[field.name] += 1


def _equal(one: Value, other: Value) -> bool:
    return type(one) is type(other) and one == other


def _facts(one: Field, other: Field) -> list[tuple[str, str, str]]:
    """What two fields are made of, in words: of what both have to be alike."""
    facts = [("type", escape(one.type), escape(other.type))]
    if one.version is not None or other.version is not None:
        facts.append(("version", str(one.version), str(other.version)))
    if one.array_len is not None or other.array_len is not None:
        facts.append(("array length", _length(one), _length(other)))
    elif not (one.children and other.children):
        facts.append(("size", several(one.size, "byte"), several(other.size, "byte")))
    return facts


def _length(field: Field) -> str:
    return "no array" if field.array_len is None else several(field.array_len, "element")


def _make_text(field: Field | None) -> str | None:
    if field is None:
        return None
    version = "" if field.version is None else f"version {field.version}, "
    if field.type == "subsection":
        return f"{version}{several(field.size, 'byte')}"
    return f"{escape(field.type)}, {version}{several(field.size, 'byte')}"


def _part_text(part: Field) -> str:
    if part.meaning or not part.children:
        return value_text(part)
    return f"{several(len(part.children), 'field')}, {several(part.size, 'byte')}"


def _spans(image: Field) -> Iterator[tuple[int, int]]:
    """Where in the image its leaves stand."""
    waiting = list(image.children)
    while waiting:
        field = waiting.pop()
        if field.children:
            waiting += field.children
        else:
            start = field.offset - image.offset
            yield max(0, start), max(0, start + field.size)


def _hex(raw: bytes) -> str:
    return raw.hex() if len(raw) <= BYTES_SHOWN else f"{raw[:BYTES_SHOWN].hex()}... ({len(raw)} bytes)"


def _difference(
    group: str,
    what: str,
    place: Place,
    one: Field | None,
    other: Field | None,
    left: str | None,
    right: str | None,
) -> Difference:
    sides = (
        None
        if text is None
        else Said(text, channel, None if field is None else field.offset, _plain(group, field))
        for text, channel, field in zip((left, right), place.channels, (one, other), strict=True)
    )
    mine, its = sides
    return Difference("structure" if group == "structure" else "values", what, place.path, mine, its)


def _plain(group: str, field: Field | None) -> Value:
    return None if field is None or group == "structure" or isinstance(field.value, tuple) else field.value
