"""What a virtio device's transport saves in front of the rest: PCI, channel I/O, or registers in memory."""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from migsniff.core.events import Field
from migsniff.values.image import Image, Short
from migsniff.values.msix import msix_fields
from migsniff.values.pci import SIZES, Capability, config_fields, lay_out, number
from migsniff.values.tables import pci, virtio

_PCI_VERSION: Final = (2).to_bytes(4, "big")
_CCW_LAST: Final = b"\x05\x20s390_adapter_info/summary_offset\x00\x00\x00\x01"


class Transport(msgspec.Struct, frozen=True):
    """`read` gives images whose fields are the transport's and which stand behind it, the likeliest first.

    `has_align`: a queue has its alignment. `vectors`: a queue has a vector; None: if there is an MSI-X table.
    """

    name: str
    read: Callable[[bytes, int], Iterator[Image]]
    has_align: bool = False
    vectors: bool | None = False

    def has_vector(self, image: Image) -> bool:
        """Whether a queue's record ends with a vector."""
        if self.vectors is not None:
            return self.vectors
        return any(field.name == "config_vector" for field in image.fields)


def _pci(raw: bytes, offset: int) -> Iterator[Image]:
    """virtio_pci_save_config (hw/virtio/virtio-pci.c); a PCI Express device has the larger size."""
    for size in _config_sizes(raw):
        image = Image(raw, offset)
        try:
            _read_config(image, size)
            _read_interrupts(image)
        except Short:
            continue
        yield image


def cut_config(raw: bytes, offset: int) -> Field | None:
    """The PCI configuration space in a virtio device's state that is not all there, if that much is."""
    for size in _config_sizes(raw):
        image = Image(raw, offset)
        try:
            return _read_config(image, size)
        except Short:
            continue
    return None


def _config_sizes(raw: bytes) -> list[int]:
    """How long the configuration space can be, the likeliest first; none if this is not a PCI device."""
    if not raw.startswith(_PCI_VERSION):
        return []
    return sorted(SIZES, reverse=any(one.id == pci.PCI_CAP_ID_EXP for one in _capabilities(raw)))


def _capabilities(raw: bytes) -> list[Capability]:
    config = raw[4 : 4 + pci.PCI_CFG_SPACE_SIZE]
    return list(lay_out(config).chain) if len(config) == pci.PCI_CFG_SPACE_SIZE else []


def _read_config(image: Image, size: int) -> Field:
    image.number("version_id", 4)
    start, first = image.at, len(image.fields)
    config = image.take(size)
    children, meaning = config_fields(config, image.offset + start)
    image.fields += children
    image.group("pci_config", "pci config", start, first, raw=config, meaning=meaning)
    return image.fields[-1]


def _read_interrupts(image: Image) -> None:
    config = image.fields[-1].raw
    for pin in range(4):
        image.number("irq_state", 4, index=pin, words=lambda level: "asserted" if level else "")
    for capability in _capabilities(image.raw):
        if capability.id == pci.PCI_CAP_ID_MSIX:
            control = number(config, capability.at + pci.PCI_MSIX_FLAGS, 2)
            start, first = image.at, len(image.fields)
            meaning = msix_fields(image, (control & pci.PCI_MSIX_FLAGS_QSIZE) + 1)
            image.group("msix", "msix state", start, first, meaning=meaning)
            image.number("config_vector", 2, words=no_vector)
            break


def no_vector(vector: int) -> str:
    """A vector in words."""
    return "none" if vector == virtio.VIRTIO_MSI_NO_VECTOR else ""


def _ccw(raw: bytes, offset: int) -> Iterator[Image]:
    """vmstate_virtio_ccw_dev (hw/s390x/virtio-ccw.c): its last three fields tell where it ends."""
    found = raw.find(_CCW_LAST)
    if found >= 0:
        image = Image(raw, offset)
        try:
            image.bytes("subchannel", found + len(_CCW_LAST))
            image.number("summary_offset", 4)
            image.number("thinint_isc", 1)
            image.number("revision", 4, words=lambda value: "not negotiated" if value == 0xFFFFFFFF else "")
        except Short:
            return
        yield image


def _mmio(raw: bytes, offset: int) -> Iterator[Image]:
    """virtio_mmio_save_config (hw/virtio/virtio-mmio.c)."""
    image = Image(raw, offset)
    try:
        image.number("host_features_sel", 4)
        image.number("guest_features_sel", 4)
        image.number("guest_page_shift", 4)
    except Short:
        return
    yield image


TRANSPORTS: Final = (
    Transport("PCI", _pci, vectors=None),
    Transport("ccw", _ccw, vectors=True),
    Transport("mmio", _mmio, has_align=True),
)
