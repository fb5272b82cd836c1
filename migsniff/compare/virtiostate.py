"""What virtio_load compares with the destination's device (hw/virtio/virtio.c, hw/char/virtio-serial-bus.c).

It looks at the sizes of queues since QEMU 11.1, whose fix of CVE-2026-50626 others may have.
"""

import re
from collections.abc import Iterator
from typing import Final

from migsniff.compare.images import Images
from migsniff.compare.inventory import Inventory
from migsniff.compare.refusal import Refusal, named, refusal
from migsniff.core.events import Field
from migsniff.values.pci import VIRTIO_VENDOR, lay_out, number
from migsniff.values.tables import pci
from migsniff.values.virtio import VirtioQueue

CHECKED_SINCE: Final = 11, 1
VERSION: Final = re.compile(r"-(\d+)\.(\d+)$")
LEGACY_IDS: Final = range(0x1000, 0x1040)  # virtio 1.2, 4.1.2.1: transitional devices
LEGACY_CONFIG: Final = {
    True: 24,
    False: 20,
}  # VIRTIO_PCI_CONFIG_OFF of linux/virtio_pci.h: with MSI-X, without
PAIR: Final = 2


def queue_refusals(kind: str, destination: Inventory, here: Images, there: Images) -> Iterator[Refusal]:
    """The first queue that is larger than the one that the destination has made room for."""
    if here.virtio is None or there.virtio is None:
        return
    local = [queue.most for queue in there.virtio.queues]
    for queue in _comparable(kind, here.virtio.queues, local):
        most = local[queue.index] if queue.index < len(local) else 0
        if queue.size > most and (most or queue.index >= len(local)):
            field = Field("size", "uint32", queue.offset, 4, raw=queue.size.to_bytes(4, "big"))
            yield refusal(_code(destination), field, queue=queue.index, received=queue.size, local=most)
            return


def _comparable(kind: str, queues: tuple[VirtioQueue, ...], local: list[int]) -> tuple[VirtioQueue, ...]:
    """A network card of more pairs gets them as it is loaded, in front of the last queue."""
    return queues[:PAIR] if kind == "virtio-net" and len(queues) != len(local) else queues


def _code(destination: Inventory) -> str:
    """What a queue that is too large means to a QEMU of which it is known how old it can be."""
    found = VERSION.search(destination.machine)
    if found is not None and (int(found[1]), int(found[2])) >= CHECKED_SINCE:
        return "check-queue-size"
    return "check-queue-size-maybe" if destination.recent else "check-queue-size-old"


def port_refusals(here: Images, there: Images) -> Iterator[Refusal]:
    """Ports of virtio-serial: both have the same ones, or it does not load."""
    mine, its = _inside(here), _inside(there)
    for one, other in zip(named(mine, "ports_map"), named(its, "ports_map"), strict=False):
        if one.value != other.value:
            words = f"ports {_bits(one)} in the stream, {_bits(other)} there"
            yield refusal("check-ports", one, words=words)
            return
    counted = next(named(its, "nr_active_ports"), None)
    known = {port.index for port in named(its, "port")}
    if counted is None or counted.value != len(known):
        return
    for port in named(mine, "port"):
        if port.index not in known:
            yield refusal("check-ports", port, words=f"the destination has no port {port.index}")
            return


def _inside(images: Images) -> tuple[Field, ...]:
    """What is the kind of device's own."""
    device = next(named(images.fields, "device"), None)
    return () if device is None else device.children


def _bits(field: Field) -> str:
    first = 32 * (field.index or 0)
    bits = field.value if isinstance(field.value, int) else 0
    return " ".join(str(first + bit) for bit in range(32) if bits >> bit & 1) or "none"


def ports_size(config: bytes, config_len: int) -> int:
    """The size of the BAR with a legacy device's ports (virtio_pci_device_plugged); 0 if it has none."""
    legacy = number(config, pci.PCI_VENDOR_ID, 2) == VIRTIO_VENDOR
    legacy = legacy and number(config, pci.PCI_DEVICE_ID, 2) in LEGACY_IDS
    if not legacy or not number(config, pci.PCI_BASE_ADDRESS_0, 1) & pci.PCI_BASE_ADDRESS_SPACE_IO:
        return 0
    vectors = any(one.id == pci.PCI_CAP_ID_MSIX and not one.extended for one in lay_out(config).capabilities)
    return 1 << (LEGACY_CONFIG[vectors] + config_len - 1).bit_length()
