"""`migsniff info`: a migration on one screen, as capinfos has it, and the live view's summary."""

import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Final

from migsniff.core.events import SEVERITIES, DirectionEnded
from migsniff.show.fields import counts_text
from migsniff.show.findings import severity
from migsniff.show.infojson import info_dict
from migsniff.show.migration import DOWNTIME_PONG, DOWNTIME_SHUT, MigrationStats
from migsniff.show.model import BlockStats, PassStats
from migsniff.show.tls import rows as tls_rows
from migsniff.show.words import escape, from_whom, memory, name, number, place, rate, seconds, several, wire

LABEL_WIDTH: Final = 20
BLOCKS_SHOWN: Final = 6
PASSES_SHOWN: Final = 6
DIRECTIONS_SHOWN: Final = 8
CHANNELS_SHOWN: Final = 18  # main, preempt and 16 of multifd
DEVICES_SHOWN: Final = 6
FINDINGS_SHOWN: Final = 8
ENDS_SHOWN: Final = 4
PASS_HEADINGS: Final = (
    "pass",
    "pages",
    "normal",
    "zero",
    "xbzrle",
    "resent",
    "sent",
    "time",
    "dirty/s",
    "remaining",
)
PASS_WIDTHS: Final = (4, 6, 6, 6, 6, 6, 8, 8, 7, 9)


def render_info(
    stats: MigrationStats, facts: Mapping[str, object], out: Callable[[str], None], *, as_json: bool = False
) -> None:
    """Write the summary, a line (with its end) a call; `facts`, about the file or capture, come first."""
    if as_json:
        out(json.dumps(info_dict(stats, facts), indent=2) + "\n")
        return
    for line in info_lines(stats, facts):
        out(line + "\n")


def render_facts(facts: Mapping[str, object], out: Callable[[str], None], *, as_json: bool = False) -> None:
    """Write what is known of a file of which nothing was decoded."""
    if as_json:
        out(json.dumps({"source_facts": dict(facts)}, indent=2) + "\n")
        return
    for label, value in facts.items():
        out(_labelled(label, _fact(value)) + "\n")


def info_lines(stats: MigrationStats, facts: Mapping[str, object]) -> list[str]:
    """The summary, labels on the left."""
    lines = [_labelled(label, _fact(value)) for label, value in facts.items()]
    lines += _qemu(stats)
    lines += [_labelled(*row) for row in totals(stats)]
    if stats.blocks:
        lines += ["RAM blocks", *("  " + row for row in block_rows(stats, BLOCKS_SHOWN))]
    if channels := stats.channels.rows(CHANNELS_SHOWN):
        lines += ["Channels", *("  " + row for row in channels)]
    passes = pass_rows(stats, PASSES_SHOWN)
    if passes:
        lines += [
            "Passes over guest memory",
            "  " + pass_line(PASS_HEADINGS),
            *("  " + row for row in passes),
        ]
    if stats.devices:
        lines += [f"Devices, the largest of {stats.devices}", *("  " + row for row in _device_rows(stats))]
    if devices := stats.channels.device_rows(DEVICES_SHOWN):
        lines += ["Device state over multifd", *("  " + row for row in devices)]
    lines += _messages(stats)
    lines += [*_drained(stats), *_ends(stats)]
    lines += finding_rows(stats, FINDINGS_SHOWN)
    return [*lines, _labelled("Verdict", verdict_text(stats))]


def totals(stats: MigrationStats) -> list[tuple[str, str]]:
    """Label and text of what counts most: bytes and rates, RAM, devices, switchover and downtime."""
    mean = f", {rate(stats.mean_throughput)} on average" if stats.elapsed else ""
    rows = [
        ("Duration", seconds(stats.elapsed) if stats.elapsed else "not known: no times"),
        ("Bytes", f"{stats.sent} sent, {stats.returned} returned{mean}"),
    ]
    directions = list(stats.bytes.items()) if len(stats.bytes) > 2 else []
    directions.sort(key=lambda each: each[0][1] == "rev")  # channels come in the order of their first bytes
    for (channel, direction), count in directions[:DIRECTIONS_SHOWN]:
        rows.append((f"  {name(channel)} {direction}", str(count)))
    if others := directions[DIRECTIONS_SHOWN:]:
        rows.append((f"  ({len(others)} others)", str(sum(count for _, count in others))))
    rows += [(f"TLS {label}" if label else "", words) for label, words in tls_rows(stats.tls)]
    if stats.blocks:
        counts = stats.counts
        blocks = several(len(stats.blocks), "block")
        rows.append(("RAM", f"{memory(stats.ram_total)} in {blocks}, {number(stats.pages)} pages"))
        rows.append(("Pages sent", f"{counts.pages} ({counts_text(counts)}), {wire(counts.bytes)}"))
    for idstr, size in list(stats.live_sections.items())[:8]:
        rows.append((f"Section {name(idstr)}", wire(size)))
    if stats.devices:
        read = "provisional"
        if stats.exact_devices:
            read = f"{stats.exact_devices} exact"
        elif stats.assumed_devices:
            read += f", {stats.assumed_devices} of them assumed"
        rows.append(
            ("Device state", f"{stats.device_bytes} bytes of {several(stats.devices, 'device')}, {read}")
        )
    if stats.discarded:
        rows.append(("Discarded", several(stats.discarded, "page")))
    if stats.faults.asked:
        rows.append(("Page faults", stats.faults.text()))
    if stats.recovery.times:
        rows.append(("Recovered", stats.recovery.text()))
    if stats.switchover is not None and stats.elapsed:
        rows.append(("Switchover", f"at {stats.switchover / 1e6:.6f} s"))
        rows.append(("Downtime", downtime_text(stats)))
    return rows


