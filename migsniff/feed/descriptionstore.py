"""Descriptions of devices that were seen once, kept in the user's cache: a file for each machine type.

What stands there is believed as little as a stream: files are bounded, and one that is damaged is none. Files
are replaced whole, under a lock, so that several migsniffs may keep theirs in one folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from migsniff.core.errors import CaptureError

FORMAT: Final = "migsniff descriptions"
SUFFIX: Final = ".json"
LOCK: Final = ".lock"
PER_SECTION: Final = 4  # different descriptions of one section that are kept, the newest
MAX_DEVICE: Final = 256 << 10  # bytes of one device's description
MAX_SECTIONS: Final = 4096  # descriptions in one file
MAX_FILE: Final = 4 << 20
MAX_TOTAL: Final = 32 << 20
MAX_MACHINES: Final = 64
MAX_NAME: Final = 255
LOCK_SECONDS: Final = 2.0
REFRESH: Final = 24 * 3600  # seconds after which it is noted that a description was seen again

_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")


class Entry(msgspec.Struct, frozen=True):
    """How a section was described: `device` is its JSON object. `version` None: of any version.

    `seen`: seconds since 1970. `source`: the migration's id, or a file.
    """

    idstr: str
    instance: int
    version: int | None
    seen: int
    source: str
    device: msgspec.Raw

    @property
    def key(self) -> tuple[str, int, int | None]:
        """What it describes."""
        return self.idstr, self.instance, self.version


class MachineFile(msgspec.Struct, frozen=True):
    """What is known of the devices of one machine type, the newest first."""

    machine: str
    entries: list[Entry]
    format: Literal["migsniff descriptions"] = FORMAT
    version: Literal[1] = 1


class Described(msgspec.Struct, frozen=True):
    """A stream's description: `text` as sent, the versions of its sections by idstr and instance."""

    machine: str
    text: bytes
    versions: Mapping[tuple[str, int], int]
    source: str


class _Device(msgspec.Struct):
    name: str
    instance_id: int
    version: int | None = None


class _Description(msgspec.Struct):
    devices: list[msgspec.Raw]


def entries_of(described: Described, seen: int | None = None) -> list[Entry]:
    """The devices of a description that can be kept. Raises CaptureError if it is none."""
    seen = int(time.time()) if seen is None else seen
    found = []
    try:
        for raw in msgspec.json.decode(described.text, type=_Description).devices[:MAX_SECTIONS]:
            device = msgspec.json.decode(raw, type=_Device)
            instance = device.instance_id % (1 << 32)
            version = described.versions.get((device.name, instance), device.version)
            entry = Entry(
                device.name, instance, version, seen, described.source, msgspec.Raw(bytes(raw).strip())
            )
            if sound(entry):
                found.append(entry)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise CaptureError(f"no description of device state: {error}") from None
    return found


def sound(entry: Entry) -> bool:
    """Whether an entry is of the kind that migsniff writes."""
    return (
        0 < len(entry.idstr) <= MAX_NAME
        and entry.idstr.isprintable()
        and len(entry.source) <= 4 * MAX_NAME
        and entry.source.isprintable()
        and 0 <= entry.seen < 1 << 40
        and 0 < len(bytes(entry.device)) <= MAX_DEVICE
        and bytes(entry.device).startswith(b"{")
    )


def file_name(machine: str) -> str:
    """The file of a machine type, whose name may hold anything."""
    if _PLAIN.fullmatch(machine) and not machine.endswith(SUFFIX):
        return machine + SUFFIX
    digest = hashlib.sha256(machine.encode(errors="surrogatepass")).hexdigest()
    return f"~{re.sub(r'[^A-Za-z0-9_.+-]', '_', machine)[:60]}~{digest[:32]}{SUFFIX}"


# ---------------------------------------------------------------- the folder


