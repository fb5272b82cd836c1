"""The live view: it fits its screen, and a terminal that does not take it stalls nothing else."""

import fcntl
import io
import os
import re
import sys
import termios
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from migsniff.core.events import Event, Finding, RamBlock, RamBlocks
from migsniff.expert.codes import finding
from migsniff.show.matching import Matching
from migsniff.show.migration import MigrationStats
from migsniff.show.screen import draw
from migsniff.show.stats import Stats
from migsniff.show.ui import LiveView, usable
from tests.catalogue import STREAMS
from tests.playing import play
from tests.synthetic import PRECOPY, device, ram

WAIT = 20


def console(width: int = 80, height: int = 24, **options: object) -> Console:
    settings: dict[str, object] = {
        "file": io.StringIO(),
        "force_terminal": True,
        "_environ": {"TERM": "xterm-256color"},
    }
    return Console(width=width, height=height, **(settings | options))  # type: ignore[arg-type]


def screen(
    running: list[MigrationStats], width: int = 80, height: int = 23, matching: Matching | None = None
) -> list[str]:
    """The lines that the view draws."""
    terminal = console(width, height + 1)
    lines = terminal.render_lines(
        draw(running, height, listening=["[::]:4444"], matching=matching), pad=False
    )
    return ["".join(segment.text for segment in line) for line in lines]


def after(events: int, migration: str = "m1") -> MigrationStats:
    stats = MigrationStats(migration, source="10.0.0.1:50000", destination="10.0.0.2:4444")
    for time, event in PRECOPY[:events]:
        stats.update(time, event)
    return stats


def crowded(migration: str = "m1") -> MigrationStats:
    """As much to show as there can be: many blocks with long names, passes, devices, findings."""
    stats = after(6, migration)
    blocks = tuple(RamBlock(f"0000:00:{n:02x}.0/virtio-net-pci.rom" * 3, (n + 1) << 20) for n in range(40))
    timed: list[tuple[int, Event]] = [
        (
            200,
            RamBlocks(
                channel="main",
                direction="fwd",
                offset=0,
                size=9,
                total=820 << 20,
                page_size=4096,
                page_size_from="",
                blocks=blocks,
            ),
        )
    ]
    timed += [each for each in PRECOPY if type(each[1]).__name__ == "DirtySync"] * 20
    timed += [(300, ram(100, 9, "END", PRECOPY[8][1].counts))]  # type: ignore[attr-defined]
    timed += [(300 + n, device(20_000_000 + n, 1, "0000:00:1f.0/" + "long" * 20)) for n in range(40)]
    for time, event in timed:
        stats.update(time, event)
    return stats


@pytest.mark.parametrize("events", range(len(PRECOPY)))
@pytest.mark.parametrize("width", [40, 80, 120])
def test_every_moment_fits(events: int, width: int) -> None:
    lines = screen([after(events)], width)
    assert len(lines) <= 23
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(("width", "height"), [(80, 23), (40, 9), (120, 39), (80, 3), (200, 60)])
@pytest.mark.parametrize("migrations", [1, 2, 7, 30])
def test_a_crowd_fits(width: int, height: int, migrations: int) -> None:
    lines = screen([crowded(f"m{n}") for n in range(migrations)], width, height)
    assert 1 <= len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_a_large_screen_shows_more() -> None:
    assert len(screen([crowded()], 80, 39)) > len(screen([crowded()], 80, 23)) > 15


def test_an_error_is_not_driven_out_by_notes() -> None:
    stats = after(17)
    at = PRECOPY[3][1]
    stats.update(300, finding("check-block-unknown", at, block="the.rom"))
    for number in range(5):
        stats.update(300 + number, finding("check-extra-blocks", at, count=number, blocks=f"block{number}"))
    text = "\n".join(screen([stats], 120))
    assert 'Unknown ramblock "the.rom", cannot accept migration' in text
    assert "block4" in text
    assert "block3" not in text


def test_what_one_migration_shows() -> None:
    text = "\n".join(screen([after(17)]))
    for part in (
        "10.0.0.1:50000 > 10.0.0.2:4444",
        "pc-i440fx-7.2",
        "device state",
        "on average",
        "100% of 64 MiB sent once",
        "pc.ram",
        "vga.vram",
        "dirty/s",
        "cpu_common/1",
        "300 bytes",
        "switchover at 0.121 s",
    ):
        assert part in text


def test_downtime_is_shown_with_how_it_was_measured() -> None:
    assert "downtime 31.0 ms, until the end of the description" in "\n".join(screen([after(19)]))


def test_several_are_shown_in_brief() -> None:
    lines = screen([after(17, f"m{n}") for n in range(3)])
    assert [line.split()[0] for line in lines[::3]] == ["m0", "m1", "m2"]
    assert len(lines) == 9
    many = screen([after(17, f"m{n}") for n in range(30)])
    assert "and 23 more migrations" in many[-1]


def test_nothing_runs() -> None:
    assert screen([]) == ["waiting for a connection on [::]:4444"]


def test_findings_take_the_lines_that_they_need() -> None:
    """As far as there is room: the rest is cut, as any line that is too long."""
    stats = after(6)
    message = "the destination does not read: " + " ".join(f"word{number}" for number in range(30))
    stats.update(
        300,
        Finding(
            channel="main", direction="fwd", offset=0, size=0, code="x", severity="warn", message=message
        ),
    )
    shown = screen([stats])
    assert " ".join(line.strip() for line in shown if "word" in line) == message
    shown = screen([stats], height=4)
    assert len(shown) == 4
    assert shown[-1].startswith("the destination does not read: word0 ")
    assert "…" in shown[-1]


