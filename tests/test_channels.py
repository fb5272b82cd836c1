"""What each multifd channel has carried, and how evenly, in `info` and the live view."""

import json

import pytest

from migsniff.cli import main
from migsniff.core.events import (
    BlockPages,
    Event,
    LoosePages,
    MultifdHello,
    MultifdPacket,
    PageCounts,
)
from migsniff.show.channels import MAX_BLOCKS, MAX_CHANNELS, MAX_DEVICES, OTHERS, ChannelBalance
from migsniff.show.info import info_lines, summary_lines
from migsniff.show.infojson import info_dict
from migsniff.show.migration import MigrationStats
from migsniff.show.words import wires
from tests.synthetic import PRECOPY
from tests.test_info import text_of
from tests.test_samples import SAMPLES
from tests.test_ui import screen


def packet(
    channel: str, end: int, normal: int = 0, zero: int = 0, block: str = "pc.ram", device: int | None = None
) -> MultifdPacket:
    """A packet that ends at `end`; with `device` it holds so many bytes of the state of instance 0."""
    return MultifdPacket(
        channel=channel,
        direction="fwd",
        offset=end - 100,
        size=100,
        packet_num=0,
        flags=0,
        method="none" if device is None else "device-state",
        block=block,
        normal=normal,
        zero=zero,
        data_size=device or 0,
    )


def loose(channel: str, end: int, counts: PageCounts) -> LoosePages:
    part = BlockPages("pc.bios", 0, 0, counts)
    return LoosePages(
        channel=channel, direction="fwd", offset=0, size=end, iteration=1, counts=counts, blocks=(part,)
    )


def balance(*events: Event) -> ChannelBalance:
    made = ChannelBalance()
    for event in events:
        made.update(event)
    return made


UNEVEN = (
    packet("multifd-10", 1_000_000, normal=3),
    packet("multifd-2", 2_000_000, normal=1, zero=7),
    packet("multifd-2", 3_000_000, normal=1, block="pc.bios"),
)


def test_packets_are_of_their_channel_and_block() -> None:
    shown = balance(*UNEVEN).to_dict()
    assert shown == {
        "channels": {
            "multifd-2": {
                "bytes": 3_000_000, "share": 0.75, "packets": 2, "normal": 2, "zero": 7, "other": 0,
                "device_state": 0, "blocks": {"pc.ram": 8, "pc.bios": 1},
            },
            "multifd-10": {
                "bytes": 1_000_000, "share": 0.25, "packets": 1, "normal": 3, "zero": 0, "other": 0,
                "device_state": 0, "blocks": {"pc.ram": 3},
            },
        },
        "largest_to_mean": 1.5,
        "smallest_to_mean": 0.5,
        "devices": {},
        "omitted": 0,
    }  # fmt: skip


def test_table() -> None:
    main = loose("main", 50_000, PageCounts(normal=2, xbzrle=4, bytes=9))
    assert balance(*UNEVEN, main).rows(9) == [
        "channel             bytes share packets  normal    zero",
        "main              50.0 kB     -       0       2       0  4 other pages",
        "multifd-2         3.00 MB   75%       2       2       7",
        "multifd-10        1.00 MB   25%       1       3       0",
        "the multifd channel with the most has 1.50 of the mean, that with the least 0.50",
    ]
    assert balance(*UNEVEN, main).rows(2)[2] == "(2 others)        4.00 MB  100%       3       5       7"


def test_info_shows_16_channels_beside_the_main_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--descriptions", "none", str(SAMPLES / "x86-100-multifd-16")]) == 0
    table = capfd.readouterr().out.partition("channel  ")[2]
    assert all(f"multifd-{number} " in table for number in range(16))
    assert "others)" not in table.partition("the multifd channel")[0]


def test_one_line() -> None:
    assert balance(*UNEVEN).text() == "multifd 2 channels: 3.00 1.00 MB, most 1.50 of mean"
    many = balance(*(packet(f"multifd-{n}", 4_300_000) for n in range(16)))
    assert many.text() == f"multifd 16 channels: {'4.30 ' * 4}MB and 12 others, most 1.00 of mean"
    assert len(many.text()) <= 80


def test_a_channel_that_only_said_hello_has_its_row() -> None:
    hello = MultifdHello(channel="multifd-0", direction="fwd", offset=0, size=64, uuid="", channel_id=0)
    assert balance(hello).rows(4)[1] == "multifd-0            64 B  100%       0       0       0"
    assert balance(hello).text() == "multifd 1 channel: 64 B, most 1.00 of mean"


def test_without_multifd_there_is_nothing_to_show() -> None:
    made = balance(*(event for _, event in PRECOPY))
    assert made.rows(9) == [] == made.device_rows(9)
    assert made.text() == ""
    assert made.to_dict()["channels"] == {}


