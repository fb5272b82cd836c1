"""Files named after RAM blocks, in a folder that they cannot leave, whatever a stream calls its blocks."""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

STATE_FILE: Final = "state.json"
DESCRIPTION_FILE: Final = "desc.json"
NAME_MAX: Final = 255
ENCODED_MAX: Final = 200

# ---------------------------------------------------------------- names

_HARMLESS: Final = re.compile(r"[ -$&-.0-\[\]-~]+")  # printable ASCII without / % \
_ENCODED: Final = re.compile(rb"[^A-Za-z0-9_.,:@+=-]")


def file_names(blocks: Iterable[str]) -> dict[str, str]:
    """Relative path of the file of each block, in the order of the blocks; no path lies inside another.

    A name that could do harm, or clash with an earlier one, is percent-encoded from its first character on.
    Harmless names hold no %, so that the two kinds cannot clash either.
    """
    names: dict[str, str] = {}
    files = {DESCRIPTION_FILE, STATE_FILE}
    folders: set[str] = set()
    for block in blocks:
        if block in names:
            continue
        path = block.removeprefix("/")
        above = [path[:at] for at, character in enumerate(path) if character == "/"]
        if not _harmless(path) or path in files or path in folders or files.intersection(above):
            path, above = _encoded(block, len(names)), []
        names[block] = path
        files.add(path)
        folders.update(above)
    return names


def _harmless(path: str) -> bool:
    return all(
        len(part) <= NAME_MAX and part[:1] not in (".", "-") and _HARMLESS.fullmatch(part)
        for part in path.split("/")
    )


def _encoded(block: str, index: int) -> str:
    raw = block.encode("utf-8", "surrogatepass")
    text = "".join(f"%{byte:02X}" for byte in raw[:1]) + _ENCODED.sub(
        lambda match: b"%%%02X" % ord(match[0]), raw[1:]
    ).decode("ascii")
    return text if text and len(text) <= ENCODED_MAX else f"{text[:ENCODED_MAX]}%~{index}"


# ---------------------------------------------------------------- a folder


class Folder:
    """A folder to make files in, below which paths are followed component by component, no links among them.

    Files are made anew, with mode 0600, where a regular file was too; folders have mode 0700.
    Every method raises OSError.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(path, 0o700, exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def create(self, path: str) -> int:
        """A file descriptor for a new and empty file, to read and write."""
        with self._parent(path, make=True) as (parent, name):
            with suppress(FileNotFoundError):
                if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise FileExistsError(errno.EEXIST, "it exists, and is no regular file", path)
                os.unlink(name, dir_fd=parent)
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)

    def open(self, path: str) -> int:
        """A file descriptor for a file made before, to read and write."""
        with self._parent(path, make=False) as (parent, name):
            return os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=parent)

    def remove(self, path: str) -> None:
        """Remove a file; the folders it stands in stay."""
        with self._parent(path, make=False) as (parent, name):
            os.unlink(name, dir_fd=parent)

    @contextmanager
    def _parent(self, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
        *folders, name = path.split("/")
        current = os.dup(self._fd)
        try:
            for folder in folders:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(folder, 0o700, dir_fd=current)
                below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                os.close(current)
                current = below
            yield current, name
        finally:
            os.close(current)
