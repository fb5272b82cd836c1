"""PCI configuration space as QEMU compares it when it loads a device (get_pci_config_device, hw/pci/pci.c).

A byte of the stream must equal the destination's where the destination's cmask says that it is compared and
neither wmask nor w1cmask that a guest may write it. The masks are not in any stream: here they are what
pci_init_cmask, pci_add_capability and pcie_add_capability make of them, for the registers that are read-only
in every device (include/standard-headers/linux/pci_regs.h has the layouts). What is not listed is not
compared.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from migsniff.values.tables import pci, virtio

SIZE, EXPRESS_SIZE = pci.PCI_CFG_SPACE_SIZE, pci.PCI_CFG_SPACE_EXP_SIZE
VIRTIO_VENDOR: Final = b"\xf4\x1a"

HEADER: Final[dict[int, tuple[int, str]]] = {
    0x00: (0xFF, "vendor"),
    0x01: (0xFF, "vendor"),
    0x02: (0xFF, "device"),
    0x03: (0xFF, "device"),
    pci.PCI_STATUS: (pci.PCI_STATUS_CAP_LIST, "status: capability list"),
    0x08: (0xFF, "revision"),
    0x09: (0xFF, "programming interface"),
    0x0A: (0xFF, "class"),
    0x0B: (0xFF, "class"),
    pci.PCI_HEADER_TYPE: (0xFF, "header type"),
    pci.PCI_CAPABILITY_LIST: (0xFF, "first capability"),
}
EXTENDED: Final = {
    pci.PCI_EXT_CAP_ID_ERR: "Advanced Error Reporting",
    pci.PCI_EXT_CAP_ID_DSN: "Device Serial Number",
    pci.PCI_EXT_CAP_ID_ACS: "Access Control Services",
    pci.PCI_EXT_CAP_ID_ARI: "Alternative Routing-ID",
    pci.PCI_EXT_CAP_ID_ATS: "Address Translation Services",
}
CONTROLS: Final = (pci.PCI_EXT_CAP_ID_ACS, pci.PCI_EXT_CAP_ID_ARI, pci.PCI_EXT_CAP_ID_ATS)


class Compared(NamedTuple):
    """A byte that is compared, and in which bits; `certain`: no guest or device changes them."""

    at: int
    mask: int
    register: str
    certain: bool = True


class Difference(NamedTuple):
    """The first byte that differs: QEMU stops there."""

    at: int
    read: int
    device: int
    mask: int
    register: str
    certain: bool


def difference(stream: bytes, device: bytes) -> Difference | None:
    """What QEMU would complain of, None if nothing; `device` is the destination's own configuration space."""
    uncertain = None
    for at, mask, register, certain in sorted(compared(device)):
        if at < min(len(stream), len(device)) and (stream[at] ^ device[at]) & mask:
            found = Difference(at, stream[at], device[at], mask, register, certain)
            if certain:
                return found
            uncertain = uncertain or found
    return uncertain


def is_express(config: bytes) -> bool:
    """Whether a device has the PCI Express capability, and so 4096 bytes of configuration space."""
    return any(config[at] == pci.PCI_CAP_ID_EXP for at in capabilities(config))


def capabilities(config: bytes) -> Iterator[int]:
    """Where the capabilities of the first 256 bytes begin; a chain that runs in a circle ends."""
    if len(config) < SIZE or not config[pci.PCI_STATUS] & pci.PCI_STATUS_CAP_LIST:
        return
    at, seen = config[pci.PCI_CAPABILITY_LIST] & ~3, set[int]()
    while 0x40 <= at <= SIZE - 4 and at not in seen:
        seen.add(at)
        yield at
        at = config[at + 1] & ~3


def extended_capabilities(config: bytes) -> Iterator[int]:
    """Where the extended capabilities begin."""
    at, seen = SIZE, set[int]()
    while len(config) >= EXPRESS_SIZE and SIZE <= at <= EXPRESS_SIZE - 4 and at not in seen:
        seen.add(at)
        header = int.from_bytes(config[at : at + 4], "little")
        if not header:
            return
        yield at
        at = header >> 20 & ~3


def msix_vectors(config: bytes) -> int:
    """The size of the MSI-X table, 0 if there is none."""
    for at in capabilities(config):
        if config[at] == pci.PCI_CAP_ID_MSIX:
            return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1
    return 0


