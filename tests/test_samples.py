"""The samples: real migrations, saved stripped, are decoded as before, and as QEMU itself has it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from migsniff.cli import main
from tests.counters import agrees

README = Path(__file__).parent.parent / "README.md"
SAMPLES = Path(__file__).parent.parent / "captures/samples"
NAMES = sorted(path.parent.name for path in SAMPLES.glob("*/qemu.json"))
DESCRIBED = sorted(path.parent.name for path in SAMPLES.glob("*/script.state.json.zst"))
# QEMU's counters are of more than the wire tells, or wrong: the same differences as in tests/matrix.py
NOT_COUNTED = {
    "x86-72-cancelled": "it tells none",
    "x86-72-refused": "it tells none",
    "x86-72-colo": "it tells none",
    "x86-72-compress": "idle threads count their last zero page again",
    "x86-72-multifd": "a page that is sent again, in the next packet, is not counted",
    "x86-72-ignore-shared": "the total leaves shared blocks out",
    "x86-100-ignore-shared": "the total leaves shared blocks out",
    "x86-100-background-snapshot": "when the guest stood still is not told",
}


def kept(name: str, file: str) -> bytes:
    packed = (SAMPLES / name / f"{file}.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


def printed(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> bytes:
    assert main(arguments) in (0, 1)
    return capfdbinary.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_decodes_as_it_did(name: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """If it should not: `python -m captures.samples.make --golden`, and look at the difference."""
    assert printed(capfdbinary, "read", "-T", "ndjson", str(SAMPLES / name)) == kept(name, "golden.ndjson")


@pytest.mark.parametrize(
    ("number", "name"), [(1, "x86-72-return-path"), (2, "failed/11-rom-missing")], ids=["fine", "failed"]
)
def test_the_readme_shows_what_is_printed(
    number: int, name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Lines that are left out are "...", and so is what is cut off of a line."""
    block = README.read_text().split("```")[1 + 2 * number]
    shown = re.sub(r"\n {30}", " ", block).strip("\n").split("\n")
    out = printed(capfdbinary, "read", "--descriptions", "none", str(SAMPLES / name)).decode()
    lines = iter(out.splitlines())
    assert shown
    for text in shown:
        start, _, _ = text.strip().partition("...")
        whole = start == text.strip()
        assert any(line.strip() == start if whole else line.strip().startswith(start) for line in lines), text


@pytest.mark.parametrize("what", ["state", "desc"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_analyze_prints_what_qemus_script_prints(
    name: str, what: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    own = printed(capfdbinary, "analyze", "-d", what, "-f", str(SAMPLES / name))
    assert own == kept(name, f"script.{what}.json")


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(NOT_COUNTED)))
def test_the_log_counts_what_qemu_counted(name: str) -> None:
    qemu = json.loads((SAMPLES / name / "qemu.json").read_text())
    events: list[dict[str, Any]] = [json.loads(line) for line in kept(name, "golden.ndjson").splitlines()]
    agrees(qemu["version"], qemu["source"]["ram"], events)


def test_the_samples_are_small_and_of_every_kind() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 5 << 20
    about = [json.loads((SAMPLES / name / "qemu.json").read_text()) for name in NAMES]
    versions = {tuple(one["version"].split(".")[:2]) for one in about}
    assert versions == {("5", "2"), ("7", "2"), ("10", "0"), ("11", "1")}
    assert {one["arch"] for one in about} >= {"x86_64", "aarch64", "riscv64", "ppc64"}
    assert {one["source"]["status"] for one in about} == {"completed", "cancelled", "failed", "colo"}
