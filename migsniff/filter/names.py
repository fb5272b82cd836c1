"""The fields that a filter can name: made from the structs of core/events.py, under stable names.

A name is the prefix of its record and the attribute, `verdict.outcome`. What stands inside (`counts`,
`facts`) is named as if it stood there itself; elements of `blocks` are `PREFIX.block`.
"""

import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec

from migsniff.core import events
from migsniff.core.events import (
    SEVERITIES,
    UNLISTED,
    ChannelFound,
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    Draining,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    MultifdSync,
    Opaque,
    Package,
    PageFault,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    Section,
    Severity,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Undecodable,
    Verdict,
)
from migsniff.filter.descriptions import ARGUMENTS, DESCRIPTIONS

Scalar = bool | int | float | str | bytes
Get = Callable[[Any, int, str], Any]
"""(event, its time in microseconds, the migration's id) -> a value or None; where there may be many, all."""


class Kind(StrEnum):
    """What the values of a field are."""

    NUMBER = "number"
    SECONDS = "seconds"
    BOOLEAN = "boolean"
    TEXT = "text"
    BYTES = "bytes"
    SEVERITY = "severity"
    RECORD = "record"  # whether a record is of this kind
    DEVICE = "device field"  # as its type in each record has it


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record of one type has a field. `hidden`: for comparisons only, no column shows it."""

    get: Get
    many: bool = False
    hidden: bool = False


@dataclass(slots=True)
class Name:
    """A field. `choices`: the words that are its values, in their order if they have one."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()
    sources: dict[type[Event], list[Source]] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What it is, in words."""
        return DESCRIPTIONS.get(self.name, "")


PREFIXES: Final[dict[type[Event], tuple[str, ...]]] = {
    ChannelFound: ("channel",),
    Header: ("header",),
    Configuration: ("config",),
    RamBlocks: ("ram",),
    RamSection: ("ram", "section"),
    LoosePages: ("ram",),
    LiveSection: ("section",),
    DeviceSection: ("section", "device"),
    CommandSent: ("command",),
    ReturnPathMessage: ("reply",),
    PageFault: ("fault", "ram"),
    Package: ("package",),
    ColoMessage: ("colo",),
    DirtySync: ("sync", "ram"),
    EndOfStream: ("eof",),
    DescriptionFound: ("description",),
    MultifdHello: ("multifd",),
    MultifdPacket: ("multifd", "packet"),
    MultifdSync: ("multifd", "ram"),
    TlsMessage: ("tls",),
    TlsRecords: ("tls",),
    TlsEnded: ("tls",),
    Opaque: ("opaque",),
    Undecodable: ("expert", "undecodable"),
    Finding: ("expert",),
    Draining: ("draining",),
    DirectionEnded: ("end",),
    Verdict: ("verdict",),
}
"""What the attributes of a record are named after, first, and of what kind it is beside that."""

RENAMED: Final = {
    "section.section_type": "section.type",
    "section.section_id": "section.id",
    "section.idstr": "section.name",
    "section.instance_id": "section.instance",
    "section.version_id": "section.version",
    "command.command": "command.number",
    "reply.message": "reply.number",
    "colo.message": "colo.number",
}
_FLAT: Final = {"counts", "facts"}
_HEXADECIMAL: Final = {"evidence"}
_NOT_NAMED: Final = {(DeviceSection, "fields"), (DeviceSection, "image"), (DescriptionFound, "text")}


@cache
def names() -> dict[str, Name]:
    """All names but those of the fields of devices."""
    found: dict[str, Name] = {}

    def add(name: str, kind: Kind, cls: type[Event], source: Source, choices: tuple[str, ...] = ()) -> None:
        name = RENAMED.get(name, name)
        one = found.setdefault(name, Name(name, kind, choices))
        if (one.kind, one.choices) != (kind, choices):
            raise TypeError(f"{name} is {one.kind}, and of {cls.__name__} {kind}")
        one.sources.setdefault(cls, []).append(source)

    for cls, prefixes in PREFIXES.items():
        for extra in _EXTRA:
            if issubclass(cls, extra.classes):
                add(extra.name, extra.kind, cls, extra.source, extra.choices)
        for prefix in prefixes:
            if prefix != "channel":  # which is a field of every record
                add(prefix, Kind.RECORD, cls, Source(lambda event, time, migration: True))
        own = _own(cls)
        for attribute, hint in typing.get_type_hints(cls).items():
            if (cls, attribute) in _NOT_NAMED or attribute not in cls.__struct_fields__:
                continue
            for name, kind, choices, steps in _leaves(own.get(attribute, ""), attribute, hint):
                add(name, kind, cls, _source(steps), choices)
        if cls in ARGUMENTS:
            for argument, (what, _) in ARGUMENTS[cls].items():
                add(f"{prefixes[0]}.{argument}", Kind(what), cls, _argument(argument))
    return found


def _own(cls: type[Event]) -> dict[str, str]:
    """The prefix of each attribute that not every record has."""
    common, section = set(Event.__struct_fields__), set(Section.__struct_fields__)
    own = {name: PREFIXES[cls][0] for name in cls.__struct_fields__ if name not in common}
    return own | (dict.fromkeys(section - common, "section") if issubclass(cls, Section) else {})


Step = tuple[str, bool]
"""An attribute, and whether it holds several of what comes next."""


def _leaves(
    prefix: str, attribute: str, hint: object
) -> Iterator[tuple[str, Kind, tuple[str, ...], tuple[Step, ...]]]:
    """(name, kind, choices, the way there) of all values of an attribute."""
    name = f"{prefix}.{attribute}" if prefix else attribute
    hint, several = _bare(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        below = prefix if attribute in _FLAT else f"{prefix}.{attribute.removesuffix('s')}"
        for inner, inner_hint in _attributes(hint):
            # the name of an element is the element
            named = _bare(inner_hint)[0] is str and inner in ("name", "block") and several
            for leaf in _leaves(below, inner, inner_hint):
                yield below if named else leaf[0], leaf[1], leaf[2], ((attribute, several), *leaf[3])
        return
    if typing.get_origin(hint) is dict:
        return
    kind, choices = (Kind.BYTES, ()) if attribute in _HEXADECIMAL else _kind(hint)
    yield name, kind, choices, ((attribute, several),)


def _attributes(struct: type[msgspec.Struct]) -> Iterator[tuple[str, object]]:
    """The attributes of a struct, and what it tells by properties."""
    hints = typing.get_type_hints(struct)
    for attribute in struct.__struct_fields__:
        yield attribute, hints[attribute]
    for attribute, member in vars(struct).items():
        if isinstance(member, property):
            yield attribute, typing.get_type_hints(member.fget)["return"]


def _bare(hint: object) -> tuple[object, bool]:
    """A type without "or None", and whether there are several of it."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [one for one in typing.get_args(hint) if one is not type(None)]
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _kind(hint: object) -> tuple[Kind, tuple[str, ...]]:
    if hint is Severity:
        return Kind.SEVERITY, SEVERITIES
    if typing.get_origin(hint) is Literal:
        return Kind.TEXT, typing.get_args(hint)
    kinds: dict[object, Kind] = {
        bool: Kind.BOOLEAN,
        int: Kind.NUMBER,
        float: Kind.NUMBER,
        str: Kind.TEXT,
        bytes: Kind.BYTES,
    }
    return kinds[hint], ()


