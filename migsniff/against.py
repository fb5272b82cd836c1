"""The option --check-against: is this migration one that its destination will not load?"""

import argparse
from typing import TYPE_CHECKING

from migsniff.core.errors import UsageError

if TYPE_CHECKING:
    from migsniff.destination import Destination
    from migsniff.pipeline import Finder


def asked_destination(options: argparse.Namespace) -> "Destination | None":
    """The destination of --check-against, if that is given. Raises UsageError if it cannot be read."""
    if options.check_against is None:
        return None
    refuse_twice(getattr(options, "file", None) or getattr(options, "read_file", None), options.check_against)
    from migsniff.destination import open_destination

    return open_destination(options.check_against)


def refuse_twice(file: str | None, against: str) -> None:
    """Raises UsageError if both are standard input, which can be read once."""
    if file == against == "-":
        raise UsageError("standard input cannot be both sides")


def finders_of(destination: "Destination | None") -> "list[Finder]":
    """What tells of a migration whether it will load there."""
    return [] if destination is None else destination.finders()
