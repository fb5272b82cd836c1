"""Descriptions from elsewhere: where they are kept, how a stream's is learnt, and the command for them."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from migsniff.core.errors import CaptureError, UsageError
from migsniff.core.events import (
    Configuration,
    DescriptionFound,
    DeviceSection,
    Event,
    MultifdPacket,
    Verdict,
)
from migsniff.feed.descriptions import Descriptions
from migsniff.feed.descriptionstore import PER_SECTION, Described, Entry, MachineFile, Store, sound
from migsniff.show.words import escape, name, several

if TYPE_CHECKING:
    from migsniff.destination import Destination

NONE: Final = "none"
MAX_TEXT: Final = 4 << 20  # bytes of a description that is remembered
MAX_DEVICES: Final = 4096


def default_folder() -> Path | None:
    """Where descriptions are kept, as the XDG specification has it; None if there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if cache and os.path.isabs(cache):
        return Path(cache) / "migsniff" / "descriptions"
    try:
        return Path.home() / ".cache" / "migsniff" / "descriptions"
    except RuntimeError:
        return None


def open_store(place: str | None) -> Store | None:
    """The folder that the user wants, by the option --descriptions; None if he wants none."""
    if place == NONE:
        return None
    folder = Path(place) if place else default_folder()
    return None if folder is None else Store(folder)


def open_descriptions(
    options: argparse.Namespace,
    say: Callable[[str], None] | None = None,
    *,
    destination: "Destination | None" = None,
) -> Descriptions:
    """What the cache, the files of --describe and a destination tell. Raises CaptureError for such a file."""
    say = say or complain
    given: list[Entry] = []
    if options.describe:
        from migsniff.describe import read_descriptions

        for path in options.describe:
            given += read_descriptions(path, say).entries
    there = destination.entries if destination is not None else ()
    return Descriptions(open_store(options.descriptions), given, destination=there, say=say)


def complain(text: str) -> None:
    """A message of migsniff's own."""
    print(f"migsniff: {escape(text)}", file=sys.stderr)


class Learning:
    """A show sink that hands the description of a migration to `learn`, once its verdict is there."""

    def __init__(self, learn: Callable[[Described], None]) -> None:
        self._learn = learn
        self._machine = ""
        self._text = b""
        self._versions: dict[tuple[str, int], int] = {}
        self.wants_no_more = True
        """Nothing is read on for its sake."""
        self.ignores = (MultifdPacket,)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take note of what is described."""
        match event:
            case Configuration():
                self._machine = event.machine
            case DescriptionFound():
                self._text = event.text if len(event.text) <= MAX_TEXT else b""
                self._versions = {}
            case DeviceSection(provisional=False, described=True) if len(self._versions) < MAX_DEVICES:
                self._versions[event.idstr, event.instance_id] = event.version_id
            case Verdict() if self._text and self._versions:
                self._learn(Described(self._machine, self._text, self._versions, migration))

    def close(self) -> None:
        """Nothing is pending."""


# ---------------------------------------------------------------- the command


def descriptions(options: argparse.Namespace) -> int:
    """Run `migsniff descriptions`; returns the exit code."""
    store = open_store(options.descriptions)
    if store is None:
        raise UsageError("there is no folder for descriptions: give one with --descriptions")
    return {"list": _list, "show": _show, "add": _add, "forget": _forget}[options.action](store, options)


def _list(store: Store, options: argparse.Namespace) -> int:
    found = sorted(store.load_all(), key=lambda one: one.machine)
    if options.format == "json":
        _print_json([_machine_facts(one) for one in found])
    else:
        print(f"{'machine type':<28} {'devices':>7} {'descriptions':>12} {'bytes':>8}  last seen")
        for one in found:
            facts = _machine_facts(one)
            print(
                f"{_machine_name(one.machine):<28} {facts['devices']:>7} {facts['descriptions']:>12}"
                f" {facts['bytes']:>8}  {facts['seen'] or '-'}"
            )
    return _damaged(store)


def _show(store: Store, options: argparse.Namespace) -> int:
    found = _known(store, options.name)
    if options.format == "json":
        _print_json(
            {"machine": found.machine, "sections": [_facts(entry, text=True) for entry in found.entries]}
        )
        return 0
    print(f"{'section/instance':<36} {'version':>7} {'bytes':>7}  seen")
    for entry in found.entries:
        facts = _facts(entry)
        print(
            f"{name(entry.idstr)}/{entry.instance:<{max(1, 35 - len(name(entry.idstr)))}}"
            f" {'any' if entry.version is None else entry.version:>7} {facts['bytes']:>7}"
            f"  {facts['seen']} in {escape(entry.source)}"
        )
    return 0


def _add(store: Store, options: argparse.Namespace) -> int:
    from migsniff.describe import read_descriptions

    found = read_descriptions(options.file, complain)
    machine = options.machine or found.machine
    if machine is None:
        raise UsageError(f"{escape(options.file)} does not say of which machine type it is: give --machine")
    entries = [entry for entry in found.entries if sound(entry)]
    fresh = store.add(machine, entries)
    different = {(entry.key, bytes(entry.device)) for entry in entries}  # a file may have one twice
    beyond = sum(max(0, count - PER_SECTION) for count in Counter(key for key, _ in different).values())
    more = f"; {beyond} not kept, beyond {PER_SECTION} for a section" if beyond else ""
    print(f"{_machine_name(machine)}: {several(len(different), 'description')}, {fresh} of them new{more}")
    return 0


def _forget(store: Store, options: argparse.Namespace) -> int:
    if bool(options.all) == bool(options.name):
        raise UsageError("forget what: a machine type, or --all?")
    if not options.all:
        _known(store, options.name)
    removed = store.forget(None if options.all else options.name)
    print(f"{several(removed, 'machine type')} forgotten")
    return 0


def _known(store: Store, machine: str) -> MachineFile:
    machine = "" if machine == "-" else machine
    for found in store.load_all():
        if found.machine == machine:
            return found
    raise CaptureError(f"nothing is remembered of machine type {escape(machine)!r}")


def _damaged(store: Store) -> int:
    if not store.damaged:
        return 0
    names = ", ".join(escape(one) for one in store.damaged[:3])
    more = f"; {several(store.beyond, 'more file')} there were not looked at" if store.beyond else ""
    complain(f"{several(len(store.damaged), 'file')} in {store.folder} cannot be read: {names}{more}")
    return 1


def _machine_facts(found: MachineFile) -> dict[str, Any]:
    return {
        "machine": found.machine,
        "devices": len({(entry.idstr, entry.instance) for entry in found.entries}),
        "descriptions": len(found.entries),
        "bytes": sum(len(bytes(entry.device)) for entry in found.entries),
        "seen": _day(max((entry.seen for entry in found.entries), default=None)),
    }


def _facts(entry: Entry, *, text: bool = False) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "idstr": entry.idstr,
        "instance_id": entry.instance,
        "version_id": entry.version,
        "seen": _day(entry.seen),
        "source": entry.source,
        "bytes": len(bytes(entry.device)),
    }
    if text:
        facts["description"] = entry.device
    return facts


def _machine_name(machine: str) -> str:
    return name(machine) if machine else "-"


def _day(seen: int | None) -> str | None:
    return None if seen is None or seen >= 1 << 36 else f"{datetime.fromtimestamp(seen, UTC):%Y-%m-%d}"


def _print_json(value: object) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    print(
        text.decode(errors="replace").replace("\x7f", "\\u007f").encode("ascii", "backslashreplace").decode()
    )
