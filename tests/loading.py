"""Streams that real QEMUs wrote, given to others: whether they load, and what a QEMU says of itself."""

import contextlib
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence

from migsniff.qemu import Qemu, QmpError
from tests.checkpairs import ARCH
from tests.qemu import Folder


class Side:
    """A QEMU in a folder of its own, with these `files`, which its arguments call {folder}/NAME."""

    def __init__(
        self,
        version: str,
        arguments: str,
        *options: str,
        arch: str = ARCH,
        disk: bytes = b"",
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.folder = Folder(version)
        try:
            for name, content in (files or {}).items():
                (self.folder.path / name).write_bytes(content)
            arguments = arguments.replace("{folder}", str(self.folder.inside))
            words = ["-m", "64", *shlex.split(arguments), *options]
            if disk:
                (self.folder.path / "disk").write_bytes(disk)
                words += ["-drive", f"file={self.folder.inside}/disk,format=raw,if=ide,snapshot=on"]
            self.qemu = Qemu(
                arch, words, self.folder.path, "qemu", enter=self.folder.enter, inside=self.folder.inside
            )
        except BaseException:
            self.folder.remove()
            raise

    def close(self) -> None:
        self.qemu.kill()
        self.folder.remove()

    def status(self) -> str:
        """Of the migration; "gone" if this QEMU is."""
        try:
            return str(self.qemu.execute("query-migrate").get("status"))
        except (QmpError, OSError):
            return "gone"

    def ended(self) -> str:
        deadline = time.monotonic() + 60
        while (status := self.status()) not in ("completed", "failed", "gone"):
            assert time.monotonic() < deadline, status
            time.sleep(0.02)
        return status


def stream(
    version: str,
    arguments: str,
    *,
    runs: float = 0,
    arch: str = ARCH,
    capabilities: Sequence[str] = (),
    disk: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    commands: Sequence[str] = (),
) -> bytes:
    """What this QEMU migrates, after `runs` seconds of its firmware, or of what it boots from a disk.

    `commands` of QMP come first.
    """
    side = Side(version, arguments, *([] if runs else ["-S"]), arch=arch, disk=disk, files=files)
    try:
        time.sleep(runs)
        for command in commands:
            side.qemu.execute(command)
        states = [{"capability": each, "state": True} for each in capabilities]
        side.qemu.execute("migrate-set-capabilities", capabilities=states)
        side.qemu.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        side.qemu.execute("migrate", uri=f"exec:cat>{side.folder.inside}/stream")
        assert side.ended() == "completed"
        return (side.folder.path / "stream").read_bytes()
    finally:
        side.close()


def load(
    version: str,
    arguments: str,
    data: bytes,
    *,
    arch: str = ARCH,
    disk: bytes = b"",
    files: Mapping[str, bytes] | None = None,
) -> tuple[bool, list[str]]:
    """Whether this QEMU loads a stream, and what it says."""
    side = Side(version, arguments, "-S", "-incoming", "defer", arch=arch, disk=disk, files=files)
    try:
        (side.folder.path / "stream").write_bytes(data)
        with contextlib.suppress(QmpError, OSError):  # it may be gone before it answers
            side.qemu.execute("migrate-incoming", uri=f"exec:cat {side.folder.inside}/stream")
        loads = side.ended() == "completed"
        said = [line.partition(": ")[2] for line in side.qemu.log.splitlines() if "warning: " not in line]
        return loads, said
    finally:
        side.close()


def schema(version: str, arguments: str, *, arch: str = ARCH) -> bytes:
    """What this QEMU's -dump-vmstate writes."""
    folder = Folder(version)
    try:
        options = ["-display", "none", "-nodefaults", *shlex.split(arguments)]
        command = [*folder.enter, f"qemu-system-{arch}", *options, "-dump-vmstate", f"{folder.inside}/schema"]
        subprocess.run(command, check=True, capture_output=True)
        return (folder.path / "schema").read_bytes()
    finally:
        folder.remove()
