"""`migsniff analyze`: what QEMU's scripts/analyze-migration.py (10.2.2) does, for any stream."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final, TextIO

from migsniff.core.errors import PROBLEMS, StreamProblem, UsageError, problem_text
from migsniff.core.events import (
    Event,
    Finding,
    Undecodable,
    Verdict,
)
from migsniff.feed.files import Source, open_source
from migsniff.offline import decode, session_for
from migsniff.pipeline import Pipeline, Sink
from migsniff.show.extract import RamFiles
from migsniff.show.folder import DESCRIPTION_FILE, STATE_FILE, Folder
from migsniff.show.memorydump import MemoryDump
from migsniff.show.script import ScriptDocument
from migsniff.show.words import escape

PROBLEMS_SHOWN: Final = 10


def analyze(options: argparse.Namespace) -> int:
    """Do what `options` ask for, as cli.py describes them; returns the exit code.

    Like the script's, -x comes before -d and -m, and -d desc before -m. Raises UsageError and CaptureError.
    """
    source = open_source(options.file, offset=options.offset, snapshot=options.snapshot)
    memory = options.memory and options.dump == "state"
    if (options.extract or memory) and not source.contents:
        raise UsageError(f"{escape(options.file)}: {problem_text('contents-missing')}")
    try:
        if options.extract:
            code = _extract(source, options.output_dir)
        elif memory:
            code = _state_with_memory(source)
        else:
            code = _state(source) if options.dump == "state" else _description(source)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{escape(str(error.filename))}: " if error.filename else ""
        raise UsageError(f"{place}{error.strerror or error}") from error
    return code


def _state(source: Source) -> int:
    document = ScriptDocument(sys.stdout)
    code = _decode(source, [document], fields=True)
    return max(code, _finish(document))


def _description(source: Source) -> int:
    document = ScriptDocument(sys.stdout, "desc")
    code = max(_decode(source, [document]), _finish(document))
    if not document.described:
        code = max(code, _tell(["the stream holds no description of its device state"]))
    return code


def _state_with_memory(source: Source) -> int:
    """Pages are printed in the order in which they came first, as they were last: they have to wait."""
    import tempfile  # which takes longer to load than most devices to decode

    with (
        tempfile.TemporaryDirectory(prefix="migsniff-") as path,
        Folder(path) as folder,
        closing(MemoryDump(folder)) as memory,
    ):
        document = ScriptDocument(sys.stdout, "state", memory.write)
        code = _decode(source, [document, memory], fields=True, contents=True)
        code = max(code, _finish(document))
        return max(code, _tell(memory.problems))


def _extract(source: Source, path: str) -> int:
    with (
        Folder(path) as folder,
        _writing(folder, STATE_FILE) as state_file,
        _writing(folder, DESCRIPTION_FILE) as description_file,
        closing(RamFiles(folder)) as files,
    ):
        state, description = ScriptDocument(state_file), ScriptDocument(description_file, "desc")
        code = _decode(source, [state, description, files], fields=True, contents=True)
        files.flush()
        code = max(code, _finish(state), _finish(description))
        code = max(code, _tell(files.problems))
        if not description.described:
            folder.remove(DESCRIPTION_FILE)
        for name in (*([DESCRIPTION_FILE] if description.described else []), *files.names, STATE_FILE):
            print(name)
    return code


@contextmanager
def _writing(folder: Folder, name: str) -> Iterator[TextIO]:
    """A file of text whose last end of line is dropped: the script writes none."""
    with os.fdopen(folder.create(name), "w", encoding="ascii") as file:
        yield file
        file.flush()
        if size := os.fstat(file.fileno()).st_size:
            file.truncate(size - 1)


class Remarks:
    """A show sink for the error lines: what does not fit in the stream, and the verdict unless it is good."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take note of what the decoder finds, and of the verdict, which repeats what ended decoding."""
        if isinstance(event, Finding | Undecodable):
            if event.code in PROBLEMS and len(self.lines) <= PROBLEMS_SHOWN:
                self.lines.append(f"{event.message}, at offset {event.offset} of {event.channel}")
        elif isinstance(event, Verdict) and not event.ok:
            self.lines = [line for line in self.lines if line not in event.message]
            self.lines.append(f"{event.outcome}: {event.message}")

    def close(self) -> None:
        """Nothing is pending."""


def _decode(source: Source, sinks: list[Sink], *, fields: bool = False, contents: bool = False) -> int:
    remarks = Remarks()
    session = session_for(source, fields=fields, contents=contents)
    code = decode(Pipeline(source.migration, session, [*sinks, remarks]), source)
    _tell(remarks.lines)
    return code


def _finish(document: ScriptDocument) -> int:
    """Print a document; says why its description cannot be printed."""
    try:
        document.close()
    except StreamProblem as problem:
        return _tell([problem.text])
    return 0


def _tell(problems: list[str]) -> int:
    """A line on standard error for each problem, but not for thousands of them; 1 if there are any."""
    *others, last = problems or [""]
    for problem in others[: PROBLEMS_SHOWN - 1]:
        print(f"migsniff: {escape(problem)}", file=sys.stderr)
    if len(others) >= PROBLEMS_SHOWN:
        print("migsniff: and more like these", file=sys.stderr)
    if last:
        print(f"migsniff: {escape(last)}", file=sys.stderr)
    return 1 if problems else 0
