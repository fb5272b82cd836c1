"""What the bytes of old-style devices mean."""

import json
from pathlib import Path

import pytest

from migsniff.core.oldstyle import OLD_STYLE, meaning
from tests.test_samples import NAMES, kept

CLOCK = bytes.fromhex("0100e3a09a0510c9e1d7")
KEYS = bytes.fromhex("0000000000000002 0000000000000004 06000010")
EOS = bytes.fromhex("0000000000000001")
ERROR = bytes.fromhex("0000000000000004")


@pytest.mark.parametrize(
    ("idstr", "raw", "expected"),
    [
        ("todclock", CLOCK, "epoch 0, 0xe3a09a0510c9e1d7"),
        ("todclock", b"\0", "no clock"),
        ("todclock", b"", None),
        ("todclock", b"\2" + CLOCK[1:], None),
        ("todclock", CLOCK + b"\0", None),
        ("s390-skeys", EOS, "0 storage keys, 0 of them not 0"),
        ("s390-skeys", KEYS + EOS, "4 storage keys, 2 of them not 0"),
        ("s390-skeys", KEYS + KEYS + EOS, "8 storage keys, 4 of them not 0"),
        ("s390-skeys", KEYS + ERROR, "4 storage keys, 2 of them not 0; then QEMU could not read them"),
        ("s390-skeys", KEYS, None),
        ("s390-skeys", KEYS[:-1], None),
        ("s390-skeys", KEYS[:9], None),
        ("s390-skeys", EOS + b"\0", None),
        ("s390-skeys", bytes(8), None),
        ("slirp", bytes(131), "131 bytes of libslirp's own"),
        ("timer", bytes(24), None),
    ],
)
def test_meanings(idstr: str, raw: bytes, expected: str | None) -> None:
    assert meaning(idstr, raw) == expected


@pytest.mark.parametrize("idstr", OLD_STYLE)
def test_each_is_in_a_sample(idstr: str) -> None:
    found = [
        field["value"]
        for name in NAMES
        if Path(name).name.startswith(("s390x", "x86-72-ipmi"))
        for line in kept(name, "golden.ndjson").splitlines()
        for event in [json.loads(line)]
        if event.get("idstr") == idstr and event.get("described")
        for field in event["fields"]
    ]
    assert found
    assert all(found)
