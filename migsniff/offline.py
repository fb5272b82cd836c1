"""Reading later: the log of a capture or dump, and the summary."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from migsniff.against import finders_of
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.errors import CaptureError
from migsniff.core.session import Session
from migsniff.descriptions import Learning, open_descriptions
from migsniff.feed.descriptions import Descriptions
from migsniff.feed.files import Source, open_source
from migsniff.feed.flow import Migration
from migsniff.feed.pcap import PcapSource
from migsniff.feed.qcow2 import SnapshotChoice
from migsniff.feed.recognise import recognise
from migsniff.packets import decode_packets
from migsniff.pipeline import Pipeline, Sink, run

if TYPE_CHECKING:
    from migsniff.destination import Destination
    from migsniff.show.log import Log, LogOptions
    from migsniff.show.stats import Stats
    from migsniff.statistics.table import Table


def read(
    path: str,
    options: "LogOptions",
    port: int | None = None,
    *,
    offset: int = 0,
    snapshot: str | None = None,
    known: Descriptions | None = None,
    destination: "Destination | None" = None,
) -> int:
    """Print what the live log printed; returns the exit code. See open_source for what is read.

    `known`: descriptions of devices from elsewhere. `destination`: to find out whether it would load there.
    """
    from migsniff.show.log import Log

    source = open_source(path, port=port, offset=offset, snapshot=snapshot)
    log = Log(options, 1, blocking=True)
    stats, statistics = _statistics(options.statistics, log.tables)
    sinks = [log, *statistics]
    fields = options.fields or destination is not None
    try:
        if isinstance(source, PcapSource):
            code = _read_packets(source, log, sinks, known, stats, destination, fields=fields)
        else:
            log.begins(source.migration, source.start_time)
            session = session_for(source, fields=fields, known=known)
            pipeline = Pipeline(
                source.migration, session, [*sinks, *learning(known)], stats, finders_of(destination)
            )
            code = decode(pipeline, source)
    finally:
        for one in statistics:
            one.close()
        log.close()
    if log.error is not None:
        raise log.error
    if options.wanted is not None:
        for said in options.wanted.notes():
            print(f"migsniff: {said}", file=sys.stderr)
    return code


def survey(
    path: str,
    begin: Callable[[str], Sequence[Sink]],
    done: Callable[[str], None],
    *,
    port: int | None = None,
    offset: int = 0,
    snapshot: str | None = None,
    known: Descriptions | None = None,
    fields: bool = False,
    contents: bool = False,
    destination: "Destination | None" = None,
) -> int:
    """Decode each migration in a file; returns the worst exit code. See open_source for what is read.

    `begin` gives the sinks of a migration by its id, `done` is called when it has its verdict.
    `destination`: to find out whether it would load there.
    """
    source = open_source(path, port=port, offset=offset, snapshot=snapshot)
    return survey_source(
        source, begin, done, known=known, fields=fields, contents=contents, destination=destination
    )


def survey_asked(
    options: argparse.Namespace,
    begin: Callable[[str], Sequence[Sink]],
    done: Callable[[str], None],
    *,
    destination: "Destination | None" = None,
) -> int:
    """What `survey` does, of the file and place that the command line names, with fields of devices."""
    return survey(
        options.file,
        begin,
        done,
        port=options.port,
        offset=options.offset,
        snapshot=options.snapshot,
        known=open_descriptions(options, destination=destination),
        fields=True,
        destination=destination,
    )


def survey_source(
    source: Source,
    begin: Callable[[str], Sequence[Sink]],
    done: Callable[[str], None],
    *,
    known: Descriptions | None = None,
    fields: bool = False,
    contents: bool = False,
    destination: "Destination | None" = None,
) -> int:
    """What `survey` does, of a file that is open."""
    if isinstance(source, PcapSource):
        budget = DeviceStateBudget()

        def begin_one(migration: Migration) -> Pipeline:
            assumed = known.lookup_for(migration.name) if known is not None else None
            session = Session(
                fields=fields, contents=contents, budget=budget, assumed=assumed, looks_like=recognise
            )
            sinks = [*begin(migration.name), *learning(known)]
            return Pipeline(migration.name, session, sinks, finders=finders_of(destination))

        return decode_packets(source, begin_one, lambda pipeline: done(pipeline.migration))
    session = session_for(source, fields=fields, contents=contents, known=known)
    sinks = [*begin(source.migration), *learning(known)]
    code = decode(Pipeline(source.migration, session, sinks, finders=finders_of(destination)), source)
    done(source.migration)
    return code


def _statistics(
    asked: Sequence[str], write: "Callable[[str, list[Table]], None]"
) -> tuple["Stats | None", list[Sink]]:
    """What -z needs: the model of migrations, and the sink that makes the tables; nothing if not asked."""
    if not asked:
        return None, []
    from migsniff.show.stats import Stats
    from migsniff.statistics.sink import Statistics
    from migsniff.statistics.statistic import MAX_ROWS

    stats = Stats(keep_passes=MAX_ROWS)
    return stats, [Statistics(asked, stats, write)]


def _read_packets(
    source: PcapSource,
    log: "Log",
    sinks: Sequence[Sink],
    known: Descriptions | None,
    stats: "Stats | None",
    destination: "Destination | None",
    *,
    fields: bool,
) -> int:
    """Print the migrations of a packet capture, as they were beside each other."""
    budget = DeviceStateBudget()
    begun: set[str] = set()

    def begin(migration: Migration) -> Pipeline:
        if begun:
            log.several()
        begun.add(migration.name)
        log.begins(migration.name, migration.start_time)
        assumed = known.lookup_for(migration.name) if known is not None else None
        session = Session(fields=fields, budget=budget, assumed=assumed, looks_like=recognise)
        return Pipeline(migration.name, session, [*sinks, *learning(known)], stats, finders_of(destination))

    return decode_packets(source, begin, lambda pipeline: None)


def info(
    path: str,
    *,
    as_json: bool,
    port: int | None = None,
    offset: int = 0,
    snapshot: str | None = None,
    known: Descriptions | None = None,
    destination: "Destination | None" = None,
) -> int:
    """Print the one-screen summary; returns the exit code. See open_source for what is read."""
    from migsniff.show.info import render_facts, render_info
    from migsniff.show.stats import Stats

    stats = Stats()
    try:
        source = open_source(path, port=port, offset=offset, snapshot=snapshot)
    except SnapshotChoice as choice:
        image: dict[str, object] = {"File": path, "Kind": "a qcow2 disk image"}
        image |= {f"Snapshot {number}": str(one) for number, one in enumerate(choice.snapshots, 1)}
        image["To read one"] = "--snapshot NAME or ID"
        render_facts(image, lambda line: print(line, end=""), as_json=as_json)
        return 0
    if isinstance(source, PcapSource):
        return _info_packets(source, path, stats, known, destination, as_json=as_json)
    session = session_for(source, known=known, fields=destination is not None)
    pipeline = Pipeline(source.migration, session, learning(known), stats, finders_of(destination))
    code = decode(pipeline, source)
    facts: dict[str, object] = {"File": path, "Kind": source.describe}
    if source.start_time is not None:
        facts["Start"] = source.start_time.isoformat()
    facts["Page contents"] = "kept" if source.contents else "not in it"
    for label, words in source.facts:
        facts[label] = f"{facts[label]}; {words}" if label in facts else words
    render_info(
        stats.by_migration[source.migration], facts, lambda line: print(line, end=""), as_json=as_json
    )
    return code


def _info_packets(
    source: PcapSource,
    path: str,
    stats: "Stats",
    known: Descriptions | None,
    destination: "Destination | None",
    *,
    as_json: bool,
) -> int:
    """A summary for each migration of a packet capture."""
    from migsniff.show.info import render_info

    budget = DeviceStateBudget()
    starts: dict[str, datetime] = {}

    def begin(migration: Migration) -> Pipeline:
        starts[migration.name] = migration.start_time
        stats.begins(migration.name, migration.source, migration.destination)
        assumed = known.lookup_for(migration.name) if known is not None else None
        fields = destination is not None
        session = Session(fields=fields, budget=budget, assumed=assumed, looks_like=recognise)
        return Pipeline(migration.name, session, learning(known), stats, finders_of(destination))

    def done(pipeline: Pipeline) -> None:
        facts: dict[str, object] = {"File": path, "Kind": source.describe}
        facts["Start"] = starts.pop(pipeline.migration).isoformat()
        render_info(
            stats.by_migration[pipeline.migration], facts, lambda line: print(line, end=""), as_json=as_json
        )

    return decode_packets(source, begin, done)


def session_for(
    source: Source,
    *,
    fields: bool = False,
    contents: bool = False,
    note_omitted: bool = False,
    known: Descriptions | None = None,
) -> Session:
    """A session that knows the file it decodes, to say what else it may be."""

    def looks_like(head: bytes) -> str | None:
        found = recognise(source.head or head)
        return f"{found or 'something else'}; {source.hint}" if source.hint else found

    return Session(
        fields=fields,
        contents=contents,
        note_omitted=note_omitted,
        assumed=known.lookup_for(source.migration) if known is not None else None,
        looks_like=looks_like,
    )


def learning(known: Descriptions | None) -> list[Sink]:
    """What remembers a migration's description."""
    return [] if known is None else [Learning(known.learn)]


def decode(pipeline: Pipeline, source: Source) -> int:
    """Run a source through a pipeline to its verdict; returns the exit code.

    What can be read of a damaged capture is shown before the error is told.
    """
    damage: CaptureError | None = None
    if source.capture is not None and (why := source.capture.cut_short):
        print(f"migsniff: {why}", file=sys.stderr)
    try:
        if not run(pipeline, source.arrivals()):
            return 0
    except CaptureError as error:
        damage = error
    for _ in pipeline.finish():
        pass
    if damage is not None:
        print(f"migsniff: {damage}", file=sys.stderr)
        return max(1, pipeline.exit_code)
    return pipeline.exit_code
