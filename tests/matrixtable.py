"""The matrix as a table: nothing in it is written by hand."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.matrix import MACHINES, MODES, VERSIONS, Cell, Outcome, cells

HEAD = """# The matrix

Made by `python -m tests.matrix --table docs/matrix.md` on {date}, from {ran} real migrations through the
proxy: {ok} ok, {failed} failed. QEMU {qemus}; pc and q35 are x86_64, virt is aarch64,
pseries ppc64, s390x s390-ccw-virtio, all without hardware acceleration.

**ok**: QEMU completed and the guest runs at the destination, the verdict is good, every byte of every
channel belongs to a decoded record (of TLS: was passed on), QEMU's counters are those of the log, and the log
of the capture is the log that was printed live. A mapped-ram file is read where QEMU wrote it. A letter is a
difference that is known, and not ours; **-** is a mode that this QEMU has not; **?** was not tried. Of a cell
that ran more than once, or not this time, this is the last outcome.
"""
FAILED = "**failed**"


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each machine and version, a column for each mode."""
    by_cell: dict[Cell, Outcome] = {}
    for outcome in outcomes:  # of a cell that was run again, the last
        if not outcome.missing or outcome.failures or outcome.cell not in by_cell:
            by_cell[outcome.cell] = outcome
    outcomes = list(by_cell.values())
    ran = [outcome for outcome in outcomes if outcome.qemu or outcome.failures]
    failed = [outcome for outcome in ran if outcome.failures]
    known = sorted({name for outcome in ran for name in outcome.known})
    letters = {name: chr(ord("a") + number) for number, name in enumerate(known)}
    lines = [
        HEAD.format(
            date=datetime.now(UTC).date(),
            ran=len(ran),
            ok=len(ran) - len(failed),
            failed=len(failed),
            qemus=", ".join(sorted({outcome.qemu for outcome in ran if outcome.qemu}, key=_order)),
        ),
        f"| machine | QEMU | {' | '.join(MODES)} |",
        "|---|---|" + "---|" * len(MODES),
    ]
    for machine in MACHINES:
        for version in VERSIONS:
            row = (Cell(version, machine, mode) for mode in MODES)
            shown = (_shown(cell, by_cell.get(cell), letters) for cell in row)
            lines.append(f"| {machine} | {version} | {' | '.join(shown)} |")
    lines += ["", "Known differences:", "", *(f"- {letters[name]}: {name}" for name in known)]
    absent = sorted({f"{cell.mode}: {cell.absent}" for cell in cells() if cell.absent})
    lines += ["", "Modes that are not there:", "", *(f"- {reason}" for reason in absent)]
    if missing := sorted({outcome.missing for outcome in outcomes if outcome.missing}):
        lines += ["", "QEMUs that are not there:", "", *(f"- {reason}" for reason in missing)]
    if failed:
        lines += ["", "Failures:", ""]
        for outcome in failed:
            said = " ".join("; ".join(outcome.failures).split())
            lines.append(f"- {outcome.cell}: {said}")
    return "\n".join(lines) + "\n"


def read_table(text: str) -> list[Outcome]:
    """What a written table says of the cells that ran: `table` makes the same of it again."""
    names = dict(re.findall(r"^- ([a-z]): (.+)$", text, re.MULTILINE))
    failures = dict(re.findall(r"^- ([^:\n]+): (.+)$", text, re.MULTILINE))
    qemus = re.search(r"QEMU ([\d., ]+);", text)
    releases = {v.rpartition(".")[0]: v for v in (qemus[1].split(", ") if qemus else ())}
    modes: list[str] = []
    outcomes = []
    for line in text.splitlines():
        if not line.startswith("| "):
            continue
        machine, version, *shown = (part.strip() for part in line.strip("|").split("|"))
        if machine == "machine":
            modes = shown
            continue
        for mode, what in zip(modes, shown, strict=True):
            if machine not in MACHINES or version not in VERSIONS or mode not in MODES:
                continue  # the matrix had it once
            outcome = Outcome(Cell(version, machine, mode), releases.get(version, version))
            if what == FAILED:
                outcome.failures = [failures[str(outcome.cell)]]
            elif what.startswith("ok"):
                outcome.known = [names[letter] for letter in what.split()[1:]]
            else:
                continue
            outcomes.append(outcome)
    return outcomes


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _shown(cell: Cell, outcome: Outcome | None, letters: dict[str, str]) -> str:
    if cell.absent:
        return "-"
    if outcome is None:
        return "?"
    if outcome.failures:
        return FAILED
    if outcome.missing:
        return "?"
    return " ".join(["ok", *(letters[name] for name in outcome.known)])
