"""Fields by their path: what each of a device's numbers means, in a table."""

from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.words import bits_text

FieldMeaning = Callable[[Field], Field]
"""A field as it came -> the same with `children` or `meaning`; unchanged if it is not as it should be."""
Words = Callable[[int], str]
Table = Mapping[str, FieldMeaning]
"""By the path: names with dots between, without indices; those of subsections are left out."""


def told(fields: tuple[Field, ...], table: Table, above: str = "") -> tuple[Field, ...]:
    """The fields, those that the table has with their meaning; the same tuple if it has none of them."""
    changed: list[Field] | None = None
    for index, field in enumerate(fields):
        path = above + field.name
        now = field
        if field.children:
            children = told(field.children, table, above if field.type == "subsection" else f"{path}.")
            if children is not field.children:
                now = replace(field, children=children)
        if (meaning := table.get(path)) is not None:
            now = meaning(now)
        if now is not field:
            if changed is None:
                changed = list(fields)
            changed[index] = now
    return fields if changed is None else tuple(changed)


def number(field: Field) -> int | None:
    """The value of a field that is one integer."""
    return field.value if type(field.value) is int else None


def says(words: Words) -> FieldMeaning:
    """An integer in words; nothing is said if there are none."""

    def meaning(field: Field) -> Field:
        value = number(field)
        text = "" if value is None else words(value)
        return replace(field, meaning=text) if text else field

    return meaning


def bits(names: Mapping[int, str]) -> Words:
    """Bits by these names, and the numbers of others."""
    return lambda value: bits_text(value, names)


def titled(names: Sequence[str]) -> FieldMeaning:
    """An element of an array of structs: what it is called."""

    def meaning(field: Field) -> Field:
        index = field.index
        return field if index is None or index >= len(names) else replace(field, meaning=names[index])

    return meaning


def elements(names: Mapping[int, str], words: Mapping[str, Words] | Words | None = None) -> FieldMeaning:
    """An array of integers: each that has a name becomes a child under it, with its meaning by that name."""
    by_name = words if isinstance(words, Mapping) else dict.fromkeys(names.values(), words)

    def meaning(field: Field) -> Field:
        values = field.value
        if not isinstance(values, tuple) or not values or field.children:
            return field
        size = field.size // len(values)
        children = []
        for index, name in names.items():
            if index < len(values) and type(value := values[index]) is int:
                say = by_name.get(name)
                at = field.offset + index * size
                text = say(value) if say else ""
                children.append(Field(name, field.type, at, size, value=value, meaning=text))
        return replace(field, children=tuple(children)) if children else field

    return meaning


def array(words: Callable[[tuple[int, ...]], str]) -> FieldMeaning:
    """An array of integers as a whole, in words."""

    def meaning(field: Field) -> Field:
        values = field.value
        if not isinstance(values, tuple) or not all(type(value) is int for value in values):
            return field
        text = words(values)  # type: ignore[arg-type]
        return replace(field, meaning=text) if text else field

    return meaning
