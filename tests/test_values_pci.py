"""PCI configuration space, and MSI-X tables: against QEMU's own word, against lspci's, and for any bytes."""

import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.events import DeviceSection, Field
from migsniff.qemu import Qemu
from migsniff.values.explain import explain
from migsniff.values.msix import MAX_ENTRIES, entries_of, size_of
from migsniff.values.pci import config_fields, lay_out, register_at
from tests.valuing import assert_within, guest, inside, sample, saved, section, walk

GUEST = (
    "-M q35 -m 64 -device virtio-net-pci -drive if=none,id=disk,file={folder}/disk,format=raw"
    " -device virtio-blk-pci,drive=disk -device virtio-scsi-pci -device qemu-xhci"
    " -device pcie-root-port,id=port1,chassis=1 -device virtio-net-pci,bus=port1,ats=on,vectors=7"
    " -device pcie-root-port,id=port2,chassis=2 -device e1000e,bus=port2"
    " -device pci-bridge,chassis_nr=3,id=bridge -device e1000,bus=bridge,addr=2"
)


def configs(sections: list[DeviceSection]) -> dict[str, tuple[Field, bytes]]:
    """Configuration spaces by the name of their section: the field as explained, and the bytes."""
    return {
        each.idstr: (field, field.raw)
        for each in sections
        for _, field in walk(explain(each).fields)
        if field.type == "pci config"
    }


def config_field(config: bytes) -> Field:
    """The field of a configuration space, explained."""
    return explain(section(Field("config", "pci config", 100, len(config), raw=config))).fields[0]


def made(size: int = 256, header_type: int = 0, **at: str) -> bytes:
    """A configuration space with bytes (in hexadecimal) at offsets: x40="01" for the first capability."""
    config = bytearray(size)
    struct.pack_into("<HHHH", config, 0, 0x1234, 0x5678, 7, 0x10)
    config[0x0E] = header_type
    for offset, content in at.items():
        start, raw = int(offset[1:], 16), bytes.fromhex(content)
        config[start : start + len(raw)] = raw
    return bytes(config)


# ---------------------------------------------------------------- what QEMU says


def booted(qemu: Qemu) -> bool:
    """The firmware has given addresses to all BARs of devices on the root bus, and is past that."""
    devices = qemu.execute("query-pci")[0]["devices"]
    return any(
        region["address"] > 0 and region["type"] == "io" for device in devices for region in device["regions"]
    )


def device_paths(buses: list[dict[str, Any]], prefix: str = "0000:") -> dict[str, dict[str, Any]]:
    """Devices of query-pci by the path that the names of sections begin with: 0000:00:07.0:00.0."""
    found = {}
    for bus in buses:
        for device in bus["devices"]:
            path = f"{prefix}{device['slot']:02x}.{device['function']}"
            found[path] = device
            if "pci_bridge" in device:
                below = device["pci_bridge"].get("devices", [])
                found |= device_paths([{"devices": below}], path + ":")
    return found


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_it_is_what_qemu_shows(version: str, tmp_path: Path) -> None:
    with guest(version, GUEST, booted) as qemu:
        truth = device_paths(qemu.execute("query-pci"), "0000:00:")
        found = configs(saved(qemu, version, tmp_path / "state").found)
        tree = qemu.execute("human-monitor-command", command_line="info qtree")
    compared = {idstr.rpartition("/")[0] for idstr in found} & set(truth)
    assert len(compared) >= 11
    for idstr, (field, _) in found.items():
        device = truth.get(idstr.rpartition("/")[0])
        if device is None:
            continue
        assert_within(field)
        assert inside(field.children, "vendor_id").value == device["id"]["vendor"]
        assert inside(field.children, "device_id").value == device["id"]["device"]
        assert inside(field.children, "class").value == device["class_info"]["class"]
        for region in device["regions"]:
            name = "expansion_rom" if region["bar"] == 6 else f"bar[{region['bar']}]"
            register = inside(field.children, name)
            assert isinstance(register.value, int)
            if region["address"] == -1:  # disabled, or no address yet
                continue
            if region["bar"] == 6:
                assert register.value & ~0x7FF == region["address"]
                assert register.meaning == "enabled"
                continue
            if region["type"] == "io":
                assert register.meaning == f"I/O ports at {region['address']:#x}"
                continue
            width = "64-bit" if region["mem_type_64"] else "32-bit"
            prefetchable = ", prefetchable" if region["prefetch"] else ""
            assert register.meaning == f"memory, {width}{prefetchable}, at {region['address']:#x}"
            assert register.size == (8 if region["mem_type_64"] else 4)
    bridge = next(field for idstr, (field, _) in found.items() if idstr.endswith("/pci_bridge"))
    bus = next(device for device in truth.values() if device["id"]["device"] == 1)["pci_bridge"]["bus"]
    for name, key in (("primary", "number"), ("secondary", "secondary"), ("subordinate", "subordinate")):
        assert inside(bridge.children, f"{name}_bus").value == bus[key]
    assert "vectors = 7 " in tree
    below = next(field for idstr, (field, _) in found.items() if idstr.endswith(":00.0/virtio-net"))
    assert inside(below.children, "msix.message_control").meaning.startswith("table size 7, ")
    assert inside(below.children, "address_translation.capabilities").meaning == "page aligned request"