def compared(device: bytes) -> Iterator[Compared]:
    """The bytes that are compared, by the destination's chains; of each BAR its type where it has one."""
    if len(device) < SIZE:
        return
    for at, (mask, register) in HEADER.items():
        yield Compared(at, mask, register)
    count = 2 if device[pci.PCI_HEADER_TYPE] & 0x7F == pci.PCI_HEADER_TYPE_BRIDGE else 6
    for number in range(count):
        at = pci.PCI_BASE_ADDRESS_0 + 4 * number
        kind = device[at] & 0xF
        if kind:
            yield Compared(at, 0x3 if kind & 1 else 0xF, f"BAR {number}: type")
            if kind & 0x7 == 0x4:  # the upper half of a 64 bit one comes next, an address
                continue
    for at in capabilities(device):
        yield from _capability(device, at)
    for at in extended_capabilities(device):
        yield from _extended(device, at)


def _read_only(at: int, start: int, end: int, register: str) -> Iterator[Compared]:
    return (Compared(at + byte, 0xFF, register) for byte in range(start, end))


def _capability(device: bytes, at: int) -> Iterator[Compared]:
    """The identifier and the pointer to the next are read-only in all of them."""
    kind = device[at]
    yield from _read_only(at, 0, 2, f"capability {kind:#04x}: identifier, next")
    if kind == pci.PCI_CAP_ID_PM:
        yield from _read_only(at, 2, 4, "power management capabilities")
    elif kind == pci.PCI_CAP_ID_MSI:
        yield Compared(at + 2, 0x8E, "MSI: vectors, 64 bit")
        yield Compared(at + 3, 0x01, "MSI: mask bits")
    elif kind == pci.PCI_CAP_ID_MSIX:
        yield Compared(at + 2, 0xFF, "MSI-X: table size")
        yield Compared(at + 3, 0x3F, "MSI-X: table size")
        yield from _read_only(at, 4, 8, "MSI-X: table offset, BAR")
        yield from _read_only(at, 8, 12, "MSI-X: pending bits offset, BAR")
    elif kind == pci.PCI_CAP_ID_SSVID:
        yield from _read_only(at, 2, 8, "subsystem vendor, device")
    elif kind == pci.PCI_CAP_ID_VNDR:
        length = device[at + 2]
        of_virtio = device[:2] == VIRTIO_VENDOR
        window = virtio.PCI_CAPABILITIES.get(device[at + 3]) == "VIRTIO_PCI_CAP_PCI_CFG"
        if of_virtio and window:  # the guest writes into it
            length = 4
        for byte in range(2, min(length, SIZE - at)):
            yield Compared(at + byte, 0xFF, "vendor specific capability", of_virtio)
    elif kind == pci.PCI_CAP_ID_EXP:
        end = 0x3C if device[at + 2] & 0xF >= 2 else 0x14
        names = {0x02: "flags", 0x04: "device", 0x0C: "link", 0x14: "slot", 0x24: "device, 2nd"}
        for start, name in names.items():
            size = 2 if start == 0x02 else 4
            if start + size <= end:
                yield from _read_only(at, start, start + size, f"PCI Express {name} capabilities")
        if end > 0x1A:
            yield Compared(at + 0x1A, 0x40, "PCI Express slot status: presence", certain=False)


def _extended(device: bytes, at: int) -> Iterator[Compared]:
    kind = int.from_bytes(device[at : at + 2], "little")
    name = EXTENDED.get(kind, f"extended capability {kind:#x}")
    yield from _read_only(at, 0, 4, f"{name}: identifier, version, next")
    if kind == pci.PCI_EXT_CAP_ID_DSN and at + 12 <= EXPRESS_SIZE:
        yield from _read_only(at, 4, 12, name)
    elif kind in CONTROLS and at + 6 <= EXPRESS_SIZE:
        yield from _read_only(at, 4, 6, f"{name}: capabilities")
    elif kind == pci.PCI_EXT_CAP_ID_ERR and at + 16 <= EXPRESS_SIZE:
        for byte in range(8, 16):
            yield Compared(at + byte, 0xFF, f"{name}: uncorrectable error mask, severity", certain=False)
