"""tshark and tcpdump, counterparts of packet captures: tests skip without them, unless told not to."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REQUIRED = os.environ.get("MIGSNIFF_REQUIRE_TOOLS", "")


def require_tool(name: str) -> None:
    """Skip the calling test if this program is not here; fail it where it has to be."""
    if shutil.which(name) is None:
        if REQUIRED:
            pytest.fail(f"{name} is not installed, but MIGSNIFF_REQUIRE_TOOLS demands it")
        pytest.skip(f"{name} is not installed")


def tshark(path: Path, *options: str) -> list[str]:
    """The lines that tshark prints of a capture."""
    require_tool("tshark")
    done = subprocess.run(
        ["tshark", "-n", "-r", str(path), *options], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