@pytest.mark.parametrize(
    ("control", "words"),
    [("4000", "common clock"), ("4100", "ASPM L0s"), ("4200", "ASPM L1"), ("4300", "L0s and L1")],
)
def test_aspm_is_told_by_its_names(control: str, words: str) -> None:
    config = made(x34="54", x54="10000200" + "00" * 12 + control)
    fields, _ = config_fields(config, 0)
    (express,) = [field for field in fields if field.name == "express"]
    (meaning,) = [child.meaning for child in express.children if child.name == "link_control"]
    assert words in meaning
    assert "ASPM 1" not in meaning


@pytest.mark.parametrize(
    ("flags", "gathers"), [("0200", False), ("4200", True), ("5200", False), ("6200", False), ("a200", True)]
)
def test_only_who_gathers_errors_has_registers_for_that(flags: str, gathers: bool) -> None:
    """Root ports and event collectors; elsewhere the bytes stand for nothing."""
    config = made(4096, x34="54", x54="1000" + flags, x100="01000200")
    fields, _ = config_fields(config, 0)
    (errors,) = [field for field in fields if field.name == "error_reporting"]
    names = {child.name for child in errors.children}
    assert "header_log" in names
    assert ({"root_error_command", "root_error_status", "error_source"} <= names) is gathers
    assert any("root_error" in name or name == "error_source" for name in names) is gathers


CHAINS = {
    "e1000e": ["power management", "MSI", "PCI Express", "MSI-X", "AER", "serial number"],
    "pcie-root-port": ["PCI Express", "MSI-X", "bridge subsystem ID", "AER", "ACS"],
    "pci_bridge": ["MSI", "slot identification", "SHPC"],
}

# how lspci calls them
LSPCI = {
    "power management": "Power Management",
    "MSI": "MSI",
    "MSI-X": "MSI-X",
    "PCI Express": "Express",
    "SATA": "SATA HBA",
    "slot identification": "Slot ID",
    "SHPC (standard hot-plug controller)": "Hot-plug capable",
    "bridge subsystem ID": "Subsystem",
    "advanced error reporting (AER)": "Advanced Error Reporting",
    "access control services (ACS)": "Access Control Services",
    "device serial number": "Device Serial Number",
    "address translation services (ATS)": "Address Translation Service",
    "alternative routing-ID (ARI)": "Alternative Routing-ID Interpretation",
    "SR-IOV": "Single Root I/O Virtualization",
}


