"""The matrix itself: the selection that runs every day, and the sums that its verdicts rest on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.matrix import MACHINES, MODES, VERSIONS, Cell, Outcome, cells, gaps, run
from tests.matrixtable import read_table, table
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


RAN = [
    Outcome(Cell("5.2", "pc", "plain"), "5.2.0"),
    Outcome(Cell("7.2", "pc", "compress"), "7.2.22", known=["compress: one", "multifd: another"]),
    Outcome(Cell("10.0", "virt", "plain"), "10.0.13", ["it: failed | twice"]),
    Outcome(Cell("7.2", "q35", "plain"), "7.2.22", known=["multifd: another"]),
]


def row(text: str, machine: str, version: str) -> dict[str, str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {machine} | {version} |"))
    return dict(zip(MODES, line.strip("| ").split(" | ")[2:], strict=True))


def test_a_table_has_what_ran_and_keeps_it_when_it_is_read_again() -> None:
    text = table(RAN)
    assert row(text, "pc", "5.2")["plain"] == "ok"
    assert row(text, "pc", "5.2")["preempt"] == "-"  # nobody need try that
    assert row(text, "pc", "7.2")["compress"] == "ok a b"
    assert row(text, "virt", "10.0")["plain"] == "**failed**"
    assert row(text, "virt", "10.0")["XBZRLE"] == "?"
    assert read_table(text) == sorted(RAN, key=lambda outcome: list(MACHINES).index(outcome.cell.machine))
    assert table(read_table(text)) == text


def test_a_run_writes_what_ran_and_keeps_the_other_cells(tmp_path: Path) -> None:
    """As a script, whose module has another name than the one the table imports."""
    written, results = tmp_path / "matrix.md", tmp_path / "results"
    written.write_text(table(RAN))
    again = Outcome(Cell("10.0", "virt", "plain"), "10.0.13")
    results.write_bytes(msgspec.json.encode(again) + b"\n")
    only = ("--only", "7.2", "--only", "pc", "--only", "mapped-ram")  # which 7.2 has not: no QEMU starts
    given = (*only, "--results", str(results), "--table", str(written))
    subprocess.run([sys.executable, "-m", "tests.matrix", *given], check=True, capture_output=True)
    told, _, _ = written.read_text().partition("\nQEMUs that are not there")
    assert told == table([*RAN, again])


def test_a_cell_whose_qemu_is_missing_now_keeps_its_outcome() -> None:
    missing = Outcome(RAN[0].cell, missing="no such QEMU")
    assert row(table([*RAN, missing]), "pc", "5.2")["plain"] == "ok"
    assert row(table([missing]), "pc", "5.2")["plain"] == "?"
