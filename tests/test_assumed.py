"""Device state read by descriptions from elsewhere: equal to the exact reading, or not believed."""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.core.arrivals import Assumed, Remembered
from migsniff.core.events import (
    DeviceSection,
    Event,
    Field,
    Finding,
)
from migsniff.core.session import Session
from tests import rawsamples, streams
from tests.assuming import assumed, descriptions, handmade
from tests.catalogue import SMALL_BLOCKS, SMALL_HEAD
from tests.describing import entry, struct
from tests.playing import (
    Cut,
    Stream,
    arrivals,
    bytewise,
    decode,
    of,
    pieces_of,
    precopy,
    strip,
    verdict,
    whole,
)
from tests.streams import EOF, Device

HEAD = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS) + streams.ram_end()
IDE = "0000:00:01.1/ide"  # knows the disk only if there is one, which needs a description of its own

# sample, whose descriptions it is read by, and what does not fit them
PAIRS = [
    ("x86-72-pc", "x86-72-refused", []),
    ("x86-72-passes", "x86-72-return-path", []),
    ("x86-72-passes", "x86-72-pc", [IDE]),
    ("x86-72-pc", "x86-72-passes", [IDE]),
    ("x86-100-pc", "x86-100-refused", []),
    ("x86-100-q35", "x86-100-pc", []),  # another number of interrupts, told by the field before them
    ("x86-111-pc", "x86-111-q35", []),
    ("x86-111-q35", "x86-111-pc", ["hpet"]),  # a subsection that the other has not
    ("aarch64-72-virt", "aarch64-72-virt", []),
    ("ppc64-100-pseries", "ppc64-100-pseries", []),
    ("s390x-72-ccw", "s390x-72-ccw", []),  # its own description is wrong, too
    ("x86-52-q35", "x86-52-pc", []),
]


def read(stream: Stream, known: Assumed | None, cut: Cut = whole, *, fields: bool = True) -> list[Event]:
    return decode(Session(fields=fields, assumed=known), arrivals(stream, cut))


def key(event: DeviceSection) -> tuple[str, int, int]:
    return event.idstr, event.instance_id, event.version_id


def device_sections(events: list[Event], *, provisional: bool) -> dict[tuple[str, int, int], DeviceSection]:
    return {key(event): event for event in of(events, DeviceSection) if event.provisional == provisional}


def codes(events: list[Event]) -> list[str]:
    return [finding.code for finding in of(events, Finding)]


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
class TestRealDevices:
    @pytest.mark.parametrize(("name", "other", "unfit"), PAIRS)
    def test_what_fits_reads_as_by_its_own_description(self, name: str, other: str, unfit: list[str]) -> None:
        known = descriptions(other)
        events = read(rawsamples.raw(name), assumed(known))
        live = device_sections(events, provisional=True)
        exact = device_sections(events, provisional=False)
        assert [event.idstr for event in live.values() if key(event) in known and not event.assumed] == unfit
        fitting = [event for event in live.values() if event.assumed]
        assert len(fitting) > 10
        for event in fitting:
            assert event.fields == exact[key(event)].fields
            assert event.assumed_from == other
        misfits = [finding for finding in of(events, Finding) if finding.code.startswith("assumed-")]
        assert [finding.message.split()[0] for finding in misfits] == unfit

    def test_postcopy_has_its_fields(self) -> None:
        known = assumed(descriptions("x86-100-pc"), descriptions("x86-100-multifd"))
        events = read(rawsamples.raw("x86-100-postcopy"), known)
        found = device_sections(events, provisional=True)
        assert len(found) == 31
        assert all(event.assumed and event.fields and not event.undescribed for event in found.values())
        state = found["globalstate", 0, 1].fields
        assert {field.name: field.value for field in state}["runstate"] == "running"

    def test_without_fields_the_same_are_believed(self) -> None:
        known = assumed(descriptions("x86-72-pc"))
        stream = rawsamples.raw("x86-72-q35")
        with_fields = device_sections(read(stream, known), provisional=True)
        without = device_sections(read(stream, known, fields=False), provisional=True)
        assert [event.assumed for event in without.values()] == [
            event.assumed for event in with_fields.values()
        ]
        assert not any(event.fields for event in without.values())

    @pytest.mark.parametrize("cut", [pieces_of(7), pieces_of(4096)], ids=["by 7", "by 4096"])
    def test_cuts_do_not_matter(self, cut: Cut) -> None:
        known = assumed(descriptions("x86-100-pc"))
        stream = tail(rawsamples.raw("x86-100-q35"))
        assert read(stream, known, cut) == read(stream, known)


