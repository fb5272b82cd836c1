"""The state of a virtio device, opaque in the description ("virtio": virtio_save of hw/virtio/virtio.c).

In this order: of the transport, what all devices have, the queues, what is the kind of device's own, and the
subsections of vmstate_virtio.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.core.wire import IMAGE
from migsniff.values.image import Image, Order, Short
from migsniff.values.meaning import TYPES, Place
from migsniff.values.tables import virtio
from migsniff.values.virtiodevices import read_config, read_part
from migsniff.values.virtiofeatures import features_words, status_text
from migsniff.values.virtiosubsections import QueueRings, read_subsections, subsections_at
from migsniff.values.virtiotransports import TRANSPORTS, Transport, no_vector

MAX_QUEUES: Final = 1024  # VIRTIO_QUEUE_MAX
MAX_QUEUE_SIZE: Final = 32768  # of the specification; QEMU's own limit is 1024
PAGE: Final = 4096


class VirtioQueue(msgspec.Struct, frozen=True):
    """One queue: `size` descriptors; where its parts are in guest memory, 0 if it is not set up.

    `most` is the size that it had at reset, 0 if that is not told; a guest may have chosen another.

    `used_idx` is sent for packed queues only. In the stream, `offset` is where its record is, `index_offset`
    where that has last_avail_idx.
    """

    index: int
    size: int
    most: int
    desc: int
    avail: int
    used: int
    last_avail_idx: int
    used_idx: int | None
    offset: int
    index_offset: int


class VirtioState(msgspec.Struct, frozen=True):
    """What any virtio device has. `features` are those that the guest took, all 64 bits (or 128).

    `order` is the byte order of its rings and its configuration space. The offsets are in the stream: of the
    status byte, and of the word, or the subsection, with the features.
    """

    transport: str
    status: int
    isr: int
    queue_sel: int
    features: int
    order: Order
    queues: tuple[VirtioQueue, ...]
    broken: bool
    started: bool
    disabled: bool
    status_offset: int
    features_offset: int
    config_len: int


@TYPES(IMAGE, source="hw/virtio/virtio.c")
def virtio_blob(field: Field, place: Place) -> Field:
    """All that virtio_save wrote."""
    if field.children or (read := _read(field, place.device, place.machine)) is None:
        return field
    children, state = read
    return replace(field, children=children, meaning=_summary(place.device, state))


def virtio_state(section: DeviceSection, machine: str = "") -> VirtioState | None:
    """The virtio part of a device's state; None if it has none, or that is not as it should be."""
    field = section.image if isinstance(section.image, Field) else _image_in(section.fields)
    read = _read(field, section.idstr.rpartition("/")[2], machine) if field is not None else None
    return None if read is None else read[1]


def virtio_image(section: DeviceSection, machine: str = "") -> tuple[tuple[Field, ...], VirtioState] | None:
    """The same, behind the fields that virtio_save wrote."""
    field = _image_in(section.fields)
    return None if field is None else _read(field, section.idstr.rpartition("/")[2], machine)


def _image_in(fields: tuple[Field, ...]) -> Field | None:
    return next((field for field in fields if field.type == IMAGE), None)


def _read(field: Field, device: str, machine: str) -> tuple[tuple[Field, ...], VirtioState] | None:
    """Try one transport after the other, until one leads to the end."""
    for transport in TRANSPORTS:
        for image in transport.read(field.raw, field.offset):
            try:
                state = _read_behind(image, transport, device, machine)
            except Short:
                continue
            return tuple(image.fields), state
    return None


def _read_behind(image: Image, transport: Transport, device: str, machine: str) -> VirtioState:
    """All behind the transport's state. Raises Short if this is none."""
    status_offset = image.offset + image.at
    status = image.number("status", 1, words=status_text)
    isr = image.number("isr", 1, words=lambda value: ", ".join(_interrupts(value)))
    queue_sel = image.number("queue_sel", 2)
    features_offset = image.offset + image.at
    features = image.number("guest_features", 4, words=features_words(device))
    length = image.number("config_len", 4)
    config, config_place = image.at, len(image.fields)
    image.take(length)
    count = image.number("queues", 4)
    if queue_sel >= MAX_QUEUES or count > MAX_QUEUES:
        raise Short
    records = [_read_queue(image, transport, index) for index in range(count)]
    start = subsections_at(image.raw, image.at)
    read_part(image, device, features, start)
    rings = read_subsections(image, device, count)
    if rings.features is not None:
        features, features_offset = rings.features, image.offset + rings.features_at
    features |= rings.features_high << 64
    order = _order(features, rings, transport, machine)
    _insert_config(image, config_place, config, length, device, order)
    return VirtioState(
        transport.name,
        status,
        isr,
        queue_sel,
        features,
        order,
        tuple(_queues(records, rings, features, image.offset)),
        rings.flags.get("virtio/broken", False),
        rings.flags.get("virtio/started", False),
        rings.flags.get("virtio/disabled", False),
        status_offset,
        features_offset,
        length,
    )


