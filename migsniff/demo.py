"""The demo: a real migration between two QEMUs through the proxy, or a bundled capture played through it."""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from migsniff.core.arrivals import Chunk, Direction
from migsniff.core.session import Session
from migsniff.feed.files import open_source
from migsniff.proxy import serve
from migsniff.qemu import Qemu, QmpError, boot_disk
from migsniff.show.log import LogOptions

BUNDLED: Final = Path(__file__).parent / "demo_capture"
PROGRAM: Final = "qemu-system-x86_64"
MEMORY: Final = 256  # MiB of guest memory
WORKLOAD: Final = 96  # MiB of it that the guest keeps writing to
BANDWIDTH: Final = 60_000_000  # bytes a second: slow enough to be watched
NOT_CONVERGING: Final = (
    3.0  # seconds of a guest that writes faster than that, before more downtime is allowed
)
PATIENCE: Final = 60.0  # seconds


def demo(options: argparse.Namespace, log_options: LogOptions) -> int:
    """Run the proxy in this thread and the migration in another; returns the proxy's exit code."""
    with tempfile.TemporaryDirectory(prefix="migsniff-demo-") as name:
        folder = Path(name)
        version = _qemu_version()
        if options.replay or version is None:
            why = "" if options.replay else f" ({PROGRAM} is not installed)"
            print(f"migsniff demo: playing a bundled capture through the proxy{why}", file=sys.stderr)
            migration: _Migration = _Replayed(folder)
        else:
            print(f"migsniff demo: a migration between two {version}", file=sys.stderr)
            migration = _Real(folder)
        options.listen, options.forward = [f"unix:{folder}/proxy"], [f"unix:{folder}/destination"]
        options.drain_after_failure = 0.0
        options.allow, options.ram, options.no_save, options.no_decode = [], "strip", False, False
        migration.start()
        try:
            code = serve(options, log_options)
        finally:
            migration.stop()
        print(f"migsniff demo: {migration.outcome}", file=sys.stderr)
        return code or migration.code


def _qemu_version() -> str | None:
    """What the installed QEMU calls itself; None if there is none."""
    program = shutil.which(PROGRAM)
    if program is None:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].replace(" emulator version", "") or None


class _Migration:
    """A migration through the proxy, in a thread of its own; `code` is 0 if it went well."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outcome = "the migration did not begin"
        self.code = 1
        self._thread = threading.Thread(target=self._run, name="migsniff-demo", daemon=True)

    def start(self) -> None:
        """Begin as soon as the proxy listens."""
        self._thread.start()

    def stop(self) -> None:
        """Wait for the end."""
        self._thread.join(PATIENCE)

    def migrate(self) -> None:
        """Do it, and set `outcome` and `code`."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (self.folder / "proxy").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            self.migrate()
        except (OSError, QmpError) as error:
            self.outcome = f"the migration failed: {error}"
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # the proxy lets it finish, and ends


class _Real(_Migration):
    """Two QEMUs, and a guest that keeps writing to its memory."""

    def migrate(self) -> None:
        folder = self.folder
        (folder / "disk").write_bytes(boot_disk(WORKLOAD))
        machine = ["-m", str(MEMORY), "-drive", f"file={folder}/disk,format=raw,if=ide,snapshot=on"]
        machine += ["-device", "virtio-net-pci", "-device", "virtio-rng-pci", "-device", "qemu-xhci"]
        destination = Qemu("x86_64", [*machine, "-incoming", "defer"], folder, "to")
        try:
            source = Qemu("x86_64", machine, folder, "from")
            try:
                self._between(source, destination)
            finally:
                source.kill()
        finally:
            destination.kill()

    def _between(self, source: Qemu, destination: Qemu) -> None:
        for qemu in (source, destination):
            states = [{"capability": "return-path", "state": True}]
            qemu.execute("migrate-set-capabilities", capabilities=states)
        source.wait_for_passes()
        source.execute("migrate-set-parameters", max_bandwidth=BANDWIDTH, downtime_limit=100)
        destination.execute("migrate-incoming", uri=f"unix:{self.folder}/destination")
        source.execute("migrate", uri=f"unix:{self.folder}/proxy")
        began = time.monotonic()
        relaxed = False
        while (state := source.execute("query-migrate"))["status"] not in ("completed", "failed"):
            passed = time.monotonic() - began
            if passed > PATIENCE:
                raise QmpError(f"still {state['status']} after {PATIENCE:.0f} s")
            if passed > NOT_CONVERGING and not relaxed:
                source.execute("migrate-set-parameters", downtime_limit=2000)
                relaxed = True
            time.sleep(0.05)
        runs = state["status"] == "completed" and destination.execute("query-status")["running"]
        self.code = 0 if runs else 1
        counted = state.get("ram", {})
        counts = f"{counted.get('normal')} normal and {counted.get('duplicate')} zero pages"
        says = f"QEMU says {state['status']}, downtime {state.get('downtime')} ms, {counts}"
        self.outcome = f"{says}; the guest {'runs on' if runs else 'does not run'} there"


class _Replayed(_Migration):
    """The bundled capture of a real migration, with zeros where guest memory was left out."""

    def migrate(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "destination"))
            listener.listen(1)
            with socket.socket(socket.AF_UNIX) as source:
                source.connect(str(self.folder / "proxy"))
                destination, _ = listener.accept()
                with destination:
                    sent = self._play(source, destination)
        self.code, self.outcome = 0, f"{sent} bytes of a recorded migration went through the proxy"

    def _play(self, source: socket.socket, destination: socket.socket) -> int:
        """Send both directions in their order, at their times; returns how much went forward."""
        ends: dict[Direction, tuple[socket.socket, socket.socket]] = {
            "fwd": (source, destination),
            "rev": (destination, source),
        }
        began, sent = time.monotonic(), 0
        for moment, direction, data in whole_stream(BUNDLED):
            time.sleep(max(0.0, began + moment / 1e6 - time.monotonic()))
            sender, receiver = ends[direction]
            got = 0
            for start in range(0, len(data), 1 << 16):
                piece = data[start : start + (1 << 16)]
                sender.sendall(piece)
                while got < start + len(piece):
                    got += len(receiver.recv(1 << 16))
            sent += len(data) if direction == "fwd" else 0
        source.shutdown(socket.SHUT_WR)
        destination.shutdown(socket.SHUT_WR)
        return sent


def whole_stream(capture: Path) -> Iterator[tuple[int, Direction, bytes]]:
    """(time, direction, bytes) of a stripped capture's chunks, with zeros for what was left out of them."""
    session = Session(note_omitted=True)
    ends: dict[Direction, int] = {"fwd": 0, "rev": 0}
    for arrival in open_source(str(capture)).arrivals():
        for _ in session.feed(arrival):
            pass
        if not isinstance(arrival, Chunk):
            continue
        whole = bytearray(arrival.end - ends[arrival.direction])
        kept = memoryview(arrival.data)
        at = ends[arrival.direction]
        base = at
        for start, stop in [*session.omitted, (arrival.end, arrival.end)]:
            length = int(start) - at
            whole[at - base : at - base + length] = kept[:length]
            kept, at = kept[length:], int(stop)
        ends[arrival.direction] = arrival.end
        yield arrival.time, arrival.direction, bytes(whole)
