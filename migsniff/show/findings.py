"""Expert info as tshark's -z expert has it: all findings of a migration by severity, with their bytes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from migsniff.core.events import (
    SEVERITIES,
    Event,
    Finding,
    Severity,
    Undecodable,
    Verdict,
)
from migsniff.show.words import escape, name, several

MAX_KEPT: Final = 10_000
BYTES_A_LINE: Final = 16


@dataclass(slots=True)
class Findings:
    """A show sink that keeps the findings, and counts all of them; what cannot be decoded is an error."""

    least: Severity = "chat"
    kept: list[tuple[int, Finding | Undecodable]] = field(default_factory=list)
    counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)
    verdict: Verdict | None = None

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        if isinstance(event, Verdict):
            self.verdict = event
        elif isinstance(event, Finding | Undecodable) and (
            SEVERITIES.index(severity(event)) >= SEVERITIES.index(self.least)
        ):
            self.counts[severity(event), event.code] += 1
            if len(self.kept) < MAX_KEPT:
                self.kept.append((time, event))

    def close(self) -> None:
        """Nothing is pending."""


def severity(event: Finding | Undecodable) -> Severity:
    """How bad it is."""
    return event.severity if isinstance(event, Finding) else "error"


def to_dict(migration: str, findings: Findings) -> dict[str, object]:
    """Everything as one JSON object; times in seconds."""
    return {
        "migration": migration,
        "counts": {
            level: {code: count for (at, code), count in findings.counts.items() if at == level}
            for level in SEVERITIES
        },
        "findings": [
            {"severity": severity(event), "time": time / 1e6, **msgspec.to_builtins(event)}
            for time, event in findings.kept
        ],
        "omitted": findings.counts.total() - len(findings.kept),
        "verdict": None if findings.verdict is None else msgspec.to_builtins(findings.verdict),
    }


def render(migration: str, findings: Findings, out: Callable[[str], None]) -> None:
    """Write the findings, the worst first, and the verdict, a line a call."""
    out(f"migration {name(migration)}")
    for level in reversed(SEVERITIES):
        counts = {code: count for (at, code), count in findings.counts.items() if at == level}
        if not counts:
            continue
        out("")
        out(f"{level} ({sum(counts.values())}): " + ", ".join(f"{n} {code}" for code, n in counts.items()))
        for time, event in findings.kept:
            if severity(event) == level:
                for line in _lines(time, event):
                    out(line)
    if omitted := findings.counts.total() - len(findings.kept):
        out(f"and {several(omitted, 'more finding')}")
    out("")
    verdict = findings.verdict
    out(
        "Verdict: none"
        if verdict is None
        else f"Verdict: {verdict.outcome.upper()}: {escape(verdict.message)}"
    )


def _lines(time: int, event: Finding | Undecodable) -> list[str]:
    """Where, what, and the bytes that prove it."""
    arrow = ">" if event.direction == "fwd" else "<"
    where = f"{event.offset} {name(event.channel)}{arrow}"
    if isinstance(event, Finding):
        where += f" {name(event.section)}" if event.section else ""
        where += f" {name(event.field)}" if event.field else ""
    elif event.where:
        where += f" ({escape(event.where)})"
    lines = [f"  {time // 1_000_000}.{time % 1_000_000:06d} {where} [{name(event.code)}]"]
    lines.append(f"    {escape(event.message)}")
    return [*lines, *(f"      {line}" for line in dump(event.offset, bytes.fromhex(event.evidence)))]


def dump(offset: int, data: bytes) -> list[str]:
    """Bytes in hexadecimal with their wire offset, as text too, BYTES_A_LINE a line."""
    lines = []
    for at in range(0, len(data), BYTES_A_LINE):
        some = data[at : at + BYTES_A_LINE]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in some)
        lines.append(f"{offset + at:>12}  {some.hex(' '):<{3 * BYTES_A_LINE - 1}}  {text}")
    return lines
