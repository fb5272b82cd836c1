"""Device state for tests of what it means: of samples, and of real guests that can be asked for the truth."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from migsniff.core.events import (
    Configuration,
    DeviceSection,
    Event,
    Field,
)
from migsniff.feed.files import open_source
from migsniff.offline import decode, session_for
from migsniff.pipeline import Pipeline
from migsniff.qemu import Qemu
from migsniff.values.clocks import virtual_clock
from migsniff.values.explain import explain
from tests.qemu import Folder, poll, require
from tests.test_samples import SAMPLES


class Sections:
    """A show sink that keeps device state with its fields, and the machine type."""

    def __init__(self) -> None:
        self.found: list[DeviceSection] = []
        self.machine = ""

    def show(self, migration: str, time: int, event: Event) -> None:
        if isinstance(event, Configuration):
            self.machine = event.machine
        elif isinstance(event, DeviceSection) and event.fields and not event.provisional:
            self.found.append(event)

    def close(self) -> None:
        pass


def decoded(path: Path) -> Sections:
    """Device state in a capture or a file, as it comes, without meaning."""
    source, sections = open_source(str(path)), Sections()
    decode(Pipeline(source.migration, session_for(source, fields=True), [sections]), source)
    return sections


def sample(name: str) -> Sections:
    """Device state in a sample."""
    return decoded(SAMPLES / name)


def section(*fields: Field, idstr: str = "0000:00:02.0/anything") -> DeviceSection:
    """A section with these fields."""
    return DeviceSection(
        channel="main",
        direction="fwd",
        offset=0,
        size=1,
        section_type="FULL",
        section_id=1,
        idstr=idstr,
        instance_id=0,
        version_id=1,
        footer=True,
        provisional=False,
        fields=fields,
    )


def walk(fields: Sequence[Field], prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Each field with its path, what it is in first."""
    for field in fields:
        yield prefix + field.name, field
        yield from walk(field.children, f"{prefix}{field.name}.")


def inside(fields: Sequence[Field], path: str) -> Field:
    """The one field with this path; an element of an array is name[index]."""
    name, _, rest = path.partition(".")
    (field,) = (f for f in fields if f.name == name or f"{f.name}[{f.index}]" == name)
    return inside(field.children, rest) if rest else field


def assert_within(field: Field) -> None:
    """Children stand inside of their field, one behind the other, and hold what the bytes are."""
    at = field.offset
    for child in field.children:
        assert child.offset >= at, child.name
        at = child.offset + child.size
        assert at <= field.offset + field.size, child.name
        assert not child.raw or len(child.raw) == child.size
        assert_within(child)


@contextmanager
def guest(
    version: str,
    args: str,
    ready: Callable[[Qemu], bool],
    arch: str = "x86_64",
    disk: bytes = bytes(1 << 20),
) -> Iterator[Qemu]:
    """A guest that was stopped when it was `ready`, or ten seconds later. `args`: {folder}/disk"""
    require(version, arch)
    folder = Folder(version)
    qemu = None
    try:
        (folder.path / "disk").write_bytes(disk)
        arguments = args.replace("{folder}", str(folder.inside)).split()
        qemu = Qemu(arch, arguments, folder.path, "guest", enter=folder.enter, inside=folder.inside)
        poll(lambda: ready(qemu), 10)
        time.sleep(0.3)
        qemu.execute("stop")
        yield qemu
    finally:
        if qemu is not None:
            qemu.kill()
        folder.remove()


def saved(qemu: Qemu, version: str, path: Path) -> Sections:
    """What a stopped guest sends, decoded."""
    folder = Folder(version)
    try:
        qemu.execute("migrate", uri=f"exec:cat>{folder.inside}/state")
        assert poll(lambda: qemu.execute("query-migrate").get("status") == "completed", 20)
        path.write_bytes((folder.path / "state").read_bytes())
    finally:
        folder.remove()
    return decoded(path)


def monitor(qemu: Qemu, command: str) -> str:
    """What the monitor says."""
    return str(qemu.execute("human-monitor-command", **{"command-line": command})).replace("\r", "")


def explained_device(sections: Sections, name: str, instance: int = 0) -> dict[str, Field]:
    """The fields of a device as explained, by path; an element of an array of structs is name[index]."""
    (found,) = (
        each
        for each in sections.found
        if each.idstr.rpartition("/")[2] == name and each.instance_id == instance
    )
    return paths(explain(found, sections.machine, clock_of(sections)).fields)


def clock_of(sections: Sections) -> int | None:
    """The virtual clock."""
    return next(filter(None, map(virtual_clock, sections.found)), None)


def paths(fields: Sequence[Field]) -> dict[str, Field]:
    """Fields by path; an element of an array of structs is name[index]."""
    found: dict[str, Field] = {}
    for field in fields:
        name = field.name if field.index is None else f"{field.name}[{field.index}]"
        found[name] = field
        found |= {f"{name}.{path}": child for path, child in paths(field.children).items()}
    return found
