"""The matrix itself: the selection that runs every day, and the sums that its verdicts rest on."""

from pathlib import Path
from typing import Any

import pytest

from tests.matrix import MACHINES, MODES, VERSIONS, Cell, Outcome, cells, gaps, run
from tests.matrixtable import table
from tests.qemu import SYSTEM, require


def test_the_selection_has_each_version_machine_and_mode() -> None:
    chosen = [cell for cell in cells(ci=True) if not cell.absent]
    assert {cell.version for cell in chosen} == set(VERSIONS)
    assert {cell.machine for cell in chosen} == set(MACHINES)
    assert {cell.mode for cell in chosen} == set(MODES)


def test_cells_by_name() -> None:
    assert cells(["7.2", "pc", "q35", "plain"]) == [Cell("7.2", "pc", "plain"), Cell("7.2", "q35", "plain")]
    assert len(cells()) == len(VERSIONS) * len(MACHINES) * len(MODES)
    with pytest.raises(SystemExit):
        cells(["8.0"])


def event(kind: str, offset: int, size: int = 0, channel: str = "main") -> dict[str, Any]:
    return {"type": kind, "channel": channel, "direction": "fwd", "offset": offset, "size": size}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event("header", 0, 8), event("device", 8, 12), event("end", 20)], []),
        ([event("device", 4, 16), event("finding", 0, 4), event("end", 20)], ["0 to 4 of main fwd"]),
        ([event("header", 0, 8), event("end", 20)], ["8 to 20 of main fwd"]),
        ([event("a", 0, 8), event("b", 9, 3), event("c", 0, 10), event("end", 12)], []),
        ([event("end", 8, channel="preempt")], []),
        ([event("a", 0, 8), event("loose-pages", 13, 3), event("end", 16)], []),
        ([event("a", 0, 8), event("loose-pages", 14, 3), event("end", 17)], ["8 to 14 of main fwd"]),
        ([event("end", 9, channel="preempt")], ["0 to 9 of preempt fwd"]),
    ],
)
def test_gaps(events: list[dict[str, Any]], expected: list[str]) -> None:
    assert list(gaps(events)) == expected


def test_a_cell_and_its_place_in_the_table(tmp_path: Path) -> None:
    require(SYSTEM)
    outcome = run(Cell("7.2" if SYSTEM not in VERSIONS else SYSTEM, "pc", "multifd zlib"))
    assert outcome.failures == []
    failed = Outcome(Cell("5.2", "virt", "plain"), "5.2.0", ["it | failed"])
    text = table([outcome, failed, Outcome(Cell("5.2", "pc", "preempt"))])
    assert "1 ok, 1 failed" in text
    assert "- 5.2 virt plain: it | failed" in text
    assert f"| pc | {outcome.cell.version} |" in text
    assert "postcopy-preempt is there since 7.1" in text
