"""The model of a migration: what it says of a small one, and that nothing in it grows with the stream."""

import json
import sys
from collections.abc import Iterable
from itertools import count

import pytest

from migsniff.core.events import (
    CommandSent,
    DirtySync,
    Event,
    Finding,
    Package,
    PageCounts,
    RamBlock,
    RamBlocks,
    Verdict,
)
from migsniff.show.channels import MAX_CHANNELS
from migsniff.show.infojson import info_dict
from migsniff.show.migration import (
    FIRST_PASSES,
    LARGEST_DEVICES,
    LAST_DEVICES,
    LAST_PASSES,
    MAX_FINDINGS,
    MigrationStats,
)
from migsniff.show.model import Throughput
from migsniff.show.stats import MAX_FINISHED, Stats
from tests.synthetic import FIRST, MIB, PACKET, PRECOPY, SECOND, command, device, ram, reply

AT = {"channel": "main", "direction": "fwd"}


def after(timed: Iterable[tuple[int, Event]]) -> MigrationStats:
    """The model when these events have passed."""
    stats = MigrationStats("m1")
    for time, event in timed:
        stats.update(time, event)
    return stats


PHASES = [
    (0, "connecting"),
    (2, "setup"),
    (6, "setup"),
    (7, "iteration 1"),  # QEMU is active from the end of its setup on, also if no PART is sent to its end
    (9, "iteration 1"),
    (11, "iteration 2"),
    (12, "switchover"),
    (14, "switchover"),
    (15, "device state"),
    (18, "description"),
    (23, "description"),
    (25, "done"),
]


@pytest.mark.parametrize(("events", "phase"), PHASES)
def test_phase(events: int, phase: str) -> None:
    assert after(PRECOPY[:events]).phase == phase


def test_pages_by_kind_and_block() -> None:
    stats = after(PRECOPY)
    assert stats.counts == PageCounts(4000, 13384, bytes=16_599_940, resent=1000)
    block = stats.blocks["pc.ram"]
    assert (block.pages, block.distinct, block.bytes) == (17384, 16384, 16_599_940)
    assert stats.blocks["vga.vram"].pages == 0
    assert stats.pages == 16384
    assert [each.name for each in stats.largest_blocks()] == ["pc.ram", "vga.vram"]


def test_bytes_by_channel_and_direction() -> None:
    stats = after(PRECOPY)
    assert stats.bytes == {("main", "fwd"): 16_616_467, ("main", "rev"): 16}
    assert (stats.sent, stats.returned) == (16_616_467, 16)
    assert stats.elapsed == 161_000
    assert stats.mean_throughput == 16_616_467 / 0.161


def test_passes() -> None:
    first, second = after(PRECOPY).all_passes()
    assert (first.iteration, first.counts, first.duration, first.dirty_rate) == (1, FIRST, 100_000, None)
    assert (second.counts, second.duration, second.final) == (SECOND, 49_900, True)
    assert second.dirty_rate == 1000 / 0.1, "what it had to send, for the time that the first pass took"


def test_the_pass_that_runs() -> None:
    (running,) = after(PRECOPY[:9]).all_passes()
    assert running.running
    assert running.counts.pages == 4400
    assert running.remaining == 16384 - 4400, "known in the first pass"
    first, running = after(PRECOPY[:11]).all_passes()
    assert not first.running
    assert running.iteration == 2
    assert running.remaining is None
    assert running.counts.pages == 200


def test_a_pass_that_was_cut_off_is_remembered_as_such() -> None:
    (cut,) = after([*PRECOPY[:9], PRECOPY[-1]]).all_passes()
    assert (cut.running, cut.duration, cut.counts.pages) == (False, None, 4400)


def test_devices_count_once_and_with_their_exact_sizes() -> None:
    stats = after(PRECOPY)
    assert (stats.devices, stats.exact_devices, stats.device_bytes) == (3, 3, 50 + 310 + 9_000)
    assert [(each.name, each.since) for each in stats.last_devices] == [
        ("timer/0", None),
        ("cpu_common/1", 0),
        ("0000:00:02.0/vga/0", 500),
    ]
    assert max(stats.largest_devices).name == "0000:00:02.0/vga/0"


def test_devices_without_footers_come_exactly_at_once() -> None:
    stats = after((9, device(at, 10, f"d{at}", provisional=False)) for at in (0, 10, 20))
    assert (stats.devices, stats.exact_devices, stats.device_bytes) == (3, 3, 30)


# ---------------------------------------------------------------- switchover and downtime


def without(*names: str) -> list[tuple[int, Event]]:
    """The synthetic migration without these commands and messages."""
    return [(time, event) for time, event in PRECOPY if getattr(event, "name", None) not in names]