@pytest.mark.skipif(not shutil.which("lspci"), reason="lspci (pciutils) is not installed")
@pytest.mark.parametrize("version", ["5.2", "7.2", "10.0", "11.1"])
def test_it_is_what_lspci_shows(version: str, tmp_path: Path) -> None:
    """The chains, the MSI-X tables and the BARs, of a sample's devices."""
    spaces = list(configs(sample(f"x86-{version.replace('.', '')}-q35").found).values())
    dump = tmp_path / "dump"
    with dump.open("w") as file:
        for number, (_, config) in enumerate(spaces):
            file.write(f"00:{number:02x}.0 a device\n")
            for at in range(0, len(config), 16):
                file.write(f"{at:02x}: {config[at : at + 16].hex(' ')}\n")
            file.write("\n")
    done = subprocess.run(
        ["lspci", "-F", str(dump), "-vvv", "-n"], capture_output=True, text=True, check=True
    )
    shown = re.split(r"(?m)^00:", done.stdout)[1:]
    assert len(shown) == len(spaces) == 14
    for text, (field, config) in zip(shown, spaces, strict=True):
        chain = re.findall(r"Capabilities: \[(\w+)(?: v\w+)?\] (.*)", text)
        layout = lay_out(config)
        assert [int(at, 16) for at, _ in chain] == [one.at for one in layout.chain]
        for (_, words), one in zip(chain, layout.chain, strict=True):
            title = "Vendor Specific" if one.named.title.startswith("vendor") else LSPCI[one.named.title]
            assert words.startswith(title)
        for size in re.findall(r"MSI-X: .* Count=(\d+)", text):
            assert f"table size {size}, " in inside(field.children, "msix.message_control").meaning
        bars = re.findall(r"Region (\d): (Memory|I/O ports) at (\w+) (\(64-bit)?", text)
        for bar, kind, address, wide in bars:
            meaning = inside(field.children, f"bar[{bar}]").meaning
            assert meaning.endswith(f"at {int(address, 16):#x}")
            assert meaning.startswith("memory" if kind == "Memory" else "I/O ports")
            assert ("64-bit" in meaning) == bool(wide)


# ---------------------------------------------------------------- registers in words

EXPRESS = "10000200" + "00" * 20 + "4000"  # version 2; slot status at 0x1a says that a card is present

WORDS = [
    # cases.md 4: the table of MSI-X
    (made(x34="98", x98="1100030000000000"), 0x9A, 0, "table size of the MSI-X capability at 0x98"),
    (
        made(x34="98", x98="1100030000000000"),
        0x9A,
        3 ^ 7,
        "table size in the message control of the MSI-X capability at 0x98",
    ),
    # 5: where the chain begins
    (
        made(x34="84", x84="0998", x98="11000300"),
        0x34,
        0x84 ^ 0x98,
        "the start of the chain of capabilities: vendor-specific at 0x84, MSI-X at 0x98",
    ),
    # 6: page aligned request of ATS
    (
        made(4096, x100="0f00010000000000"),
        0x104,
        0x20,
        "page aligned request in the capabilities of the"
        " address translation services (ATS) extended capability at 0x100",
    ),
    # 7: a bit of AER's mask
    (
        made(4096, x100="01000200"),
        0x10A,
        0x40,
        "uncorrectable internal error in the uncorrectable error mask of the"
        " advanced error reporting (AER) extended capability at 0x100",
    ),
    # 8: a BAR
    (made(x10="a1c00000"), 0x10, 0xA0, "type and lowest address bits of BAR 0 (I/O ports at 0xc0a0)"),
    # 9: slot status
    (
        made(x34="54", x54=EXPRESS),
        0x6E,
        0x40,
        "presence detect state in the slot status of the PCI Express capability at 0x54",
    ),
    (made(), 0x02, 0, "device id"),
    (made(), 0x04, 0, "command (bits 0 to 7)"),
    (made(), 0x04, 4, "bus master in the command"),
    (made(), 0x40, 0, "no register that is known"),
    (made(), 256, 0, "nothing: configuration space has 256 bytes"),
    (made(header_type=1), 0x19, 0, "secondary bus"),
    (
        made(x34="40", x40="0148", x48="0500"),
        0x41,
        0,
        "the link from the power management capability at 0x40 to the next one;"
        " the chain: power management at 0x40, MSI at 0x48",
    ),
    (
        made(x34="40", x40="7700"),
        0x44,
        0,
        "no register that is known, 0x4 behind the start of the unknown (0x77) capability at 0x40",
    ),
]


@pytest.mark.parametrize(("config", "offset", "changed", "words"), WORDS, ids=[words for *_, words in WORDS])
def test_register_at(config: bytes, offset: int, changed: int, words: str) -> None:
    assert register_at(config, offset, changed) == words


