"""What is different from one kind of virtio device to the next: configuration space, and state of its own."""

from collections.abc import Callable
from typing import Final

from migsniff.core.registry import Registry
from migsniff.values.image import Image, Order, Short
from migsniff.values.tables import virtio
from migsniff.values.virtiofeatures import feature_names, features_words, kind_of

MAC: Final = 6
MAX_PAIRS: Final = (
    511  # of queues, whether a pair is a port or a part of a network card: VIRTIO_QUEUE_MAX is 1024
)

Part = Callable[[Image, int], None]
"""Reads the state that a kind of device has between the queues and the subsections; the guest's features."""

DEVICE_PARTS: Final[Registry[str, Part]] = Registry("kind of virtio device")


def read_config(image: Image, device: str, length: int, order: Order) -> None:
    """Configuration space, `length` bytes of it: fields as the kernel names them, the rest as bytes.

    What is not always little-endian has the byte order of the guest, if that drives it as a legacy device.
    """
    end = image.at + length
    for name, size, count, little in virtio.CONFIG.get(kind_of(device), []):
        if image.at + size * max(1, count) > end:
            break
        if name == "mac":
            image.bytes(name, MAC, image.raw[image.at : image.at + MAC].hex(":"))
        elif count:
            image.bytes(name, size * count)
        else:
            image.number(name, size, "little" if little else order, words=CONFIG_WORDS.get(name))
    image.bytes("more", end - image.at)


def _sectors(count: int) -> str:
    return f"sectors of 512 bytes, {count * 512 / (1 << 20):g} MiB"


CONFIG_WORDS: Final[dict[str, Callable[[int], str]]] = {
    "capacity": _sectors,
    "wce": lambda value: "writeback" if value & 1 else "writethrough",
    "guest_cid": lambda value: f"CID {value}",
}


def read_part(image: Image, device: str, features: int, end: int) -> None:
    """The state of its own that a device has, up to `end`; bytes, if it is not as it should be."""
    start, first = image.at, len(image.fields)
    part = DEVICE_PARTS.get(kind_of(device))
    inside = Image(image.raw[:end], image.offset, image.at)
    if part is not None:
        try:
            part(inside, features)
            image.fields += inside.fields
            image.at = inside.at
        except Short:
            pass
    image.bytes("device_state", end - image.at)
    if image.at > start:
        image.group("device", "struct", start, first)


@DEVICE_PARTS("net", source="hw/net/virtio-net.c")
def net(image: Image, features: int) -> None:
    """vmstate_virtio_net_device: the receive filter, and what control commands have set."""
    image.bytes("mac", MAC, image.raw[image.at : image.at + MAC].hex(":"))
    image.number("tx_waiting", 4)
    image.number("mergeable_rx_bufs", 4)
    image.number("status", 2, words=lambda status: "link up" if status & 1 else "link down")
    image.number("promisc", 1)
    image.number("allmulti", 1)
    addresses = image.number("mac_table.in_use", 4)
    image.bytes("mac_table.macs", addresses * MAC)
    image.bytes("vlans", (1 << 12) // 8)
    image.number("has_vnet_hdr", 4)
    for name in (
        "mac_table.multi_overflow",
        "mac_table.uni_overflow",
        "alluni",
        "nomulti",
        "nouni",
        "nobcast",
    ):
        image.number(name, 1)
    image.number("has_ufo", 1)
    offloads = "VIRTIO_NET_F_CTRL_GUEST_OFFLOADS" in feature_names("virtio-net", features)
    rest = image.raw.find(b"\x05\x15virtio-net-device/rss", image.at)
    left = (image.left if rest < 0 else rest - image.at) - (8 if offloads else 0)
    if left >= 4:
        image.number("max_queue_pairs", 2)
        pairs = image.number("curr_queue_pairs", 2)
        for pair in range(1, min(pairs, left // 4, MAX_PAIRS)):
            image.number("tx_waiting", 4, index=pair)
    if offloads:
        image.number("curr_guest_offloads", 8, words=features_words("virtio-net"))


@DEVICE_PARTS("balloon", source="hw/virtio/virtio-balloon.c")
def balloon(image: Image, features: int) -> None:
    """vmstate_virtio_balloon_device: pages of 4 KiB."""
    image.number("num_pages", 4, words=lambda pages: f"{pages / 256:g} MiB wanted of the guest")
    image.number("actual", 4, words=lambda pages: f"{pages / 256:g} MiB in the balloon")


@DEVICE_PARTS("console", source="hw/char/virtio-serial-bus.c")
def console(image: Image, features: int) -> None:
    """virtio_serial_save_device: the ports, up to the first with something on its way to the guest."""
    image.number("cols", 2)
    image.number("rows", 2)
    ports = image.number("max_nr_ports", 4)
    if ports > MAX_PAIRS:
        raise Short
    for word in range((ports + 31) // 32):
        image.number("ports_map", 4, index=word)
    for _ in range(min(image.number("nr_active_ports", 4), ports)):
        start, first = image.at, len(image.fields)
        number = image.number("id", 4)
        image.number("guest_connected", 1)
        image.number("host_connected", 1)
        popped = image.number("elem_popped", 4)
        image.group("port", "struct", start, first, index=number)
        if popped:
            break


@DEVICE_PARTS("blk", source="hw/block/virtio-blk.c")
def blk(image: Image, features: int) -> None:
    """virtio_blk_save_device: requests on their way, each behind a byte 1."""
    if image.raw[image.at : image.at + 1] == b"\0":
        image.number("requests", 1, words=lambda _: "none on its way")
