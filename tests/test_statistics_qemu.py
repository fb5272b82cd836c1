"""The downtime on the wire beside QEMU's own, in real migrations through the proxy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.qemu import Migration, require
from tests.relays import Proxy


@pytest.mark.parametrize("version", ["5.2", "7.2", "10.0", "11.1"])
@pytest.mark.parametrize("caps", [["return-path"], ["return-path", "multifd"]], ids="+".join)
def test_downtime(version: str, caps: list[str], tmp_path: Path) -> None:
    """With a return path QEMU's clock runs on until it has read SHUT: the wire's part of it is not longer."""
    require(version)
    with (
        Migration(version, workload=16, caps=caps, params={"downtime-limit": 300}) as migration,
        Proxy(tmp_path, migration.listen()) as proxy,
    ):
        result = migration.run(f"tcp:{proxy.where}")
        assert result.status == "completed"
        assert proxy.verdicts()[0]["outcome"] == "completed"
        assert proxy.stop() == 0
    command = [sys.executable, "-m", "migsniff", "read", "-q", "-z", "downtime", "-T", "ndjson"]
    printed = subprocess.run([*command, str(proxy.capture())], capture_output=True, check=True).stdout
    (table,) = map(json.loads, printed.splitlines())
    steps = [row["step"] for row in table["rows"]]
    assert steps.count("EOF") == steps.count("description") == 1
    assert "devices" in steps
    assert steps[-1] == "reply"
    assert table["rows"][-1]["what"].endswith("SHUT 0")
    total = table["rows"][-1]["at"]
    assert sum(row["took"] for row in table["rows"]) == pytest.approx(total)
    # QEMU counts in whole milliseconds, from before it stops the guest until it has read SHUT; the relay
    # takes the time when it has sent SHUT on, and may be kept from that for some scheduler's slices
    assert 0 < total * 1000 <= result.source["downtime"] + 10
