"""A real QEMU under control, for the demo and the tests: QMP, and a guest that needs no disk image."""

import json
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# ---------------------------------------------------------------- the guest

# A boot sector, as an assembler would list it. It fills every fourth page from 1 MiB to END once with
# pseudo-random words, then for ever adds 1 to a byte of every second page of the lower half and counts its
# passes.
COUNTER_ADDRESS = 0x6000
_CODE = """
    fa                  cli                         ; 16 bits, loaded at 0x7c00
    fc                  cld
    31 c0               xor     ax, ax
    8e d8               mov     ds, ax
    e4 92               in      al, 0x92            ; A20 gate
    0c 02               or      al, 2
    e6 92               out     0x92, al
    0f 01 16 f0 7d      lgdt    [0x7df0]
    0f 20 c0            mov     eax, cr0
    0c 01               or      al, 1               ; protected mode
    0f 22 c0            mov     cr0, eax
    ea 1e 7c 08 00      jmp     8:0x7c1e
    66 b8 10 00         mov     ax, 16              ; 32 bits from here on
    8e d8               mov     ds, ax
    8e c0               mov     es, ax
    8b 1d f8 7d 00 00   mov     ebx, [0x7df8]       ; END
    b8 78 56 34 12      mov     eax, 0x12345678
    bf 00 00 10 00      mov     edi, 0x100000
    b9 00 04 00 00      mov     ecx, 1024           ; fill: one page of words
    69 c0 0d 66 19 00   imul    eax, eax, 1664525
    05 5f f3 6e 3c      add     eax, 1013904223
    ab                  stosd
    e2 f2               loop    -14
    81 c7 00 30 00 00   add     edi, 0x3000         ; leave three pages
    39 df               cmp     edi, ebx
    72 e3               jb      fill
    d1 eb               shr     ebx, 1
    ff 05 00 60 00 00   inc     dword [0x6000]      ; again: the counter
    bf 00 00 10 00      mov     edi, 0x100000
    fe 07               inc     byte [edi]          ; touch
    81 c7 00 20 00 00   add     edi, 0x2000
    39 df               cmp     edi, ebx
    72 f4               jb      touch
    0f 20 c0            mov     eax, cr0            ; flip WP: QEMU forgets its translations; some versions
    35 00 00 01 00      xor     eax, 0x10000        ; miss writes through those older than a dirty sync
    0f 22 c0            mov     cr0, eax
    eb dc               jmp     again
"""
_GDT = struct.pack("<3Q", 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF)
_GDT_AT, _GDTR_AT, _END_AT = 0x1D8, 0x1F0, 0x1F8


def boot_disk(mib: int) -> bytes:
    """A disk image whose boot sector keeps dirtying `mib` MiB of the guest's memory."""
    code = bytes.fromhex("".join(line[4:23] for line in _CODE.splitlines() if line.strip()))
    image = bytearray(1 << 20)
    image[: len(code)] = code
    image[_GDT_AT:_GDTR_AT] = _GDT
    struct.pack_into("<HI", image, _GDTR_AT, len(_GDT) - 1, 0x7C00 + _GDT_AT)
    struct.pack_into("<I", image, _END_AT, mib << 20)
    image[510:512] = b"\x55\xaa"
    return bytes(image)


# ---------------------------------------------------------------- one QEMU


class QmpError(Exception):
    """QEMU refused a command, or is gone."""


class Qemu:
    """A running QEMU and its QMP connection. `log` is what it wrote to standard error.

    `folder` is where its log and sockets go; `enter` is the command that runs it in another root file system,
    in which the folder is called `inside`.
    """

    def __init__(
        self,
        arch: str,
        arguments: Sequence[str],
        folder: Path,
        name: str,
        *,
        enter: Sequence[str] = (),
        inside: Path | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        command = [*enter, f"qemu-system-{arch}", "-accel", "tcg", "-display", "none", "-nodefaults"]
        command += ["-serial", "null", "-monitor", "none"]
        command += ["-qmp", f"unix:{inside or folder}/{name}.qmp,server=on,wait=off", *arguments]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        self._opened = ExitStack()
        try:
            self._socket = self._opened.enter_context(self._connect(str(folder / f"{name}.qmp")))
            self._answers = self._opened.enter_context(self._socket.makefile("rb"))
            self._answers.readline()
            self.execute("qmp_capabilities")
        except BaseException:
            self.kill()
            raise

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(errors="replace")

    def _connect(self, path: str) -> socket.socket:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(30)
            try:
                connection.connect(path)
                return connection
            except OSError:
                connection.close()
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise QmpError(f"QEMU ({self.name}) did not start: {self.log}")

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU returns for a QMP command; underscores in argument names stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode() + b"\n")
            while line := self._answers.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise QmpError(f"{command}: QEMU ({self.name}) is gone: {self.log}") from error
        raise QmpError(f"{command}: QEMU ({self.name}) is gone: {self.log}")

    def passes(self) -> int:
        """How many times the workload went over its memory."""
        shown = self.execute("human-monitor-command", command_line=f"xp /1wx {COUNTER_ADDRESS:#x}")
        return int(shown.split()[-1], 16)

    def wait_for_passes(self, more: int = 1, timeout: float = 60) -> None:
        """Wait until the workload has gone over its memory `more` times from now."""
        first = self.passes()
        deadline = time.monotonic() + timeout
        # before the boot sector runs the firmware may have left anything there: a jump down or up by far
        while not 0 < self.passes() - first < 1 << 16 or self.passes() - first < more:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the workload ({self.name}) stands still: {self.log}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.process.kill()
        self.process.wait()
        self._opened.close()
