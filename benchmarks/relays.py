"""The relays that are compared: each starts in a process of its own and counts the CPU time it takes.

CPU time is what the process, with the children that it has waited for, used from being ready to having
nothing more to do after the last byte: starting and ending, which a migration does not see, are left out.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CONFIGURATION = """
global
  nbthread 2
  tune.bufsize 262144
defaults
  mode tcp
  timeout client 60s
  timeout server 60s
  timeout connect 5s
  option splice-auto
  option splice-request
listen migration
  bind 127.0.0.1:{listen}
  server destination 127.0.0.1:{forward}
"""


@dataclass
class Relay:
    """A relay that runs, or none at all (`process` is None: `port` is then the receiver's own).

    `cpu`: its CPU seconds, known once it has been stopped.
    """

    process: subprocess.Popen[bytes] | None
    port: int
    cpu: float | None = None

    def __enter__(self) -> Self:
        if self.process is None:
            return self
        deadline = time.monotonic() + 20
        while not listening(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.process.args!r} does not listen")
            time.sleep(0.01)
        self._ready = _cpu_so_far(self.process.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        now, before = _cpu_so_far(self.process.pid), 0.0
        while now - before > 0.001:
            time.sleep(0.1)
            now, before = _cpu_so_far(self.process.pid), now
        self.cpu = now - self._ready
        self.process.terminate()
        self.process.wait()

    def anonymous_memory(self) -> int:
        """Bytes of anonymous memory that the process holds now."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) << 10


Start = Callable[[int, Path], Relay]
"""Starts a relay to a port on this machine; the folder is for whatever it saves."""


def _run(command: Sequence[str], port: int, folder: Path) -> Relay:
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return Relay(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err), port)


def nothing(forward: int, folder: Path) -> Relay:
    return Relay(None, forward)


def socat(forward: int, folder: Path) -> Relay:
    port = free_port()
    listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    return _run(["socat", "-b", "1048576", listen, f"TCP4:127.0.0.1:{forward}"], port, folder)


def haproxy(forward: int, folder: Path) -> Relay:
    port = free_port()
    (folder / "haproxy.cfg").write_text(CONFIGURATION.format(listen=port, forward=forward))
    return _run(
        [_program("haproxy") or "haproxy", "-db", "-q", "-f", str(folder / "haproxy.cfg")], port, folder
    )


def migsniff(*options: str) -> Start:
    def start(forward: int, folder: Path) -> Relay:
        port = free_port()
        command = [sys.executable, "-m", "migsniff", "--listen", f"127.0.0.1:{port}"]
        command += ["--forward", f"127.0.0.1:{forward}", "-w", str(folder / "captures"), *options]
        return _run(command, port, folder)

    return start


NOTHING = "no relay"
HAPROXY = "HAProxy, splicing"
DECODING_OFF = "migsniff, decoding off"
STRIPPED = "migsniff, decoding, saving stripped"
FOREIGN = {"socat -b 1048576": socat, HAPROXY: haproxy}
OWN: dict[str, Start] = {
    DECODING_OFF: migsniff("--no-decode", "--no-save"),
    "migsniff, decoding": migsniff("--no-save"),
    STRIPPED: migsniff(),
    "migsniff, decoding, saving everything": migsniff("--ram", "keep"),
}


def installed() -> dict[str, Start]:
    """The relays that can be run here, none at all first."""
    here = {name: start for name, start in FOREIGN.items() if _program(start.__name__)}
    return {NOTHING: nothing, **here, **OWN}


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether somebody listens there; asked of the kernel, since to connect would be a migration."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A" and local.endswith(f":{port:04X}"):
                return True
    return False


def _cpu_so_far(pid: int) -> float:
    """CPU seconds of a process and of the children that it has waited for."""
    own = time.clock_gettime((~pid << 3) | 2)  # Linux: the CPU clock of another process
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
