"""The second reading of a file, for what virtqueues have in guest memory: see compare/rings.py."""

import argparse
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from migsniff.compare.memory import Unnamed
from migsniff.compare.rings import Ring, RingPages, Virtqueues
from migsniff.core.errors import CaptureError
from migsniff.core.events import Finding
from migsniff.feed.files import Source, open_source
from migsniff.feed.pcap import PcapSource
from migsniff.offline import session_for
from migsniff.packets import arrivals_of
from migsniff.pipeline import Pipeline, run

LABEL: Final = "virtqueues against guest memory"


def ring_findings(
    options: argparse.Namespace, migration: str, queues: Virtqueues, omitted: list[str]
) -> list[tuple[int, Finding]]:
    """What the rings of a migration in the file show, each with its time.

    `omitted` gets what was not compared, in words. What is damaged was told by the first reading.
    """
    if not queues.any:
        return []
    words: list[str] = []
    found: list[tuple[int, Finding]] = []
    if rings := queues.rings(words):
        found = _read_again(options, migration, rings, words)
    omitted += [f"{LABEL}: {one}" for one in words]
    return found


def _read_again(
    options: argparse.Namespace, migration: str, rings: Sequence[Ring], words: list[str]
) -> list[tuple[int, Finding]]:
    place = Path(options.file)
    if options.file == "-" or not (place.is_file() or place.is_dir()):
        words.append("what comes through a pipe cannot be read twice")
        return []
    with suppress(CaptureError):
        source = open_source(
            options.file, port=options.port, offset=options.offset, snapshot=options.snapshot
        )
        if not source.contents:
            words.append("no page contents in it")
            return []
        with Unnamed() as folder, closing(RingPages(rings, folder)) as pages:
            _decode(source, migration, pages)
            return list(pages.findings(words))
    return []


def _decode(source: Source, migration: str, pages: RingPages) -> None:
    """Read as far as the file can be read."""
    pipeline = Pipeline(migration, session_for(source, contents=True), [pages])
    arrivals = arrivals_of(source, pipeline) if isinstance(source, PcapSource) else source.arrivals()
    with suppress(CaptureError):
        run(pipeline, arrivals)
    for _ in pipeline.finish():
        pass
