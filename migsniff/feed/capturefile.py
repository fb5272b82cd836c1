"""Files of a capture: those that only grow, and the manifest, which is replaced."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final

WriteParts = Callable[[int, Sequence[bytes]], int]
"""As os.writev: how many bytes it took."""

PARTS_AT_ONCE: Final = 512  # below every kernel's IOV_MAX
NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class CaptureFile:
    """An append-only file, and what waits to be written to it."""

    def __init__(self, folder: int, name: str, write: WriteParts) -> None:
        self.name = name
        self.parts: list[bytes] = []
        self._write = write
        self._size = 0
        self._fd = os.open(name, NEW_FILE, 0o600, dir_fd=folder)

    def flush(self) -> None:
        """Write what waits. If that fails, nothing of it stays."""
        if not self.parts:
            return
        parts, self.parts = self.parts, []
        try:
            for first in range(0, len(parts), PARTS_AT_ONCE):
                self._write_all(parts[first : first + PARTS_AT_ONCE])
        except OSError:
            # what fits of a block is of no use, and on a full disk the manifest needs the room
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += sum(map(len, parts))

    def _write_all(self, parts: Sequence[bytes]) -> None:
        left = sum(map(len, parts)) - self._write(self._fd, parts)
        while left:
            rest = b"".join(parts)[-left:]
            left -= self._write(self._fd, [rest])

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._fd)


def replace_file(folder: int, name: str, content: bytes) -> None:
    """Replace a file as a whole: whoever reads it sees the old one or the new one."""
    new = name + ".new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=folder)
    fd = os.open(new, NEW_FILE, 0o600, dir_fd=folder)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
    os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
