"""Starts the ends of a connection and reads what they print."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Process = subprocess.Popen[str]


def spawn(command: str, *arguments: object, told: bool = True) -> tuple[Process, dict[str, Any]]:
    """Run `benchmarks.ends COMMAND`; if `told`, with the first line it prints, where it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ends", command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline()) if told else {}


def finish(process: Process, timeout: float = 120) -> dict[str, Any]:
    """The last line that it prints."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return dict(json.loads(printed.splitlines()[-1]))
