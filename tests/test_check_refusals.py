"""What QEMU refuses in code of its own, in sections and states made for it; real ones: test_check_qemu.py."""

from typing import Any

import pytest

from migsniff.compare.armregisters import register_refusals
from migsniff.compare.images import Images
from migsniff.compare.inventory import Inventory
from migsniff.compare.layout import Misfit
from migsniff.compare.pciconfig import difference
from migsniff.compare.refusals import refusals, settled
from migsniff.compare.virtiostate import port_refusals, ports_size, queue_refusals
from migsniff.core.events import Configuration, DescriptionFound, DeviceSection, Field
from migsniff.expert.codes import CODES
from migsniff.values.tables import arm, pci
from migsniff.values.virtio import VirtioQueue, VirtioState
from tests.valuing import section

KVM64 = arm.KVM_REG_ARM64 | arm.KVM_REG_SIZE_U64 | arm.KVM_REG_ARM64_SYSREG
ID = KVM64 | 0xC00A  # ID_DFR0_EL1
SCTLR = KVM64 | 0xC080
TCR2 = KVM64 | 0xC103
LAST = KVM64 | 0xDFFF
EMULATED = 0x40200000200F0080  # a register of cp15 as TCG numbers it
OLD, NEW = "int32 le", "int32"
NOTHING = Images(None, None, False)


def cpu(length: str, registers: dict[int, int]) -> DeviceSection:
    raw = [b"".join(one.to_bytes(8, "big") for one in some) for some in (registers, registers.values())]
    return section(
        Field("cpreg_vmstate_array_len", length, 100, 4, value=len(registers), raw=bytes(4)),
        Field("cpreg_vmstate_indexes", "uint64", 104, len(raw[0]), value=tuple(registers), raw=raw[0]),
        Field(
            "cpreg_vmstate_values", "uint64", 200, len(raw[1]), value=tuple(registers.values()), raw=raw[1]
        ),
        idstr="cpu",
    )


@pytest.mark.parametrize(
    ("here", "there", "length", "expected"),
    [
        ({SCTLR: 1, LAST: 1}, {SCTLR: 2, LAST: 3}, OLD, []),
        (
            {SCTLR: 1, LAST: 1},
            {LAST: 0},
            OLD,
            [("check-register-count", 100), ("check-register-unknown", 104)],
        ),
        ({SCTLR: 1}, {ID: 0, LAST: 0}, OLD, [("check-register-unknown", 104)]),
        ({ID: 1, LAST: 1}, {ID: 1, SCTLR: 0}, OLD, []),  # nobody looks behind the destination's last one
        ({ID: 1, LAST: 1}, {ID: 1, SCTLR: 0}, NEW, [("check-register-stream", 112)]),
        ({SCTLR: 1, TCR2: 1}, {SCTLR: 1}, NEW, [("check-register-maybe", 112)]),
        ({TCR2: 1, LAST: 1}, {SCTLR: 1}, NEW, [("check-register-stream", 104)]),
        ({ID: 1}, {ID: 2}, NEW, [("check-register-maybe", 200)]),  # a kernel's
        ({EMULATED: 1, ID: 1}, {EMULATED: 1, ID: 2}, OLD, [("check-register-value", 208)]),
        ({EMULATED: 1, ID: 1}, {EMULATED: 1, ID: 1}, NEW, []),
        ({}, {}, NEW, []),
        ({SCTLR: 1}, {}, OLD, [("check-register-count", 100)]),
    ],
)
def test_system_registers(
    here: dict[int, int], there: dict[int, int], length: str, expected: list[tuple[str, int]]
) -> None:
    found = list(register_refusals(cpu(OLD, here), cpu(length, there)))
    assert [(one.code, one.offset) for one in found] == expected
    for one in found:
        text = CODES[one.code].text.format(name="cpu", instance=0, **one.details)
        assert "{" not in text
        assert len(one.evidence) == one.size


@pytest.mark.parametrize(
    ("index", "number"),
    [
        (0x603000000013C030, 0x1013C030),  # as QEMU 11.1 said of what 10.0 and 7.2 sent
        (0x40200000200F3A00, 0x200F3A00),
        (0x40200000000F3A00, 0x200F3A00),
    ],
)
def test_registers_have_the_numbers_that_qemu_says(index: int, number: int) -> None:
    (found,) = register_refusals(cpu(OLD, {index: 0}), cpu(NEW, {}))
    assert found.details["number"] == number


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (Field("cpreg_vmstate_indexes", "uint64", 0, 8, value=(1,)),),
        (*cpu(OLD, {1: 1}).fields[:2], Field("cpreg_vmstate_values", "uint64", 0, 0, value=())),
        (*cpu(OLD, {1: 1}).fields[:2], Field("cpreg_vmstate_values", "uint64", 0, 8, raw=bytes(8))),
    ],
)
def test_what_is_no_arm_cpu(fields: tuple[Field, ...]) -> None:
    other = section(*fields, idstr="cpu")
    assert not list(register_refusals(other, cpu(OLD, {2: 2})))
    assert not list(register_refusals(cpu(OLD, {2: 2}), other))


