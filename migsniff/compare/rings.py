"""Virtqueues compared with the guest memory that they are in, as virtio_load of hw/virtio/virtio.c does.

A device remembers how far it has read a ring, and the ring, in guest memory, how far it is filled. Where both
are is known only when the devices have come, behind all memory: so a stream is read twice, and the second
time two bytes are looked at of each ring. Of guest memory nothing else is kept.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np

from migsniff.compare.guestram import GuestRam, RamPlace, cmos_in
from migsniff.compare.omitted import first_of
from migsniff.core.events import (
    ColoMessage,
    CommandSent,
    Configuration,
    DeviceSection,
    EndOfStream,
    Event,
    Finding,
    Header,
    MultifdPacket,
    RamBlocks,
    RamPages,
)
from migsniff.expert.codes import finding
from migsniff.expert.framing import called
from migsniff.expert.virtqueues import index_field
from migsniff.show.extract import RamFiles
from migsniff.show.folder import Folder
from migsniff.show.pagestates import BROKEN, UNSENT, Pages
from migsniff.show.words import name, several
from migsniff.values.image import Order
from migsniff.values.virtio import ACCESS_PLATFORM, RING_PACKED, VirtioState, virtio_state

MASK: Final = 0xFFFF  # an index counts on from 0 behind this
MAX_QUEUES: Final = 16384
"""Of one stream that are compared."""
INDEX: Final = 2
"""Where the index stands in the available and in the used ring, and how many bytes it has."""
POSTCOPY: Final = ("POSTCOPY_LISTEN", "POSTCOPY_RUN")
Key = tuple[str, int]


class Ring(NamedTuple):
    """Queue `number` of a device, set up, and where in guest memory its two indices are.

    `offset`: where last_avail_idx is in the stream.
    """

    key: Key
    number: int
    size: int
    last_avail_idx: int
    offset: int
    order: Order
    avail: RamPlace
    used: RamPlace


class Virtqueues:
    """A show sink for the first reading, whose session must decode fields: where rings are."""

    def __init__(self) -> None:
        self._machine = ""
        self._blocks: dict[str, int] = {}
        self._cmos = b""
        self._states: dict[Key, VirtioState] = {}
        self._count = self._beyond = 0

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        match event:
            case Configuration():
                self._machine = event.machine
            case RamBlocks():
                self._blocks = {block.name: block.length for block in event.blocks}
            case DeviceSection() if event.described or event.assumed:
                self._cmos = cmos_in(event) or self._cmos
                self._take(event)

    def close(self) -> None:
        """Nothing is pending."""

    def _take(self, event: DeviceSection) -> None:
        key = event.idstr, event.instance_id
        state = None if event.cut else virtio_state(event, self._machine)
        queues = tuple(queue for queue in state.queues if queue.desc) if state is not None else ()
        if key in self._states:
            self._count -= len(self._states.pop(key).queues)
        if state is None or not queues:
            return
        if self._count + len(queues) > MAX_QUEUES:
            self._beyond += len(queues)
            return
        self._count += len(queues)
        self._states[key] = msgspec.structs.replace(state, queues=queues)

    @property
    def any(self) -> bool:
        """Whether a queue is set up."""
        return bool(self._states)

    def rings(self, omitted: list[str]) -> list[Ring]:
        """Those that can be compared; `omitted` gets a sentence for each kind that cannot."""
        ram = GuestRam(self._blocks, self._cmos)
        found: list[Ring] = []
        left: dict[str, list[str]] = {}
        for key, state in self._states.items():
            why = ""
            if state.features >> RING_PACKED & 1:
                why = "packed rings, which have no index"
            elif state.features >> ACCESS_PLATFORM & 1:
                why = "rings at addresses of the platform (VIRTIO_F_ACCESS_PLATFORM), perhaps of an IOMMU"
            for queue in () if why else state.queues:
                avail, used = ram.place(queue.avail + INDEX), ram.place(queue.used + INDEX)
                if avail is None or used is None:
                    why = "rings whose place in the RAM blocks the stream does not prove"
                    continue
                what = (queue.index, queue.size, queue.last_avail_idx, queue.index_offset)
                found.append(Ring(key, *what, state.order, avail, used))
            if why:
                left.setdefault(why, []).append(f"{key[0]}/{key[1]}")
        if self._beyond:
            omitted.append(f"{several(self._beyond, 'ring')} beyond {MAX_QUEUES}")
        omitted += [f"{why}: {first_of(map(name, devices), len(devices))}" for why, devices in left.items()]
        return found


class Came(NamedTuple):
    """Where a page came last."""

    channel: str
    offset: int
    time: int


class Index(NamedTuple):
    """A ring's index, and where its page came last."""

    value: int
    place: RamPlace
    came: Came


class Loaded(NamedTuple):
    """A device whose turn it is: what the indices of its rings are then, by the number of the queue."""

    section: DeviceSection
    time: int
    indices: dict[int, tuple[Index | None, Index | None]]