class _Record(msgspec.Struct, frozen=True):
    """What stands of a queue before the subsections; `align` of the used ring, a legacy device's."""

    at: int
    size: int
    align: int
    desc: int
    index_at: int
    last_avail_idx: int


def _read_queue(image: Image, transport: Transport, index: int) -> _Record:
    start, first = image.at, len(image.fields)
    size = image.number("size", 4)
    align = image.number("align", 4) if transport.has_align else PAGE
    desc = image.number("desc", 8)
    index_at = image.at
    last_avail_idx = image.number("last_avail_idx", 2)
    if transport.has_vector(image):
        image.number("vector", 2, words=no_vector)
    if not 0 < size <= MAX_QUEUE_SIZE:
        raise Short
    words = f"{size} descriptors at {desc:#x}" if desc else f"{size} descriptors, not set up"
    image.group("queue", "virtqueue", start, first, index=index, meaning=words)
    return _Record(start, size, align, desc, index_at, last_avail_idx)


def _queues(records: list[_Record], rings: QueueRings, features: int, offset: int) -> Iterator[VirtioQueue]:
    for index, record in enumerate(records):
        avail = used = 0
        if rings.addresses is not None and features >> VERSION_1 & 1:
            avail, used = rings.addresses[index]
        elif record.desc and record.align:
            # a legacy device's rings stand one behind the other (virtio 1.2, 2.7.2)
            avail = record.desc + 16 * record.size
            used = -(-(avail + 6 + 2 * record.size) // record.align) * record.align
        last_avail_idx, used_idx = record.last_avail_idx, None
        if rings.packed is not None:
            last_avail_idx, used_idx = rings.packed[index]
        yield VirtioQueue(
            index,
            record.size,
            record.size if rings.defaults is None else rings.defaults[index],
            record.desc,
            avail,
            used,
            last_avail_idx,
            used_idx,
            offset + record.at,
            offset + record.index_at,
        )


def _insert_config(image: Image, place: int, at: int, length: int, device: str, order: Order) -> None:
    """Configuration space, whose byte order only the subsections tell."""
    if not length:
        return
    inside = Image(image.raw[: at + length], image.offset, at)
    read_config(inside, device, length, order)
    inside.group("config", "struct", at, 0)
    image.fields[place:place] = inside.fields


def _order(features: int, rings: QueueRings, transport: Transport, machine: str) -> Order:
    """The byte order of configuration space: that of the guest, unless it drives a device of virtio 1."""
    if features >> VERSION_1 & 1:
        return "little"
    if rings.endian is not None:
        return "big" if rings.endian == BIG_ENDIAN else "little"
    return "big" if transport.name == "ccw" or machine.startswith(("pseries", "s390-")) else "little"


def _bit(feature: str) -> int:
    return next(bit for bit, name in virtio.FEATURES[""].items() if name == feature)


VERSION_1: Final = _bit("VIRTIO_F_VERSION_1")
ACCESS_PLATFORM: Final = _bit("VIRTIO_F_ACCESS_PLATFORM")
RING_PACKED: Final = _bit("VIRTIO_F_RING_PACKED")
BIG_ENDIAN: Final = 2  # VIRTIO_DEVICE_ENDIAN_BIG, include/hw/virtio/virtio.h


def _interrupts(isr: int) -> Iterator[str]:
    if isr & ~virtio.VIRTIO_PCI_ISR_CONFIG & 1:
        yield "queue interrupt"
    if isr & virtio.VIRTIO_PCI_ISR_CONFIG:
        yield "configuration changed"


def _summary(device: str, state: VirtioState) -> str:
    ready = sum(1 for queue in state.queues if queue.desc)
    words = [f"over {state.transport}", status_text(state.status)]
    words.append(f"queues: {len(state.queues)}, set up: {ready}")
    words += [word for word in ("broken", "disabled") if getattr(state, word)]
    return "; ".join(words)
