"""The names of fields: every event type and every attribute can be named, and says what it is."""

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from msgspec import UNSET
from msgspec.structs import replace

from migsniff.core.events import (
    Event,
    Finding,
    PageCounts,
    Severity,
    Undecodable,
)
from migsniff.filter.compile import Column, Filter
from migsniff.filter.descriptions import ARGUMENTS, DESCRIPTIONS
from migsniff.filter.names import PREFIXES, Kind, listed, names
from tests.catalogue import STREAMS
from tests.filtering import sample
from tests.playing import play

NOT_NAMED = {"fields", "image", "text", "arguments"}  # arguments and fields of devices are named one by one


def filled(hint: Any) -> Any:
    """A value of a type in which nothing is empty."""
    match get_origin(hint), get_args(hint):
        case origin, (first, *_) if origin is Literal:
            return first
        case origin, (first, *_) if origin is tuple:
            return (filled(first),)
        case origin, arguments if origin in (UnionType, Union):
            return filled(next(one for one in arguments if one is not NoneType))
        case origin, (first, *_) if origin is Annotated:
            return filled(first)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        given: dict[str, Any] = {"evidence": "0a0b", "fields": (), "image": UNSET, "arguments": {}}
        hints = get_type_hints(hint)
        return hint(
            **{name: given[name] if name in given else filled(hints[name]) for name in hint.__struct_fields__}
        )
    return {bool: True, int: 7, str: "x", float: 1.5, bytes: b"x"}.get(
        hint, {} if get_origin(hint) is dict else ()
    )


def all_events() -> Iterator[Event]:
    """What the catalogue's streams bring, and one record of each type with everything in it."""
    for stream in STREAMS.values():
        yield from play(stream)
    for cls in PREFIXES:
        event = filled(cls)
        given: dict[str, Any] = {"ranges": ((7, 7),), "block": "x"}
        arguments = {name.partition(".")[0] for name in ARGUMENTS.get(cls, ())}
        yield (
            replace(event, arguments={name: given.get(name, 7) for name in arguments}) if arguments else event
        )


EVENTS = [event for event in all_events() if type(event) in PREFIXES]


def test_every_type_of_record_has_a_prefix() -> None:
    assert set(PREFIXES) == set(listed())


def test_every_name_is_described_and_nothing_else() -> None:
    assert set(DESCRIPTIONS) == set(names())
    assert all(name.description for name in names().values())


def leaves(value: object) -> Iterator[object]:
    """All values inside, but those that say nothing."""
    match value:
        case msgspec.Struct():
            for attribute in value.__struct_fields__:
                if attribute not in NOT_NAMED:
                    yield from leaves(getattr(value, attribute))
        case tuple() | list():
            for element in value:
                yield from leaves(element)
        case None | "":
            return
        case _:
            yield value


def test_every_type_of_record_is_among_the_tests_events() -> None:
    assert {type(event) for event in EVENTS} == set(PREFIXES)


@pytest.mark.parametrize("cls", PREFIXES, ids=lambda cls: cls.__name__)
def test_whatever_a_record_holds_can_be_named(cls: type[Event]) -> None:
    """All values that stand in it are among those that the names of its type give."""
    for event in (event for event in EVENTS if type(event) is cls):
        found: list[object] = []
        for name in names().values():
            for source in name.sources.get(cls, ()):
                values = source.get(event, 5, "m")
                many = values if source.many else [values]
                found += [value for value in many if value is not None]
        texts = {str(value) for value in found} | {value.hex() for value in found if isinstance(value, bytes)}
        assert {str(value) for value in leaves(event)} <= texts


def test_every_argument_of_commands_and_messages_has_a_name() -> None:
    for event in EVENTS:
        arguments = getattr(event, "arguments", {})
        known = {name.partition(".")[0] for name in ARGUMENTS.get(type(event), ())}
        assert set(arguments) <= known, event


@pytest.mark.parametrize("name", [one for one, each in names().items() if each.kind is not Kind.RECORD])
def test_every_name_is_of_its_kind_in_some_record(name: str) -> None:
    """With the values that it has in a real or made stream, compared with themselves."""
    one = names()[name]
    column, wanted = Column(name), Filter(name)
    kinds: dict[Kind, type | tuple[type, ...]] = {
        Kind.NUMBER: int,
        Kind.SECONDS: float,
        Kind.BOOLEAN: bool,
        Kind.TEXT: str,
        Kind.BYTES: bytes,
        Kind.SEVERITY: str,
    }
    seen = False
    for event in EVENTS:
        for source in one.sources.get(type(event), ()):
            values = source.get(event, 1_500_000, "m")
            for value in values if source.many else [values]:
                if value is None:
                    continue
                assert isinstance(value, kinds[one.kind])
                assert not one.choices or value in one.choices
                assert wanted("m", 1_500_000, event)
                assert source.hidden or column.texts("m", 1_500_000, event)
                seen = True
    assert seen


def test_severities_are_ordered_and_what_cannot_be_decoded_is_an_error() -> None:
    finding = replace(next(event for event in EVENTS if isinstance(event, Finding)), severity="warn")
    bad = next(event for event in EVENTS if isinstance(event, Undecodable))
    levels: tuple[Severity, ...] = ("chat", "note", "warn", "error")
    for index, level in enumerate(levels):
        wanted = Filter(f"expert.severity >= {level}")
        assert wanted("m", 0, finding) == (index <= 2)
        assert wanted("m", 0, bad)


def test_counts_are_flat_and_have_their_sum() -> None:
    assert {f"sync.{kind}" for kind in (*PageCounts.__struct_fields__, "pages")} <= set(names())


def test_real_records_need_no_more() -> None:
    for _, event in sample("x86-72-pc"):
        assert type(event) in PREFIXES or type(event).__name__ in ("RamPages", "Blocked", "TcpInfo")