class RingPages:
    """A show sink for the second reading, whose session must hand out page contents."""

    def __init__(self, rings: Sequence[Ring], folder: Folder) -> None:
        self._files = RamFiles(folder)
        self._rings: dict[Key, list[Ring]] = {}
        places: dict[str, list[int]] = {}
        for ring in rings:
            self._rings.setdefault(ring.key, []).append(ring)
            for place in (ring.avail, ring.used):
                places.setdefault(place.block, []).append(place.offset)
        self._places = {block: np.unique(np.array(each, np.uint64)) for block, each in places.items()}
        self._pages: dict[str, Pages] = {}
        self._page_size = 0
        self._came: dict[tuple[str, int], Came] = {}
        self._loaded: dict[Key, Loaded] = {}
        self._anytime = self._useless = self._postcopy = self._whole = False

    # ------------------------------------------------------------ events

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        match event:
            case RamPages():
                self._take(time, event)
            case RamBlocks():
                blocks = tuple(block for block in event.blocks if block.name in self._places)
                self._files.show(migration, time, msgspec.structs.replace(event, blocks=blocks))
            case DeviceSection():
                self._load(time, event)
            case CommandSent():
                self._postcopy |= event.name in POSTCOPY
                self._files.show(migration, time, event)
            case MultifdPacket():
                self._anytime = True
            case ColoMessage():  # its memory is that of a guest which runs on
                self._useless = True
            case Header():
                self._loaded.clear()
            case EndOfStream():
                self._whole = True

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _take(self, time: int, event: RamPages) -> None:
        """Of pages those that hold an index."""
        if event.block not in self._places:
            return
        size = np.uint64(event.page_size)
        if self._page_size != event.page_size:
            self._page_size = event.page_size
            self._pages = {block: np.unique(each - each % size) for block, each in self._places.items()}
        addresses = event.addresses
        which = np.flatnonzero(np.isin(addresses, self._pages[event.block]))
        if not len(which):
            return
        for address, at in zip(addresses[which].tolist(), event.bodies[which].tolist(), strict=True):
            self._came[event.block, address] = Came(event.channel, event.offset + at, time)
        parts = {each: getattr(event, each)[which] for each in ("words", "bodies", "lengths")}
        self._files.show("", 0, msgspec.structs.replace(event, **parts))

    def _load(self, time: int, event: DeviceSection) -> None:
        """A device comes, and is loaded from what has come of memory."""
        key = event.idstr, event.instance_id
        if key in self._rings and key not in self._loaded:
            section = msgspec.structs.replace(event, fields=(), image=msgspec.UNSET)
            self._loaded[key] = Loaded(section, time, {})
            self._look(key)

    # ------------------------------------------------------------ indices

    def _look(self, key: Key) -> None:
        """Take the indices of a device as they are now."""
        self._files.flush()
        indices = self._loaded[key].indices
        for ring in self._rings[key]:
            indices[ring.number] = self._index(ring.avail, ring.order), self._index(ring.used, ring.order)

    def _index(self, place: RamPlace, order: Order) -> Index | None:
        """An index in guest memory; None if the stream does not tell it."""
        size = self._page_size
        if not size or place.offset % size == size - 1:
            return None
        state = self._files.states.get(place.block, place.offset // size)
        if state == UNSENT or state & BROKEN:
            return None
        raw = self._files.read(place.block, place.offset, INDEX) or b""
        came = self._came.get((place.block, place.offset - place.offset % size))
        if len(raw) != INDEX or came is None:
            return None
        return Index(int.from_bytes(raw, order), place, came)

    # ------------------------------------------------------------ the end

    def findings(self, omitted: list[str]) -> Iterator[tuple[int, Finding]]:
        """What virtio_load says, each with its time; `omitted` gets what could not be compared."""
        later = self._anytime or self._postcopy  # the order of channels tells nothing, and faults wait
        if self._useless or (self._postcopy and not self._whole) or self._files.states.late:
            omitted.append("rings in guest memory that is not that of the moment when devices are loaded")
            return
        unknown = 0
        for key, loaded in self._loaded.items():
            if later:
                self._look(key)
            for ring in self._rings[key]:
                avail, used = loaded.indices[ring.number]
                unknown += avail is None or used is None
                found = self._misfit(ring, loaded, avail, used)
                if found is not None:
                    yield loaded.time, found
                    if found.severity == "error":  # where loading ends
                        break
        if unknown:
            omitted.append(f"{several(unknown, 'ring')} whose pages are not in the stream")

    def _misfit(self, ring: Ring, loaded: Loaded, avail: Index | None, used: Index | None) -> Finding | None:
        """What the indices of a ring show, the guest's being one of them."""
        host = ring.last_avail_idx
        if avail is None:
            return None
        if (delta := avail.value - host & MASK) > ring.size:
            code, guest = "virtqueue-index", avail
        elif used is not None and host - used.value & MASK > ring.size:
            code, guest = "virtqueue-in-flight", used
        else:
            return None
        return finding(
            code,
            loaded.section,
            section=called(loaded.section),
            field=index_field(ring.number),
            offset=ring.offset,
            size=INDEX,
            evidence=host.to_bytes(INDEX),
            index=ring.number,
            entries=ring.size,
            guest=guest.value,
            host=host,
            delta=delta,
            block=name(guest.place.block),
            place=guest.place.offset,
            came=f"{guest.came.offset} of {name(guest.came.channel)}{_when(guest.came.time)}",
            at=f"{loaded.section.offset}{_when(loaded.time)}",
        )


def _when(time: int) -> str:
    """A time in words; a dump has none."""
    return f" ({time / 1e6:.6f} s)" if time else ""
