"""The shape of the package, held over its syntax trees: who may import whom, and what core stays clear of."""

import ast
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import migsniff
from migsniff.core.errors import PROBLEMS
from migsniff.core.events import (
    CommandSent,
    LiveSection,
    MultifdPacket,
    PageCounts,
    RamSection,
    ReturnPathMessage,
)
from migsniff.core.livesections import LIVE_SECTIONS
from migsniff.core.messages import COMMANDS, RETURN_PATH
from migsniff.core.multifdmethods import METHODS, Method, Plain
from migsniff.core.pageencodings import PAGE_ENCODINGS
from tests.catalogue import STREAMS
from tests.playing import of, play

ROOT = Path(migsniff.__file__).parent
CORE = ROOT / "core"

# Each module of core imports only from lines above its own.
LAYERS = (
    ("errors", "layout"),
    ("wire",),
    ("arrivals",),
    ("events",),
    ("budget", "bytequeue", "contents", "hotranges", "registry", "rounds", "text"),
    ("records",),
    ("fieldtypes", "oldstyle", "description", "inflaters", "messages", "multifdfacts", "pageencodings"),
    ("names",),
    ("tallies",),
    ("pages",),
    ("multifdmethods",),
    ("faults", "vmdesc", "pagecount", "livesections"),
    ("context",),
    ("assumingwalk",),
    ("assumed", "mappedram", "pagesize", "sectionend"),
    ("devices",),
    ("blocklist", "commands", "configuration", "vmdescription"),
    ("ram",),
    ("stream", "multifd", "returnpath", "tls"),
    ("colo",),
    ("channel", "reached"),
    ("verdict",),
    ("connection",),
    ("session",),
)
WITH_NUMPY = {
    "bytequeue",
    "channel",
    "faults",
    "hotranges",
    "mappedram",
    "multifd",
    "tallies",
    "pagecount",
    "pages",
    "ram",
    "returnpath",
    "session",
}
PURE = {
    "array",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "re",
    "reprlib",
    "contextlib",
    "struct",
    "typing",
    "uuid",
    "zlib",
}
ROOMS: dict[str, tuple[str, ...]] = {
    "feed": (),
    "expert": ("values",),
    "values": (),
    "filter": ("values",),
    "statistics": ("show",),
    "compare": ("values", "show", "expert"),
    "show": ("values", "filter"),
}
"""The rooms beside core, and what each may import of the others."""
ALSO_SEEN = {
    "values": {"migsniff.core.registry"},
    "compare": {"migsniff.feed.dumpvmstate"},
    "expert": {"migsniff.show.words"},
}
SEEN_OUTSIDE = {
    "migsniff.core.arrivals",
    "migsniff.core.events",
    "migsniff.core.errors",
    "migsniff.core.contents",
    "migsniff.core.wire",
}
"""What feed and show may import from core: contents for what only the page before gives a meaning to, wire
for the first bytes by which connections are told apart."""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """The modules that a file imports when it runs, not those for its types alone."""
    for_types: set[ast.AST] = set()
    found: set[str] = set()
    for node in ast.walk(tree(path)):  # outer nodes come first
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for_types.update(ast.walk(node))
        elif node in for_types:
            continue
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            assert node.module
            if node.module == "migsniff.core":
                found |= {f"migsniff.core.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def test_the_layers_name_all_of_core() -> None:
    assert sorted(name for layer in LAYERS for name in layer) == [path.stem for path in modules(CORE)]


@pytest.mark.parametrize("path", modules(CORE), ids=lambda path: path.stem)
def test_core(path: Path) -> None:
    below: set[str] = set()
    for layer in LAYERS:
        if path.stem in layer:
            break
        below |= {f"migsniff.core.{name}" for name in layer}
    for name in imported(path):
        package = name.split(".")[0]
        if package == "migsniff":
            assert name in below, f"{path.stem} imports {name}"
        elif package == "numpy":
            assert path.stem in WITH_NUMPY
        else:
            allowed = PURE | {"msgspec"} | ({"zstandard"} if path.stem == "inflaters" else set())
            assert package in allowed, f"{path.stem} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms(room: str) -> None:
    """A room sees what it is told it may, and nothing that stands above them all."""
    rooms = [f"migsniff.{each}" for each in (room, *ROOMS[room])]
    single = SEEN_OUTSIDE | ALSO_SEEN.get(room, set())
    for path in modules(ROOT / room):
        for name in imported(path):
            if name.startswith("migsniff."):
                seen = name in single or any(f"{name}.".startswith(f"{each}.") for each in rooms)
                assert seen, f"{path} imports {name}"


def test_every_folder_is_a_room() -> None:
    assert {path.parent.name for path in ROOT.glob("*/*.py")} == {"core", *ROOMS}


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys; before = set(sys.modules); import migsniff; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["migsniff"]


def test_parsers_of_filters_are_loaded_when_there_is_one() -> None:
    code = (
        "import sys, migsniff.show.log, migsniff.cli; print(*{'lark', 're2', 'difflib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# ---------------------------------------------------------------- problems


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """All calls that make a problem from a code that stands there."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if name in ("StreamProblem", "problem_text", "stop_decoding", "stop", "_give_up", "_stop"):
                    yield path, node


def test_problems_get_what_their_texts_say() -> None:
    for path, call in calls():
        code = call.args[0] if call.args else None
        if not isinstance(code, ast.Constant) or not isinstance(code.value, str):
            continue
        given = {keyword.arg for keyword in call.keywords}
        text = PROBLEMS.get(code.value)
        assert text is not None, f"{path}:{call.lineno}: {code.value}"
        named = {field for _, field, _, _ in string.Formatter().parse(text) if field}
        if None not in given:  # **details
            assert named <= given, f"{path}:{call.lineno}: {code.value} needs {named - given}"


def test_every_problem_can_happen() -> None:
    strings = {
        node.value
        for path in ROOT.rglob("*.py")
        if path != CORE / "errors.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(PROBLEMS) - strings == set()


# ---------------------------------------------------------------- registries


def test_what_is_registered_is_exercised() -> None:
    """Each page encoding, live section, command, return path message and multifd method is in a stream."""
    events = [event for stream in STREAMS.values() for event in play(stream)]
    counts = [event.counts for event in of(events, RamSection)]
    kinds = {kind for kind in PageCounts.__struct_fields__ if any(getattr(count, kind) for count in counts)}
    encodings = {PAGE_ENCODINGS.get(flag) for flag in PAGE_ENCODINGS}
    assert {encoding.kind for encoding in encodings if encoding} <= kinds
    sections = {event.idstr.rsplit("/", 1)[-1] for event in of(events, LiveSection) if not event.provisional}
    assert {name.rsplit("/", 1)[-1] for name in LIVE_SECTIONS} == sections
    assert set(COMMANDS) == {event.command for event in of(events, CommandSent)}
    assert set(RETURN_PATH) == {event.message for event in of(events, ReturnPathMessage)}
    methods = {method.name for number in METHODS if (method := METHODS.get(number))}
    assert methods <= {event.method for event in of(events, MultifdPacket)}


@pytest.mark.parametrize("registry", [PAGE_ENCODINGS, LIVE_SECTIONS, COMMANDS, RETURN_PATH, METHODS])
def test_registries_say_where_each_entry_comes_from(registry: object) -> None:
    for key in registry:  # type: ignore[attr-defined]
        assert registry.source(key).startswith(("migration/", "hw/"))  # type: ignore[attr-defined]


def test_a_key_is_registered_once() -> None:
    with pytest.raises(ValueError, match="multifd method 0 is registered already"):
        METHODS(0, source="migration/multifd.c")(Method("again", Plain))
