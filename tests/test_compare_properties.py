"""check and diff on any streams: one against itself, two both ways round, and what is not as it should be."""

import contextlib
import io
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.cli import main
from tests.rawsamples import raw
from tests.streams import (
    EOF,
    HEADER,
    PAGE_SIZE,
    Device,
    configuration,
    description,
    ram_end,
    ram_start,
    states,
)
from tests.test_check import schema

some = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
Ran = tuple[int, str, str]


def run(*arguments: str) -> Ran:
    """A command's exit code and what it wrote; a bug of ours is 3."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, "--descriptions", "none"])
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def files(*contents: bytes) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"file-{number}" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield [str(path) for path in paths]


# ---------------------------------------------------------------- streams

NAMES = st.sampled_from([b"timer", b"cpu", b"0000:00:05.0/dev", b"dev", b"virtio-net"])
KINDS = st.sampled_from(["buffer", "uint8", "struct", "pci config", "virtio", "subsection", "qtailq"])


@st.composite
def devices(draw: st.DrawFn) -> list[Device]:
    keys = draw(st.lists(st.tuples(NAMES, st.integers(0, 2)), max_size=4, unique=True))
    return [
        Device(10 + number, name, draw(st.binary(max_size=24)), instance, draw(st.integers(0, 3)))
        for number, (name, instance) in enumerate(keys)
    ]


@st.composite
def migrations(draw: st.DrawFn) -> bytes:
    """A stream whose description may be missing, or wrong."""
    sizes = st.integers(1, 4).map(lambda pages: pages * PAGE_SIZE)
    blocks = draw(st.dictionaries(st.sampled_from([b"pc.ram", b"/rom@x", b"vga"]), sizes, min_size=1))
    found = draw(devices())
    head = HEADER + configuration(draw(st.sampled_from([b"pc", b"q35"]))) + ram_start(blocks) + ram_end()
    told = []
    for device in found:
        one = device.describe(draw(st.sampled_from([None, None, len(device.payload) + 1, 1])))
        fields: Any = one["fields"]
        if fields and draw(st.booleans()):
            fields[0]["type"] = draw(KINDS)
        told.append(one)
    text = description(json.dumps({"page_size": PAGE_SIZE, "devices": told}).encode())
    return head + states(found) + EOF + (text if draw(st.booleans()) else b"")


@some
@given(migrations())
def test_any_stream_fits_itself_and_does_not_differ(data: bytes) -> None:
    with files(data, data) as (one, other):
        code, out, err = run("check", one, "--against", other, "-T", "json")
        found = json.loads(out)
        assert code == (0 if found["complete"] else 4), (out, err)
        assert found["loads"] is (True if found["complete"] else None)
        assert [each for each in found["findings"] if each["severity"] in ("warn", "error")] == []
        code, out, err = run("diff", one, other, "-T", "json")
        assert code == 0, (out, err)
        assert json.loads(out)["differences"] == []


@some
@given(migrations(), migrations())
def test_a_difference_is_one_both_ways_round(left: bytes, right: bytes) -> None:
    def differences(*sides: str) -> tuple[int, "Counter[tuple[Any, ...]]"]:
        code, out, err = run("diff", *sides, "-T", "json")
        assert code in (0, 1), err
        found = json.loads(out)["differences"]
        assert code == bool(found)
        keys = ("left", "right")
        return code, Counter(
            (one["group"], one["what"], one["path"], *(json.dumps(one.get(key)) for key in keys))
            for one in found
        )

    with files(left, right) as (one, other):
        code, there = differences(one, other)
        assert (code, Counter({(*key[:3], key[4], key[3]): n for key, n in there.items()})) == differences(
            other, one
        )


@some
@given(migrations(), migrations())
def test_check_never_fails_and_live_it_says_the_same(capture: bytes, there: bytes) -> None:
    """Of what `check` says in the end, --check-against has said everything, beside what it has taken back."""
    with files(capture, there) as (one, other):
        code, out, err = run("check", one, "--against", other, "-T", "json")
        assert code in (0, 1, 4), err
        found = {(each["code"], each.get("section", "")) for each in json.loads(out)["findings"]}
        code, out, err = run("expert", one, "--check-against", other, "-T", "json")
        assert code in (0, 1), err
        told = {(each["code"], each.get("section", "")) for each in json.loads(out)["findings"]}
        assert found <= told


# ---------------------------------------------------------------- hostile destinations

SAMPLES = ("x86-72-pc", "x86-111-q35", "s390x-72-ccw")


def answered(ran: Ran) -> None:
    """An answer, or one clear sentence; of what is cut off, the answer that nobody can tell."""
    code, out, err = ran
    assert code in (0, 1, 2, 4), err
    assert "Traceback" not in out + err
    if code == 4:
        assert json.loads(out)["loads"] is None
    elif code == 2:
        assert err.startswith("migsniff: ")
        assert out == ""


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("seed", range(4))
def test_a_destination_with_errors(name: str, seed: int) -> None:
    """Errors among the devices and in the description, where something is compared."""
    chance = random.Random(f"{name} {seed}")
    data = bytearray(raw(name).main)
    begin = data.rfind(b"\x04", 0, data.find(b"timer") if b"timer" in data else len(data))
    for _ in range(chance.choice((1, 10, 200))):
        at = chance.randrange(max(0, begin), len(data))
        data[at] = chance.choice((data[at] ^ 1 << chance.randrange(8), chance.randrange(256), 0, 0xFF))
    with files(raw(name).main, bytes(data)) as (capture, there):
        answered(run("check", capture, "--against", there, "-T", "json"))
        answered(run("check", there, "--against", capture, "-T", "json"))
        answered(run("expert", capture, "--check-against", there, "-T", "json"))
        answered(run("diff", capture, there, "-T", "json"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value in JSON."""
    if above:
        yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*above, key))


def leaf(name: str, **more: Any) -> dict[str, Any]:
    return {"field": name, "version_id": 0, "field_exists": False, "size": 4, **more}


INNER = {"name": "inner", "version_id": 1, "minimum_version_id": 1, "Fields": [leaf("x", num=2)]}
FULL_SCHEMA = schema(
    Fields=[leaf("data"), leaf("struct", Description=INNER)], Subsections=[{**INNER, "name": "dev/sub"}]
)


@some
@given(st.data())
def test_a_dump_with_errors(data: st.DataObject) -> None:
    text = json.loads(json.dumps(FULL_SCHEMA))
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(list(places(text))))
        target = text
        for key in way[:-1]:
            target = target[key]
        target[way[-1]] = data.draw(JSON)
    capture = data.draw(migrations())
    with files(capture, json.dumps(text).encode()) as (one, there):
        answered(run("check", one, "--against", there, "-T", "json"))
        answered(run("expert", one, "--check-against", there, "-T", "json"))


@some
@given(st.data())
def test_a_dump_that_is_cut_or_changed(data: st.DataObject) -> None:
    text = bytearray(json.dumps(FULL_SCHEMA).encode())
    for _ in range(data.draw(st.integers(0, 5))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(text)))
    with files(HEADER + configuration(b"pc") + ram_start() + ram_end() + EOF, bytes(text[:cut])) as paths:
        answered(run("check", paths[0], "--against", paths[1], "-T", "json"))
