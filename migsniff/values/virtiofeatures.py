"""Names of virtio's bits: features of each kind of device, and the device status."""

from collections.abc import Callable
from typing import Final

from migsniff.values.tables import virtio

ALIASES: Final = {"serial": "console", "sound": "snd", "vhost_vsock": "vsock", "9pfs": "9p"}
"""QEMU's names of devices, where the kernel's are others."""


def kind_of(device: str) -> str:
    """What the kernel calls the kind of a device: "net" for "virtio-net" or "vhost-user-net"."""
    for prefix in ("virtio-", "vhost-user-", "vhost-"):
        device = device.removeprefix(prefix)
    return ALIASES.get(device, device)


def feature_names(device: str, bits: int) -> list[str]:
    """The features whose bits are set in `bits`, up to 128, of a device as sections name it: "virtio-net"."""
    own, common = virtio.FEATURES.get(kind_of(device), {}), virtio.FEATURES[""]
    return [
        own.get(bit) or common.get(bit) or f"feature bit {bit}"
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    ]


def features_words(device: str, first: int = 0) -> Callable[[int], str]:
    """The same in short ("MRG_RXBUF STATUS VERSION_1"), of a word whose bit 0 is feature number `first`."""

    def words(bits: int) -> str:
        names = feature_names(device, bits << first)
        return " ".join(name.rpartition("_F_")[2].replace("feature bit ", "bit") for name in names)

    return words


def status_names(status: int) -> list[str]:
    """The bits of the device status byte."""
    return [name for bit, name in virtio.STATUS.items() if status & bit]


def status_text(status: int) -> str:
    """The same in short: "ACKNOWLEDGE DRIVER DRIVER_OK"."""
    if not status:
        return "reset, no driver"
    return " ".join(name.removeprefix("VIRTIO_CONFIG_S_") for name in status_names(status))