def test_names_from_a_stream_draw_nothing() -> None:
    stats = after(6)
    for time, event in (
        (
            9,
            RamBlocks(
                channel="main",
                direction="fwd",
                offset=0,
                size=9,
                total=4096,
                page_size=4096,
                page_size_from="",
                blocks=(RamBlock("\x1b[2J[red]\n\u202e", 4096),),
            ),
        ),
        (10, device(200, 9, "\x1b]0;title\x07[bold]\n")),
    ):
        stats.update(time, event)
    text = "".join(screen([stats]))
    assert "\\x1b[2J[red]\\x0a" in text
    assert "\\x1b]0;title\\x07[bold]\\x0a/0" in text
    assert not set(text) & set("\x1b\n\x07\u202e")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, True),
        ({"force_terminal": False}, False),
        ({"_environ": {"TERM": "dumb"}}, False),
        ({"width": 20}, False),
        ({"height": 5}, False),
    ],
)
def test_usable(options: dict[str, object], answer: bool) -> None:
    assert usable(console(**options)) is answer  # type: ignore[arg-type]


# ---------------------------------------------------------------- the thread


def until(condition: Callable[[], bool]) -> None:
    for _ in range(WAIT * 100):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not come about")


def test_devices_of_one_piece_have_no_time_between_them() -> None:
    stats = after(14)
    for number, (time, each) in enumerate([(150_500, "timer"), (150_500, "cpu"), (150_900, "vga")]):
        assert "1 devices" not in "".join(screen([stats]))
        stats.update(time, device(16_600_111 + 50 * number, 50, each))
    lines = {line.split()[0]: line.rstrip() for line in screen([stats], height=30) if " bytes at " in line}
    assert lines["cpu/0"].endswith("0.150500 s")
    assert lines["vga/0"].endswith("0.150900 s   +400 us")


def started() -> tuple[io.StringIO, Stats, LiveView]:
    """A view that is running, with its screen and what it shows."""
    file = io.StringIO()
    stats = Stats()
    view = LiveView(stats.by_migration, console(file=file), listening=["[::]:4444"])
    view.start()
    return file, stats, view


def migrate(stats: Stats, file: io.StringIO) -> None:
    """A whole migration, whose device state and whose summary are waited for on the screen."""
    for time, event in PRECOPY[:17]:
        stats.show("m1", time, event)
    until(lambda: "device state" in file.getvalue())
    for time, event in PRECOPY[17:]:
        stats.show("m1", time, event)
    until(lambda: "COMPLETED" in file.getvalue())


def test_from_start_to_stop() -> None:
    file, stats, view = started()
    until(lambda: "waiting for a connection on [::]:4444" in file.getvalue())
    view.message("saving to captures/\x1b[31m")
    migrate(stats, file)
    for time, event in PRECOPY[:9]:
        stats.show("m2", time, event)
    assert view.stop(WAIT)
    text = file.getvalue()
    assert "saving to captures/\\x1b[31m" in text
    assert text.count("COMPLETED") == 1, "the summary stays, once"
    assert "none yet, in iteration 1" in text, "and that of a migration that was still running"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"


def test_a_summary_does_not_scroll_away_with_the_view_that_was_there() -> None:
    """What is over leaves the view before its summary is printed above what remains of the view."""
    file, stats, view = started()
    migrate(stats, file)
    assert view.stop(WAIT)
    running, summary = file.getvalue().split("Duration:")
    assert "waiting for a connection" in running[running.rindex("device state") :]
    assert "device state" not in summary


def test_no_color() -> None:
    file = io.StringIO()
    stats = Stats()
    for time, event in PRECOPY:
        stats.show("m1", time, event)
    terminal = console(file=file, _environ={"TERM": "xterm-256color", "NO_COLOR": "1"})
    view = LiveView(stats.by_migration, terminal)
    view.start()
    assert view.stop(WAIT)
    assert "\x1b[3" not in file.getvalue()
    assert "COMPLETED" in file.getvalue()


def test_a_stalled_terminal_stalls_nobody() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    stats = Stats()
    view = LiveView(stats.by_migration, console(file=open(writer, "w")))  # noqa: SIM115
    view.start()
    for n in range(1_000):
        view.message(f"message {n} " + "x" * 60)
    until(lambda: _unread(reader) > 3_500)  # nobody reads: the thread hangs in a write
    for n in range(1_000):
        view.message(f"late message {n}")
    for time, event in PRECOPY:
        stats.show("m1", time, event)
    assert not view.stop(0.05), "it hangs in its own thread, and only there"
    taken = b""
    while not view.stop(0.01):
        taken += os.read(reader, _unread(reader))
    taken += os.read(reader, _unread(reader))
    text = taken.decode()
    assert "message 0 " in text
    assert "COMPLETED" in text
    assert int(re.findall(r"(\d+) messages more, because", text)[0]) > 1_000
    os.close(reader)


def _unread(reader: int) -> int:
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_terminal_that_is_gone_ends_the_view() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    view = LiveView({}, console(file=Gone()))
    view.start()
    view.message("x")
    assert view.stop(WAIT)


def test_a_fault_of_the_view_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("migsniff.show.ui.draw", broken)
    file = io.StringIO()
    view = LiveView({}, console(file=file))
    view.start()
    until(lambda: "the live view failed" in file.getvalue())
    assert view.stop(WAIT)


def test_what_is_encrypted_is_shown_by_its_records() -> None:
    stats = MigrationStats("m1")
    for event in play(STREAMS["tls"]):
        stats.update(0, event)
    lines = [line.rstrip() for line in screen([stats], width=150)]
    said = "ClientHello TLS 1.3, offers 1.3 and 3 ciphers, pre-shared key, server name dest"
    assert f"TLS tls-0 fwd: {said}; 6 records, probably close_notify" in lines
    assert len(screen([stats], height=4)) == 4
