"""Arguments and exit codes; what the commands do is elsewhere.

Exit codes: 0 the stream is fine, 1 it is bad (truncated and cancelled too) or cannot be read, 2 usage, 3 a
bug of migsniff. The proxy exits with the worst it saw. diff and check have their own; 4 is check's alone.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from migsniff.arguments import parser
from migsniff.core.errors import CaptureError, UsageError
from migsniff.show.words import escape

if TYPE_CHECKING:
    from migsniff.filter.compile import Column, Filter
    from migsniff.show.columns import Layout
    from migsniff.show.log import LogOptions

FINE, BAD, USAGE, BUG = 0, 1, 2, 3
INTERRUPTED = 130  # before there was anything to end in order


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    _open_closed()
    arguments = _with_command(list(sys.argv[1:] if argv is None else argv))
    try:
        options = parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except KeyboardInterrupt:
        return INTERRUPTED
    # numpy brings a library that starts a thread for each processor, for mathematics that nobody does here
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return _written(_guarded(options))


def _open_closed() -> None:
    """Standard streams that are closed become /dev/null, lest a capture or a socket gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _guarded(options: argparse.Namespace) -> int:
    """Run the command; what goes wrong becomes a message and an exit code, never a traceback."""
    try:
        return _run(options)
    except UsageError as error:
        print(f"migsniff: {error}", file=sys.stderr)
        return USAGE
    except CaptureError as error:
        print(f"migsniff: {error}", file=sys.stderr)
        return BAD
    except BrokenPipeError:
        return FINE
    except OSError as error:  # a full disk behind standard output, a folder that may not be written
        where = f"{escape(str(error.filename))}: " if error.filename is not None else ""
        print(f"migsniff: {where}{error.strerror or error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as bug:
        print(f"migsniff: a bug, please report it: {type(bug).__name__}: {bug}", file=sys.stderr)
        if os.environ.get("MIGSNIFF_TRACEBACK"):
            raise
        return BUG


def _written(code: int) -> int:
    """The exit code, once standard output has taken everything; another one if it has not."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it ends
        if not isinstance(error, BrokenPipeError) and code != USAGE:  # which has been told already
            print(f"migsniff: {error.strerror}", file=sys.stderr)
            return code or USAGE
    return code


def _with_command(arguments: list[str]) -> list[str]:
    """Put in the command that is left out: read with -r, as in tshark, otherwise proxy."""
    if not arguments or arguments[0] in (*RUN, "-h", "--help", "--version"):
        return arguments or ["--help"]
    if not arguments[0].startswith("-"):
        return arguments
    reads = any(
        a == "-r" or a == "--read-file" or (a.startswith("-r") and not a.startswith("--")) for a in arguments
    )
    return ["read" if reads else "proxy", *arguments]


def _run(options: argparse.Namespace) -> int:
    return RUN[options.command](options)


# each command brings its own needs: `migsniff read` loads neither asyncio nor the terminal library


def _proxy(options: argparse.Namespace) -> int:
    from migsniff.proxy import serve

    return serve(options, log_options(options))


def _sniff(options: argparse.Namespace) -> int:
    from migsniff.sniff import sniff

    return sniff(options, log_options(options))


def _read(options: argparse.Namespace) -> int:
    from migsniff.against import asked_destination
    from migsniff.descriptions import open_descriptions
    from migsniff.offline import read

    destination = asked_destination(options)
    return read(
        options.file or options.read_file,
        log_options(options),
        options.port,
        offset=options.offset,
        snapshot=options.snapshot,
        known=open_descriptions(options, destination=destination),
        destination=destination,
    )


def _info(options: argparse.Namespace) -> int:
    from migsniff.against import asked_destination
    from migsniff.descriptions import open_descriptions
    from migsniff.offline import info

    destination = asked_destination(options)
    return info(
        options.file,
        as_json=options.format == "json",
        port=options.port,
        offset=options.offset,
        snapshot=options.snapshot,
        known=open_descriptions(options, destination=destination),
        destination=destination,
    )


def _descriptions(options: argparse.Namespace) -> int:
    from migsniff.descriptions import descriptions

    return descriptions(options)


def _expert(options: argparse.Namespace) -> int:
    from migsniff.findings import findings

    return findings(options)


def _check(options: argparse.Namespace) -> int:
    from migsniff.check import check

    return check(options)


def _diff(options: argparse.Namespace) -> int:
    from migsniff.diff import diff

    return diff(options)


def _export(options: argparse.Namespace) -> int:
    from migsniff.export import export

    return export(options.file, options.pcapng, offset=options.offset, snapshot=options.snapshot)


def _fields(options: argparse.Namespace) -> int:
    from migsniff.fields import fields

    return fields(options)


def _demo(options: argparse.Namespace) -> int:
    from migsniff.demo import demo

    return demo(options, log_options(options))


def _analyze(options: argparse.Namespace) -> int:
    from migsniff.analyze import analyze

    return analyze(options)


RUN: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "proxy": _proxy,
    "sniff": _sniff,
    "read": _read,
    "info": _info,
    "expert": _expert,
    "check": _check,
    "diff": _diff,
    "export": _export,
    "analyze": _analyze,
    "descriptions": _descriptions,
    "fields": _fields,
    "demo": _demo,
}


def log_options(options: argparse.Namespace) -> "LogOptions":
    """What the user asked of the log."""
    from migsniff.show.log import LogOptions

    stops = dict(options.autostop)
    wanted, columns, layout = _selection(options)
    return LogOptions(
        format=options.format,
        verbose=options.verbose,
        time_format=options.time_format,
        flush_each=options.flush_each,
        sections=set(options.section) if options.section else None,
        count=options.count,
        statistics=tuple(options.statistics),
        quiet=options.quiet,
        wanted=wanted,
        columns=columns,
        layout=layout,
        duration=stops.get("duration"),
        size=stops.get("size"),
        prefix=options.command == "proxy" and len(options.listen) > 1,
        color=sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb",
    )


def _selection(options: argparse.Namespace) -> "tuple[Filter | None, tuple[Column, ...], Layout]":
    """Which records, and what of them: -Y, -e and -E."""
    from migsniff.filter.compile import Column, Filter
    from migsniff.show.columns import Layout

    wanted = None if options.wanted is None else Filter(options.wanted)
    if (options.format == "fields") != bool(options.columns):
        raise UsageError("-T fields and -e FIELD need each other")
    if options.layout and not options.columns:
        raise UsageError("-E is for -T fields")
    return wanted, tuple(map(Column, options.columns)), Layout.of(options.layout)
