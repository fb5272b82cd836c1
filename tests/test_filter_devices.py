"""Fields of device state in filters: by which paths they are found, and as what they are compared."""

import pytest

from migsniff.core.events import Field
from migsniff.filter.compile import Column, Filter
from tests.synthetic import device

STATE = device(
    1000,
    64,
    "0000:00:01.0/odd dev",
    3,
    provisional=False,
    fields=(
        Field("n", "uint32", 1000, 4, raw=b"\0\0\0\x0c", value=12, meaning="ON | READY"),
        Field("neg", "int32", 1004, 4, raw=b"\xff\xff\xff\xff", value=-1),
        Field("flag", "bool", 1008, 1, raw=b"\1", value=True),
        Field("x", "float64", 1008, 8, raw=bytes(8), value=float("nan")),
        Field("name", "buffer", 1009, 8, raw=b"text\0\0\0\0", value="text"),
        Field("image", "pci config", 1017, 4, raw=b"\x86\x80\x13\x71"),
        Field("words", "uint16", 1021, 6, array_len=3, raw=b"\0\1\0\2\0\3", value=(1, 2, 3)),
        Field("lines", "pci irq state", 1021, 8, raw=b"\0\0\0\1\0\0\0\2", value=(1, 2)),
        Field("timers", "timer", 1021, 16, array_len=2, raw=bytes(16), value=(None, 5)),
        Field("a.b[1].c", "uint8", 1030, 1, raw=b"\7", value=7),
        Field("odd name", "uint8", 1031, 1, raw=b"\x08", value=8),
        *(
            Field(
                "q",
                "struct",
                1032,
                4,
                index=i,
                children=(Field("len", "uint8", 1032, 1, raw=b"\0", value=i),),
            )
            for i in range(3)
        ),
        Field("s", "struct", 1040, 4, children=(Field("n", "uint8", 1040, 1, raw=b"\1", value=1),)),
        Field("s/sub", "subsection", 1040, 4, children=(Field("deep", "uint8", 1, 1, raw=b"\2", value=2),)),
        Field("big", "uint64", 1050, 8, raw=b"\xff" * 8, value=(1 << 64) - 1),
        Field("", "uint8", 1060, 1, raw=b"\0", value=0),
        Field("lone\ud800", "buffer", 1060, 1, raw=b"\0", value="\ud800"),
    ),
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("@.n == 12", True),
        ("@.n == 1", False),
        ("@.n == 12.0", True),
        ("@.s.n == 1", True),
        ("@.n in {1..11, 13}", False),
        ("@.n & 4", True),
        ("@.n & 3", False),
        ("(@.n & 0xc) == 8", False),
        ("@.n & @.s.n == 0", True),
        ('@.n == "ON | READY"', True),
        ('@.n contains "READY"', True),
        ('@.n matches "^on"', True),
        ('@.n matches "(?-i)^on"', False),
        ('@.n == "12"', False),
        ('string(@.n) == "12"', True),
        ('meaning(@.n) == "ON | READY"', True),
        ("@.n == 00:00:00:0c", True),
        ("@.n[3] == 0c:", True),
        ("@.n[2:2] == 00:0c", True),
        ("@.n[-1] == 0x0c", True),
        ("@.n[-1:1] == 0c:", True),
        ("@.neg < 0", True),
        ("@.neg & 0x80", True),
        ("@.flag == true", True),
        ("@.flag == 1", True),
        ("@.flag != false", True),
        ("@.n == true", False),
        ("@.x == 0", False),
        ("@.x != 0", True),
        ('@.name == "text"', True),
        ('@.name contains "ex"', True),
        ('@.name[0:2] == "te"', True),
        ('@.name > "tex"', True),
        ("@.name == 5", False),
        ("len(@.name) == 8", True),
        ('upper(@.name) == "TEXT"', True),
        ("@.image == 86:80:13:71", True),
        ("@.image[0:2] == 86:80", True),
        ("@.image[1,3] == 80:71", True),
        ("@.image[1] == 0x80", True),
        ("@.image[9] == 0x80", False),
        ("@.image[9:] == 80:", False),
        ("@.image contains 80:13", True),
        (r'@.image contains "\x13q"', True),
        (r'@.image matches "\x13Q$"', True),
        ("@.image == 5", False),
        ("@.words == 2", True),
        ("all @.words > 1", False),
        ("all @.words > 0", True),
        ("@.words === 1", False),
        ("@.words !== 1", True),
        ("@.words[2] == 3", True),
        ("@.words[2] == 00:03", True),
        ("@.words[3] == 3", False),
        ("@.words[3]", False),
        ("@.words[0:2] == 00:01", True),
        ("max(@.words) == 3", True),
        ("min(@.words, @.n) == 1", True),
        ("count(@.words) == 1", True),
        ("count(@.nothing) == 0", True),
        ("abs(@.neg) == 1", True),
        ("@.lines[1] == 2", True),
        ("@.timers == 5", True),
        ("@.timers[0]", True),
        ("@.timers[0] >= 0", False),
        ("@.a.b[1].c == 7", True),
        ("@.a.b.c == 7", True),
        ("@.a.b[2].c == 7", False),
        ("@.c == 7", True),
        ('@["a.b[1].c"] == 7', True),
        ('@["odd name"] == 8', True),
        ("@.q.len == 2", True),
        ("@.q[2].len == 2", True),
        ("@.q[1].len == 2", False),
        ("@.q[1]", True),
        ("@.q", True),
        ("@.q[3]", False),
        ("@.q == 1", False),
        ("@.len == 0", True),
        ("@.s/sub.deep == 2", True),
        ("@.deep == 2", True),
        ("@.big == 0xffffffffffffffff", True),
        ("@.big > 1.5", True),
        ('@[""] == 0', True),
        ("@.nothing", False),
        ("@.nothing != 1", False),
    ],
)
@pytest.mark.parametrize(
    "name",
    ['device["odd dev"]', 'device["0000:00:01.0/odd dev"]', 'device["odd dev/3"]'],
    ids=["last", "all", "3"],
)
def test_fields_of_devices(template: str, expected: bool, name: str) -> None:
    """@ stands for the device."""
    made = Filter(template.replace("@", name))
    assert made("m", 0, STATE) == expected
    assert made.failed is None


def test_another_device_has_none_of_it() -> None:
    other = device(0, 64, "odd", 0, fields=STATE.fields)
    for text in ('device["odd dev"].n', 'device["odd dev"]', 'device["odd/1"].n', 'device["/odd"].n'):
        assert not Filter(text)("m", 0, other)
    assert Filter('device["odd/0"].n == 12')("m", 0, other)


def test_without_fields_there_is_only_the_device() -> None:
    bare = device(0, 64, "timer")
    assert Filter("device.timer")("m", 0, bare)
    assert not Filter("device.timer.x")("m", 0, bare)
    assert not Filter("device.timer").fields
    assert Filter("size > 5 or !(device.timer.x == 1)").fields
    assert Column("device.timer.x").fields


def test_a_field_that_no_record_has_is_told() -> None:
    made = Filter('device["odd dev"].n == 12 and device["odd dev"].nn == 1')
    made("m", 0, STATE)
    (note,) = made.notes()
    assert note.startswith('no record in which device["odd dev"].nn was looked for has it')