def test_switchover_is_the_command_that_says_so() -> None:
    assert after(PRECOPY).switchover == 121_000


def test_switchover_without_the_command_is_the_first_byte_of_the_end() -> None:
    stats = MigrationStats("m1")
    for time, event in without("SWITCHOVER_START"):
        if event.offset == 14_500_111 and event.size:
            stats.progress(123_456, "main", "fwd", 14_600_000)  # the END begins to arrive
        stats.update(time, event)
    assert stats.switchover == 123_456


def test_switchover_without_progress_is_the_end_of_what_stood_before() -> None:
    assert after(without("SWITCHOVER_START")).switchover == 120_000


@pytest.mark.parametrize(
    ("timed", "downtime"),
    [
        (PRECOPY, (39_000, "SHUT on the return path")),
        (without("SHUT"), (31_000, "the end of the description")),
        ([each for each in without("SHUT") if each[0] < 151_500], (30_000, "EOF, a lower bound")),
        (PRECOPY[:14], None),
        (PRECOPY[:9], None),
    ],
)
def test_downtime_and_where_it_was_measured(
    timed: list[tuple[int, Event]], downtime: tuple[int, str] | None
) -> None:
    assert after(timed).downtime == downtime


def test_a_failed_shut_is_no_sign_of_life() -> None:
    stats = after([*without("SHUT")[:-2], (160_000, reply(8, "SHUT", 1, value=1))])
    assert stats.downtime == (31_000, "the end of the description")


def test_a_dump_without_times_has_no_downtime() -> None:
    stats = after((0, event) for _, event in PRECOPY)
    assert stats.downtime is None
    assert stats.mean_throughput is None
    shown = info_dict(stats, {})
    assert (shown["switchover"], shown["downtime"], shown["throughput_mean"]) == (None, None, None)
    assert [(each.duration, each.dirty_rate) for each in stats.all_passes()] == [(None, None)] * 2
    assert {each.since for each in stats.last_devices} == {None}


def test_postcopy() -> None:
    discard = CommandSent(
        **AT,  # type: ignore[arg-type]
        offset=12_500_300,
        size=30,
        command=6,
        name="POSTCOPY_RAM_DISCARD",
        arguments={"block": "pc.ram", "ranges": ((0, 4096),)},
    )
    package = Package(**AT, offset=12_500_330, size=9, length=100)  # type: ignore[arg-type]
    begun = [*PRECOPY[:9], (110_000, discard)]
    stats = after(begun)
    assert (stats.phase, stats.switchover, stats.postcopy) == ("switchover", 110_000, True)
    packed = [*begun, (111_000, package), (111_100, device(12_500_339, 50, "timer"))]
    assert after(packed).phase == "device state"
    run = [*packed, (111_200, command(12_500_389, "POSTCOPY_RUN", 5))]
    assert after(run).phase == "postcopy"
    late = [
        *run,
        (112_000, reply(8, "PONG", 2, value=4)),
        (113_000, reply(16, "PONG", 2, value=3)),
        (190_000, ram(12_500_400, 500, "PART", PageCounts(normal=1))),
        (190_000, ram(12_500_900, 18, "END", PageCounts())),
    ]
    stats = after(late)
    assert stats.phase == "postcopy"
    assert stats.downtime == (3_000, "PONG for the package")
    assert not any(each.running for each in stats.all_passes())


def test_multifd_packets_count_as_pages() -> None:
    stats = after([*PRECOPY[:6], (10, PACKET)])
    assert stats.counts == PageCounts(1, 2, bytes=5000)
    assert stats.blocks["pc.ram"].pages == 3
    assert stats.bytes["multifd-0", "fwd"] == 5064


# ---------------------------------------------------------------- throughput


def test_throughput_of_the_last_second() -> None:
    throughput = Throughput()
    for step in range(1, 101):
        throughput.add(step * 100_000, step * 1_000_000)  # 10 MB/s for 10 s
    assert throughput.now(10_000_000) == pytest.approx(10e6)
    for step in range(1, 21):
        throughput.add(10_000_000 + step * 100_000, 100_000_000 + step * 100_000)  # then 1 MB/s for 2 s
    assert throughput.now(12_000_000) == pytest.approx(1e6)


def test_throughput_falls_when_nothing_comes_any_more() -> None:
    throughput = Throughput()
    for step in range(1, 21):
        throughput.add(step * 100_000, step * 1_000_000)
    assert throughput.now(2_500_000) == pytest.approx(10e6 * 0.5 / 1, rel=0.2)
    assert throughput.now(3_100_000) == 0
    assert Throughput().now(0) is None


