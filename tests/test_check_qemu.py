"""`migsniff check` against what real destinations do: the same bytes go to both."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest

from migsniff.cli import main
from migsniff.compare.inventory import Inventory
from migsniff.destination import read_destination
from tests.checkpairs import ARCH, DOUBT, DUMP, FAIL, LOAD, Pair
from tests.loading import load, schema, stream
from tests.qemu import require

pytestmark = pytest.mark.timeout(120)
DOCUMENT = Path(__file__).parent.parent / "docs/check.md"
ALL = (*FAIL, *DUMP, *DOUBT, *LOAD)
BOOT = 4.0
"""Seconds in which what is on a disk has been booted."""


class About(TypedDict):
    """What both sides of a pair have."""

    arch: str
    disk: bytes


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
    message = re.split(
        r"\. Make sure| \(|, perhaps: |: unless |: the destination has no |\. Allowed", message
    )[0]
    message = message.replace("version_id  ", "version_id ")  # two spaces before QEMU 10.0
    message = re.sub(r"^\S+/(?=\S+: incoming version_id)", "", message)  # a vmstate has no path
    return re.sub(
        r"^(Missing section footer for \S+?):? .*|^(Missing section footer for \S+?):$", r"\1\2", message
    )


@dataclass(frozen=True)
class Tried:
    """A pair that was tried: what the destination did and said, and the files that `check` gets."""

    pair: Pair
    folder: Path
    loads: bool
    said: list[str]

    @property
    def capture(self) -> Path:
        return self.folder / "capture"

    @property
    def against(self) -> Path:
        return self.folder / "against"

    def confirms(self, message: str) -> bool:
        """Whether the destination said this first, of all that is not what any failure brings with it."""
        usual = ("load of ", "Failed to load ")
        lines = map(core, self.said)
        first = next(line for line in lines if core(message) in line or not line.startswith(usual))
        return core(message) in first


def tried(pair: Pair, folder: Path, *, runs: float = 0) -> Tried:
    """The same bytes go to the destination and into a file, the destination's own stream into another."""
    for version in (pair.source, pair.destination):
        require(version, pair.arch)
    about = About(arch=pair.arch, disk=pair.disk)
    runs = BOOT if pair.disk else runs
    sent = stream(pair.source, pair.arguments, runs=runs, capabilities=pair.capabilities, **about)
    own = stream(pair.destination, pair.destination_arguments, runs=BOOT if pair.disk else 0, **about)
    loads, said = load(pair.destination, pair.destination_arguments, sent, **about)
    one = Tried(pair, folder, loads, said)
    one.capture.write_bytes(sent)
    one.against.write_bytes(own)
    return one


@pytest.mark.parametrize("runs", [0, 1.5], ids=["at reset", "firmware ran"])
@pytest.mark.parametrize("pair", [*FAIL, *LOAD], ids=lambda pair: pair.name)
def test_the_prediction_is_what_happens(
    pair: Pair, runs: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tried(pair, tmp_path, runs=runs)
    assert one.loads is (pair in LOAD), one.said
    code, findings = checked(capsys, one.capture, one.against)
    errors = [each["message"] for each in findings if each["severity"] == "error"]
    assert (code, bool(errors)) == ((0, False) if one.loads else (1, True)), (one.said, errors)
    if not one.loads:
        assert one.confirms(errors[0]), (one.said, errors)
    warnings = [each["code"] for each in findings if each["severity"] == "warn"]
    if one.loads:
        assert warnings == list(pair.warned)
    print(json.dumps([pair.name, runs, one.loads, one.said[:1], errors[:1], warnings]))


@pytest.mark.parametrize("pair", DOUBT, ids=lambda pair: pair.name)
def test_a_warning_is_what_happens(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream cannot tell what is not in it: which capabilities will be set, what a host allows."""
    one = tried(pair, tmp_path)
    assert not one.loads
    code, findings = checked(capsys, one.capture, one.against)
    assert code == 0
    (warning,) = [each["message"] for each in findings if each["severity"] == "warn"]
    assert one.confirms(warning), (one.said, warning)


@pytest.mark.parametrize("pair", DUMP, ids=lambda pair: pair.name)
def test_what_only_a_dump_tells(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tried(pair, tmp_path)
    assert not one.loads
    code, findings = checked(capsys, one.capture, one.against)
    assert [each["code"] for each in findings if each["severity"] == "error"] == list(pair.later)
    assert code == bool(pair.later)
    one.against.write_bytes(schema(pair.destination, pair.destination_arguments, arch=pair.arch))
    code, findings = checked(capsys, one.capture, one.against)
    assert code == 1
    (error,) = [each["message"] for each in findings if each["severity"] == "error"]
    assert one.confirms(error), (one.said, error)


@pytest.mark.parametrize("pair", ALL, ids=lambda pair: pair.name)
def test_a_dump_says_nothing_wrong(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for version in (pair.source, pair.destination):
        require(version, pair.arch)
    capture, against = tmp_path / "capture", tmp_path / "against"
    capture.write_bytes(stream(pair.source, pair.arguments, arch=pair.arch, capabilities=pair.capabilities))
    against.write_bytes(schema(pair.destination, pair.destination_arguments, arch=pair.arch))
    code, findings = checked(capsys, capture, against)
    wrong = [each["code"] for each in findings if each["severity"] in ("warn", "error")]
    assert wrong == list(pair.dump), findings  # of what fails here, why it tells no more: see the document
    assert code == bool(wrong)


@pytest.mark.parametrize("version", ["5.2", "7.2", "10.0", "11.1"])
@pytest.mark.parametrize(
    ("runs", "commands", "at_reset"),
    [(0, [], True), (0.3, ["stop"], False), (0.3, ["stop", "system_reset"], False)],
    ids=["never ran", "stopped", "stopped and reset"],
)
def test_whether_a_guest_has_ever_run(
    version: str, runs: float, commands: list[str], at_reset: bool, tmp_path: Path
) -> None:
    """What no reset clears may be a guest's: then nothing is certain of it."""
    require(version, ARCH)
    path = tmp_path / "stream"
    path.write_bytes(stream(version, "-M q35", runs=runs, commands=commands))
    made = read_destination(str(path)).local
    assert isinstance(made, Inventory)
    assert made.at_reset is at_reset


def test_the_document_lists_the_pairs() -> None:
    rows = re.findall(r"^\| ([^|]+) \| [\d.]+ → [\d.]+ \|", DOCUMENT.read_text(), re.MULTILINE)
    assert [row.strip() for row in rows] == [pair.name for pair in ALL]
    assert len({pair.name for pair in ALL}) == len(ALL)
    counts = (len(FAIL), len(LOAD), len(DUMP), len(DOUBT))
    told = "Of the {} pairs below {} fail and {} load, as `check` predicts from a stream; {} fail as only"
    assert told.format(sum(counts), *counts[:3]) in DOCUMENT.read_text()
    assert f"and {counts[3]} of which a stream can only warn" in DOCUMENT.read_text()
    assert f"[{sum(counts)} pairs of QEMUs" in (DOCUMENT.parent.parent / "README.md").read_text()