def _source(steps: Sequence[Step]) -> Source:
    """What follows the steps from an event; nothing is said by None and by an empty text."""
    if not any(several for _, several in steps):
        get = attrgetter(".".join(attribute for attribute, _ in steps))

        def one(event: Any, time: int, migration: str) -> Any:
            value = get(event)
            return None if value == "" else value

        def octets(event: Any, time: int, migration: str) -> bytes | None:
            return _octets(get(event))

        return Source(octets if steps[-1][0] in _HEXADECIMAL else one)

    def all_of(event: Any, time: int, migration: str) -> list[Any]:
        values = [event]
        for attribute, several in steps:
            values = [getattr(value, attribute) for value in values]
            if several:
                values = [element for value in values if value is not None for element in value]
        return [value for value in values if value is not None and value != ""]

    return Source(all_of, many=True)


def _argument(name: str) -> Source:
    """An argument of a command or message; of ranges, all starts or all lengths."""
    argument, _, part = name.partition(".")

    def get(event: Any, time: int, migration: str) -> list[Any]:
        value = event.arguments.get(argument)
        if isinstance(value, tuple):
            return [pair[0 if part == "start" else 1] for pair in value] if part else []
        return [value] if isinstance(value, int | str) and not part else []

    return Source(get, many=True)


# ---------------------------------------------------------------- what no attribute holds as such


@dataclass(frozen=True, slots=True)
class _Extra:
    name: str
    kind: Kind
    classes: tuple[type[Event], ...]
    source: Source
    choices: tuple[str, ...] = ()


_TAGS: Final = tuple(sorted(str(cls.__struct_config__.tag) for cls in PREFIXES))
_RAM_BLOCK_NAMED: Final = (PageFault, CommandSent, ReturnPathMessage)


def _ram_block(event: Any, time: int, migration: str) -> list[str]:
    if isinstance(event, CommandSent | ReturnPathMessage):
        name = event.arguments.get("block")
        return [name] if isinstance(name, str) else []
    if isinstance(event, MultifdPacket):  # with device state it names a device
        return [event.block] if event.block and event.method != "device-state" else []
    return [event.block] if isinstance(event, PageFault) else [part.block for part in event.blocks]


_EXTRA: Final = (
    _Extra("time", Kind.SECONDS, (Event,), Source(lambda event, time, migration: time / 1e6)),
    _Extra("migration", Kind.TEXT, (Event,), Source(lambda event, time, migration: migration)),
    _Extra(
        "type",
        Kind.TEXT,
        (Event,),
        Source(lambda event, time, migration: event.__struct_config__.tag),
        _TAGS,
    ),
    _Extra("section.size", Kind.NUMBER, (Section,), Source(lambda event, time, migration: event.size)),
    _Extra(
        "section.name",
        Kind.TEXT,
        (Section,),
        Source(lambda event, time, migration: event.idstr.rpartition("/")[2] or None, hidden=True),
    ),
    _Extra(
        "ram.block",
        Kind.TEXT,
        (*_RAM_BLOCK_NAMED, DirtySync, MultifdSync, MultifdPacket),
        Source(_ram_block, many=True, hidden=True),
    ),
    _Extra(
        "expert.severity",
        Kind.SEVERITY,
        (Undecodable,),
        Source(lambda event, time, migration: "error"),
        SEVERITIES,
    ),
)


def _octets(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text) or None
    except ValueError:
        return None


def listed() -> Iterator[type[Event]]:
    """All types of records."""

    def leaves(cls: type[Event]) -> Iterator[type[Event]]:
        below = cls.__subclasses__()
        if not below:
            yield cls
        for each in below:
            yield from leaves(each)

    for cls in leaves(Event):
        if cls.__module__ == events.__name__ and cls not in UNLISTED:
            yield cls
