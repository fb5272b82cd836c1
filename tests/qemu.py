"""One real live migration between two real QEMUs: the harness of the tests, the samples and the benchmarks.

    with Migration("7.2", workload=48) as migration:
        where = migration.listen()                     # the destination: "127.0.0.1:PORT"
        result = migration.run(f"tcp:{where}")         # or of a relay in front of it
        assert result.status == "completed"

No hardware acceleration, no guest images: an x86 guest can be given `workload` MiB of memory that it keeps
dirtying, others run their firmware. The system's own QEMU is used if its version is the one asked for, else
the one in the folder $QEMU_ROOTS/VERSION (/opt/qemu-roots/10.0, say), a root file system that is entered by
chroot, which needs root. Each migration takes a second.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from migsniff.qemu import Qemu, QmpError, boot_disk

ROOTS = Path(os.environ.get("QEMU_ROOTS", "/opt/qemu-roots"))
REQUIRED = os.environ.get("MIGSNIFF_REQUIRE_QEMU", "")
"""Versions whose absence is a failure and no reason to skip, "7.2 10.0"; "1" stands for 7.2."""
ENDED = ("completed", "failed", "cancelled")

# ---------------------------------------------------------------- finding QEMU


@functools.cache
def system_version() -> str | None:
    """Major and minor version of the QEMU on the PATH, None if there is none."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+\.\d+)", said)
    return found and found[1]


SYSTEM = system_version() or "7.2"
"""The version to ask for where any will do."""


def missing(version: str, arch: str = "x86_64") -> str | None:
    """Why this QEMU cannot be run here, None if it can."""
    program = f"qemu-system-{arch}"
    if version == system_version():
        return None if shutil.which(program) else f"{program} {version} is not installed"
    if not (ROOTS / version / "usr/bin" / program).exists():
        return f"{program} {version} is neither on the PATH nor in {ROOTS / version}"
    return None if os.geteuid() == 0 else f"QEMU {version} in {ROOTS / version} needs root for chroot"


def available(version: str, arch: str = "x86_64") -> bool:
    """Whether this QEMU can be run here."""
    return missing(version, arch) is None


def require(version: str, arch: str = "x86_64") -> None:
    """Skip the calling test if this QEMU is not here; fail it where it has to be."""
    reason = missing(version, arch)
    if reason is None:
        return
    if version in REQUIRED.replace(",", " ").split() or (REQUIRED == "1" and version == "7.2"):
        pytest.fail(f"{reason}, but MIGSNIFF_REQUIRE_QEMU={REQUIRED} demands it")
    pytest.skip(reason)


# ---------------------------------------------------------------- where a QEMU runs


class Folder:
    """A temporary folder that the QEMU of this version sees too, as `inside`; `enter` is how it is run."""

    def __init__(self, version: str) -> None:
        root = Path("/") if version == system_version() else ROOTS / version
        self.enter = [] if root == Path("/") else ["chroot", str(root)]
        self.path = Path(tempfile.mkdtemp(prefix="migsniff-", dir=root / "tmp" if self.enter else None))
        self.inside = Path("/") / self.path.relative_to(root)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


# ---------------------------------------------------------------- a migration


@dataclass(frozen=True)
class Result:
    """How a migration ended. `source`, `destination`: the last query-migrate, {} if that QEMU is gone."""

    version: str
    source: dict[str, Any]
    destination: dict[str, Any]
    destination_runs: bool
    seconds: float

    @property
    def status(self) -> str:
        return str(self.source.get("status", "gone"))

    @property
    def ram(self) -> dict[str, int]:
        """QEMU's counters of RAM, query-migrate's `ram`."""
        return dict(self.source.get("ram", {}))


