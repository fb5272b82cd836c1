"""`migsniff check` against what real destinations do: the same bytes go to both."""

import contextlib
import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.qemu import Qemu, QmpError
from tests.checkpairs import FAIL, LOAD, Pair
from tests.qemu import Folder, require

pytestmark = pytest.mark.timeout(120)
DOCUMENT = Path(__file__).parent.parent / "docs/check.md"
NAMES = [pair.name for pair in (*FAIL, *LOAD)]


class Side:
    """A QEMU in a folder of its own."""

    def __init__(self, version: str, arguments: str, *options: str) -> None:
        self.folder = Folder(version)
        try:
            words = ["-m", "64", *shlex.split(arguments), *options]
            self.qemu = Qemu(
                "x86_64", words, self.folder.path, "qemu", enter=self.folder.enter, inside=self.folder.inside
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


def stream(version: str, arguments: str, *, runs: float = 0) -> bytes:
    """What this QEMU migrates, after `runs` seconds of its firmware."""
    side = Side(version, arguments, *([] if runs else ["-S"]))
    try:
        time.sleep(runs)
        side.qemu.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        side.qemu.execute("migrate", uri=f"exec:cat>{side.folder.inside}/stream")
        assert side.ended() == "completed"
        return (side.folder.path / "stream").read_bytes()
    finally:
        side.close()


def load(version: str, arguments: str, data: bytes) -> tuple[bool, list[str]]:
    """Whether this QEMU loads a stream, and what it says."""
    side = Side(version, arguments, "-S", "-incoming", "defer")
    try:
        (side.folder.path / "stream").write_bytes(data)
        with contextlib.suppress(QmpError, OSError):  # it may be gone before it answers
            side.qemu.execute("migrate-incoming", uri=f"exec:cat {side.folder.inside}/stream")
        loads = side.ended() == "completed"
        said = [line.partition(": ")[2] for line in side.qemu.log.splitlines() if "warning: " not in line]
        return loads, said
    finally:
        side.close()


def schema(version: str, arguments: str) -> bytes:
    """What this QEMU's -dump-vmstate writes."""
    folder = Folder(version)
    try:
        options = ["-display", "none", "-nodefaults", *shlex.split(arguments)]
        command = [*folder.enter, "qemu-system-x86_64", *options, "-dump-vmstate", f"{folder.inside}/schema"]
        subprocess.run(command, check=True, capture_output=True)
        return (folder.path / "schema").read_bytes()
    finally:
        folder.remove()


def checked(
    capsys: pytest.CaptureFixture[str], capture: Path, against: Path
) -> tuple[int, list[dict[str, Any]]]:
    code = main(["check", str(capture), "--against", str(against), "-T", "json", "--descriptions", "none"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["loads"] is (code == 0)
    return code, found["findings"]


def core(message: str) -> str:
    """A message without what versions of QEMU word differently, and what migsniff adds."""
    message = message.replace("savevm section", "section").replace("get_pci_config_device: ", "")
    message = re.split(r"\. Make sure| \(", message)[0]
    return re.sub(
        r"^(Missing section footer for \S+?):? .*|^(Missing section footer for \S+?):$", r"\1\2", message
    )


@pytest.mark.parametrize("runs", [0, 1.5], ids=["at reset", "firmware ran"])
@pytest.mark.parametrize("pair", [*FAIL, *LOAD], ids=NAMES)
def test_the_prediction_is_what_happens(
    pair: Pair, runs: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in (pair.source, pair.destination):
        require(version)
    capture, against = tmp_path / "capture", tmp_path / "against"
    capture.write_bytes(stream(pair.source, pair.arguments, runs=runs))
    against.write_bytes(stream(pair.destination, pair.destination_arguments))
    loads, said = load(pair.destination, pair.destination_arguments, capture.read_bytes())
    assert loads is (pair in LOAD), said
    code, findings = checked(capsys, capture, against)
    errors = [each["message"] for each in findings if each["severity"] == "error"]
    assert (code, bool(errors)) == ((0, False) if loads else (1, True)), (said, errors)
    if not loads:
        first = next(line for line in map(core, said) if core(errors[0]) in line or "load of" not in line)
        assert core(errors[0]) in first
    warnings = [each["message"] for each in findings if each["severity"] == "warn"]
    if loads:
        assert warnings == []
    print(json.dumps([pair.name, runs, loads, said[:1], errors[:1], warnings]))


@pytest.mark.parametrize("pair", [*FAIL, *LOAD], ids=NAMES)
def test_a_schema_says_nothing_wrong(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in (pair.source, pair.destination):
        require(version)
    capture, against = tmp_path / "capture", tmp_path / "against"
    capture.write_bytes(stream(pair.source, pair.arguments))
    against.write_bytes(schema(pair.destination, pair.destination_arguments))
    code, findings = checked(capsys, capture, against)
    wrong = [each["code"] for each in findings if each["severity"] in ("warn", "error")]
    # of what fails here it can tell the machine type alone: see the document
    assert wrong == (["check-machine"] if pair.name.startswith("machine type") else []), findings
    assert code == bool(wrong)


def test_the_document_lists_the_pairs() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ → [\d.]+ \|", DOCUMENT.read_text(), re.MULTILINE)
    assert [row.strip() for row in rows] == NAMES
    assert len(FAIL) >= 12
    assert len(LOAD) >= 12