# ---------------------------------------------------------------- virtio


def images(*queues: int, most: tuple[int, ...] | None = None) -> Images:
    pairs = zip(queues, queues if most is None else most, strict=True)
    all_of = tuple(
        VirtioQueue(index, size, of, 0, 0, 0, 0, None, 50 + index, 60)
        for index, (size, of) in enumerate(pairs)
    )
    return Images(None, VirtioState("pci", 0, 0, 0, 0, "little", all_of, False, False, False, 0, 0, 0), True)


def destination(machine: str, *, recent: bool = True) -> Inventory:
    made = Inventory()
    at: dict[str, Any] = {"channel": "main", "direction": "fwd", "offset": 0, "size": 0}
    made.show("", 0, Configuration(machine=machine, **at))
    text = b'{"configuration": {' if recent else b'{"page_size": 4096'
    made.show("", 0, DescriptionFound(page_size=4096, devices=0, text=text, **at))
    return made


@pytest.mark.parametrize(
    ("kind", "here", "there", "expected"),
    [
        ("virtio-rng", images(8), images(8), None),
        ("virtio-rng", images(8), images(1024), None),
        ("virtio-rng", images(1024), images(8), (0, 1024, 8)),
        ("virtio-blk", images(128, 64), images(64, 64, most=(128, 64)), None),  # its guest chose less
        ("virtio-blk", images(128), images(64, most=(0,)), None),  # what it had at reset is not told
        ("virtio-blk", images(8, 256, 512), images(8, 128, 128), (1, 256, 128)),
        ("virtio-blk", images(8, 8), images(8), (1, 8, 0)),
        ("virtio-blk", images(8), images(8, 8), None),
        ("virtio-net", images(256, 256, 256, 256, 64), images(256, 256, 64), None),
        ("virtio-net", images(512, 256, 512, 256, 64), images(256, 256, 64), (0, 512, 256)),
        ("virtio-net", images(256, 256, 128), images(256, 256, 64), (2, 128, 64)),
        ("virtio-blk", images(8), NOTHING, None),
        ("virtio-blk", NOTHING, images(8), None),
    ],
)
def test_sizes_of_queues(
    kind: str, here: Images, there: Images, expected: tuple[int, int, int] | None
) -> None:
    found = list(queue_refusals(kind, destination("pc-q35-11.1"), here, there))
    assert [(one.code, *one.details.values()) for one in found] == (
        [] if expected is None else [("check-queue-size", *expected)]
    )


@pytest.mark.parametrize(
    ("machine", "recent", "code"),
    [
        ("pc-i440fx-11.1", True, "check-queue-size"),
        ("virt-12.0", True, "check-queue-size"),
        ("pc-q35-11.0", True, "check-queue-size-maybe"),
        ("pc-q35-rhel9.6.0", True, "check-queue-size-maybe"),
        ("microvm", True, "check-queue-size-maybe"),
        ("pc-q35-7.2", False, "check-queue-size-old"),
    ],
)
def test_which_qemu_looks_at_the_sizes(machine: str, recent: bool, code: str) -> None:
    (found,) = queue_refusals("", destination(machine, recent=recent), images(9), images(8))
    assert found.code == code


def ports(*maps: int, active: tuple[int, ...] = (), counted: int | None = None) -> Images:
    children = [Field("ports_map", "uint32", 4 * at, 4, index=at, value=bits) for at, bits in enumerate(maps)]
    count = len(active) if counted is None else counted
    children.append(Field("nr_active_ports", "uint32", 40, 4, value=count))
    children += [Field("port", "struct", 50 + one, 10, index=one) for one in active]
    device = Field("device", "struct", 0, 99, children=tuple(children))
    return Images(None, None, True, (device,))


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        (ports(1), ports(1), None),
        (ports(5, active=(2,)), ports(1), "ports 0 2 in the stream, 0 there"),
        (ports(1), ports(5, active=(2,)), "ports 0 in the stream, 0 2 there"),
        (ports(1, 2), ports(1, 0), "ports 33 in the stream, none there"),
        (ports(1, active=(0,)), ports(1), "the destination has no port 0"),
        (ports(1), ports(1, active=(0,)), None),
        (
            ports(1, active=(0,)),
            ports(1, counted=3),
            None,
        ),  # one had something on its way: the rest is not read
        (ports(1, 1), ports(1), None),
        (NOTHING, ports(1), None),
        (ports(1), NOTHING, None),
    ],
)
def test_serial_ports(here: Images, there: Images, words: str | None) -> None:
    found = [one.details["words"] for one in port_refusals(here, there)]
    assert found == ([] if words is None else [words])


