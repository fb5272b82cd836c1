"""How long page faults take: exact for the first thousands, close behind them."""

import random

import pytest

from migsniff.core.events import Finding, PageFault, ReturnPathMessage
from migsniff.show.latency import EXACT, MAX_WAITING, FaultStats, Latencies


def asked(address: int, block: str = "ram") -> ReturnPathMessage:
    arguments: dict[str, int | str | tuple[tuple[int, int], ...]] = {
        "block": block,
        "start": address,
        "length": 4096,
    }
    return ReturnPathMessage(
        channel="main",
        direction="rev",
        offset=address,
        size=16,
        message=4,
        name="REQ_PAGES",
        arguments=arguments,
    )


def answered(address: int, channel: str = "main", block: str = "ram", *, crossed: bool = False) -> PageFault:
    return PageFault(
        channel=channel,
        direction="fwd",
        offset=address,
        size=4104,
        block=block,
        address=address,
        length=4096,
        asked_channel="main",
        asked_offset=address,
        crossed=crossed,
    )


def refused(address: int) -> Finding:
    return Finding(
        channel="main",
        direction="rev",
        offset=address,
        size=16,
        severity="warn",
        code="page-request",
        message="",
    )


class TestLatencies:
    def test_none(self) -> None:
        assert Latencies().percentile(50) is None

    @pytest.mark.parametrize("count", [1, 2, 100, EXACT])
    def test_exact(self, count: int) -> None:
        values = list(range(1, count + 1))
        random.Random(count).shuffle(values)
        latencies = Latencies()
        for value in values:
            latencies.add(value)
        assert latencies.percentile(50) == (count + 1) // 2
        assert latencies.percentile(99) == -(-count * 99 // 100)
        assert latencies.percentile(100) == latencies.largest == count

    @pytest.mark.parametrize("largest", [10, 1000, 10_000_000])
    def test_many(self, largest: int) -> None:
        """In bounded memory, within a few percent."""
        chance = random.Random(largest)
        values = [int(largest ** chance.random()) for _ in range(3 * EXACT)]
        latencies = Latencies()
        for value in values:
            latencies.add(value)
        assert latencies.count == len(values)
        assert latencies.largest == max(values)
        values.sort()
        for percent in (1, 50, 90, 99, 100):
            exact = values[max(1, -(-len(values) * percent // 100)) - 1]
            found = latencies.percentile(percent)
            assert found is not None
            assert abs(found - exact) <= 1 + exact * 0.05, percent


class TestFaults:
    def test_each_kind(self) -> None:
        faults = FaultStats()
        assert faults.idle
        for time, event in (
            (100, asked(0)),
            (200, asked(4096)),
            (250, asked(4096, "other")),
            (300, answered(4096)),
            (400, asked(8192)),
            (400, answered(8192, crossed=True)),
            (500, asked(0)),
            (600, asked(1)),
            (600, refused(1)),
            (700, answered(0, "preempt")),
        ):
            faults.update(time, event)
        assert faults.to_dict() == {
            "asked": 6,
            "again": 1,
            "answered": 2,
            "answered_by_channel": {"main": 1, "preempt": 1},
            "crossed": 1,
            "refused": 1,
            "waiting": 1,
            "latency": {"count": 2, "median": 0.0001, "p99": 0.0006, "max": 0.0006},
        }
        assert faults.text() == (
            "6 page requests, 2 answered (median 100 us, p99 600 us, longest 600 us), 1 on preempt, "
            "1 sent before they were asked for, 1 asked again, 1 not possible, 1 waiting"
        )

    def test_a_dump_has_no_times(self) -> None:
        faults = FaultStats()
        faults.update(0, asked(0))
        assert faults.update(0, answered(0)) is None
        assert faults.text() == "1 page request, 1 answered"

    def test_bounded(self) -> None:
        faults = FaultStats()
        for number in range(MAX_WAITING + 100):
            faults.update(1, asked(number))
        assert (faults.asked, faults.waiting) == (MAX_WAITING + 100, MAX_WAITING)
        assert faults.update(9, answered(99)) is None  # forgotten
        assert faults.update(9, answered(100)) == 8

    def test_cleared_while_one_waits(self) -> None:
        faults = FaultStats()
        faults.update(1, asked(0))
        faults.clear()
        assert (faults.idle, faults.waiting) == (True, 1)
        assert faults.update(5, answered(0)) == 4
