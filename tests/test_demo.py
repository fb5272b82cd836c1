"""The demo: a bundled capture played through the proxy shows what it recorded; a real guest migrates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.demo import BUNDLED, whole_stream
from migsniff.expert.codes import CODES
from tests.qemu import SYSTEM, require


def run_demo(folder: Path, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The log and the messages of a demo that goes well."""
    command = [sys.executable, "-m", "migsniff", "demo", "-T", "ndjson", "-w", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("migration", "time")}


def test_the_bundled_capture_comes_out_as_it_was_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    played, messages = run_demo(tmp_path, "--replay")
    assert "playing a bundled capture" in messages
    assert main(["read", str(BUNDLED), "-T", "ndjson"]) == 0
    recorded = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    for direction in ("fwd", "rev"):
        # what rules find tells of times, which are others
        one, other = (
            [untimed(r) for r in log if r["direction"] == direction and r.get("code") not in CODES]
            for log in (played, recorded)
        )
        assert one == other


def test_the_bundled_capture_holds_no_guest_memory() -> None:
    whole = b"".join(data for _, direction, data in whole_stream(BUNDLED) if direction == "fwd")
    assert len(whole) > 100 << 20
    assert whole.startswith(b"QEVM")
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 200_000


def test_a_real_migration(tmp_path: Path) -> None:
    require(SYSTEM)
    log, messages = run_demo(tmp_path)
    assert log[-1]["outcome"] == "completed"
    assert "the guest runs on there" in messages
    counted = {
        kind: sum(r["counts"][kind] for r in log if r["type"] == "ram-section") for kind in ("normal", "zero")
    }
    assert f"{counted['normal']} normal and {counted['zero']} zero pages" in messages
