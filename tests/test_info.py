"""The summary of `migsniff info`: one screen of text, or one JSON object."""

import json
from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from migsniff.core.events import (
    Configuration,
    DirectionEnded,
    Event,
    Finding,
    RamBlock,
    RamBlocks,
    Verdict,
)
from migsniff.show.info import (
    PASS_HEADINGS,
    info_lines,
    pass_line,
    render_info,
    status_line,
    summary_lines,
    wrapped,
)
from migsniff.show.infojson import info_dict
from migsniff.show.migration import MigrationStats
from tests.catalogue import STREAMS
from tests.playing import play
from tests.synthetic import PACKET, PRECOPY, ram, reply

FACTS = {"File": "x\x1b.fwd", "Size": 16_616_467, "Stripped": True, "Endpoints": ["a", "b"], "Ended": None}


def after(timed: Iterable[tuple[int, Event]]) -> MigrationStats:
    stats = MigrationStats("m1", source="a:1", destination="b:2")
    for time, event in timed:
        stats.update(time, event)
    return stats


def text_of(stats: MigrationStats) -> str:
    written: list[str] = []
    render_info(stats, FACTS, written.append)
    assert all(line.endswith("\n") for line in written)
    return "".join(written)


LINES = [
    "File:                x\\x1b.fwd",
    "Size:                16616467",
    "Stripped:            yes",
    "Endpoints:           a, b",
    "Ended:               not known",
    "Machine:             pc-i440fx-7.2",
    "Page size:           4096 (machine)",
    "Duration:            161.0 ms",
    "Bytes:               16616467 sent, 16 returned, 103.2 MB/s on average",
    "RAM:                 64 MiB in 2 blocks, 16384 pages",
    "Pages sent:          17384 (normal=4000 zero=13384 resent=1000), 16.6 MB",
    "Device state:        9360 bytes of 3 devices, 3 exact",
    "Switchover:          at 0.121000 s",
    "Downtime:            39.0 ms (from the switchover to SHUT on the return path)",
    "     1  16384   3000  13384      0      0  12.5 MB 100.0 ms       -         -",
    "     2   1000   1000      0      0   1000  4.10 MB  49.9 ms   10000     final",
    "  0000:00:02.0/vga/0                    9000 bytes",
    "Return path:         1 PONG, 1 SHUT; the last: SHUT 0",
    "Ended:               main fwd: eof from source at 16616467",
    "Verdict:             COMPLETED: all 16616467 bytes decoded",
]


@pytest.mark.parametrize("line", LINES)
def test_line(line: str) -> None:
    assert line in text_of(after(PRECOPY)).splitlines()


@pytest.mark.parametrize(
    ("shut", "expected"),
    [
        (0, "39.0 ms (from the switchover to SHUT on the return path)"),
        (1, "not known, since it failed: from the switchover to the end of the description 31.0 ms"),
    ],
)
def test_a_migration_that_failed_has_no_downtime(shut: int, expected: str) -> None:
    """Unless the destination said that the guest runs there."""
    *events, (time, verdict) = PRECOPY
    changed: list[tuple[int, Event]] = [
        (at, reply(8, "SHUT", 1, value=shut)) if getattr(event, "name", "") == "SHUT" else (at, event)
        for at, event in events
    ]
    assert isinstance(verdict, Verdict)
    stats = after([*changed, (time, replace(verdict, ok=False, outcome="failed"))])
    assert f"Downtime:            {expected}" in text_of(stats).splitlines()


def test_a_downtime_within_one_read_is_told_as_less_than_could_be_measured() -> None:
    stats = after([(1000, event) for _, event in PRECOPY])
    assert stats.downtime is not None
    assert stats.downtime[0] == 0
    expected = "Downtime:            less than could be measured: all came in one read"
    assert any(line.startswith(expected) for line in text_of(stats).splitlines())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_what_is_too_long_for_the_terminal_goes_on_below_its_text(width: int) -> None:
    line = "error:               " + "word " * 60
    first, *more = wrapped(line.rstrip(), width)
    assert first.startswith("error:               word")
    assert all(len(part) <= width for part in (first, *more))
    assert len({len(part) - len(part.lstrip()) for part in more}) == 1
    assert " ".join([first, *(part.strip() for part in more)]) == line.rstrip()
    assert wrapped(line[:width].rstrip(), width) == [line[:width].rstrip()]


@pytest.mark.parametrize("events", range(len(PRECOPY) + 1))
def test_every_moment_has_a_summary(events: int) -> None:
    stats = after(PRECOPY[:events])
    lines = text_of(stats).splitlines()
    assert len(lines) < 50
    assert all(" " <= character <= "~" for line in lines for character in line)
    assert summary_lines(stats, 5)[0] == "migration m1: a:1 to b:2"
    assert ("none yet, in" in lines[-1]) == (events < len(PRECOPY))


def test_what_went_stands_before_what_came_back() -> None:
    stats = MigrationStats("m1")
    for channel, direction in (("main", "fwd"), ("main", "rev"), ("multifd-0", "fwd")):
        stats.progress(1, channel, direction, 100)  # type: ignore[arg-type]
    rows = [line.split(":")[0] for line in summary_lines(stats, 5) if line.startswith("  ")]
    assert rows == ["  main fwd", "  multifd-0 fwd", "  main rev"]


def test_tables_fit_80_columns() -> None:
    rows = [line for line in text_of(after(PRECOPY)).splitlines() if line.startswith("  ")]
    assert len(rows) > 6
    assert all(len(row) <= 80 for row in rows)
    assert len("  " + pass_line(PASS_HEADINGS)) <= 80


