"""A bounded model of a migration, made from its events: what the live view, `info` and a status line show."""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

from migsniff.core.arrivals import Direction
from migsniff.core.events import (
    ColoMessage,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    Draining,
    EndOfStream,
    Event,
    Finding,
    Header,
    LiveSection,
    LoosePages,
    MultifdPacket,
    Package,
    PageCounts,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    Section,
    TlsEnded,
    TlsMessage,
    TlsRecords,
    Undecodable,
    Verdict,
)
from migsniff.core.wire import ColoMessageType
from migsniff.show.channels import DEVICE_STATE, MAX_CHANNELS, ChannelBalance
from migsniff.show.latency import FaultStats
from migsniff.show.model import (
    BlockStats,
    DeviceStats,
    MessageStats,
    PassStats,
    Throughput,
    add,
    subtract,
)
from migsniff.show.recovery import RecoveryStats
from migsniff.show.tls import TlsDirections
from migsniff.show.tls import count as count_tls

FIRST_PASSES: Final = 4
LAST_PASSES: Final = 60
LAST_DEVICES: Final = 12
LARGEST_DEVICES: Final = 12
LAST_MESSAGES: Final = 8
MAX_MESSAGE_NAMES: Final = 32
MAX_FINDINGS: Final = 50
MAX_ENDS: Final = 64

DOWNTIME_SHUT: Final = "SHUT on the return path"
DOWNTIME_DESCRIPTION: Final = "the end of the description"
DOWNTIME_EOF: Final = "EOF, a lower bound"
DOWNTIME_MULTIFD: Final = "the last multifd packet, behind the main channel's end"
DOWNTIME_PONG: Final = "PONG for the package"
_PACKAGE_PONGS: Final = (3, 0x42)


