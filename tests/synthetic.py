"""A migration made by hand: a small precopy with a return path, two passes and three devices, as events."""

from migsniff.core.events import (
    BlockPages,
    ChannelFound,
    CommandSent,
    Configuration,
    DescriptionFound,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    EndOfStream,
    Event,
    Field,
    Header,
    MultifdPacket,
    PageCounts,
    RamBlock,
    RamBlocks,
    RamSection,
    ReturnPathMessage,
    SectionType,
    Verdict,
)

MIB = 1 << 20


def ram(
    offset: int,
    size: int,
    section_type: SectionType,
    counts: PageCounts,
    iteration: int = 1,
    *,
    block: str = "pc.ram",
    first: int = 0,
    last: int = 0x3FFF000,
) -> RamSection:
    """A section of ram whose pages are all of one block."""
    return RamSection(
        channel="main",
        direction="fwd",
        offset=offset,
        size=size,
        section_type=section_type,
        section_id=2,
        idstr="ram",
        instance_id=0,
        version_id=4,
        footer=True,
        iteration=iteration,
        counts=counts,
        blocks=(BlockPages(block, first, last, counts),) if counts.pages else (),
    )


def device(
    offset: int,
    size: int,
    idstr: str,
    instance_id: int = 0,
    *,
    provisional: bool = True,
    described: bool = False,
    fields: tuple[Field, ...] = (),
    undescribed: int = 0,
    corrects: int | None = None,
) -> DeviceSection:
    """The state of a device."""
    return DeviceSection(
        channel="main",
        direction="fwd",
        offset=offset,
        size=size,
        section_type="FULL",
        section_id=7,
        idstr=idstr,
        instance_id=instance_id,
        version_id=1,
        footer=True,
        provisional=provisional,
        described=described,
        fields=fields,
        undescribed=undescribed,
        corrects=corrects,
    )


def command(offset: int, name: str, number: int, **arguments: int) -> CommandSent:
    """A command of the source."""
    return CommandSent(
        channel="main",
        direction="fwd",
        offset=offset,
        size=5 + 4 * len(arguments),
        command=number,
        name=name,
        arguments=dict(arguments),
    )


def reply(offset: int, name: str, number: int, **arguments: int) -> ReturnPathMessage:
    """A message of the destination."""
    return ReturnPathMessage(
        channel="main",
        direction="rev",
        offset=offset,
        size=4 + 4 * len(arguments),
        message=number,
        name=name,
        arguments=dict(arguments),
    )


PACKET = MultifdPacket(
    channel="multifd-0",
    direction="fwd",
    offset=64,
    size=5000,
    packet_num=1,
    flags=0,
    method="none",
    block="pc.ram",
    normal=1,
    zero=2,
    data_size=4096,
)

FIRST = PageCounts(normal=3000, zero=13384, bytes=12_500_000)
SECOND = PageCounts(normal=1000, zero=0, bytes=4_100_000, resent=1000)

PRECOPY: tuple[tuple[int, Event], ...] = (
    (0, ChannelFound(channel="main", direction="fwd", offset=0, size=0, connection=0, role="main")),
    (0, Header(channel="main", direction="fwd", offset=0, size=8, version=3)),
    (0, Configuration(channel="main", direction="fwd", offset=8, size=18, machine="pc-i440fx-7.2")),
    (0, command(26, "OPEN_RETURN_PATH", 1)),
    (0, command(31, "PING", 2, value=1)),
    (
        100,
        RamBlocks(
            channel="main",
            direction="fwd",
            offset=53,
            size=40,
            total=64 * MIB,
            page_size=4096,
            page_size_from="machine",
            blocks=(RamBlock("pc.ram", 60 * MIB), RamBlock("vga.vram", 4 * MIB)),
        ),
    ),
    (100, ram(40, 66, "START", PageCounts())),
    (250, reply(0, "PONG", 2, value=1)),
    (50_100, ram(106, 6_000_000, "PART", PageCounts(normal=1400, zero=3000, bytes=5_999_980))),
    (
        100_100,
        DirtySync(channel="main", direction="fwd", offset=12_500_100, size=0, iteration=1, counts=FIRST),
    ),
    (
        120_000,
        ram(6_000_106, 8_500_000, "PART", PageCounts(1800, 10384, bytes=8_499_980, resent=200), 2),
    ),
    (121_000, command(14_500_106, "SWITCHOVER_START", 11)),
    (
        150_000,
        DirtySync(
            channel="main", direction="fwd", offset=16_600_100, size=0, iteration=2, counts=SECOND, final=True
        ),
    ),
    (150_000, ram(14_500_111, 2_100_000, "END", PageCounts(800, bytes=2_099_980, resent=800), 2)),
    (150_500, device(16_600_111, 50, "timer")),
    (150_500, device(16_600_161, 300, "cpu_common", 1)),
    (151_000, device(16_600_461, 9_000, "0000:00:02.0/vga")),
    (151_000, EndOfStream(channel="main", direction="fwd", offset=16_609_461, size=1)),
    (
        152_000,
        DescriptionFound(
            channel="main",
            direction="fwd",
            offset=16_609_462,
            size=7005,
            page_size=4096,
            devices=3,
            text=b"{}",
        ),
    ),
    (152_000, device(16_600_111, 50, "timer", provisional=False, described=True)),
    (152_000, device(16_600_161, 310, "cpu_common", 1, provisional=False, described=True, corrects=300)),
    (
        152_000,
        device(16_600_461, 9_000, "0000:00:02.0/vga", provisional=False, described=True, undescribed=4),
    ),
    (160_000, reply(8, "SHUT", 1, value=0)),
    (
        161_000,
        DirectionEnded(
            channel="main",
            direction="fwd",
            offset=16_616_467,
            size=0,
            how="eof",
            by="source",
            error=None,
            where="",
        ),
    ),
    (
        161_000,
        Verdict(
            channel="main",
            direction="fwd",
            offset=16_616_467,
            size=0,
            ok=True,
            outcome="completed",
            message="all 16616467 bytes decoded",
        ),
    ),
)
"""(time, event) in the order in which a session yields them."""