def test_json() -> None:
    written: list[str] = []
    render_info(after(PRECOPY), FACTS, written.append, as_json=True)
    shown = json.loads("".join(written))
    assert shown["source_facts"]["Size"] == 16_616_467
    assert shown["verdict"]["ok"] is True
    assert shown == json.loads(json.dumps(info_dict(after(PRECOPY), FACTS)))


def test_a_long_migration_stays_on_one_screen() -> None:
    stats = after(PRECOPY[:6])
    blocks = tuple(RamBlock(f"block-{n}", (n + 1) << 20) for n in range(500))
    stats.update(
        0,
        RamBlocks(
            channel="main",
            direction="fwd",
            offset=0,
            size=9,
            total=1 << 40,
            page_size=4096,
            page_size_from="",
            blocks=blocks,
        ),
    )
    sync = next(event for _, event in PRECOPY if type(event).__name__ == "DirtySync")
    for n in range(500):
        stats.update(n, sync)
        for role in range(2):
            stats.update(n, _ended(f"multifd-{n}", "reset" if role else "eof"))
        stats.update(
            n,
            Finding(
                channel="main",
                direction="fwd",
                offset=0,
                size=0,
                severity="warn",
                code="x",
                message=f"finding {n}",
            ),
        )
    lines = text_of(stats).splitlines()
    assert len(lines) < 60
    assert any("(495 others)" in line for line in lines)
    assert "                     and 492 more findings" in lines
    assert sum(line.startswith("Ended:  ") for line in lines) == 5  # four ends and the fact of that name


def _ended(channel: str, how: str) -> DirectionEnded:
    return DirectionEnded(
        channel=channel,
        direction="fwd",
        offset=9,
        size=0,
        how=how,  # type: ignore[arg-type]
        by="source",
        error=None,
        where="",
    )


def test_the_end_of_the_channel_that_is_judged_is_told() -> None:
    """Which is not the one of that name, where a connection ended within the magic and no other came."""
    ends = [(0, _ended("main-0", "eof")), (0, _ended("multifd-0", "eof"))]
    verdict = Verdict(
        channel="main-0",
        direction="fwd",
        offset=3,
        size=0,
        ok=False,
        outcome="truncated",
        message="all of it",
    )
    lines = text_of(after((*ends, (0, verdict)))).splitlines()
    assert "Ended:               main-0 fwd: eof from source at 9" in lines
    assert "                     and 1 more, other channels" in lines


def test_several_channels_are_listed() -> None:
    lines = text_of(after((*PRECOPY[:9], (50_200, PACKET)))).splitlines()
    assert "  multifd-0 fwd:     5064" in lines


@pytest.mark.parametrize(
    ("events", "line"),
    [
        (0, "connecting, 0 us, 0 B sent, - now, - on average"),
        (
            11,
            "iteration 2, 120.0 ms, 14.5 MB sent, 120.8 MB/s now, 120.8 MB/s on average, "
            "16384 of 16384 pages sent, 200 again",
        ),
        (
            25,
            "done, 161.0 ms, 16.6 MB sent, 103.2 MB/s now, 103.2 MB/s on average, "
            "16384 of 16384 pages sent, 1000 again, 3 devices",
        ),
    ],
)
def test_status_line(events: int, line: str) -> None:
    stats = after(PRECOPY[:events])
    assert status_line(stats, stats.elapsed) == line


def test_hostile_names_are_escaped() -> None:
    stats = after(PRECOPY[:6])
    stats.update(
        0,
        Configuration(
            channel="\x1b",
            direction="fwd",
            offset=0,
            size=1,
            machine="\x1b[2J",
            capabilities=("\u202e",),
            uuid="\n",
        ),
    )
    stats.update(9, ram(100, 9, "START", PRECOPY[8][1].counts))  # type: ignore[attr-defined]
    text = text_of(stats)
    assert "Machine:             \\x1b[2J\n" in text
    assert "Capabilities:        \\u202e\n" in text
    assert "UUID:                \\x0a\n" in text
    assert all(" " <= character <= "~" for character in text.replace("\n", ""))


def test_what_is_encrypted() -> None:
    stats = MigrationStats("m")
    for event in play(STREAMS["tls"]):
        stats.update(0, event)
    lines = info_lines(stats, {})
    said = "ClientHello TLS 1.3, offers 1.3 and 3 ciphers, pre-shared key, server name dest"
    assert f"TLS tls-0 fwd:       {said}; 6 records, probably close_notify" in lines
    said = "ServerHello TLS 1.3 AES_128_GCM_SHA256, pre-shared key"
    assert f"TLS tls-0 rev:       {said}; 4 records, no close_notify" in lines
    assert stats.sent == len(STREAMS["tls"].main)
    assert info_dict(stats, {})["tls"]["tls-0 fwd"]["records"] == 6  # type: ignore[index]


def test_passes_that_are_left_out_are_counted() -> None:
    stats = after(PRECOPY[:6])
    sync = next(event for _, event in PRECOPY if type(event).__name__ == "DirtySync")
    for n in range(500):
        stats.update(n, sync)
    lines = text_of(stats).splitlines()
    first = lines.index("  " + pass_line(PASS_HEADINGS)) + 1
    shown = [line for line in lines[first : first + 7] if line.startswith("   ")]
    assert lines[first + 1] == "  (495 others)"  # of 500 and the one without an end
    assert len(shown) == 6
