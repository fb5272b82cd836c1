"""`migsniff expert`: what is worth knowing of the migrations in a file, by severity."""

import argparse
import json
import sys
from collections.abc import Sequence

from migsniff.against import asked_destination
from migsniff.compare.rings import Virtqueues
from migsniff.offline import survey_asked
from migsniff.pipeline import Sink
from migsniff.rings import ring_findings
from migsniff.show.findings import Findings, render, to_dict


def findings(options: argparse.Namespace) -> int:
    """Print the findings of each migration; returns the exit code."""
    found: dict[str, tuple[Findings, Virtqueues]] = {}

    def begin(migration: str) -> Sequence[Sink]:
        found[migration] = Findings(options.severity), Virtqueues()
        return found[migration]

    def done(migration: str) -> None:
        one, queues = found.pop(migration)
        for time, finding in ring_findings(options, migration, queues, []):
            one.show(migration, time, finding)
        if options.format == "json":
            json.dump(to_dict(migration, one), sys.stdout, indent=2)
            print()
        else:
            render(migration, one, print)

    return survey_asked(options, begin, done, destination=asked_destination(options))