def tail(stream: Stream) -> Stream:
    """A small stream with the device state of a large one."""
    first = of(decode(Session(), arrivals(stream)), DeviceSection)[0]
    return precopy(HEAD, stream.main[first.offset :])


def flat(fields: Sequence[Field]) -> Iterator[tuple[str, int, bytes]]:
    for field in fields:
        if field.children:
            yield from flat(field.children)
        elif field.raw:  # a struct of which nothing came has none
            yield field.name, field.offset, field.raw


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
class TestCutOff:
    """The stream ends inside a device, as when a migration fails: the field is named."""

    @pytest.mark.parametrize("name", ["x86-72-refused", "x86-111-q35", "aarch64-100-virt"])
    def test_anywhere_in_a_real_device(self, name: str) -> None:
        stream = tail(rawsamples.raw(name))
        known = assumed(descriptions(name))
        events = read(stream, known)
        exact = [event for event in of(events, DeviceSection) if not event.provisional]
        chance = random.Random(name)
        for device in chance.sample(exact, 14):
            end = device.offset + device.size - 5
            header = len(device.idstr) + 14
            at = chance.randrange(device.offset + header + 1, end + 1)
            cut = read(precopy(stream.main[:at]), known)
            (last,) = [event for event in of(cut, DeviceSection) if event.cut]
            assert (last.idstr, last.offset, last.size) == (device.idstr, device.offset, at - device.offset)
            whole_fields = list(flat(device.fields))
            inside = list(flat(last.fields))
            incomplete = [field for field in last.fields if field.type == "opaque" and "." in field.name]
            if incomplete or inside[-1] not in whole_fields:
                inside.pop()
            assert inside == whole_fields[: len(inside)]
            into = whole_fields[len(inside)] if len(inside) < len(whole_fields) else None
            message = verdict(cut).message
            assert f"section {device.idstr} instance {device.instance_id} (FULL), " in message
            if into is None:
                assert "behind its last field" in message
            elif at < into[1]:  # in the header of a subsection
                assert re.search(r", \d+ of \d+ bytes into its field '[\w./]+/\w+'", message)
            else:
                assert re.search(
                    rf"(before|{at - into[1]} of \d+ bytes into) its field '[^']*{re.escape(into[0])}",
                    message,
                )

    def test_with_no_description_it_is_as_ever(self) -> None:
        stream = tail(rawsamples.raw("x86-72-pc"))
        cut = precopy(stream.main[:6000])
        assert read(cut, lambda *about: []) == read(cut, None)


# ---------------------------------------------------------------- made by hand


def one(payload: bytes, known: Assumed, *rest: bytes) -> list[Event]:
    return read(precopy(HEAD, Device(40, b"d", payload).item(), EOF, *rest), known)


def sub(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"vmsd_name": name, "version": 1, "fields": list(fields)}


