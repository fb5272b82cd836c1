"""PCI configuration space as QEMU compares it when it loads a device (get_pci_config_device, hw/pci/pci.c).

A byte of the stream must equal the destination's where the destination's cmask says that it is compared and
neither wmask nor w1cmask that a guest may write it. The masks are not in any stream: here they are what
pci_init_cmask, pci_add_capability and pcie_add_capability make of them, for the registers that are read-only
in every device. What is not listed is not compared. What stands where, and its name, values.pci tells.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from migsniff.values.pci import VIRTIO_VENDOR, Capability, lay_out, number, register_at
from migsniff.values.tables import pci, virtio

ALL: Final = 0xFF
HEADER: Final[dict[int, int]] = {
    **dict.fromkeys(range(pci.PCI_VENDOR_ID, pci.PCI_COMMAND), ALL),
    pci.PCI_STATUS: pci.PCI_STATUS_CAP_LIST,
    **dict.fromkeys(range(pci.PCI_REVISION_ID, pci.PCI_CACHE_LINE_SIZE), ALL),
    pci.PCI_HEADER_TYPE: ALL,
    pci.PCI_CAPABILITY_LIST: ALL,
}
"""The bytes that are compared in each device, and in which bits."""
PORTS_BAR, MEMORY_BAR = 0x3, 0xF  # the bits of a BAR that tell its type (PCI 3.0, 6.2.5.1)
EXPRESS: Final = (
    *(pci.PCI_EXP_FLAGS, pci.PCI_EXP_DEVCAP, pci.PCI_EXP_LNKCAP),
    *(pci.PCI_EXP_SLTCAP, pci.PCI_EXP_DEVCAP2),
)
"""Registers of the PCI Express capability that no guest writes."""
CONTROLS: Final = (pci.PCI_EXT_CAP_ID_ACS, pci.PCI_EXT_CAP_ID_ARI, pci.PCI_EXT_CAP_ID_ATS)


class Compared(NamedTuple):
    """A byte that is compared, and in which bits; `certain`: no guest or device changes them.

    `wmask`: the bits that a guest may write, if that is known.
    """

    at: int
    mask: int = ALL
    certain: bool = True
    wmask: int = 0


class Difference(NamedTuple):
    """The first byte that differs: QEMU stops there. `register`: what stands there, in words."""

    at: int
    read: int
    device: int
    mask: int
    register: str
    certain: bool
    wmask: int


def difference(stream: bytes, device: bytes, *, ports: int = 0, at_reset: bool = False) -> Difference | None:
    """What QEMU would complain of, None if nothing; `device` is the destination's own configuration space.

    `ports`: how many the first BAR has, where that is known; `at_reset`: the device is as it was made.
    """
    uncertain = None
    for one in sorted(compared(device, ports, at_reset=at_reset)):
        if one.at < min(len(stream), len(device)) and (
            changed := (stream[one.at] ^ device[one.at]) & one.mask
        ):
            register = register_at(device, one.at, changed)
            wmask = ~one.mask & ALL if one.at >= pci.PCI_STD_HEADER_SIZEOF else one.wmask
            found = Difference(one.at, stream[one.at], device[one.at], one.mask, register, one.certain, wmask)
            if one.certain:
                return found
            uncertain = uncertain or found
    return uncertain


def compared(device: bytes, ports: int = 0, *, at_reset: bool = False) -> Iterator[Compared]:
    """The bytes that are compared, by the destination's chains; of each BAR its type where it has one."""
    if len(device) < pci.PCI_CFG_SPACE_SIZE:
        return
    for at, mask in HEADER.items():
        yield Compared(at, mask)
    layout = lay_out(device)
    for register in layout.header:
        if ports and register.at == pci.PCI_BASE_ADDRESS_0:
            yield from _address(register.at, ports)
        elif register.name == "bar" and (kind := device[register.at] & MEMORY_BAR):
            yield Compared(register.at, PORTS_BAR if kind & pci.PCI_BASE_ADDRESS_SPACE_IO else MEMORY_BAR)
    for capability in layout.capabilities:
        extended = capability.extended
        inside = (
            _extended(device, capability, at_reset=at_reset) if extended else _capability(device, capability)
        )
        yield from (one for one in inside if one.at < len(device))


