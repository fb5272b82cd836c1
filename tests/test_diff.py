"""migsniff diff: structure and values of two captures, exit codes as diff(1), what is left out on demand."""

import json
from pathlib import Path

import pytest

from migsniff.cli import main

SAMPLES = Path(__file__).parent.parent / "captures/samples"
NAMES = sorted(path.parent.name for path in SAMPLES.glob("*/manifest.json"))
A_PAGE = 60
"""Lines."""
Run = tuple[int, list[str], str]


def diff(capfd: pytest.CaptureFixture[str], one: str, other: str, *options: str) -> Run:
    capfd.readouterr()
    sides = [str(SAMPLES / name) if name in NAMES else name for name in (one, other)]
    code = main(["diff", "--descriptions", "none", *options, *sides])
    out, err = capfd.readouterr()
    return code, out.splitlines(), err


@pytest.mark.parametrize("name", NAMES)
def test_a_capture_does_not_differ_from_itself(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = diff(capfd, name, name)
    assert (code, lines) == (0, [])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("x86-72-pc", "x86-100-pc", "! machine type: pc-i440fx-7.2 -> pc-i440fx-10.0"),
        ("x86-72-pc", "x86-100-pc", "! size globalstate/0.runstate: 100 bytes -> 32 bytes"),
        ("x86-72-pc", "x86-100-pc", "+ extra: command SWITCHOVER_START"),
        ("x86-72-pc", "x86-72-ipmi", "+ extra: section "),
        ("x86-72-ipmi", "x86-72-pc", "- missing: section "),
        ("x86-72-pc", "x86-72-return-path", "! cpu_common/0.halted: 1 -> 0"),
    ],
)
def test_what_differs(one: str, other: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = diff(capfd, one, other)
    assert code == 1
    assert any(line.startswith(expected) for line in lines), lines


def test_the_other_way_round_is_the_mirror_image(capfd: pytest.CaptureFixture[str]) -> None:
    _, there, _ = diff(capfd, "x86-72-pc", "x86-100-pc")
    _, back, _ = diff(capfd, "x86-100-pc", "x86-72-pc")
    turned = {"+ extra: ": "- missing: ", "- missing: ": "+ extra: "}

    def mirrored(line: str) -> str:
        for mark, other in turned.items():
            if line.startswith(mark):
                return other + line.removeprefix(mark)
        label, arrow, value = line.partition(" -> ")
        if not arrow:
            return line
        name, _, before = label.partition(": ")
        return f"{name}: {value} -> {before}"

    marks = ("+ extra", "- missing", "! ")
    told = {line for line in there if line.startswith(marks)}
    assert {mirrored(line) for line in back if line.startswith(marks)} == told


def test_what_is_ignored_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    _, every, _ = diff(capfd, "x86-72-pc", "x86-100-pc")
    code, fewer, _ = diff(capfd, "x86-72-pc", "x86-100-pc", "--ignore", "clocks", "--ignore", "cpu/0.*")
    assert code == 1
    assert len(fewer) < len(every)
    assert not any(line.startswith("! cpu/0.") for line in fewer)
    assert "ignored" in fewer[-1]


def test_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = diff(capfd, "x86-72-pc", "x86-100-pc", "-T", "json")
    assert code == 1
    told = json.loads("\n".join(lines))
    first = told["differences"][0]
    assert (first["what"], first["left"]["text"], first["right"]["text"]) == (
        "machine type",
        "pc-i440fx-7.2",
        "pc-i440fx-10.0",
    )


def test_brief(capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = diff(capfd, "x86-72-pc", "x86-100-pc", "-q")
    assert (code, len(lines)) == (1, 1)
    assert diff(capfd, "x86-72-pc", "x86-72-pc", "-q")[:2] == (0, [])


def test_what_cannot_be_read_is_trouble(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = tmp_path / "nothing"
    code, lines, err = diff(capfd, "x86-72-pc", str(nothing))
    assert (code, lines) == (2, [])
    assert "nothing" in err
    nothing.write_bytes(b"no stream")
    code, _, err = diff(capfd, "x86-72-pc", str(nothing))
    assert code == 2
    assert "Traceback" not in err


def test_a_side_is_read_to_its_description() -> None:
    """A sink's `ended` would stop the reading: an inventory must have no such thing."""
    from migsniff.compare.inventory import Inventory
    from migsniff.offline import survey

    found = Inventory()
    survey(str(SAMPLES / "x86-72-pc"), lambda migration: [found], lambda migration: None, fields=True)
    assert (found.all_sent, found.described, found.verdict is not None) == (True, True, True)