class Store:
    """The files. All that the file system refuses is an OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: list[str] = []  # names of files that could not be read, of the last `load_all`
        self.beyond = 0  # files that it did not look at, of more than are ever written

    def load(self, machine: str) -> list[Entry]:
        """What is known of a machine type; nothing if its file is damaged or not there."""
        found = self._read(file_name(machine))
        return [] if found is None else found.entries

    def load_all(self) -> Iterator[MachineFile]:
        """All that is known."""
        self.damaged = []
        for name in self._names():
            found = self._read(name)
            if found is not None:
                yield found
            else:
                self.damaged.append(name)

    def add(self, machine: str, entries: Iterable[Entry]) -> int:
        """Put entries in front of what is known of a machine type; returns how many are new."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked():
            known = self.load(machine)
            fresh, merged = _merged(known, list(entries))
            path = self.folder / file_name(machine)
            if merged == known:
                with contextlib.suppress(OSError):
                    os.utime(path)
                return 0
            self._write(path.name, _encoded(machine, merged))
            self._prune(path.name)
        return fresh

    def forget(self, machine: str | None) -> int:
        """Remove what is known of a machine type, or all; returns how many files that were."""
        if not self.folder.is_dir():
            return 0
        with self._locked():
            names = self._names() if machine is None else [file_name(machine)]
            removed = 0
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / name).unlink()
                    removed += 1
        return removed

    # ------------------------------------------------------------ files

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            found = sorted(
                name for name in os.listdir(self.folder) if name.endswith(SUFFIX) and name[0] != "."
            )
            self.beyond = max(0, len(found) - 4 * MAX_MACHINES)
            return found[: 4 * MAX_MACHINES]
        return []

    def _read(self, name: str) -> MachineFile | None:
        """A file of ours; None if it is anything else."""
        try:
            fd = os.open(self.folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                about = os.fstat(fd)
                if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_FILE:
                    return None
                with os.fdopen(fd, "rb", closefd=False) as file:
                    found = msgspec.json.decode(file.read(MAX_FILE + 1), type=MachineFile)
            finally:
                os.close(fd)
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        if file_name(found.machine) != name:
            return None
        entries = [entry for entry in found.entries[:MAX_SECTIONS] if sound(entry)]
        return msgspec.structs.replace(found, entries=entries)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self.folder / f".{name}.{os.getpid()}.{threading.get_native_id()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
            os.replace(temporary, self.folder / name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    def _prune(self, keep: str) -> None:
        """Remove the files that were not used for longest until the rest is little enough."""
        found = []
        for name in os.listdir(self.folder):
            with contextlib.suppress(OSError):
                about = os.lstat(self.folder / name)
                if name.startswith(".") and name != LOCK and about.st_mtime < time.time() - 3600:
                    os.unlink(self.folder / name)  # left behind by a migsniff that was killed
                elif name.endswith(SUFFIX) and name[0] != "." and name != keep:
                    found.append((about.st_mtime, about.st_size, name))
        found.sort()
        total = sum(size for _, size, _ in found)
        while found and (len(found) >= MAX_MACHINES or total > MAX_TOTAL - MAX_FILE):
            _, size, name = found.pop(0)
            total -= size
            with contextlib.suppress(OSError):
                os.unlink(self.folder / name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > deadline:
                        raise
                time.sleep(0.01)
            yield
        finally:
            os.close(fd)


def _merged(known: Sequence[Entry], entries: Sequence[Entry]) -> tuple[int, list[Entry]]:
    """How many descriptions are new, and all that are kept, the newest first."""
    same = {(*entry.key, bytes(entry.device)): entry for entry in known}
    front = []
    for entry in entries:
        old = same.get((*entry.key, bytes(entry.device)))
        if old is None:
            front.append(entry)
        else:
            newer = entry.seen - old.seen > REFRESH
            front.append(msgspec.structs.replace(old, seen=entry.seen) if newer else old)
    merged: dict[tuple[str, int, int | None], list[Entry]] = {}
    for entry in (*front, *known):
        kept = merged.setdefault(entry.key, [])
        if len(kept) < PER_SECTION and all(bytes(entry.device) != bytes(other.device) for other in kept):
            kept.append(entry)
    all_kept = [entry for kept in merged.values() for entry in kept][:MAX_SECTIONS]
    return sum((*entry.key, bytes(entry.device)) not in same for entry in all_kept), all_kept


def _encoded(machine: str, entries: list[Entry]) -> bytes:
    """A file's content, without the entries at the end that make it too large."""
    room = MAX_FILE - 1024 - len(machine)
    kept = []
    for entry in sorted(entries, key=lambda entry: -entry.seen):
        room -= len(bytes(entry.device)) + len(entry.source) + len(entry.idstr) + 160
        if room < 0:
            break
        kept.append(entry)
    order = {id(entry): index for index, entry in enumerate(entries)}
    kept.sort(key=lambda entry: order[id(entry)])
    return msgspec.json.encode(MachineFile(machine, kept))
