"""Forwarding a recorded multifd migration, 8 channels beside the main one, all at once.

Decides whether migsniff may stand in the path of a migration that is meant to fill a fast network: with
decoding and stripped saving on it has to be at least as fast as HAProxy with the same connections.
"""

from benchmarks.forwarding import compare
from benchmarks.table import Table
from benchmarks.work import Work


def measure(work: Work) -> Table:
    """Throughput and CPU time of each relay, in turn, for nine connections."""
    streams = work.multifd()
    return compare(work, streams, f" on {len(streams)} connections")
