"""The option --check-against: is this migration one that its destination will not load?"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from migsniff.destination import Destination
    from migsniff.pipeline import Finder


def asked_destination(options: argparse.Namespace) -> "Destination | None":
    """The destination of --check-against, if that is given. Raises UsageError if it cannot be read."""
    if options.check_against is None:
        return None
    from migsniff.destination import open_destination

    return open_destination(options.check_against)


def finders_of(destination: "Destination | None") -> "list[Finder]":
    """What tells of a migration whether it will load there."""
    return [] if destination is None else destination.finders()