def device(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": list(fields), **more}


U32 = entry("a", "uint32", 4)
TWO = device(U32, subsections=[sub("d/x", entry("x", "uint16", 2)), sub("d/y", entry("y", "uint8", 1))])
X = b"\x05\x03d/x\0\0\0\1\1\2"
Y = b"\x05\x03d/y\0\0\0\1\7"
ELEMENT = sub("e", entry("n", "uint16", 2))
LIST = entry("l", "qlist", 4, **ELEMENT)
COUNTED = entry("c", "int32", 4), entry("v", "uint16", 2, array_len=2)
VIRTIO = entry("blob", "virtio", 10), entry("z", "uint16", 2)

FITS: dict[str, tuple[dict[str, Any], bytes, list[str]]] = {
    "as described": (TWO, bytes(4) + X + Y, ["a", "d/x", "d/y"]),
    "no subsections": (TWO, bytes(4), ["a"]),
    "one of two": (TWO, bytes(4) + Y, ["a", "d/y"]),
    "in a struct": (
        device(
            entry("s", "struct", 15, struct={**TWO, "vmsd_name": "s", "subsections": TWO["subsections"]}),
            U32,
        ),
        bytes(4) + X + bytes(4),
        ["s", "a"],
    ),
    "a longer list": (device(LIST, U32), b"\1\0\1\1\0\2\1\0\3\0" + bytes(4), ["l", "a"]),
    "an empty list": (device(LIST, U32), b"\0" + bytes(4), ["l", "a"]),
    "more elements": (device(*COUNTED), b"\0\0\0\4" + bytes(8), ["c", "v"]),
    "no elements": (device(*COUNTED), bytes(4), ["c", "v"]),
    "a larger blob": (device(*VIRTIO), b"b" * 30 + b"zz", ["blob", "z"]),
    "a smaller blob": (device(*VIRTIO), b"b" + b"zz", ["blob", "z"]),
    "an old-style device": (
        {"name": "d", "instance_id": 0, "size": 4, "fields": [entry("data", "buffer", 4)]},
        b"another size",
        ["data"],
    ),
}
MISFITS: dict[str, tuple[dict[str, Any], bytes, str]] = {
    "too short": (device(U32, U32), bytes(5), "3 bytes before the end of field 'a'"),
    "too short, deep": (
        device(struct("s", 12, entry("b", "uint32", 4), array_len=3)),
        bytes(9),
        "3 bytes before the end of field 's[2].b'",
    ),
    "too long": (device(U32), bytes(7), "3 bytes stand between its last field and its end"),
    "an unknown subsection": (device(U32), bytes(4) + X, "subsection 'd/x'"),
    "a subsection of another version": (TWO, bytes(4) + b"\x05\x03d/x\0\0\0\2\1\2", "in field 'd/x'"),
    "more elements than are counted": (device(*COUNTED), b"\0\0\0\3" + bytes(8), "stand between"),
    "two blobs": (device(*VIRTIO, *VIRTIO), bytes(5), "before the end of field 'blob'"),
    "no NULL pointer": (device(entry("p", "nullptr", 1), U32), b"x" + bytes(4), "no NULL pointer"),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits(case: str) -> None:
    text, payload, names = FITS[case]
    (event,) = of(one(payload, handmade(text)), DeviceSection)
    assert event.assumed
    assert event.assumed_from == "number 0"
    assert [field.name for field in event.fields] == names
    assert sum(field.size for field in event.fields) == len(payload)


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit(case: str) -> None:
    text, payload, why = MISFITS[case]
    events = one(payload, handmade(text))
    (event,) = of(events, DeviceSection)
    (finding,) = of(events, Finding)
    assert not event.assumed
    assert [field.type for field in event.fields] == ["opaque"]
    assert why in finding.message
    assert finding.severity == "note"
    assert verdict(events).ok


def test_names_without_end_make_no_messages_without_end() -> None:
    long = "\x1b[2J" * 10_000
    known = handmade([entry(long, long, 4), U32])
    for payload in (bytes(2), bytes(5), bytes(9)):
        events = one(payload, known)
        assert max(len(finding.message) for finding in of(events, Finding)) < 1000
    cut = read(precopy(HEAD, Device(40, b"d", bytes(3)).item()[:-6]), known)
    assert len(verdict(cut).message) < 1000
    assert "\x1b" not in verdict(cut).message


def test_the_first_that_fits_is_taken_and_any_knows_subsections() -> None:
    known = handmade(device(U32, U32), device(U32), TWO)
    (event,) = of(one(bytes(4) + X, known), DeviceSection)
    assert (event.assumed_from, [field.name for field in event.fields]) == ("number 1", ["a", "d/x"])


@pytest.mark.parametrize(
    ("field", "said"),
    [
        (U32, None),
        (entry("b", "uint32", 4), "field 'b' (uint32, 4 bytes"),
        (entry("a", "buffer", 4), "field 'a' (buffer, 4 bytes"),
    ],
)
def test_the_true_description_tells_what_was_wrong(field: dict[str, Any], said: str | None) -> None:
    text = streams.description(json.dumps({"devices": [device(U32)]}).encode())
    events = one(bytes(4), handmade([field]), text)
    live, exact = of(events, DeviceSection)
    assert (live.assumed, exact.assumed, exact.fields[0].name) == (True, False, "a")
    found = of(events, Finding)
    assert [finding.code for finding in found] == (["assumed-wrong"] if said else [])
    if said:
        assert said in found[0].message
        assert "and it is field 'a' (uint32, 4 bytes" in found[0].message


@pytest.mark.parametrize("cut", [whole, bytewise, pieces_of(3)])
def test_cuts_and_what_a_stripped_capture_leaves_out_do_not_matter(cut: Cut) -> None:
    stream = precopy(HEAD, Device(40, b"d", bytes(4) + X).item(), Device(41, b"d", bytes(3)).item()[:-6])
    expected = decode(Session(assumed=handmade(TWO)), arrivals(stream))
    assert [event.cut for event in of(expected, DeviceSection)] == [False, True]
    assert decode(Session(assumed=handmade(TWO)), arrivals(stream, cut)) == expected
    _, kept = strip(arrivals(stream, cut))
    assert decode(Session(assumed=handmade(TWO)), kept) == expected


# ---------------------------------------------------------------- hostile


def without_assumptions(events: list[Event]) -> list[Event]:
    kept = [event for event in events if not (isinstance(event, Finding) and event.code[:8] == "assumed-")]
    return [event for event in kept if not isinstance(event, DeviceSection)] + [
        DeviceSection(**{name: getattr(event, name) for name in plain(event)})
        for event in of(kept, DeviceSection)
    ]


def plain(event: DeviceSection) -> list[str]:
    return [
        name
        for name in event.__struct_fields__
        if name not in ("assumed", "assumed_from", "cut", "fields", "image", "undescribed")
    ]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"{}",
        b"{}]},{},",
        b"\xff\xfe",
        b'{"name":"d","instance_id":0,"fields":[]}],"devices":[7',
        b'{"name":"d","instance_id":0,"fields":' + b"[" * 50000,
        b'{"name":"d","instance_id":0,"fields":[' + b'{"name":"","type":"","size":0},' * 100_000,
        b'{"name":"d","instance_id":0,"size":4294967295}',
    ],
)
def test_a_description_that_is_none_changes_nothing(text: bytes) -> None:
    events = one(bytes(9), lambda *about: [Remembered(text, "x")] * 20)
    assert without_assumptions(events) == without_assumptions(one(bytes(9), lambda *about: []))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_a_broken_description_changes_nothing_else(seed: int) -> None:
    chance = random.Random(seed)
    name = chance.choice(["x86-100-pc", "x86-72-q35", "riscv64-100-virt"])
    stream = SMALL_TAILS.setdefault(name, tail(rawsamples.raw(name)))
    expected = EXPECTED.setdefault(name, without_assumptions(read(stream, None, fields=False)))
    known = {where: broken(one, chance) for where, one in descriptions(name).items()}
    events = read(stream, assumed(known), fields=chance.random() < 0.5)
    assert without_assumptions(events) == expected


