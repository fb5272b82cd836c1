"""What the live view draws: every piece is one line high, so that the whole fits a screen of any height."""

from collections.abc import Callable, Iterable, Sequence
from textwrap import wrap
from typing import Final

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from migsniff.core.events import SEVERITIES
from migsniff.show.findings import severity
from migsniff.show.info import PASS_HEADINGS, pass_cells, pass_line, share, shown_blocks
from migsniff.show.matching import Matching
from migsniff.show.migration import MigrationStats
from migsniff.show.tls import rows as tls_rows
from migsniff.show.words import escape, memory, name, number, rate, seconds, several, wire

LINES_COMPACT: Final = 3
NAME_WIDTH: Final = 24
DEVICE_WIDTH: Final = 36

Now = Callable[[MigrationStats], int]


def draw(
    running: Sequence[MigrationStats],
    height: int,
    *,
    width: int = 80,
    listening: Iterable[str] = (),
    now: Now | None = None,
    matching: Matching | None = None,
) -> RenderableType:
    """The migrations that run, in at most `height` lines: one in full, several in a few lines each.

    Lines longer than `width` are cut, but findings, as far as there is room for more of them.

    `now` tells a migration's present time in microseconds; without it that of its last event. Below
    stand the last records that match a display filter, in a third of the lines.
    """
    now = now or _last_time
    below = _matching(matching, height // 3) if matching is not None else []
    height -= len(below)
    if not running:
        above = [_line(f"waiting for a connection on {escape(endpoint)}") for endpoint in listening][:height]
        return Group(*above, *below)
    if len(running) == 1:
        return Group(*_in_full(running[0], height, width, now(running[0])), *below)
    return Group(*_compact(running, height, now), *below)


def _matching(matching: Matching, height: int) -> list[Text]:
    if height < 1:
        return []
    return [_line(matching.title, "bold"), *map(_line, matching.last(height - 1))]


def _last_time(stats: MigrationStats) -> int:
    return stats.elapsed


def _in_full(stats: MigrationStats, height: int, width: int, now: int) -> list[RenderableType]:
    top = [_title(stats), _phase(stats, now), _traffic(stats, now)]
    found = _findings(stats)
    bottom: list[RenderableType] = []
    if stats.switchover is not None:
        bottom.insert(0, _switchover(stats, now))
    if stats.faults.asked:
        bottom.insert(0, _line(f"page faults: {stats.faults.text()}"))
    if balance := stats.channels.text():
        top.append(_line(balance))
    top += [_line(f"TLS {label}: {said}") for label, said in tls_rows(stats.tls)]
    room = max(0, height - len(top) - len(bottom) - len(_wrapped(found, width, height // 6)))
    # blocks a third, passes and devices the rest; what one does not need the next may have
    blocks = _blocks(stats, room // 3) if stats.blocks else []
    room -= len(blocks)
    devices = _devices(stats, room // 2) if stats.devices else []
    passes = _passes(stats, room - len(devices))
    above = [*top, *blocks, *passes, *devices, *bottom]
    return [*above, *_wrapped(found, width, height - len(above) - len(found))][:height]


def _compact(running: Sequence[MigrationStats], height: int, now: Now) -> list[RenderableType]:
    fit = height // LINES_COMPACT
    shown = running if len(running) <= fit else running[: (height - 1) // LINES_COMPACT]
    lines: list[RenderableType] = []
    for stats in shown:
        lines += [_title(stats), _phase(stats, now(stats)), _traffic(stats, now(stats))]
    if len(running) > len(shown):
        lines.append(_line(f"and {len(running) - len(shown)} more migrations"))
    return lines[:height]


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _title(stats: MigrationStats) -> Text:
    machine = f"  {name(stats.configuration.machine)}" if stats.configuration else ""
    ends = f"  {escape(stats.source)} > {escape(stats.destination)}" if stats.source else ""
    return _line(f"{name(stats.migration)}{ends}{machine}", "bold")


def _phase(stats: MigrationStats, now: int) -> Text:
    line = _line("")
    drains = "draining, " if stats.drained and stats.verdict is None else ""
    line.append(f"{drains + escape(stats.phase):<16}", style="bold cyan")
    line.append(f" {seconds(now)}")
    if stats.blocks and stats.pages:
        first = sum(block.distinct for block in list(stats.blocks.values())) / stats.pages
        line.append(f"   {min(1.0, first):.0%} of {memory(stats.ram_total)} sent once")
        line.append(f"   {number(stats.counts.pages)} pages, {number(stats.counts.resent)} again")
    return line


def _traffic(stats: MigrationStats, now: int) -> Text:
    returned = f"   {wire(stats.returned)} returned" if stats.returned else ""
    mean = rate(stats.mean_throughput)
    return _line(f"{rate(stats.throughput.now(now))} now   {mean} on average   {wire(stats.sent)}{returned}")


def _blocks(stats: MigrationStats, count: int) -> list[RenderableType]:
    if count < 1:
        return []
    lines: list[RenderableType] = []
    for label, block in shown_blocks(stats, count):
        part = share(stats, block)
        row = Table.grid(expand=True, padding=(0, 1))
        row.add_column(width=NAME_WIDTH, no_wrap=True, overflow="ellipsis")
        row.add_column(ratio=1)
        row.add_column(width=4, justify="right", no_wrap=True)
        row.add_column(width=9, justify="right", no_wrap=True)
        row.add_column(width=9, justify="right", no_wrap=True)
        row.add_row(
            Text(label),
            ProgressBar(total=1.0, completed=part),
            f"{part:.0%}",
            memory(block.length),
            wire(block.bytes),
        )
        lines.append(row)
    return lines


def _passes(stats: MigrationStats, room: int) -> list[RenderableType]:
    passes = list(stats.all_passes())
    if room < 2 or not passes:
        return []
    lines = [_line(pass_line(PASS_HEADINGS), "dim")]
    fit = room - 1
    if stats.pass_count > fit > 1:
        fit -= 1
        lines.append(_line(f"({stats.pass_count - min(fit, len(passes))} earlier)", "dim"))
    return [*lines, *(_line(pass_line(pass_cells(row))) for row in passes[-fit:])]


def _devices(stats: MigrationStats, room: int) -> list[RenderableType]:
    if room < 1:
        return []
    lines: list[RenderableType] = [
        _line(f"{several(stats.devices, 'device')}, {wire(stats.device_bytes)}", "dim")
    ]
    last = list(stats.last_devices)
    for device in last[max(0, len(last) - room + 1) :]:
        since = f"+{seconds(device.since)}" if device.since else ""  # several come in one piece
        label = name(device.name)
        if len(label) > DEVICE_WIDTH:
            label = "..." + label[3 - DEVICE_WIDTH :]
        at = f"{device.time / 1e6:>11.6f} s"
        lines.append(_line(f"{label:<{DEVICE_WIDTH}} {device.size:>8} bytes at {at} {since:>9}"))
    return lines


def _switchover(stats: MigrationStats, now: int) -> Text:
    assert stats.switchover is not None
    at = f"switchover at {stats.switchover / 1e6:.3f} s"
    if stats.downtime is None:
        return _line(f"{at}, {seconds(max(0, now - stats.switchover))} ago", "bold yellow")
    downtime, sign = stats.downtime
    return _line(f"{at}, downtime {seconds(downtime)}, until {sign}", "bold yellow")


def _findings(stats: MigrationStats) -> list[tuple[str, str]]:
    """The last two of the worst, each with its color: what will make it fail is not driven out by notes."""
    found = sorted(stats.findings, key=lambda each: SEVERITIES.index(severity(each)))[-2:]
    return [(escape(each.message), "red" if severity(each) == "error" else "yellow") for each in found]


def _wrapped(found: list[tuple[str, str]], width: int, room: int) -> list[RenderableType]:
    """Each in lines of its own: one, and as many more as there is `room` for, the worst (the last) first."""
    shown: list[RenderableType] = []
    for message, style in reversed(found):
        lines = wrap(message, max(width, 20))
        more = min(len(lines) - 1, max(0, room))
        room -= more
        cut = " ".join(lines[more:])
        shown = [*(_line(line, style) for line in (*lines[:more], cut)), *shown]
    return shown
