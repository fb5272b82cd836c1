"""`migsniff diff`: what is not the same in two migrations."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TypeVar

from migsniff.against import refuse_twice
from migsniff.compare.difference import Difference, Tally
from migsniff.compare.fields import Place, Trees, same
from migsniff.compare.ignore import MAX_PATTERN, SETS, Ignore
from migsniff.compare.memory import Unnamed, memory
from migsniff.compare.report import JsonReport, TextReport
from migsniff.compare.side import Key, Side
from migsniff.compare.structure import section_path, structure
from migsniff.core.errors import CaptureError, UsageError
from migsniff.core.events import DeviceSection
from migsniff.descriptions import open_descriptions
from migsniff.feed.descriptions import Descriptions
from migsniff.feed.files import Source, open_source
from migsniff.offline import survey_source
from migsniff.show.extract import RamFiles
from migsniff.show.words import escape
from migsniff.values.explain import explain

SAME, DIFFERENT = 0, 1

T = TypeVar("T")


def diff(options: argparse.Namespace) -> int:
    """Print what differs; returns the exit code. Raises UsageError, for 1 would say that they differ."""
    try:
        with ExitStack() as stack:
            return _diff(options, stack)
    except CaptureError as error:
        raise UsageError(str(error)) from error


def _diff(options: argparse.Namespace, stack: ExitStack) -> int:
    paths = (options.left, options.right)
    ignore = _ignore(options.ignore)
    refuse_twice(*paths)
    sources = [
        open_source(
            path,
            port=_of_side(options.port, index, "--port"),
            offset=_of_side(options.offset, index, "--offset") or 0,
            snapshot=_of_side(options.snapshot, index, "--snapshot"),
        )
        for index, path in enumerate(paths)
    ]
    without = [
        f"{label} has no page contents: {escape(source.describe)}"
        for label, source in zip(("A", "B"), sources, strict=True)
        if not source.contents
    ]
    contents = options.ram and not without
    known = open_descriptions(options)
    left, right = (
        _read(source, path, label, known, stack, contents=contents)
        for source, path, label in zip(sources, paths, ("A", "B"), strict=True)
    )
    tally = Tally()
    if options.ram and without:
        tally.not_compared.append(f"guest memory: {', '.join(without)}")
    for one, path in ((left, paths[0]), (right, paths[1])):
        tally.not_compared += _gaps(one, path)
    found = _all(left, right, ignore, tally)
    if options.brief:
        differs = next(found, None) is not None
        if differs:
            print(f"{escape(paths[0])} and {escape(paths[1])} differ")
        return DIFFERENT if differs else SAME
    return _report(options, found, tally)


def _report(options: argparse.Namespace, found: Iterator[Difference], tally: Tally) -> int:
    report: TextReport | JsonReport
    if options.format == "json":
        report = JsonReport(sys.stdout.write, (options.left, options.right))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        report = TextReport(
            sys.stdout.write, (options.left, options.right), places=options.verbose, color=color
        )
    for difference in found:
        tally.found[difference.group] += 1
        report.show(difference)
    report.end(tally)
    if options.format != "json":
        sys.stdout.flush()
        for words in tally.not_compared:
            print(f"migsniff: not compared: {escape(words)}", file=sys.stderr)
    return DIFFERENT if tally.found else SAME


# ---------------------------------------------------------------- the two sides


def _read(
    source: Source, path: str, label: str, known: Descriptions, stack: ExitStack, *, contents: bool
) -> Side:
    """All that one side says. Raises CaptureError if it is no stream, or several."""
    side = Side(label)
    stack.callback(side.close)
    if contents:
        side.ram = RamFiles(stack.enter_context(Unnamed()))
    begun: list[str] = []

    def begin(migration: str) -> list[Side]:
        if begun:
            raise CaptureError(f"{escape(path)}: several migrations: choose one of them with --port")
        begun.append(migration)
        return [side]

    survey_source(source, begin, lambda migration: None, known=known, fields=True, contents=contents)
    inventory = side.inventory
    if not (inventory.configuration or inventory.blocks or inventory.sections):
        told = inventory.verdict.message if inventory.verdict else "nothing in it"
        raise CaptureError(f"{escape(path)}: nothing to compare in it: {escape(told)}")
    return side


def _gaps(side: Side, path: str) -> list[str]:
    """What a side does not tell, in words."""
    inventory = side.inventory
    words = []
    if inventory.verdict is not None and not inventory.verdict.ok:
        words.append(f"what is not in {path}: {inventory.verdict.outcome}, {inventory.verdict.message}")
    if inventory.omitted or side.beyond:
        words.append(
            f"{inventory.omitted} sections, and fields of {side.beyond}, of {path}: they are too many"
        )
    return words


def _ignore(patterns: list[str]) -> Ignore:
    for pattern in patterns:
        if not pattern or len(pattern) > MAX_PATTERN:
            raise UsageError(f"--ignore: a pattern has 1 to {MAX_PATTERN} characters")
        if pattern not in SETS and not set("/*?:.").intersection(pattern):
            sets = " or ".join(SETS)
            raise UsageError(
                f"--ignore {escape(pattern)}: neither {sets}, nor a pattern like timer/0.cpu_ticks*"
            )
    return Ignore(patterns)


def _of_side(given: list[T], index: int, option: str) -> T | None:
    """What an option says for one side: given once it holds for both."""
    if len(given) > 2:
        raise UsageError(f"{option}: given {len(given)} times, for two files")
    return given[min(index, len(given) - 1)] if given else None


# ---------------------------------------------------------------- comparing


def _all(left: Side, right: Side, ignore: Ignore, tally: Tally) -> Iterator[Difference]:
    """Structure, values, memory; a section of each side in memory at a time."""
    yield from structure(left, right, ignore)
    trees = Trees(ignore, tally)
    differing: list[Key] = []
    undescribed = 0
    for key in left.inventory.devices:
        if key not in right.inventory.devices or ignore.all_of(section_path(key)):
            continue
        one, other = left.section(key), right.section(key)
        if one is None or other is None or same(one.fields, other.fields):
            continue
        if _readable(one) != _readable(other):
            undescribed += 1
            continue
        differing.append(key)
        place = Place(section_path(key), (one.channel, other.channel))
        yield from trees.make(one.fields, other.fields, place, whole=not (one.cut or other.cut))
    if undescribed:
        tally.not_compared.append(
            f"fields of {undescribed} sections that only one side describes: see --describe"
        )
    for key in differing:
        one, other = left.section(key), right.section(key)
        if one is not None and other is not None:
            yield from _values(left, right, one, other, trees)
    yield from memory(left, right, ignore, tally)


def _readable(section: DeviceSection) -> bool:
    """Whether the fields are known, not only the bytes."""
    return section.described or section.assumed


def _values(
    left: Side, right: Side, one: DeviceSection, other: DeviceSection, trees: Trees
) -> Iterator[Difference]:
    place = Place(section_path((one.idstr, one.instance_id)), (one.channel, other.channel))
    mine = explain(one, left.inventory.machine).fields
    its = explain(other, right.inventory.machine).fields
    return trees.values(mine, its, place)