def downtime_text(stats: MigrationStats) -> str:
    """The measured downtime and how it was measured."""
    downtime = stats.downtime
    if downtime is None:
        return "not known: no sign that the guest runs again"
    failed = stats.verdict is not None and not stats.verdict.ok
    if failed and downtime[1] not in (DOWNTIME_SHUT, DOWNTIME_PONG):  # all was sent, but nobody took it
        return f"not known, since it failed: from the switchover to {downtime[1]} {seconds(downtime[0])}"
    length = seconds(downtime[0]) if downtime[0] else "less than could be measured: all came in one read"
    return f"{length} (from the switchover to {downtime[1]})"


def verdict_text(stats: MigrationStats) -> str:
    """How it ended."""
    if stats.verdict is None:
        return f"none yet, in {escape(stats.phase)}"
    return f"{name(stats.verdict.outcome.upper())}: {escape(stats.verdict.message)}"


def block_rows(stats: MigrationStats, count: int) -> list[str]:
    """The `count` largest RAM blocks with what was sent of them; the last row sums up the others."""
    return [
        f"{label:<32} {memory(block.length):>9} {share(stats, block):>5.0%} sent, {block.pages} pages in all"
        for label, block in shown_blocks(stats, count)
    ]


def shown_blocks(stats: MigrationStats, count: int) -> list[tuple[str, BlockStats]]:
    """The largest RAM blocks with their names, the rest summed in the last of `count`."""
    blocks = stats.largest_blocks()
    largest = blocks if len(blocks) <= count else blocks[: count - 1]
    rows = [(name(block.name), block) for block in largest]
    rest = blocks[len(largest) :]
    if rest:
        summed = BlockStats(
            "",
            sum(block.length for block in rest),
            sum(block.pages for block in rest),
            sum(block.distinct for block in rest),
            sum(block.bytes for block in rest),
        )
        rows.append((f"({len(rest)} others)", summed))
    return rows


def share(stats: MigrationStats, block: BlockStats) -> float:
    """What part of the block has been sent at least once, 0 to 1."""
    pages = block.length // stats.page_size if stats.page_size else 0
    return min(1.0, block.distinct / pages) if pages else 0.0


def pass_rows(stats: MigrationStats, count: int) -> list[str]:
    """The first and the last `count` - 1 passes, under PASS_HEADINGS, and how many were between them."""
    passes = list(stats.all_passes())
    if len(passes) > count:
        passes = [passes[0], *passes[len(passes) - count + 1 :]]
    rows = [pass_line(pass_cells(row)) for row in passes]
    if others := stats.pass_count - len(passes):
        rows.insert(1, f"({others} others)")
    return rows


def pass_line(cells: tuple[str, ...]) -> str:
    """The cells under PASS_HEADINGS, aligned."""
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, PASS_WIDTHS, strict=True)).rstrip()


def pass_cells(row: PassStats) -> tuple[str, ...]:
    """One pass as text, in the order of PASS_HEADINGS."""
    counts = row.counts
    return (
        str(row.iteration),
        number(counts.pages),
        number(counts.normal),
        number(counts.zero),
        number(counts.xbzrle + counts.compressed),
        number(counts.resent),
        wire(counts.bytes),
        "running" if row.running else seconds(row.duration),
        number(row.dirty_rate),
        "final" if row.final else number(row.remaining),
    )


def finding_rows(stats: MigrationStats, count: int) -> list[str]:
    """The worst findings, of equally bad ones the first, and how many more there are."""
    worst = sorted(stats.findings, key=lambda found: -SEVERITIES.index(severity(found)))
    rows = [_labelled(severity(found), escape(found.message)) for found in worst[:count]]
    more = len(stats.findings) - len(rows) + stats.findings_omitted
    return [*rows, _labelled("", f"and {several(more, 'more finding')}")] if more else rows


