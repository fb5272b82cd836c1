"""What fields mean, as a whole: where it is shown, and that what has no meaning is left as it is."""

import json

import pytest
from msgspec.structs import replace

from migsniff.core.events import Field
from migsniff.values.explain import explain
from migsniff.values.meaning import DEVICES, TYPES
from tests.test_samples import NAMES, SAMPLES, printed
from tests.valuing import sample, section, walk


def test_what_has_no_meaning_is_not_copied() -> None:
    leaf = Field("x", "uint8", 20, 1, raw=b"\1", value=1)
    plain = section(leaf, Field("s", "struct", 21, 1, children=(leaf, leaf)))
    assert explain(plain) is plain
    empty = replace(plain, fields=())
    assert explain(empty) is empty


def test_each_meaning_has_a_sample() -> None:
    """Of each registered field type and device the samples have one to which explain adds something."""
    types: set[str] = set()
    devices: set[str] = set()
    for name in NAMES:
        sections = sample(name)
        for before in sections.found:
            after = explain(before, sections.machine)
            if after is before:
                continue
            device = before.idstr.rpartition("/")[2]
            plain = dict(walk(before.fields))
            for path, field in walk(after.fields):
                if field.type in TYPES and (old := plain.get(path)) is not None and old != field:
                    types.add(field.type)
            if device in DEVICES:
                devices.add(device)
    assert types == set(TYPES)
    assert devices == set(DEVICES)


def test_the_log_shows_meanings(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The tree of -V, and -T json; the sizes and offsets of what was there are as before."""
    name = "x86-100-q35"
    tree = printed(capfdbinary, "read", "-V", "--section", "virtio-blk", str(SAMPLES / name)).decode()
    lines = [line[31:] for line in tree.splitlines()]
    assert "  virtio/64bit_features:  (subsection version 1)" in lines
    assert "    guest_features: 4294967364 (0x100000044), SEG_MAX BLK_SIZE VERSION_1  (uint64)" in lines
    assert "      message_control: 1, table size 2, disabled  (le16)" in lines
    records = json.loads(
        printed(capfdbinary, "read", "-T", "json", "--section", "virtio-blk", str(SAMPLES / name))
    )
    (record,) = (each for each in records if each.get("described"))
    (image,) = record["fields"]
    assert image["children"][0]["name"] == "version_id"
    assert len(bytes.fromhex(image["raw"])) == image["size"] == 49722


def test_the_log_knows_the_clock_though_it_does_not_show_it(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """--section leaves section timer out; what it says is needed for the times of others."""
    tree = printed(capfdbinary, "read", "-V", "--section", "i8254", str(SAMPLES / "x86-72-pc")).decode()
    (line,) = (line for line in tree.splitlines() if "channels[0].next_transition_time" in line)
    assert line.endswith(", at 406.259421 ms, in 21.130516 ms  (int64)")