def test_a_real_refusal_is_explained() -> None:
    """The destination of this sample said: Bad config data: i=0x9a read: 3 device: 7 cmask: ff ..."""
    found = configs(sample("x86-72-refused").found)
    config = found["0000:00:05.0/virtio-net"][1]
    assert register_at(config, 0x9A) == "table size of the MSI-X capability at 0x98"
    assert config[0x9A] == 3


# ---------------------------------------------------------------- broken and hostile ones

CHAINS_THAT_END_BADLY = [
    (made(x34="40", x40="0140"), "leads back to 0x40"),
    (made(x34="40", x40="0150", x50="0540"), "leads back to 0x40"),
    (made(x34="20"), "leads to 0x20, where none can be"),
    (made(4096, x100="01000111", x110="03000111"), "leads back to 0x110"),
    (made(4096, x100="01000104"), "leads to 0x40, where none can be"),
]


@pytest.mark.parametrize(("config", "words"), CHAINS_THAT_END_BADLY)
def test_a_chain_that_does_not_end_is_told(config: bytes, words: str) -> None:
    field = config_field(config)
    assert words in field.meaning
    assert_within(field)
    assert field.children[-1].offset + field.children[-1].size == 100 + len(config)


def test_capabilities_of_one_name_are_numbered() -> None:
    children = config_field(made(x34="40", x40="0950", x50="0900")).children
    assert [child.index for child in children if child.name == "vendor_specific"] == [0, 1]


def test_a_capability_ends_where_the_next_one_begins() -> None:
    """Registers that would reach into another capability are none."""
    field = config_field(made(x34="40", x40="1144", x44="0500"))
    assert [child.name for child in inside(field.children, "msix").children] == [
        "id",
        "next",
        "message_control",
    ]
    assert_within(field)


@given(st.sampled_from([256, 4096]), st.binary(max_size=512), st.integers(-1, 4096), st.integers(0, 255))
def test_any_bytes(size: int, head: bytes, offset: int, changed: int) -> None:
    config = head.ljust(size, b"\x10")[:size]
    field = config_field(config)
    assert_within(field)
    assert sum(child.size for child in field.children) == size
    assert register_at(config, offset, changed)
    assert register_at(head, offset, changed)


@pytest.mark.parametrize("size", [0, 1, 255, 257, 4095, 5000])
def test_another_size_is_left_as_it_is(size: int) -> None:
    field = Field("config", "pci config", 100, size, raw=bytes(size))
    assert explain(section(field)).fields == (field,)


# ---------------------------------------------------------------- MSI-X


def test_the_tables_of_a_sample() -> None:
    for each in sample("x86-100-q35").found:
        if each.idstr.endswith("/e1000e"):
            field = inside(explain(each).fields, "parent_obj[1].msix")
            assert field.meaning == "5 entries, 0 set up, 5 masked"
            assert_within(field)
            assert len(field.children) == 6
            return
    pytest.fail("no e1000e")


def test_an_entry_and_a_pending_bit() -> None:
    raw = struct.pack("<QLL", 0xFEE01004, 0x4041, 0) + struct.pack("<QLL", 0, 0, 1) + b"\2"
    field = explain(section(Field("msix", "msix state", 50, 33, raw=raw))).fields[0]
    assert field.meaning == "2 entries, 1 set up, 1 masked, pending: 1"
    assert [child.meaning for child in field.children] == [
        "0x4041 to 0xfee01004",
        "not set up, masked",
        "pending: 1",
    ]
    assert inside(field.children, "entry[0].data").value == 0x4041
    assert inside(field.children, "entry[0].data").offset == 58


@given(st.integers(1, 5000))
def test_the_size_tells_the_number_of_entries(entries: int) -> None:
    assert entries_of(size_of(entries)) == entries


@given(st.binary(max_size=200))
def test_any_bytes_of_msix(raw: bytes) -> None:
    assert_within(explain(section(Field("msix", "msix state", 50, len(raw), raw=raw))).fields[0])


def test_a_table_larger_than_any_is_left_as_it_is() -> None:
    field = Field("msix", "msix state", 50, size_of(MAX_ENTRIES + 1), raw=bytes(size_of(MAX_ENTRIES + 1)))
    assert explain(section(field)).fields == (field,)
