"""-z iterations and -z ram: passes over guest memory, and what went for each RAM block."""

from typing import Final

from migsniff.show.migration import MigrationStats
from migsniff.show.model import PassStats
from migsniff.statistics.statistic import Statistic, statistic
from migsniff.statistics.table import Column, Table

PASS_COLUMNS: Final = (
    Column("iteration", "pass"),
    Column("began", "began", "time"),
    Column("duration", "took", "time"),
    Column("pages", "pages"),
    Column("normal", "normal"),
    Column("zero", "zero"),
    Column("xbzrle", "xbzrle"),
    Column("compressed", "compressed"),
    Column("resent", "resent"),
    Column("bytes", "bytes", "bytes"),
    Column("rate", "rate", "rate"),
    Column("dirty_rate", "dirtied/s"),
    Column("state", "", "text"),
)
BLOCK_COLUMNS: Final = (
    Column("block", "block", "text"),
    Column("length", "length", "memory"),
    Column("total", "of pages"),
    Column("distinct", "sent once"),
    Column("share", "", "share"),
    Column("pages", "pages sent"),
    Column("resent", "resent"),
    Column("per_page", "times a page", "text"),
    Column("bytes", "bytes", "bytes"),
    Column("bytes_share", "of all", "share"),
)


@statistic("iterations")
class Iterations(Statistic):
    """Pass by pass: sent, sent again, how fast, and how fast the guest dirtied pages meanwhile."""

    def table(self, stats: MigrationStats) -> Table:
        """A row a pass, the one without an end last."""
        rows = []
        for each in stats.all_passes():
            counts, taken = each.counts, each.duration
            speed = counts.bytes * 1e6 / taken if taken else None
            rows.append(
                (
                    each.iteration, each.began, taken, counts.pages, counts.normal, counts.zero,
                    counts.xbzrle, counts.compressed, counts.resent, counts.bytes, speed, each.dirty_rate,
                    _state(each, timed=stats.elapsed > 0),
                )
            )  # fmt: skip
        notes = ["dirtied/s: pages that this pass had to send, by the time that the pass before it took"]
        if others := stats.pass_count - len(rows):
            notes.append(f"{others} passes behind the first {len(stats.first_passes)} are not shown")
        return Table("iterations", "Passes over guest memory", PASS_COLUMNS, rows, tuple(notes))


def _state(each: PassStats, *, timed: bool) -> str:
    if each.final:
        return "source stopped"
    if each.running:
        return "running"
    return "cut off" if timed and each.ended is None else ""


@statistic("ram")
class Ram(Statistic):
    """Block by block: how much of it was sent, how often, and what it took on the wire."""

    def table(self, stats: MigrationStats) -> Table:
        """A row a RAM block, the one with the most bytes first."""
        everything = sum(block.bytes for block in stats.blocks.values())
        rows = []
        for block in sorted(stats.blocks.values(), key=lambda block: -block.bytes):
            total = block.length // stats.page_size if stats.page_size else None
            rows.append(
                (
                    block.name,
                    block.length,
                    total,
                    block.distinct,
                    block.distinct / total if total else None,
                    block.pages,
                    block.pages - block.distinct,
                    f"{block.pages / block.distinct:.2f}" if block.distinct else None,
                    block.bytes,
                    block.bytes / everything if everything else None,
                )
            )
        return Table("ram", "RAM blocks", BLOCK_COLUMNS, rows)
