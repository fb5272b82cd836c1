"""What each channel has carried when guest memory goes over multifd channels, and how evenly."""

from dataclasses import dataclass, field
from typing import Final

from migsniff.core.events import (
    Event,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    RamSection,
)
from migsniff.show.words import name, number, several, wire, wires

MAX_CHANNELS: Final = 256
MAX_DEVICES: Final = 64
MAX_BLOCKS: Final = 32
CHANNELS_IN_A_LINE: Final = 4  # so that it fits 80 columns
DEVICE_STATE: Final = "device-state"
OTHERS: Final = "(others)"


@dataclass(slots=True)
class ChannelStats:
    """One channel from the source: `bytes` up to the end of its last event, pages by kind and by block.

    Blocks that came after the first MAX_BLOCKS are one: OTHERS.
    """

    name: str
    multifd: bool
    bytes: int = 0
    packets: int = 0
    normal: int = 0
    zero: int = 0
    other: int = 0
    device_state: int = 0
    blocks: dict[str, int] = field(default_factory=dict)

    def count(self, block: str, normal: int, zero: int, other: int = 0) -> None:
        """Pages of a block have come."""
        self.normal += normal
        self.zero += zero
        self.other += other
        if pages := normal + zero + other:
            block = block if block in self.blocks or len(self.blocks) < MAX_BLOCKS else OTHERS
            self.blocks[block] = self.blocks.get(block, 0) + pages


@dataclass(slots=True)
class DeviceParts:
    """State of one device that came in multifd packets: bytes without the packets' headers."""

    packets: int = 0
    bytes: int = 0


