"""A network of a test's own, so that what it sniffs is its own: others migrate meanwhile."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

CLONE_NEWNET = 0x40000000  # linux/sched.h


def _call(function: str, *arguments: int) -> None:
    """A system call that Python has only from 3.12 on; it is for the calling thread and what that starts."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """A network namespace with nothing but its loopback interface; skips where that needs more rights."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        try:
            _call("unshare", CLONE_NEWNET)
        except PermissionError:
            pytest.skip("a network namespace needs CAP_SYS_ADMIN")
        try:
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            yield
        finally:
            _call("setns", before, CLONE_NEWNET)
    finally:
        os.close(before)
