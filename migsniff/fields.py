"""The fields command: what display filters and columns can name."""

import argparse
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from migsniff.core.description import LISTS, Description, Vmsd
from migsniff.core.errors import StreamProblem, UsageError
from migsniff.core.events import Configuration, DeviceSection, Event
from migsniff.core.events import Field as StateField
from migsniff.descriptions import complain, open_descriptions, open_store
from migsniff.feed.descriptionstore import Entry
from migsniff.filter.devices import device_name, parts_of, written
from migsniff.filter.names import names
from migsniff.show.words import escape
from migsniff.values.explain import explain

MAX_NAMES: Final = 200_000
MAX_DEPTH: Final = 64
NAME_WIDTH: Final = 34
TYPE_WIDTH: Final = 14


@dataclass(slots=True)
class Listing:
    """Fields of devices by name: their types. `left_out`: those beyond MAX_NAMES."""

    types: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    def add(self, name: str, kind: str, array_len: int | None) -> None:
        """A field, once; elements of arrays are one name."""
        if name in self.types:
            return
        if len(self.types) >= MAX_NAMES:
            self.left_out += 1
        else:
            self.types[name] = kind if array_len is None else f"{kind}[{array_len}]"


def fields(options: argparse.Namespace) -> int:
    """Run `migsniff fields`; returns the exit code."""
    patterns = [what for what in options.what if not Path(what).exists()]
    captures = [what for what in options.what if Path(what).exists()]
    for pattern in patterns:
        if "/" in pattern and not pattern.startswith("device"):
            raise UsageError(f"there is no file {escape(pattern)}, and no field's name looks like this")
    listing = Listing()
    code = 0
    for capture in captures:
        code = max(code, _of_capture(capture, listing, options))
    entries = _remembered(options) if not captures else []
    for path in options.describe:
        from migsniff.describe import read_descriptions

        entries += read_descriptions(path, complain).entries
    for entry in entries:
        _of_description(entry, listing)
    rows = [(name.name, str(name.kind), name.description) for name in names().values()]
    rows += [(name, kind, "") for name, kind in sorted(listing.types.items())]
    wanted = [row for row in rows if _wanted(row[0], patterns)]
    _print(wanted, as_json=options.format == "json")
    if not wanted:
        complain("no field has such a name")
        code = max(code, 1)
    if listing.left_out:
        complain(f"{listing.left_out} more fields are left out")
    return code


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(name == each or fnmatch.fnmatchcase(name, each) for each in patterns)


def _print(rows: Iterable[tuple[str, str, str]], *, as_json: bool) -> None:
    if as_json:
        found = [{"name": name, "type": kind, "description": text} for name, kind, text in rows]
        text = msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
        print(text.replace("\x7f", "\\u007f").encode("ascii", "backslashreplace").decode())
        return
    for name, kind, text in rows:
        print(f"{escape(name):<{NAME_WIDTH}} {escape(kind):<{TYPE_WIDTH}} {text}".rstrip())


# ---------------------------------------------------------------- fields of devices


class _Seen:
    """A show sink that lists the fields of the devices of a capture."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._machine = ""

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take note of what a device has."""
        if isinstance(event, Configuration):
            self._machine = event.machine
        elif isinstance(event, DeviceSection):
            device = device_name(event)
            self._listing.add(device, "record", None)
            for name, each in _of_fields(device, explain(event, self._machine).fields, 0):
                self._listing.add(name, each.type, each.array_len)

    def close(self) -> None:
        """Nothing is pending."""


def _of_capture(path: str, listing: Listing, options: argparse.Namespace) -> int:
    from migsniff.describe import read_descriptions
    from migsniff.offline import survey

    place = Path(path)
    if place.is_file() and place.open("rb").read(64).lstrip()[:1] == b"{":
        for entry in read_descriptions(path, complain).entries:
            _of_description(entry, listing)
        return 0
    return survey(
        path,
        lambda migration: [_Seen(listing)],
        lambda migration: None,
        known=open_descriptions(options),
        fields=True,
    )


def _of_fields(above: str, all_of: Iterable[StateField], depth: int) -> Iterator[tuple[str, StateField]]:
    """(name, field), without the indices of elements of arrays."""
    for each in all_of if depth < MAX_DEPTH else ():
        name = above + written(parts_of(each.name))
        yield name, each
        yield from _of_fields(name, each.children, depth + 1)


def _remembered(options: argparse.Namespace) -> list[Entry]:
    store = open_store(options.descriptions)
    return [] if store is None else [entry for one in store.load_all() for entry in one.entries]


def _of_description(entry: Entry, listing: Listing) -> None:
    try:
        described = Description.parse(b'{"devices":[' + bytes(entry.device) + b"]}")
    except StreamProblem:
        return
    for device in described.devices:
        name = "device" + written((device.name.rpartition("/")[2] or device.name,))
        listing.add(name, "record", None)
        _of_vmsd(name, device.vmsd, listing)


def _of_vmsd(above: str, vmsd: Vmsd, listing: Listing) -> None:
    for each in vmsd.fields:
        name = above + written(parts_of(each.name))
        listing.add(name, each.type, None if each.vmsds else each.array_len)
        for inside in each.vmsds[:1]:
            _of_vmsd(name + written(parts_of(inside.name)) if each.type in LISTS else name, inside, listing)
    for subsection in vmsd.subsections:
        name = above + written(parts_of(subsection.name))
        listing.add(name, "subsection", None)
        _of_vmsd(name, subsection, listing)