class MigrationStats:
    """What is known of one migration. Times are microseconds, as in events.

    Of its passes the first FIRST_PASSES and the last `keep_passes` are kept.
    """

    def __init__(
        self, migration: str, *, source: str = "", destination: str = "", keep_passes: int = LAST_PASSES
    ) -> None:
        self.migration = migration
        self.source = source
        self.destination = destination
        self.phase = "connecting"
        self.elapsed = 0
        self.bytes: dict[tuple[str, Direction], int] = {}
        self.sent = 0
        self.returned = 0
        self.throughput = Throughput()
        self.configuration: Configuration | None = None
        self.page_size: int | None = None
        self.page_size_from = ""
        self.ram_total = 0
        self.blocks: dict[str, BlockStats] = {}
        self.counts = PageCounts()
        self.channels = ChannelBalance()
        self.ram_sections = 0
        self.live_sections: dict[str, int] = {}
        self.first_passes: list[PassStats] = []
        self.last_passes: deque[PassStats] = deque(maxlen=keep_passes)
        self.passes = 0
        self.devices = 0
        self.device_bytes = 0
        self.exact_devices = 0
        self.assumed_devices = 0
        self.last_devices: deque[DeviceStats] = deque(maxlen=LAST_DEVICES)
        self.largest_devices: list[DeviceStats] = []
        self.tls: TlsDirections = {}
        self.switchover: int | None = None
        self.heard_before: int | None = None
        """When bytes of the main channel came last before those that tell of the switchover."""
        self.postcopy = False
        self.faults = FaultStats()
        self.discarded = 0
        self.recovery = RecoveryStats()
        self.messages: dict[str, int] = {}
        self.last_messages: deque[MessageStats] = deque(maxlen=LAST_MESSAGES)
        self.findings: list[Finding | Undecodable] = []
        self.findings_omitted = 0
        self.ends: list[DirectionEnded] = []
        self.drained: dict[str, Draining] = {}
        self.verdict: Verdict | None = None
        self._synced = PageCounts()
        self._pass_began: int | None = None
        self._ran: int | None = None  # how long the guest ran before the checkpoint of COLO
        self._ran_on = 0
        self._last_device_end = 0
        self._item_end = 0
        self._item_ended = 0
        self._next_item_began: int | None = None
        self._heard = 0  # when bytes of the main channel came last, before those that are being decoded
        self._heard_before_item = 0
        self._stopped_at: dict[str, int] = {}

    def progress(self, time: int, channel: str, direction: Direction, offset: int) -> None:
        """Bytes up to `offset` have arrived: for throughput, and for the time at which a section begins."""
        self._advance(time, channel, direction, offset)
        if direction == "fwd" and channel == "main":
            if self._next_item_began is None and offset > self._item_end:
                self._next_item_began = time
                self._heard_before_item = self._heard
            self._heard = time

    def _advance(self, time: int, channel: str, direction: Direction, offset: int) -> None:
        if time > self.elapsed:
            self.elapsed = time
        key = (channel, direction)
        before = self.bytes.get(key, 0)
        if offset <= before or (not before and len(self.bytes) >= MAX_CHANNELS):
            return
        self.bytes[key] = offset
        if direction == "rev":
            self.returned += offset - before
            return
        self.sent += offset - before
        self.throughput.add(time, self.sent)

    def update(self, time: int, event: Event) -> None:
        """Take one event into account."""
        self._advance(time, event.channel, event.direction, event.offset + event.size)
        self.channels.update(event)
        if isinstance(event, MultifdPacket):  # they come by the thousand, and tell nothing else
            self._packet(event)
            if event.loaded:
                self._stopped(time, event, DOWNTIME_MULTIFD)
            return
        self.faults.update(time, event)
        self.phase = self.recovery.update(event) or self.phase
        match event:
            case RamSection():
                self._ram_section(time, event)
            case LoosePages():
                self._pages(event)
            case Section():
                self._section(time, event)
            case DirtySync():
                self._dirty_sync(time, event)
            case ColoMessage():
                self._colo(time, event)
            case CommandSent():
                self._command(time, event)
            case ReturnPathMessage():
                self._return_path(time, event)
            case Header():
                self.phase = "setup"
            case Configuration():
                self.configuration = event
            case RamBlocks():
                self._ram_blocks(time, event)
            case Package():
                self.phase = "device state"
            case EndOfStream():
                self._stopped(time, event, DOWNTIME_EOF)
                if not self.postcopy:
                    self.phase = "description"
            case DescriptionFound():
                self.page_size = self.page_size or event.page_size
                self._stopped(time, event, DOWNTIME_DESCRIPTION)
            case Finding() | Undecodable():
                self._finding(event)
            case TlsMessage() | TlsRecords() | TlsEnded():
                self.phase = "encrypted"
                count_tls(self.tls, event)
            case Draining():
                if len(self.drained) < MAX_CHANNELS:
                    self.drained[event.channel] = event
            case DirectionEnded():
                if len(self.ends) < MAX_ENDS:
                    self.ends.append(event)
            case Verdict():
                self.verdict = event
                self.phase = "done" if event.ok else event.outcome

    # ------------------------------------------------------------ what events change

    def _ram_section(self, time: int, event: RamSection) -> None:
        self.ram_sections += 1
        self._pages(event)
        self._section(time, event)
        if event.section_type != "END" and not self.postcopy:
            self.phase = f"iteration {event.iteration}"

    def _packet(self, event: MultifdPacket) -> None:
        if event.method != DEVICE_STATE:
            pages = PageCounts(normal=event.normal, zero=event.zero, bytes=event.size, resent=event.resent)
            self.counts = add(self.counts, pages)
            self._count(event.block, pages)

    def _pages(self, event: RamSection | LoosePages) -> None:
        self.counts = add(self.counts, event.counts)
        for part in event.blocks:
            self._count(part.block, part.counts)

    def _count(self, block: str, counts: PageCounts) -> None:
        stats = self.blocks.get(block)
        if stats is not None:
            pages = counts.normal + counts.zero + counts.xbzrle + counts.compressed
            stats.pages += pages
            stats.distinct += pages - counts.resent
            stats.bytes += counts.bytes

    def _section(self, time: int, event: Section) -> None:
        if event.section_type == "END" and self.switchover is None:
            began = self._next_item_began
            if began is None:
                began, self._heard_before_item = self._item_ended, self._heard
            self._switchover(began, self._heard_before_item)
        if isinstance(event, DeviceSection):
            self._device(time, event)
        elif isinstance(event, LiveSection) and (
            event.idstr in self.live_sections or len(self.live_sections) < MAX_CHANNELS
        ):
            self.live_sections[event.idstr] = self.live_sections.get(event.idstr, 0) + event.size
        self._item(time, event)

    def _item(self, time: int, event: Event) -> None:
        """An item of the main channel is complete: the byte behind it begins the next one."""
        end = event.offset + event.size
        if event.channel == "main" and end > self._item_end:
            self._item_end = end
            self._item_ended = time
            self._next_item_began = time if self.bytes.get(("main", "fwd"), 0) > end else None
            self._heard_before_item = self._heard

    def _stopped(self, time: int, event: Event, sign: str) -> None:
        """A sign that the guest may run again: not where nothing reaches the destination any more."""
        if event.channel not in self.drained:
            self._stopped_at[sign] = time

    def _switchover(self, time: int, heard_before: int) -> None:
        if self.switchover is None:
            self.switchover, self.heard_before = time, heard_before
            self.phase = "switchover"

    def _device(self, time: int, event: DeviceSection) -> None:
        end = event.offset + event.size
        seen_before = event.offset < self._last_device_end
        if not event.provisional:
            self.exact_devices += 1
        elif event.assumed:
            self.assumed_devices += 1
        if seen_before:
            if event.corrects is not None:
                self.device_bytes += event.size - event.corrects
            return
        if self.switchover is not None and not self.postcopy:
            self.phase = "device state"
        self._last_device_end = end
        previous = self.last_devices[-1].time if self.last_devices else None
        device = DeviceStats(
            size=event.size,
            name=f"{event.idstr}/{event.instance_id}",
            time=time,
            since=None if previous is None or not time else time - previous,
        )
        self.devices += 1
        self.device_bytes += event.size
        self.last_devices.append(device)
        if len(self.largest_devices) < LARGEST_DEVICES:
            heapq.heappush(self.largest_devices, device)
        else:
            heapq.heappushpop(self.largest_devices, device)

    def _ram_blocks(self, time: int, event: RamBlocks) -> None:
        self.page_size = event.page_size
        self.page_size_from = event.page_size_from
        self.ram_total = event.total
        self.blocks = {block.name: BlockStats(block.name, block.length) for block in event.blocks}
        self._pass_began = time

    def _dirty_sync(self, time: int, event: DirtySync) -> None:
        # a dump has no times: all are 0
        ended = PassStats(event.iteration, self._pass_began, time or None, event.counts, final=event.final)
        ended.dirty_rate = self._dirty_rate(event.counts)
        self._synced = add(self._synced, event.counts)
        self._pass_began = time
        self.passes += 1
        if len(self.first_passes) < FIRST_PASSES:
            self.first_passes.append(ended)
        else:
            self.last_passes.append(ended)

    def _dirty_rate(self, counts: PageCounts) -> float | None:
        before = self._last_pass()
        ran = self._ran if self._ran is not None or before is None else before.duration
        return counts.pages * 1e6 / ran if ran else None

    def _colo(self, time: int, event: ColoMessage) -> None:
        """The guest runs on when the destination is ready, and when it has loaded a checkpoint."""
        if event.message in (ColoMessageType.CHECKPOINT_READY, ColoMessageType.VMSTATE_LOADED):
            self._ran_on = time
        elif event.begins_pass and self._pass_began is not None:
            self._ran = time - max(self._ran_on, self._pass_began)
            self._pass_began = time

    def _last_pass(self) -> PassStats | None:
        if self.last_passes:
            return self.last_passes[-1]
        return self.first_passes[-1] if self.first_passes else None

    def _command(self, time: int, event: CommandSent) -> None:
        if event.name == "SWITCHOVER_START":
            self._switchover(time, self._heard)
        elif event.name in ("POSTCOPY_RAM_DISCARD", "POSTCOPY_LISTEN"):
            self._switchover(time, self._heard)
            self.postcopy = True
            if isinstance(pages := event.arguments.get("pages"), int):
                self.discarded += pages
        elif event.name == "POSTCOPY_RUN":
            self.phase = "postcopy"
        self._item(time, event)

    def _return_path(self, time: int, event: ReturnPathMessage) -> None:
        value = next(iter(event.arguments.values()), None)
        if event.name in self.messages or len(self.messages) < MAX_MESSAGE_NAMES:
            self.messages[event.name] = self.messages.get(event.name, 0) + 1
        self.last_messages.append(MessageStats(time, event.name, value))
        if event.name == "SHUT" and value == 0:
            self._stopped_at.setdefault(DOWNTIME_SHUT, time)
        elif event.name == "PONG" and value in _PACKAGE_PONGS:
            self._stopped_at[DOWNTIME_PONG] = time

    def _finding(self, event: Finding | Undecodable) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(event)
        else:
            self.findings_omitted += 1

    # ------------------------------------------------------------ what can be asked

    @property
    def mean_throughput(self) -> float | None:
        """Bytes a second from source to destination, over the whole time so far."""
        return self.sent * 1e6 / self.elapsed if self.elapsed else None

    @property
    def downtime(self) -> tuple[int, str] | None:
        """Microseconds from the switchover to the best sign that the guest runs again, and that sign."""
        if self.switchover is None or not self.elapsed:
            return None
        signs = [DOWNTIME_PONG] if self.postcopy else [DOWNTIME_SHUT, DOWNTIME_DESCRIPTION, DOWNTIME_EOF]
        for sign in signs:
            if sign in self._stopped_at:
                time = self._stopped_at[sign]
                last = self._stopped_at.get(DOWNTIME_MULTIFD, 0)
                if sign in (DOWNTIME_DESCRIPTION, DOWNTIME_EOF) and last > time:
                    time, sign = last, DOWNTIME_MULTIFD
                return time - self.switchover, sign
        return None

    @property
    def pages(self) -> int | None:
        """Pages of guest memory in all RAM blocks."""
        return self.ram_total // self.page_size if self.page_size else None

    def drained_bytes(self, channel: str) -> int:
        """What came on a channel from its source when its destination had gone."""
        return max(0, self.bytes.get((channel, "fwd"), 0) - self.drained[channel].offset)

    def open_pass(self) -> PassStats | None:
        """The pass that has no end (yet), with what complete sections of it have brought."""
        last = self._last_pass()
        if self._pass_began is None or (last is not None and last.final):
            return None
        counts = subtract(self.counts, self._synced)
        if self.verdict is not None and not counts.pages:
            return None
        unfinished = PassStats(
            self.passes + 1,
            self._pass_began,
            None,
            counts,
            running=self.verdict is None and not self.postcopy,
        )
        if not self.passes and self.pages is not None:
            unfinished.remaining = max(
                0, self.pages - sum(block.distinct for block in list(self.blocks.values()))
            )
        return unfinished

    def all_passes(self) -> Iterator[PassStats]:
        """The passes that are remembered: the first few, the last ones, the one without an end."""
        yield from list(self.first_passes)
        yield from list(self.last_passes)
        unfinished = self.open_pass()
        if unfinished is not None:
            yield unfinished

    @property
    def pass_count(self) -> int:
        """How many passes there were, with the one without an end: all_passes() may be fewer."""
        return self.passes + (self.open_pass() is not None)

    def largest_blocks(self, count: int | None = None) -> list[BlockStats]:
        """RAM blocks, largest first."""
        blocks = sorted(self.blocks.values(), key=lambda block: -block.length)
        return blocks if count is None else list(islice(blocks, count))
