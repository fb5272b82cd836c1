"""Reading later: the log of a capture or dump, and the summary."""

import sys
from typing import TYPE_CHECKING

from migsniff.core.errors import CaptureError
from migsniff.core.session import Session
from migsniff.feed.files import Source, open_source
from migsniff.feed.recognise import recognise
from migsniff.pipeline import Pipeline, run

if TYPE_CHECKING:
    from migsniff.show.log import LogOptions


def read(path: str, options: "LogOptions") -> int:
    """Print what the live log printed; returns the exit code."""
    from migsniff.show.log import Log

    source = open_source(path)
    log = Log(options, 1, blocking=True)
    log.begins(source.migration, source.start_time)
    pipeline = Pipeline(source.migration, session_for(source, fields=options.fields), [log])
    try:
        code = decode(pipeline, source)
    finally:
        log.close()
    if log.error is not None:
        raise log.error
    return code


def info(path: str, *, as_json: bool) -> int:
    """Print the one-screen summary; returns the exit code."""
    from migsniff.show.info import render_info
    from migsniff.show.stats import Stats

    source = open_source(path)
    stats = Stats()
    pipeline = Pipeline(source.migration, session_for(source), [], stats)
    code = decode(pipeline, source)
    facts: dict[str, object] = {"File": path, "Kind": source.describe}
    if source.start_time is not None:
        facts["Start"] = source.start_time.isoformat()
    facts["Page contents"] = "kept" if source.contents else "not in it"
    render_info(
        stats.by_migration[source.migration], facts, lambda line: print(line, end=""), as_json=as_json
    )
    return code


def session_for(source: Source, *, fields: bool = False, contents: bool = False) -> Session:
    """A session that knows the file it decodes, to say what else it may be."""
    return Session(fields=fields, contents=contents, looks_like=lambda head: recognise(source.head or head))


def decode(pipeline: Pipeline, source: Source) -> int:
    """Run a source through a pipeline to its verdict; returns the exit code.

    What can be read of a damaged capture is shown before the error is told.
    """
    damage: CaptureError | None = None
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