def test_device_state_by_device() -> None:
    made = balance(
        packet("multifd-0", 500, block="0000:00:02.0/vfio", device=300),
        packet("multifd-1", 700, block="0000:00:02.0/vfio", device=400),
        packet("multifd-1", 800, block="\x1b", device=9),
        packet("multifd-1", 900, block="b", device=8),
    )
    assert made.device_rows(2) == [
        "0000:00:02.0/vfio/0                    700 bytes in 2 packets",
        "(2 others)                              17 bytes in 2 packets",
    ]
    assert made.device_rows(3)[1].startswith("\\x1b/0 ")
    assert made.to_dict()["devices"]["0000:00:02.0/vfio/0"] == {"packets": 2, "bytes": 700}  # type: ignore[index]
    assert made.rows(3)[2].endswith("  417 B device state")


def test_device_state_is_no_guest_memory() -> None:
    stats = MigrationStats("m")
    stats.update(0, PRECOPY[2][1])
    stats.update(1, packet("multifd-0", 500, block="0000:00:02.0/vfio", device=300))
    assert stats.counts == PageCounts()
    assert "Device state over multifd" in info_lines(stats, {})


def test_memory_is_bounded() -> None:
    made = balance(*(packet(f"multifd-{n}", 100, normal=1) for n in range(MAX_CHANNELS + 5)))
    assert len(made.by_name) == MAX_CHANNELS
    assert made.omitted == 5
    assert "and 5 events of channels that are not counted" in made.rows(9)
    assert len(made.rows(9)) == 12
    blocks = balance(*(packet("multifd-0", 100, normal=1, block=f"b{n}") for n in range(MAX_BLOCKS + 5)))
    assert len(blocks.by_name["multifd-0"].blocks) == MAX_BLOCKS + 1
    assert blocks.by_name["multifd-0"].blocks[OTHERS] == 5
    devices = balance(*(packet("multifd-0", 100, block=f"d{n}", device=3) for n in range(MAX_DEVICES + 5)))
    assert len(devices.devices) == MAX_DEVICES + 1
    assert devices.devices[OTHERS].bytes == 15


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0,), "0 B"),
        ((999, 1), "999 1 B"),
        ((4_300_000, 12_500_000, 0), "4.30 12.5 0.00 MB"),
        ((5, 1_000), "0.01 1.00 kB"),
    ],
)
def test_sizes_in_one_unit(sizes: tuple[int, ...], text: str) -> None:
    assert wires(sizes) == text


def test_views() -> None:
    stats = MigrationStats("m")
    for event in UNEVEN:
        stats.update(0, event)
    line = "multifd 2 channels: 3.00 1.00 MB, most 1.50 of mean"
    assert line in [drawn.rstrip() for drawn in screen([stats])]
    assert f"Channels:            {line}" in summary_lines(stats, 3)
    assert "Channels\n  channel " in text_of(stats)
    assert json.loads(json.dumps(info_dict(stats, {})))["multifd"]["largest_to_mean"] == 1.5


def test_later_passes_say_how_many_came_before() -> None:
    stats = MigrationStats("m")
    syncs = [event for _, event in PRECOPY if type(event).__name__ == "DirtySync"]
    for event in syncs * 100:
        stats.update(0, event)
    lines = [line.strip() for line in screen([stats], height=12)]
    earlier = next(line for line in lines if line.endswith(" earlier)"))
    shown = len(lines) - lines.index(earlier) - 1
    assert earlier == f"({stats.pass_count - shown} earlier)"


@pytest.mark.parametrize(
    ("sample", "count"), [("x86-100-multifd", 2), ("x86-100-multifd-16", 16), ("x86-72-multifd", 2)]
)
def test_pages_of_a_real_migration_are_all_attributed(
    sample: str, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Channels, and blocks of channels, add up to what RAM blocks and the whole have."""
    assert main(["info", "-T", "json", str(SAMPLES / sample)]) in (0, 1)
    shown = json.loads(capsys.readouterr().out)
    channels = shown["multifd"]["channels"]
    assert sum(name.startswith("multifd-") for name in channels) == count
    assert sum(each["share"] or 0 for each in channels.values()) == pytest.approx(1)
    for kind in ("normal", "zero"):
        assert sum(each[kind] for each in channels.values()) == shown["ram"]["sent"][kind]
    for block in shown["ram"]["blocks"]:
        assert sum(each["blocks"].get(block["name"], 0) for each in channels.values()) == block["pages"]
    for name, each in channels.items():
        assert each["bytes"] == shown["bytes"][name]["fwd"]