def test_throughput_of_silence() -> None:
    """Also if all that ever came, came at once."""
    throughput = Throughput()
    throughput.add(1000, 700_000)
    assert throughput.now(2000) == 350e6
    assert throughput.now(11_000_000) == 0


# ---------------------------------------------------------------- bounds


def test_nothing_grows_with_the_stream() -> None:
    stats = MigrationStats("m1")
    number = count()
    stats.update(
        0,
        RamBlocks(
            **AT,  # type: ignore[arg-type]
            offset=0,
            size=9,
            total=MIB,
            page_size=4096,
            page_size_from="",
            blocks=(RamBlock("pc.ram", MIB),),
        ),
    )

    def more() -> None:
        for _ in range(2_000):
            n = next(number)
            counts = PageCounts(normal=n)
            at = n * 100
            stats.update(n * 9, DirtySync(**AT, offset=at, size=0, iteration=n, counts=counts))  # type: ignore[arg-type]
            stats.update(n * 9, device(at, 50 + n % 9, f"device {n % 7}"))
            stats.update(n * 9, reply(n * 8, f"MESSAGE-{n}", 77, value=n))
            stats.update(n * 9, ram(at + 50, 50, "PART", counts, block=f"block {n}"))
            stats.update(
                n * 9,
                Finding(
                    channel=f"unknown-{n}",
                    direction="fwd",
                    offset=9,
                    size=0,
                    severity="note",
                    code="x",
                    message="y",
                ),
            )

    more()
    size = _deep_size(stats)
    more()
    assert abs(_deep_size(stats) - size) < 4_000
    assert len(list(stats.all_passes())) <= FIRST_PASSES + LAST_PASSES + 1
    assert len(stats.last_devices) == LAST_DEVICES
    assert len(stats.largest_devices) == LARGEST_DEVICES
    assert len(stats.bytes) == MAX_CHANNELS
    assert (len(stats.findings), stats.findings_omitted) == (MAX_FINDINGS, 4_000 - MAX_FINDINGS)
    assert [each.iteration for each in stats.all_passes()][:3] == [0, 1, 2]
    assert stats.passes == 4_000


def _deep_size(value: object, seen: set[int] | None = None) -> int:
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, (str, bytes, int, float)):
        inner = ()
    elif isinstance(value, Iterable):
        inner = list(value)
    elif hasattr(value, "__dict__"):
        inner = value.__dict__.values()
    elif hasattr(value, "__slots__"):
        inner = [getattr(value, slot) for slot in value.__slots__]
    return sys.getsizeof(value) + sum(_deep_size(each, seen) for each in inner)


# ---------------------------------------------------------------- the whole


def test_info_dict_is_json() -> None:
    shown = json.loads(json.dumps(info_dict(after(PRECOPY), {}), allow_nan=False))
    assert shown["migration"] == "m1"
    assert shown["machine"] == "pc-i440fx-7.2"
    assert shown["elapsed"] == 0.161
    assert shown["switchover"] == 0.121
    assert shown["downtime"] == {"seconds": 0.039, "until": "SHUT on the return path"}
    assert shown["bytes"] == {"main": {"fwd": 16_616_467, "rev": 16}}
    assert shown["ram"]["sent"]["normal"] == 4000
    assert [each["pages"] for each in shown["iterations"]] == [16384, 1000]
    assert shown["devices"]["largest"][0]["name"] == "0000:00:02.0/vga/0"
    assert shown["return_path"]["messages"] == {"PONG": 1, "SHUT": 1}
    assert shown["verdict"]["outcome"] == "completed"


@pytest.mark.parametrize("events", range(len(PRECOPY) + 1))
def test_info_dict_at_every_moment(events: int) -> None:
    json.dumps(info_dict(after(PRECOPY[:events]), {}), allow_nan=False)


def test_several_migrations_and_those_that_are_over() -> None:
    stats = Stats()
    stats.begins("running", "a", "b")
    for n in range(100):
        for time, event in PRECOPY:
            stats.show(f"m{n}", time, event)
        stats.progress("running", n, "main", "fwd", n * 100)
    assert "running" in stats.by_migration
    assert stats.by_migration["running"].sent == 9_900
    assert stats.by_migration["running"].source == "a"
    assert stats.by_migration["m99"].phase == "done"
    assert len(stats.by_migration) <= MAX_FINISHED + 2


def test_a_failure_is_the_phase_in_the_end() -> None:
    verdict = Verdict(**AT, offset=9, size=0, ok=False, outcome="truncated", message="")  # type: ignore[arg-type]
    assert after([*PRECOPY[:9], (60_000, verdict)]).phase == "truncated"