SMALL_TAILS: dict[str, Stream] = {}
EXPECTED: dict[str, list[Event]] = {}
HOSTILE = (
    b"0",
    b"1",
    b"-1",
    b"4294967295",
    b"99999999999",
    b'"virtio"',
    b'"qlist"',
    b'"struct"',
    b"{}",
    b"[",
)


def broken(one: Remembered, chance: random.Random) -> Remembered:
    text = bytearray(one.text)
    for _ in range(chance.choice((0, 1, 1, 5))):
        at = chance.randrange(len(text))
        if chance.random() < 0.5:
            text[at] = chance.randrange(256)
        else:
            colon = text.find(b": ", at)
            comma = text.find(b",", colon)
            if 0 < colon < comma:
                text[colon + 2 : comma] = chance.choice(HOSTILE)
    return Remembered(bytes(text), "broken")


def test_the_budget_of_a_migration_bounds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections without end, each with descriptions that are long to read: at some point none is read."""
    monkeypatch.setattr("migsniff.core.assumed.MAX_FIELDS", 1000)
    long = [entry("f", "uint8", 0)] * 30
    items = [Device(number, b"d", bytes(1)).item() for number in range(40, 80)]
    events = decode(
        Session(assumed=handmade(long, long, [entry("a", "uint8", 1)])), arrivals(precopy(HEAD, *items, EOF))
    )
    believed = [event.assumed for event in of(events, DeviceSection)]
    assert believed[0] is True
    assert believed[-1] is False
    assert verdict(events).ok