def config(**bytes_at: int) -> bytearray:
    made = bytearray(pci.PCI_CFG_SPACE_SIZE)
    made[:4] = b"\xf4\x1a\x02\x10"
    made[pci.PCI_BASE_ADDRESS_0] = 1
    for at, value in bytes_at.items():
        made[int(at[1:], 16)] = value
    return made


MSIX = {"x06": pci.PCI_STATUS_CAP_LIST, "x34": 0x40, "x40": pci.PCI_CAP_ID_MSIX}


@pytest.mark.parametrize(
    ("space", "length", "size"),
    [
        (config(), 8, 32),
        (config(), 12, 32),
        (config(), 13, 64),
        (config(**MSIX), 8, 32),
        (config(**MSIX), 9, 64),
        (config(x03=0x11), 8, 0),  # 0x1102
        (config(x00=0x86), 8, 0),
        (config(x10=0), 8, 0),  # modern alone
        (config(x10=8), 8, 0),
    ],
)
def test_how_many_ports_a_legacy_device_has(space: bytearray, length: int, size: int) -> None:
    assert ports_size(bytes(space), length) == size


@pytest.mark.parametrize(
    ("low", "ports", "expected"),
    [
        (0x21, 64, (0x10, 0x21, 0xC0)),
        (0x41, 64, None),
        (0x21, 32, None),
        (0x21, 0, None),
        (0x00, 64, (0x10, 0x00, 0xC0)),
    ],
)
def test_an_address_that_is_none_for_that_many(
    low: int, ports: int, expected: tuple[int, int, int] | None
) -> None:
    found = difference(bytes(config(x10=low, x11=0xC0)), bytes(config()), ports=ports)
    assert (None if found is None else (found.at, found.read, found.wmask)) == expected
    assert found is None or found.certain


def express(mask: int) -> bytes:
    """A configuration space with AER at 0x100, whose mask of uncorrectable errors is this."""
    made = bytearray(pci.PCI_CFG_SPACE_EXP_SIZE)
    made[0x100:0x104] = (1 << 16 | pci.PCI_EXT_CAP_ID_ERR).to_bytes(4, "little")
    at = 0x100 + pci.PCI_ERR_UNCOR_MASK
    made[at : at + 4] = mask.to_bytes(4, "little")
    return bytes(made)


@pytest.mark.parametrize(
    ("stream", "device", "at_reset", "certain"),
    [
        (0x2400000, 0, True, True),
        (0x2400000, 0, False, False),  # its guest may have cleared it
        (0, 0x2400000, True, False),  # a guest may write it there
        (0x2400000, 0x2400000, True, None),
    ],
)
def test_the_mask_of_aer(stream: int, device: int, at_reset: bool, certain: bool | None) -> None:
    found = difference(express(stream), express(device), at_reset=at_reset)
    assert (None if found is None else found.certain) is certain
    assert found is None or (found.at, found.wmask) == (0x10A, 0)


@pytest.mark.parametrize(
    ("state", "clock", "at_reset"),
    [
        (b"prelaunch\0rest", 0, True),
        (b"prelaunch\0rest", 300_000_000, False),  # system_reset of a guest that had been stopped
        (b"prelaunch\0rest", None, False),
        (b"running\0", 0, False),
        (b"prelaunched\0", 0, False),
        (b"", 0, False),
    ],
)
def test_what_a_destination_says_of_itself(state: bytes, clock: int | None, at_reset: bool) -> None:
    made = destination("pc")
    assert not made.at_reset
    made.show("", 0, section(Field("runstate", "buffer", 0, 100, raw=state), idstr="globalstate"))
    if clock is not None:
        made.show("", 0, section(Field("cpu_clock_offset", "int64", 0, 8, value=clock), idstr="timer"))
    assert made.at_reset is at_reset


# ---------------------------------------------------------------- others


def codec(*buffers: bool) -> DeviceSection:
    inner = (Field("hda-audio-stream/buffer", "subsection", 9, 5, version=1),)
    streams = [Field("st", "struct", 0, 9, index=at, children=inner * has) for at, has in enumerate(buffers)]
    return section(*streams, idstr="hda-audio")


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (codec(True, True), codec(True, False), [1]),
        (codec(True, False), codec(True, True), []),
        (codec(True, True), codec(False, False), []),  # use-timer=off
        (codec(True, True), codec(True), []),
    ],
)
def test_streams_of_a_codec(here: DeviceSection, there: DeviceSection, expected: list[int]) -> None:
    found = refusals(here, there, Inventory(), NOTHING, NOTHING)
    assert [one.details["number"] for one in found] == expected


@pytest.mark.parametrize(
    ("path", "certain"),
    [
        ("ich9_pm/memhp.acpi_memory_hotplug.devs", True),
        ("acpi_memory_hotplug.devs", True),
        ("xacpi_memory_hotplug.devs", False),
        ("devs", False),
    ],
)
def test_slots_for_memory_are_told_by_no_stream(path: str, certain: bool) -> None:
    assert settled(Misfit(path, "", certain=False)).certain is certain
