"""The matrix as a table: nothing in it is written by hand."""

from collections.abc import Sequence
from datetime import UTC, datetime

from tests.matrix import MACHINES, MODES, VERSIONS, Cell, Outcome

HEAD = """# The matrix

Made by `python -m tests.matrix --table docs/matrix.md` on {date}, from {ran} real migrations through the
proxy: {ok} ok, {failed} failed. QEMU {qemus}; pc and q35 are x86_64, virt is aarch64,
pseries ppc64, s390x s390-ccw-virtio, all without hardware acceleration.

**ok**: QEMU completed and the guest runs at the destination, the verdict is good, every byte of every
channel belongs to a decoded record (of TLS: was passed on), QEMU's counters are those of the log, and the log
of the capture is the log that was printed live. A mapped-ram file is read where QEMU wrote it. A letter is a
difference that is known, and not ours; **-** is a mode that this QEMU has not; **?** was not tried. Of a cell
that ran more than once this is the last outcome.
"""


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row for each machine and version, a column for each mode."""
    by_cell = {outcome.cell: outcome for outcome in outcomes}
    outcomes = list(by_cell.values())  # of a cell that was run again, the last
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
            shown = (_shown(by_cell.get(Cell(version, machine, mode)), letters) for mode in MODES)
            lines.append(f"| {machine} | {version} | {' | '.join(shown)} |")
    lines += ["", "Known differences:", "", *(f"- {letters[name]}: {name}" for name in known)]
    absent = sorted(
        {
            f"{outcome.cell.mode}: {outcome.cell.absent}"
            for outcome in outcomes
            if outcome.cell.absent and not outcome.missing
        }
    )
    lines += ["", "Modes that are not there:", "", *(f"- {reason}" for reason in absent)]
    if missing := sorted({outcome.missing for outcome in outcomes if outcome.missing}):
        lines += ["", "QEMUs that are not there:", "", *(f"- {reason}" for reason in missing)]
    if failed:
        lines += ["", "Failures:", ""]
        for outcome in failed:
            said = " ".join("; ".join(outcome.failures).split())
            lines.append(f"- {outcome.cell}: {said}")
    return "\n".join(lines) + "\n"


def _order(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def _shown(outcome: Outcome | None, letters: dict[str, str]) -> str:
    if outcome is None or outcome.missing:
        return "?"
    if outcome.cell.absent:
        return "-"
    if outcome.failures:
        return "**failed**"
    return " ".join(["ok", *(letters[name] for name in outcome.known)])