class Migration:
    """Two QEMUs, made from the same arguments, and the migration of a guest from one to the other.

    `args` are QEMU's, in shell syntax. `mem` and `workload` are in MiB. `caps` are capabilities of both
    sides, `params` migration parameters of both (destination_params: of the destination alone);
    `max-bandwidth` is unlimited unless given. `files` are written into a folder of each side, which `args`
    call {folder}; {shared} is one that both sides see, if both are of one version.
    """

    def __init__(
        self,
        version: str = "7.2",
        *,
        destination_version: str | None = None,
        arch: str = "x86_64",
        machine: str = "",
        mem: int = 64,
        args: str = "",
        source_args: str = "",
        destination_args: str = "",
        caps: Sequence[str] = (),
        params: Mapping[str, int | str | bool] | None = None,
        destination_params: Mapping[str, int | str | bool] | None = None,
        workload: int = 0,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.workload = workload
        self.files = files or {}
        self.caps = list(caps)
        self.params = {"max-bandwidth": 1 << 40, **(params or {})}
        self.destination_params = {**self.params, **(destination_params or {})}
        self._arch = arch
        self._versions = {"source": version, "destination": destination_version or version}
        common = ["-m", str(mem), *(["-M", machine] if machine else []), *shlex.split(args)]
        self._arguments = {
            "source": [*common, *shlex.split(source_args)],
            "destination": [*common, *shlex.split(destination_args), "-incoming", "defer"],
        }
        self._folders: list[Folder] = []
        self._qemus: list[Qemu] = []

    def __enter__(self) -> Self:
        try:
            self.shared = Folder(self._versions["source"])
            self._folders.append(self.shared)
            self.destination = self._start("destination")
            self.source = self._start("source")
            for qemu, params in ((self.source, self.params), (self.destination, self.destination_params)):
                states = [{"capability": name, "state": True} for name in self.caps]
                try:
                    qemu.execute("migrate-set-capabilities", capabilities=states)
                except QmpError as error:
                    if os.geteuid() != 0 and "Postcopy is not supported" in str(error):
                        pytest.skip("postcopy needs userfaultfd, which here only root may use")
                    raise
                qemu.execute("migrate-set-parameters", **params)
            if self.workload:
                self.source.wait_for_passes(2)  # a pass counts when it begins
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, side: str) -> Qemu:
        version = self._versions[side]
        folder = Folder(version)
        self._folders.append(folder)
        for name, content in self.files.items():
            (folder.path / name).write_bytes(content)
        folders = {"{folder}": str(folder.inside), "{shared}": str(self.shared.inside)}
        arguments = [_replaced(argument, folders) for argument in self._arguments[side]]
        if self.workload:
            (folder.path / "disk").write_bytes(boot_disk(self.workload))
            arguments = [*arguments, "-drive", f"file={folder.inside}/disk,format=raw,if=ide"]
        qemu = Qemu(self._arch, arguments, folder.path, side, enter=folder.enter, inside=folder.inside)
        self._qemus.append(qemu)
        return qemu

    def close(self) -> None:
        for qemu in self._qemus:
            qemu.kill()
        for folder in self._folders:
            folder.remove()

    def listen(self, uri: str = "tcp:127.0.0.1:0") -> str:
        """Open the destination's incoming socket and say where it is: HOST:PORT, or the path."""
        self.destination.execute("migrate-incoming", uri=uri)
        where = self.destination.execute("query-migrate")["socket-address"][0]
        self.where = str(where["path"]) if "path" in where else f"{where['host']}:{where['port']}"
        return self.where

    def start(self, uri: str) -> None:
        """Begin to migrate to `uri`."""
        self._began = time.monotonic()
        self.uri = uri
        self.source.execute("migrate", uri=uri)

    def wait(self, timeout: float = 60, until: Sequence[str] = ENDED) -> Result:
        """Wait until the source's status is one of `until`."""
        while (last := self.source.execute("query-migrate")).get("status") not in until:
            if time.monotonic() - self._began > timeout:
                raise TimeoutError(f"still {last.get('status')} after {timeout} s: {last}")
            time.sleep(0.01)
        seconds = time.monotonic() - self._began
        version = self.source.execute("query-version")["qemu"]
        runs, destination = self._arrived(last["status"] == "completed")
        return Result(
            f"{version['major']}.{version['minor']}.{version['micro']}", last, destination, runs, seconds
        )

    def memory(self, side: str, start: int, size: int) -> bytes:
        """Guest-physical memory of "source" or "destination", which had better be stopped."""
        number = ("destination", "source").index(side)
        qemu, folder = self._qemus[number], self._folders[1 + number]  # the first is shared
        qemu.execute("pmemsave", val=start, size=size, filename=f"{folder.inside}/memory")
        saved = folder.path / "memory"
        contents = saved.read_bytes()
        saved.unlink()
        return contents

    def run(self, uri: str, timeout: float = 60) -> Result:
        """Migrate to `uri` and wait for the end."""
        self.start(uri)
        return self.wait(timeout)

    def _arrived(self, expected: bool) -> tuple[bool, dict[str, Any]]:
        """Whether the guest runs at the destination, which may need a moment more than the source."""
        deadline = time.monotonic() + (10 if expected else 1)
        try:
            while time.monotonic() < deadline:
                status = self.destination.execute("query-migrate")
                if status.get("status") in ENDED:
                    break
                time.sleep(0.01)
            while not (runs := self.destination.execute("query-status")["running"]) and expected:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            return bool(runs), status
        except QmpError:
            return False, {}


def _replaced(text: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def poll(what: Callable[[], bool], timeout: float = 10) -> bool:
    """Whether `what` becomes true in time."""
    deadline = time.monotonic() + timeout
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