def summary_lines(stats: MigrationStats, passes: int) -> list[str]:
    """What stays on the terminal when a migration is over."""
    ends = f": {escape(stats.source)} to {escape(stats.destination)}" if stats.source else ""
    lines = [f"migration {name(stats.migration)}{ends}", *(_labelled(*row) for row in totals(stats))]
    if balance := stats.channels.text():
        lines.append(_labelled("Channels", balance))
    rows = pass_rows(stats, passes)
    if rows:
        lines += ["  " + pass_line(PASS_HEADINGS), *("  " + row for row in rows)]
    return [*lines, *finding_rows(stats, 3), _labelled("Verdict", verdict_text(stats))]


def wrapped(line: str, width: int) -> list[str]:
    """A line of the summary as a terminal so wide shows it: what goes on stands below its text."""
    behind = " " * (LABEL_WIDTH + 1 if width >= 3 * LABEL_WIDTH else 2)
    return textwrap.wrap(line, width, subsequent_indent=behind) if len(line) > width else [line]


def status_line(stats: MigrationStats, now: int) -> str:
    """One line on how far a migration is, `now` microseconds after it began."""
    parts = [escape(stats.phase), seconds(now), f"{wire(stats.sent)} sent"]
    parts.append(f"{rate(stats.throughput.now(now))} now, {rate(stats.mean_throughput)} on average")
    if stats.blocks:
        first = sum(block.distinct for block in list(stats.blocks.values()))
        parts.append(
            f"{number(first)} of {number(stats.pages)} pages sent, {number(stats.counts.resent)} again"
        )
    if stats.devices:
        parts.append(several(stats.devices, "device"))
    if stats.findings:
        parts.append(several(len(stats.findings) + stats.findings_omitted, "finding"))
    return ", ".join(parts)


def _labelled(label: str, text: str) -> str:
    return f"{label + ':' if label else '':<{LABEL_WIDTH}} {text}"


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(escape(str(element)) for element in value)
    return "not known" if value is None else escape(str(value))


def _qemu(stats: MigrationStats) -> list[str]:
    rows: list[tuple[str, str]] = []
    configuration = stats.configuration
    if stats.postcopy:
        rows.append(("Mode", "postcopy"))
    if configuration is not None:
        rows.append(("Machine", name(configuration.machine)))
        if configuration.capabilities:
            rows.append(("Capabilities", ", ".join(map(name, configuration.capabilities))))
        if configuration.uuid is not None:
            rows.append(("UUID", name(configuration.uuid)))
    if stats.page_size is not None:
        rows.append(("Page size", f"{stats.page_size} ({escape(stats.page_size_from)})"))
    return [_labelled(*row) for row in rows]


def _device_rows(stats: MigrationStats) -> list[str]:
    largest = sorted(stats.largest_devices, reverse=True)[:DEVICES_SHOWN]
    return [f"{name(device.name):<32} {device.size:>9} bytes" for device in largest]


def _messages(stats: MigrationStats) -> list[str]:
    if not stats.messages:
        return []
    text = ", ".join(f"{count} {name(title)}" for title, count in stats.messages.items())
    last = stats.last_messages[-1]
    value = f" {escape(str(last.value))}" if last.value is not None else ""
    return [_labelled("Return path", f"{text}; the last: {name(last.name)}{value}")]


def _drained(stats: MigrationStats) -> list[str]:
    """What did not reach the destination any more."""
    shown = list(stats.drained.values())[:ENDS_SHOWN]
    lines = [
        f"{name(begun.channel)}: {several(stats.drained_bytes(begun.channel), 'byte')} did not reach the "
        f"destination, from {begun.offset} on{place(begun.where)}"
        for begun in shown
    ]
    others = len(stats.drained) - len(shown)
    lines += [f"and {others} more channels"] if others else []
    return [_labelled("" if number else "Drained", line) for number, line in enumerate(lines)]


def _ends(stats: MigrationStats) -> list[str]:
    """How the directions ended: the main channel's, and of the others those that did not end in order."""
    mains = {"main"} if stats.verdict is None else {"main", stats.verdict.channel}
    shown = [end for end in stats.ends if end.channel in mains or end.how != "eof"][:ENDS_SHOWN]
    lines = [_labelled("Ended", _end(end)) for end in shown]
    others = len(stats.ends) - len(shown)
    return [*lines, _labelled("", f"and {others} more, other channels")] if others else lines


def _end(end: DirectionEnded) -> str:
    error = f" ({name(end.error)})" if end.error else ""
    how = f"{end.how}{from_whom(end.by)}{error} at {end.offset}{place(end.where)}"
    return f"{name(end.channel)} {end.direction}: {how}"
