"""Packet captures: each migration in one is decoded on its own, as the proxy does with those that pass it."""

import sys
from collections.abc import Callable, Iterator

from migsniff.core.arrivals import Arrival
from migsniff.core.errors import CaptureError
from migsniff.feed.flow import Migration
from migsniff.feed.pcap import PcapSource
from migsniff.pipeline import Pipeline

Begin = Callable[[Migration], Pipeline]


def decode_packets(source: PcapSource, begin: Begin, done: Callable[[Pipeline], None]) -> int:
    """Decode all migrations of a packet capture; returns the worst exit code.

    `begin` is called for each, `done` when it has its verdict. What is not in the capture is told at the end.
    """
    running: dict[Migration, Pipeline] = {}
    code = 0
    damage: CaptureError | None = None
    try:
        for migration, arrival in source.found():
            pipeline = running.get(migration)
            if pipeline is None:
                pipeline = running[migration] = begin(migration)
                migration.resumable = _resumable(pipeline)
            for _ in pipeline.finish() if arrival is None else pipeline.feed(arrival):
                if pipeline.unwanted:
                    return 0
            if arrival is None:
                done(running.pop(migration))
                code = max(code, pipeline.exit_code)
    except CaptureError as error:
        damage = error
    for note in source.notes():
        print(f"migsniff: {note}", file=sys.stderr)
    if damage is not None:
        print(f"migsniff: {damage}", file=sys.stderr)
        code = max(1, code)
    return code


def arrivals_of(source: PcapSource, pipeline: Pipeline) -> Iterator[Arrival]:
    """What belongs to the pipeline's migration alone. Raises CaptureError."""
    for migration, arrival in source.found():
        if migration.name != pipeline.migration:
            continue
        if arrival is None:
            return
        migration.resumable = _resumable(pipeline)
        yield arrival


def _resumable(pipeline: Pipeline) -> Callable[[], bool]:
    return lambda: pipeline.session.resumable
