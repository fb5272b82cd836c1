"""`migsniff expert`: what is worth knowing of the migrations in a file, by severity."""

import argparse
import json
import sys

from migsniff.against import asked_destination
from migsniff.offline import survey_asked
from migsniff.show.findings import Findings, render, to_dict


def findings(options: argparse.Namespace) -> int:
    """Print the findings of each migration; returns the exit code."""
    found: dict[str, Findings] = {}

    def begin(migration: str) -> list[Findings]:
        found[migration] = Findings(options.severity)
        return [found[migration]]

    def done(migration: str) -> None:
        one = found.pop(migration)
        if options.format == "json":
            json.dump(to_dict(migration, one), sys.stdout, indent=2)
            print()
        else:
            render(migration, one, print)

    return survey_asked(options, begin, done, destination=asked_destination(options))
