"""The subsections of vmstate_virtio (hw/virtio/virtio.c), which end the state of a virtio device."""

from collections.abc import Callable
from re import compile as regex
from struct import Struct
from typing import Final

import msgspec

from migsniff.values.image import Image, Short
from migsniff.values.virtiofeatures import features_words

QUEUES: Final = 1024  # VIRTIO_QUEUE_MAX: the arrays have that many elements, whatever queues there are
ENDIAN: Final = {0: "not known", 1: "little-endian", 2: "big-endian"}

_HEADER: Final = regex(rb"\x05[\x08-\x20]virtio/[0-9a-z_]+\x00\x00\x00\x01")
_MODERN: Final = b"\x05\x17virtio_pci/modern_state\x00\x00\x00\x01"
_MMIO: Final = b"\x05\x11virtio_mmio/state\x00\x00\x00\x01"
_RINGS: Final = Struct(">QQ")
_PACKED: Final = Struct(">H?H?I")
_SIZE: Final = Struct(">I")
_MODERN_QUEUE: Final = 28
_MMIO_QUEUE: Final = 27
_SIZES: Final = {
    "virtio/device_endian": 1,
    "virtio/128bit_features": 8,
    "virtio/64bit_features": 8,
    "virtio/virtqueues": QUEUES * _RINGS.size,
    "virtio/ringsize": QUEUES * 4,
    "virtio/broken": 1,
    "virtio/extra_state": None,
    "virtio/started": 1,
    "virtio/packed_virtqueues": QUEUES * _PACKED.size,
    "virtio/disabled": 1,
}
"""In the order in which QEMU sends them, each at most once; None: see `_extra_state_size`."""
_FLAGS: Final = ("virtio/broken", "virtio/started", "virtio/disabled")


class QueueRings(msgspec.Struct):
    """What the subsections say that belongs to what stands before them. None: it was not sent.

    `addresses`: (avail, used) by queue; `packed`: (last_avail_idx, used_idx); `defaults`: sizes at reset.
    """

    features: int | None = None
    features_high: int = 0
    features_at: int = 0
    endian: int | None = None
    addresses: list[tuple[int, int]] | None = None
    packed: list[tuple[int, int]] | None = None
    defaults: list[int] | None = None
    flags: dict[str, bool] = {}


def subsections_at(raw: bytes, start: int) -> int:
    """Where the subsections begin that lead exactly to the end; the end, if there are none."""
    for match in _HEADER.finditer(raw, start):
        if _end(raw, match.start()) == len(raw):
            return match.start()
    return len(raw)


def _end(raw: bytes, at: int) -> int:
    """Where those that begin at `at` end; -1 if it is none of virtio's."""
    for name, size in _SIZES.items():
        header = _header(name)
        if raw.startswith(header, at):
            at += len(header)
            at += _extra_state_size(raw, at) if size is None else size
    return at


def _header(name: str) -> bytes:
    return b"\x05" + bytes([len(name)]) + name.encode() + b"\0\0\0\1"


def _extra_state_size(raw: bytes, at: int) -> int:
    """Of what the transport adds, which is a vmstate without fields that may have one subsection."""
    if raw.startswith(_MODERN, at):
        return len(_MODERN) + 16 + QUEUES * _MODERN_QUEUE
    if raw.startswith(_MMIO, at):
        return len(_MMIO) + 8 + QUEUES * _MMIO_QUEUE
    return 0


def read_subsections(image: Image, device: str, count: int) -> QueueRings:
    """Read them to the end; of arrays, the elements of the `count` queues that there are. May raise Short."""
    rings = QueueRings()
    for name in _SIZES:
        header = _header(name)
        if not image.raw.startswith(header, image.at):
            continue
        start, first = image.at, len(image.fields)
        image.take(len(header))
        _read_one(image, name, device, count, rings)
        image.group(name, "subsection", start, first, version=1)
    if image.left:
        raise Short
    return rings


def _read_one(image: Image, name: str, device: str, count: int, rings: QueueRings) -> None:
    if name in _FLAGS:
        rings.flags[name] = bool(image.number(name.removeprefix("virtio/"), 1))
    elif name == "virtio/device_endian":
        rings.endian = image.number("device_endian", 1, words=lambda value: ENDIAN.get(value, ""))
    elif name == "virtio/128bit_features":
        words = features_words(device, 64)
        rings.features_high = image.number("guest_features_high", 8, words=words)
    elif name == "virtio/64bit_features":
        rings.features_at = image.at
        rings.features = image.number("guest_features", 8, words=features_words(device))
    elif name == "virtio/virtqueues":
        rings.addresses = [_RINGS.unpack_from(image.raw, image.at + 16 * queue) for queue in range(count)]
        _array(
            image, "queue", _RINGS.size, count, lambda: (image.number("avail", 8), image.number("used", 8))
        )
    elif name == "virtio/ringsize":
        raw = image.raw[image.at : image.at + 4 * count]
        rings.defaults = [size for (size,) in _SIZE.iter_unpack(raw)]
        _array(image, "queue", 4, count, lambda: image.number("num_default", 4))
    elif name == "virtio/packed_virtqueues":
        packed = [_PACKED.unpack_from(image.raw, image.at + 10 * queue) for queue in range(count)]
        rings.packed = [(last, used) for last, _, used, _, _ in packed]
        _array(image, "queue", _PACKED.size, count, lambda: _read_packed(image))
    else:
        _read_extra_state(image, device, count)


def _read_packed(image: Image) -> None:
    image.number("last_avail_idx", 2)
    image.number("last_avail_wrap_counter", 1)
    image.number("used_idx", 2)
    image.number("used_wrap_counter", 1)
    image.number("inuse", 4, words=lambda number: f"{number} in flight" if number else "")


def _read_extra_state(image: Image, device: str, count: int) -> None:
    """virtio_pci/modern_state (hw/virtio/virtio-pci.c), virtio_mmio/state (hw/virtio/virtio-mmio.c)."""
    start, first = image.at, len(image.fields)
    if image.raw.startswith(_MODERN, start):
        image.take(len(_MODERN))
        image.number("dfselect", 4)
        image.number("gfselect", 4)
        name, size, gap = "virtio_pci/modern_state", _MODERN_QUEUE, 1
    elif image.raw.startswith(_MMIO, start):
        image.take(len(_MMIO))
        name, size, gap = "virtio_mmio/state", _MMIO_QUEUE, 0
    else:
        return
    for word in range(2):
        image.number("guest_features", 4, index=word, words=features_words(device, 32 * word))
    _array(image, "queue", size, count, lambda: _read_modern_queue(image, gap))
    image.group(name, "subsection", start, first, version=1)


def _read_modern_queue(image: Image, gap: int) -> None:
    image.number("num", 2)
    image.bytes("unused", gap)
    image.number("enabled", 1)
    for name in ("desc", "avail", "used"):
        start, first = image.at, len(image.fields)
        low = int.from_bytes(image.take(4), "big")
        high = int.from_bytes(image.take(4), "big")
        image.group(
            name, "uint32", start, first, array_len=2, value=(low, high), meaning=f"{high << 32 | low:#x}"
        )


def _array(image: Image, name: str, size: int, count: int, read: Callable[[], object]) -> None:
    """An array of QUEUES elements: those of the `count` queues, and one field for all others."""
    for index in range(count):
        start, first = image.at, len(image.fields)
        read()
        image.group(name, "struct", start, first, index=index)
    image.bytes("others", (QUEUES - count) * size, "no such queues")
