"""`migsniff check`: will the guest of a capture load at a destination?"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Final

import msgspec

from migsniff.against import refuse_twice
from migsniff.compare.checker import Checker, Local
from migsniff.compare.rings import Virtqueues
from migsniff.core.errors import CaptureError, UsageError
from migsniff.core.events import (
    DescriptionFound,
    DeviceSection,
    Event,
    Finding,
    Severity,
    Undecodable,
    Verdict,
)
from migsniff.destination import NOT_A_STREAM, read_destination
from migsniff.expert.framing import called
from migsniff.offline import survey_asked
from migsniff.rings import ring_findings
from migsniff.show.findings import dump
from migsniff.show.words import escape, name, several

LOADS, FAILS, NO_ANSWER = 0, 1, 4  # see cli.py for the others
RANKED: Final = (LOADS, NO_ANSWER, FAILS)
"""From best to worst: of several migrations the worst is told."""
MAX_FINDINGS: Final = 10_000
RINGS: Final = "virtqueue-no-address"
"""What the expert's rules tell of a device, and a destination too."""
TOLD_ONCE: Final = (
    *("check-section-unknown", "check-section-maybe", "check-version", "check-version-old"),
    RINGS,
)
"""Of a section's header alone, or of what no description changes."""


class Check:
    """A sink that checks one migration; `findings` in the order in which the destination meets them."""

    def __init__(self, destination: Local) -> None:
        self.checker = Checker(destination)
        self.queues = Virtqueues()
        self.omitted: list[str] = []
        self.found: dict[str, list[Finding]] = {}
        self.count = self.beyond = 0
        self.events = 0
        self.verdict: Verdict | None = None
        self.described = self.undecodable = False

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        self.events += not isinstance(event, Verdict | Finding)
        self.queues.show(migration, time, event)
        match event:
            case Verdict():
                self.verdict = event
            case DescriptionFound():
                self.described = True
            case Undecodable():
                self.undecodable = True
            case Finding() if event.code == RINGS:
                self.take(event)
            case DeviceSection(provisional=False):
                self._forget(called(event))
        for finding in self.checker.see(event):
            self.take(finding)

    def take(self, finding: Finding) -> None:
        """One more, unless they are too many."""
        if self.count < MAX_FINDINGS:
            self.count += 1
            self.found.setdefault(finding.section, []).append(finding)
        else:
            self.beyond += 1

    def close(self) -> None:
        """Nothing is pending."""

    @property
    def whole(self) -> bool:
        """Whether all of the stream has been seen, whatever became of it: the EOF, and the description."""
        return self.checker.end is not None and self.described and not self.undecodable

    @property
    def complete(self) -> bool:
        """Whether a destination could load it as it stands: not if it ended before all was sent."""
        return self.whole or (self.verdict is not None and self.verdict.ok)

    def findings(self) -> list[Finding]:
        """All of them; of a section's inside the last word."""
        return sorted((one for some in self.found.values() for one in some), key=lambda one: one.offset)

    def _forget(self, section: str) -> None:
        """What was told of a section before its own description had come."""
        if before := self.found.get(section):
            kept = [one for one in before if one.code in TOLD_ONCE]
            self.count -= len(before) - len(kept)
            self.found[section] = kept


def check(options: argparse.Namespace) -> int:
    """Print what stands against each migration; returns the exit code. Raises UsageError."""
    refuse_twice(options.file, options.against)
    found: dict[str, Check] = {}
    worst = LOADS

    def begin(migration: str) -> list[Check]:
        found[migration] = Check(destination.local)
        return [found[migration]]

    def done(migration: str) -> None:
        nonlocal worst
        one = found.pop(migration)
        if one.verdict is None or one.verdict.outcome in NOT_A_STREAM:
            told = one.verdict.message if one.verdict else "nothing in it"
            raise CaptureError(f"{options.file}: {escape(told)}")
        for _, finding in ring_findings(options, migration, one.queues, one.omitted):
            one.take(finding)
        findings = one.findings()
        worst = max(worst, exit_code(one, findings), key=RANKED.index)
        if options.format == "json":
            json.dump(to_dict(migration, one, findings), sys.stdout, indent=2)
            print()
        else:
            render(migration, one, findings, print)

    try:
        destination = read_destination(options.against)
        survey_asked(options, begin, done, destination=destination)
    except CaptureError as error:  # 1 would say that the guest does not load
        raise UsageError(str(error)) from error
    return worst


def exit_code(one: Check, findings: list[Finding]) -> int:
    """What scripts ask: it loads, it will fail, or nobody can tell."""
    if of_severity("error", findings):
        return FAILS
    return LOADS if one.complete else NO_ANSWER


def of_severity(severity: Severity, findings: list[Finding]) -> list[Finding]:
    """Those that are as bad."""
    return [each for each in findings if each.severity == severity]


def to_dict(migration: str, one: Check, findings: list[Finding]) -> dict[str, object]:
    """Everything as one JSON object."""
    return {
        "migration": migration,
        "loads": {LOADS: True, FAILS: False, NO_ANSWER: None}[exit_code(one, findings)],
        "complete": one.complete,
        "outcome": one.verdict.outcome if one.verdict else "",
        "findings": [msgspec.to_builtins(each) for each in findings],
        "omitted": one.beyond,
        "not_compared": not_compared(one),
    }


def render(migration: str, one: Check, findings: list[Finding], out: Callable[[str], None]) -> None:
    """Write the answer, the findings in stream order, and what was not compared, a line a call."""
    out(f"migration {name(migration)}")
    for each in findings:
        where = f" {name(each.section)}" if each.section else ""
        where += f" {escape(each.field)}" if each.field else ""
        out(f"  {each.severity} {each.offset}{where} [{each.code}]")
        out(f"    {escape(each.message)}")
        for line in dump(each.offset, bytes.fromhex(each.evidence)):
            out(f"      {line}")
    if one.beyond:
        out(f"and {several(one.beyond, 'more finding')}")
    out("")
    out("Not compared:")
    for words in not_compared(one):
        out(f"  {escape(words)}")
    out("")
    out(answer(one, findings))


def answer(one: Check, findings: list[Finding]) -> str:
    """The last line: whether it loads."""
    if errors := of_severity("error", findings):
        return f"Will fail ({several(len(errors), 'error')}); first: {escape(errors[0].message)}"
    doubt = ""
    if warnings := of_severity("warn", findings):
        doubt = f"may fail: {several(len(warnings), 'warning')}, first: {escape(warnings[0].message)}"
    outcome = escape(one.verdict.outcome.upper()) if one.verdict else ""
    if not one.complete:
        up_to = f"it {doubt}" if doubt else "nothing was found"
        return f"Cannot load as it stands ({outcome}: incomplete); up to there {up_to}"
    words = doubt[0].upper() + doubt[1:] if doubt else "Loads, as far as can be told"
    if one.verdict is not None and not one.verdict.ok:
        words += f"; all was sent, though this migration itself ended as {outcome}"
    return words


def not_compared(one: Check) -> list[str]:
    """What nobody looked at, in words."""
    words = one.checker.omitted.words(one.checker.destination) + one.omitted
    if one.verdict is not None and not one.verdict.ok and not one.whole:
        words.append(f"what is not in the stream, or behind what cannot be read: {one.verdict.message}")
    return words