class ChannelBalance:
    """All channels that have carried pages or device state; memory is bounded by the limits above."""

    def __init__(self) -> None:
        self.by_name: dict[str, ChannelStats] = {}
        self.devices: dict[str, DeviceParts] = {}
        self.omitted = 0  # events of channels behind the first MAX_CHANNELS

    def update(self, event: Event) -> None:
        """Take one event into account."""
        match event:
            case MultifdPacket():  # first: they come by the thousand
                if channel := self._channel(event, multifd=True):
                    channel.packets += 1
                    channel.count(event.block, event.normal, event.zero)
                    if event.method == DEVICE_STATE:
                        channel.device_state += event.data_size
                if event.method == DEVICE_STATE:
                    self._device(f"{event.block}/{event.packet_num}", event.data_size)
            case MultifdHello():
                self._channel(event, multifd=True)
            case RamSection() | LoosePages() if event.counts.pages:
                if channel := self._channel(event, multifd=False):
                    for part in event.blocks:
                        counts = part.counts
                        other = counts.xbzrle + counts.compressed
                        channel.count(part.block, counts.normal, counts.zero, other)
        if event.direction == "fwd" and (known := self.by_name.get(event.channel)):
            known.bytes = max(known.bytes, event.offset + event.size)

    def _channel(self, event: Event, *, multifd: bool) -> ChannelStats | None:
        channel = self.by_name.get(event.channel)
        if channel is None:
            if len(self.by_name) >= MAX_CHANNELS:
                self.omitted += 1
                return None
            channel = self.by_name[event.channel] = ChannelStats(event.channel, multifd)
        return channel

    def _device(self, device: str, size: int) -> None:
        device = device if device in self.devices or len(self.devices) < MAX_DEVICES else OTHERS
        parts = self.devices.setdefault(device, DeviceParts())
        parts.packets += 1
        parts.bytes += size

    # ------------------------------------------------------------ what can be asked

    def channels(self) -> list[ChannelStats]:
        """All of them, multifd-2 before multifd-10; none if there is no multifd channel."""
        channels = sorted(self.by_name.values(), key=lambda channel: (len(channel.name), channel.name))
        return channels if any(channel.multifd for channel in channels) else []

    def multifd(self) -> list[ChannelStats]:
        """The multifd channels, in order."""
        return [channel for channel in self.channels() if channel.multifd]

    def unevenness(self) -> tuple[float, float] | None:
        """Bytes of the multifd channel with the most, and of that with the least, as parts of the mean."""
        sizes = [channel.bytes for channel in self.multifd()]
        if not sum(sizes):
            return None
        mean = sum(sizes) / len(sizes)
        return max(sizes) / mean, min(sizes) / mean

    def text(self) -> str:
        """One line: multifd 3 channels: 4.30 5.10 5.00 MB, most 1.06 of mean."""
        channels, uneven = self.multifd(), self.unevenness()
        if uneven is None:
            return f"multifd {several(len(channels), 'channel')}" if channels else ""
        sizes = wires([channel.bytes for channel in channels[:CHANNELS_IN_A_LINE]])
        more = len(channels) - CHANNELS_IN_A_LINE
        others = f" and {more} others" if more > 0 else ""
        return f"multifd {several(len(channels), 'channel')}: {sizes}{others}, most {uneven[0]:.2f} of mean"

    def rows(self, count: int) -> list[str]:
        """A table of at most `count` channels, what the others have in one row; then how uneven it is."""
        channels, uneven = self.channels(), self.unevenness()
        if not channels:
            return []
        shown = channels if len(channels) <= count else channels[: count - 1]
        total = sum(channel.bytes for channel in channels if channel.multifd)
        lines = [_HEADINGS, *(_row(name(channel.name), [channel], total) for channel in shown)]
        if rest := channels[len(shown) :]:
            lines.append(_row(f"({len(rest)} others)", rest, total))
        if self.omitted:
            lines.append(f"and {several(self.omitted, 'event')} of channels that are not counted")
        if uneven is not None:
            lines.append(
                f"the multifd channel with the most has {uneven[0]:.2f} of the mean,"
                f" that with the least {uneven[1]:.2f}"
            )
        return lines

    def device_rows(self, count: int) -> list[str]:
        """The `count` devices with the most state in multifd packets; the others in the last row."""
        devices = sorted(self.devices.items(), key=lambda device: (-device[1].bytes, device[0]))
        shown = devices if len(devices) <= count else devices[: count - 1]
        lines = [_device_row(name(device), [parts]) for device, parts in shown]
        if rest := devices[len(shown) :]:
            lines.append(_device_row(f"({len(rest)} others)", [parts for _, parts in rest]))
        return lines

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON.

        "channels" by name: bytes, share (0 to 1, of the bytes of all multifd channels; null for another
        channel), packets, normal, zero, other (pages), device_state (bytes), blocks (pages by block).
        "largest_to_mean", "smallest_to_mean": bytes of multifd channels; null without any. "devices" by
        name/instance: packets and bytes. "omitted": events of channels that are not counted.
        """
        total = sum(channel.bytes for channel in self.multifd())
        most, least = self.unevenness() or (None, None)
        return {
            "channels": {channel.name: _channel_dict(channel, total) for channel in self.channels()},
            "largest_to_mean": most,
            "smallest_to_mean": least,
            "devices": {
                device: {"packets": parts.packets, "bytes": parts.bytes}
                for device, parts in list(self.devices.items())
            },
            "omitted": self.omitted,
        }


_HEADINGS: Final = f"{'channel':<16} {'bytes':>8} {'share':>5} {'packets':>7} {'normal':>7} {'zero':>7}"


def _row(label: str, channels: list[ChannelStats], total: int) -> str:
    size = sum(channel.bytes for channel in channels)
    multifd = sum(channel.bytes for channel in channels if channel.multifd)
    share = f"{multifd / total:.0%}" if total and any(channel.multifd for channel in channels) else "-"
    packets, normal, zero, other = (
        sum(counts)
        for counts in zip(
            *((each.packets, each.normal, each.zero, each.other) for each in channels), strict=True
        )
    )
    state = sum(channel.device_state for channel in channels)
    more = [f"{number(other)} other pages"] if other else []
    more += [f"{wire(state)} device state"] if state else []
    cells = f"{wire(size):>8} {share:>5} {number(packets):>7} {number(normal):>7} {number(zero):>7}"
    return f"{label:<16} {cells}" + "".join(f"  {each}" for each in more)


def _device_row(label: str, devices: list[DeviceParts]) -> str:
    packets, size = sum(parts.packets for parts in devices), sum(parts.bytes for parts in devices)
    return f"{label:<32} {size:>9} bytes in {several(packets, 'packet')}"


def _channel_dict(channel: ChannelStats, total: int) -> dict[str, object]:
    return {
        "bytes": channel.bytes,
        "share": channel.bytes / total if channel.multifd and total else None,
        "packets": channel.packets,
        "normal": channel.normal,
        "zero": channel.zero,
        "other": channel.other,
        "device_state": channel.device_state,
        "blocks": dict(channel.blocks),
    }