def _address(at: int, ports: int) -> Iterator[Compared]:
    """Of a BAR's address those bits are 0 by which its size is told."""
    for byte in range(4):
        mask = (ports - 1 | PORTS_BAR) >> 8 * byte & ALL
        yield Compared(at + byte, mask, wmask=~(ports - 1) >> 8 * byte & ALL)


def _read_only(capability: Capability, start: int, end: int, *, certain: bool = True) -> Iterator[Compared]:
    return (Compared(capability.at + byte, ALL, certain) for byte in range(start, end))


def _capability(device: bytes, one: Capability) -> Iterator[Compared]:
    """The identifier and the pointer to the next are read-only in all of them."""
    yield from _read_only(one, pci.PCI_CAP_LIST_ID, pci.PCI_CAP_FLAGS)
    if one.id == pci.PCI_CAP_ID_PM:
        yield from _read_only(one, pci.PCI_PM_PMC, pci.PCI_PM_CTRL)
    elif one.id == pci.PCI_CAP_ID_MSI:
        fixed = pci.PCI_MSI_FLAGS_QMASK | pci.PCI_MSI_FLAGS_64BIT | pci.PCI_MSI_FLAGS_MASKBIT
        yield Compared(one.at + pci.PCI_MSI_FLAGS, fixed & ALL)
        yield Compared(one.at + pci.PCI_MSI_FLAGS + 1, fixed >> 8)
    elif one.id == pci.PCI_CAP_ID_MSIX:
        writable = pci.PCI_MSIX_FLAGS_MASKALL | pci.PCI_MSIX_FLAGS_ENABLE
        yield Compared(one.at + pci.PCI_MSIX_FLAGS)
        yield Compared(one.at + pci.PCI_MSIX_FLAGS + 1, ~writable >> 8 & ALL)
        yield from _read_only(one, pci.PCI_MSIX_TABLE, pci.PCI_MSIX_PBA + 4)
    elif one.id == pci.PCI_CAP_ID_SSVID:
        yield from _read_only(one, pci.PCI_CAP_FLAGS, pci.PCI_SSVID_DEVICE_ID + 2)
    elif one.id == pci.PCI_CAP_ID_VNDR:
        yield from _vendor_specific(device, one)
    elif one.id == pci.PCI_CAP_ID_EXP:
        for register in one.registers:
            if register.at in EXPRESS:
                yield from _read_only(one, register.at, register.at + register.size)
            elif register.at == pci.PCI_EXP_SLTSTA:  # whether a device is plugged
                yield Compared(one.at + register.at, pci.PCI_EXP_SLTSTA_PDS, certain=False)


def _vendor_specific(device: bytes, one: Capability) -> Iterator[Compared]:
    """What is in it only virtio's devices are known to keep."""
    of_virtio = number(device, pci.PCI_VENDOR_ID, 2) == VIRTIO_VENDOR
    end = min(number(device, one.at + virtio.VIRTIO_PCI_CAP_LEN, 1), one.end - one.at)
    if of_virtio:
        kind = number(device, one.at + virtio.VIRTIO_PCI_CAP_CFG_TYPE, 1)
        if virtio.PCI_CAPABILITIES.get(kind) == "VIRTIO_PCI_CAP_PCI_CFG":  # the guest writes into it
            end = virtio.VIRTIO_PCI_CAP_BAR
    yield from _read_only(one, pci.PCI_CAP_FLAGS, end, certain=of_virtio)


def _extended(device: bytes, one: Capability, *, at_reset: bool) -> Iterator[Compared]:
    yield from _read_only(one, 0, 4)
    if one.id == pci.PCI_EXT_CAP_ID_DSN:
        yield from _read_only(one, 4, 12)
    elif one.id in CONTROLS:
        yield from _read_only(one, 4, 6)
    elif one.id == pci.PCI_EXT_CAP_ID_ERR:
        masked = number(device, one.at + pci.PCI_ERR_UNCOR_MASK, 4) & pci.PCI_ERR_UNC_INTN
        # pcie_aer_init lets a guest write the mask if it also masks internal errors at reset (QEMU 8.0 on)
        certain = at_reset and not masked
        yield from _read_only(one, pci.PCI_ERR_UNCOR_MASK, pci.PCI_ERR_UNCOR_SEVER, certain=certain)
        yield from _read_only(one, pci.PCI_ERR_UNCOR_SEVER, pci.PCI_ERR_COR_STATUS, certain=False)
