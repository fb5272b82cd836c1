"""What the bytes of each field type mean."""

import pytest

from migsniff.core import fieldtypes  # noqa: F401 (registers them)
from migsniff.core.events import Value
from migsniff.core.registry import field_type

FIELD_TYPES: list[tuple[str, str, Value]] = [
    ("int8", "80", -128),
    ("int16", "fffe", -2),
    ("int32", "80000000", -(1 << 31)),
    ("int32 equal", "ffffffff", -1),
    ("int32 le", "00000102", 258),  # "le" is "less or equal": it is big-endian
    ("int64", "ffffffffffffffff", -1),
    ("fd", "00000003", 3),
    ("uint8", "ff", 255),
    ("uint16", "0102", 258),
    ("uint32", "ffffffff", 0xFFFFFFFF),
    ("uint64", "ffffffffffffffff", (1 << 64) - 1),
    ("uint8 equal", "ff", 255),
    ("uint16 equal", "ffff", 65535),
    ("uint32 equal", "ffffffff", 0xFFFFFFFF),
    ("int64 equal", "ffffffffffffffff", (1 << 64) - 1),  # compared unsigned
    ("cpsr", "400001c5", 0x400001C5),
    ("fpcr", "0000000000000001", 1),
    ("fpscr", "00000001", 1),
    ("fpsr", "00000001", 1),
    ("fpr", "8000000000000000", 1 << 63),
    ("vsr", "0000000000000001", 1),
    ("cpu/altivec/vscr", "00010000", 65536),
    ("sreg", "80", 128),
    ("rampD", "01", 1),
    ("rampX", "01", 1),
    ("rampY", "01", 1),
    ("rampZ", "01", 1),
    ("eind", "01", 1),
    ("fsr", "00000001", 1),
    ("psr", "00000001", 1),
    ("xcc", "00000001", 1),
    ("psw", "00000001", 1),
    ("sr", "00008001", 0x8001),
    ("msr", "00000001", 1),
    ("int32_as_uint16", "ffff", 65535),
    ("uint64", "", None),
    ("uint64", "00" * 9, None),
    ("bool", "00", False),
    ("bool", "02", True),
    ("bool", "0001", None),
    ("powered_off", "01", True),
    ("avr", "00" * 15 + "01", "0x" + "0" * 31 + "1"),
    ("slbe", "01" + "00" * 15, "0x01" + "0" * 30),
    ("float64", "3ff8000000000000", 1.5),
    ("float64", "7ff8000000000000", None),
    ("float64", "fff0000000000000", None),
    ("CPU_Double_U", "c000000000000000", -2.0),
    ("CPU_Double_U", "c0000000", None),
    ("timer", "000000003b9aca00", 1_000_000_000),
    ("timer", "ffffffffffffffff", None),
    ("timer", "fffffffffffffffe", -2),
    ("buffer", "72756e6e696e670000", "running"),
    ("buffer", "0000", None),
    ("buffer", "", None),
    ("buffer", "00616200", None),
    ("buffer", "61006200", None),
    ("buffer", "1b5b306d", None),
    ("buffer", "c3a9", None),
    ("unused_buffer", "6162", None),
    ("nullptr", "30", None),
    ("unknown", "00", None),
    ("pci config", "00", None),
    ("msix state", "00", None),
    ("virtio", "00", None),
    ("bitmap", "", ""),
    ("bitmap", "0000000000000000", ""),
    ("bitmap", "000000000000008f", "0-3,7"),
    ("bitmap", "8000000000000000 0000000000000001", "63-64"),
    ("bitmap", "0001", None),
    ("bitmap", "ff" * 16384, None),
    ("pci irq state", "00000001 00000000 00000000 00000002", (1, 0, 0, 2)),
    ("pci irq state", "00000001", None),
    ("capability", "02 6162", "ab"),
    ("capability", "03 6162", None),
    ("capability", "01 1b", None),
]


@pytest.mark.parametrize(("kind", "raw", "value"), FIELD_TYPES)
def test_field_type(kind: str, raw: str, value: Value) -> None:
    decode = field_type.get(kind)
    assert decode is not None
    result = decode(bytes.fromhex(raw))
    assert result == value
    assert type(result) is type(value)


def test_each_field_type_has_a_sample_and_a_source() -> None:
    assert set(field_type) == {kind for kind, _, _ in FIELD_TYPES}
    assert all(field_type.source(kind).endswith(".c") for kind in field_type)
