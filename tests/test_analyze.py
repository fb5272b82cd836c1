"""`migsniff analyze` as it is used: what it prints, writes, says on standard error, and its exit code.

That it prints what QEMU's script prints of real streams is in test_samples.py.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from tests import rawsamples
from tests.playing import precopy
from tests.streams import (
    EOF,
    HEADER,
    PAGE_SIZE,
    TIMER,
    Device,
    command,
    configuration,
    described,
    filled,
    full,
    normal,
    ping,
    ram_end,
    ram_part,
    ram_start,
    xbzrle,
    zero,
)

ROOT = Path(__file__).parents[1]
COMPLETE = HEADER + configuration()
BLOCKS = {b"pc.ram": 4 * PAGE_SIZE, b"/rom@etc/acpi/tables": PAGE_SIZE}
RAM = (
    ram_start(BLOCKS)
    + ram_part(normal(PAGE_SIZE, b"pc.ram"), zero(0), zero(0, b"/rom@etc/acpi/tables"))
    + ram_end(normal(0, b"pc.ram", filled(PAGE_SIZE, 1)), zero(PAGE_SIZE))
)
PRECOPY = precopy(COMPLETE, RAM, TIMER.item(), EOF, described([TIMER])).main
SIZES = {"pc.ram": "0x0000000000004000", "/rom@etc/acpi/tables": "0x0000000000001000"}
TIMER_STATE = {"data": TIMER.payload.hex(" ")}
STATE: dict[str, Any] = {"ram (2)": {"section sizes": SIZES}, "timer (0)": TIMER_STATE}
MEMORY = {
    "pc.ram (0x0000000000001000)": "Filled with 0x00",
    "pc.ram (0x0000000000000000)": filled(PAGE_SIZE, 1).hex(" "),
    "/rom@etc/acpi/tables (0x0000000000000000)": "Filled with 0x00",
}
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump"
    path.write_bytes(PRECOPY)
    return path


def analyze(*arguments: object) -> int:
    return main(["analyze", *map(str, arguments)])


def script_json(document: object) -> str:
    """As the script writes JSON."""
    return json.dumps(document, indent=4, separators=(",", ": "))


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


# ---------------------------------------------------------------- what the script prints


def test_state(dump: Path, capfd: Captured) -> None:
    assert analyze("-f", dump) == 0
    assert capfd.readouterr() == (script_json(STATE) + "\n", "")


def test_description(dump: Path, capfd: Captured) -> None:
    assert analyze("--file", dump, "--dump", "desc", "-m") == 0
    description = {"page_size": PAGE_SIZE, "devices": [TIMER.describe()]}
    assert capfd.readouterr() == (script_json(description) + "\n", "")


def test_memory(dump: Path, capfd: Captured) -> None:
    assert analyze("-m", "-f", dump) == 0
    ram = {"section sizes": SIZES, "memory": MEMORY}
    assert capfd.readouterr() == (script_json({**STATE, "ram (2)": ram}) + "\n", "")


def test_memory_without_a_page(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "dump").write_bytes(COMPLETE + ram_start(BLOCKS) + ram_end() + EOF)
    assert analyze("-m", "-f", tmp_path / "dump") == 0
    ram = {"section sizes": SIZES, "memory": {}}
    assert capfd.readouterr() == (script_json({"ram (2)": ram}) + "\n", "")


def test_extract(dump: Path, tmp_path: Path, capfd: Captured) -> None:
    out = tmp_path / "out"
    assert analyze("-x", "-m", "-d", "desc", "-f", dump, "--output-dir", out) == 0
    assert capfd.readouterr() == ("desc.json\npc.ram\n/rom@etc/acpi/tables\nstate.json\n", "")
    assert files(out) == {
        "desc.json": script_json({"page_size": PAGE_SIZE, "devices": [TIMER.describe()]}).encode(),
        "state.json": script_json(STATE).encode(),
        "pc.ram": filled(PAGE_SIZE, 1) + bytes(3 * PAGE_SIZE),  # no stale page
        "rom@etc/acpi/tables": bytes(PAGE_SIZE),
    }
    assert {p.stat().st_mode & 0o777 for p in out.rglob("*") if p.is_file()} == {0o600}


def test_extract_again_and_into_the_current_folder(
    dump: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    assert analyze("-x", "-f", dump) == 0
    first = files(out)
    (out / "pc.ram").write_bytes(filled(10 * PAGE_SIZE))
    assert analyze("-x", "-f", dump) == 0
    assert files(out) == first


@pytest.mark.parametrize(
    "name", [n for n in rawsamples.NAMES if n in ("x86-72-passes", "x86-111-return-path")]
)
def test_memory_and_files_of_a_real_stream_agree(name: str, tmp_path: Path, capfd: Captured) -> None:
    dump = tmp_path / "dump"
    dump.write_bytes(rawsamples.raw(name).main)
    assert analyze("-x", "-f", dump, "--output-dir", tmp_path / "out") == 0
    blocks = capfd.readouterr().out.splitlines()[1:-1]
    assert analyze("-m", "-f", dump) == 0
    state = json.loads(capfd.readouterr().out)
    ram = next(section for key, section in state.items() if key.startswith("ram ("))
    assert list(ram["section sizes"]) == blocks
    contents = {block: bytearray(int(length, 16)) for block, length in ram["section sizes"].items()}
    for key, value in ram["memory"].items():
        block, address = key.removesuffix(")").split(" (")
        if value != "Filled with 0x00":
            page = bytes.fromhex(value)
            contents[block][int(address, 16) : int(address, 16) + len(page)] = page
    assert len(ram["memory"]) > 1000
    for block, expected in contents.items():
        assert (tmp_path / "out" / block.lstrip("/")).read_bytes() == expected


# ---------------------------------------------------------------- what the script cannot read


def test_commands_are_no_obstacle(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "dump").write_bytes(
        COMPLETE + command(1) + ping(1) + RAM + TIMER.item() + EOF + described([TIMER])
    )
    assert analyze("-f", tmp_path / "dump") == 0
    assert json.loads(capfd.readouterr().out) == STATE


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_without_a_description(tmp_path: Path, capfd: Captured, mode: tuple[str, ...]) -> None:
    (tmp_path / "dump").write_bytes(COMPLETE + RAM + TIMER.item() + EOF)
    assert analyze(*mode, "-f", tmp_path / "dump") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["timer (0)"] == {"size": 24, "data": TIMER.payload.hex(" ")}
    assert err == ""
    assert analyze("-x", "-f", tmp_path / "dump", "--output-dir", tmp_path) == 0
    assert capfd.readouterr() == ("pc.ram\n/rom@etc/acpi/tables\nstate.json\n", "")
    assert not (tmp_path / "desc.json").exists()
    assert analyze("-d", "desc", "-f", tmp_path / "dump") == 1
    assert capfd.readouterr() == ("", "migsniff: the stream holds no description of its device state\n")


def test_a_device_that_the_description_does_not_know(tmp_path: Path, capfd: Captured) -> None:
    other = Device(7, b"other", b"\1\2\3")
    (tmp_path / "dump").write_bytes(COMPLETE + RAM + TIMER.item() + other.item() + EOF + described([TIMER]))
    assert analyze("-f", tmp_path / "dump") == 0
    out, _ = capfd.readouterr()
    assert json.loads(out)["other (7)"] == {"size": 3, "data": "01 02 03"}


def test_a_device_that_its_description_does_not_fit_is_told(tmp_path: Path, capfd: Captured) -> None:
    wrong = described([Device(0, b"timer", bytes(40), version=2)])
    (tmp_path / "dump").write_bytes(COMPLETE + RAM + TIMER.item() + EOF + wrong)
    assert analyze("-f", tmp_path / "dump") == 0
    out, err = capfd.readouterr()
    assert TIMER.payload.hex(" ") in out
    assert err.startswith("migsniff: field 'data' needs 40 bytes, ")
    assert err.count("\n") == 1


def test_truncated(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "dump").write_bytes(PRECOPY[:-100])
    assert analyze("-f", tmp_path / "dump") == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == {
        **STATE,
        "timer (0)": {"size": 24, "data": TIMER.payload.hex(" ")},
    }
    assert err.startswith(f"migsniff: truncated: the stream ends at offset {len(PRECOPY) - 100} of main")
    assert err.count("\n") == 1


def test_truncated_in_ram(tmp_path: Path, capfd: Captured) -> None:
    start = len(COMPLETE) + len(ram_start(BLOCKS))
    (tmp_path / "dump").write_bytes(PRECOPY[: start + 5 + 15 + PAGE_SIZE + 9 + 3])
    assert analyze("-x", "-f", tmp_path / "dump", "--output-dir", tmp_path / "out") == 1
    out, err = capfd.readouterr()
    assert out == "pc.ram\n/rom@etc/acpi/tables\nstate.json\n"
    assert err.startswith("migsniff: truncated: ")
    assert files(tmp_path / "out") == {
        "pc.ram": bytes(PAGE_SIZE) + filled(PAGE_SIZE) + bytes(2 * PAGE_SIZE),
        "rom@etc/acpi/tables": bytes(PAGE_SIZE),
        "state.json": script_json({"ram (2)": STATE["ram (2)"]}).encode(),
    }


def test_an_error_in_the_stream_is_told_once(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "dump").write_bytes(COMPLETE + RAM + b"\x55" + bytes(100))
    assert analyze("-f", tmp_path / "dump") == 1
    out, err = capfd.readouterr()
    assert json.loads(out) == {"ram (2)": STATE["ram (2)"]}
    offset = len(COMPLETE + RAM)
    place = f"at offset {offset} of main, between sections"
    assert err.startswith(f"migsniff: undecodable: unknown section type 0x55, {place}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("mode", ["-m", "-x"])
def test_deltas_are_applied(tmp_path: Path, capfd: Captured, mode: str) -> None:
    ram = ram_start(BLOCKS) + ram_part(normal(0, b"pc.ram"), xbzrle(0), xbzrle(PAGE_SIZE)) + ram_end()
    (tmp_path / "dump").write_bytes(COMPLETE + ram + EOF)
    assert analyze("-f", tmp_path / "dump") == 0
    capfd.readouterr()
    assert analyze(mode, "-f", tmp_path / "dump", "--output-dir", tmp_path) == 1
    out, err = capfd.readouterr()
    never, broken = err.splitlines()
    assert never.startswith("migsniff: page 0x1000 of pc.ram, at offset ")
    assert never.endswith(" of main: an XBZRLE delta for a page that was never sent whole")
    assert broken == "migsniff: 1 page could not be put together from what was sent last"
    page = b"\xaa" * 5 + b"abc" + b"\xaa" * (PAGE_SIZE - 8)
    if mode == "-m":
        assert json.loads(out)["ram (2)"]["memory"] == {
            "pc.ram (0x0000000000000000)": page.hex(" "),
            "pc.ram (0x0000000000001000)": "could not be put together",
        }
    else:
        assert out == "pc.ram\n/rom@etc/acpi/tables\nstate.json\n"
        assert (tmp_path / "pc.ram").read_bytes()[: 2 * PAGE_SIZE] == page + bytes(PAGE_SIZE)


def test_many_problems_are_a_few_lines(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "out").mkdir()
    blocks = {b"block%d" % number: PAGE_SIZE for number in range(50)}
    for name in blocks:
        os.mkfifo(tmp_path / "out" / name.decode())
    (tmp_path / "dump").write_bytes(COMPLETE + ram_start(blocks) + ram_end() + EOF)
    assert analyze("-x", "-f", tmp_path / "dump", "--output-dir", tmp_path / "out") == 1
    out, err = capfd.readouterr()
    assert out == "state.json\n"
    lines = err.splitlines()
    assert lines[0] == "migsniff: block0 is not complete: it exists, and is no regular file"
    assert len(lines) == 11
    assert lines[-2] == "migsniff: and more like these"


def test_no_control_characters_reach_the_terminal(tmp_path: Path, capfd: Captured) -> None:
    blocks = {b"\x1b[2J": PAGE_SIZE}
    evil = full(3, b"evil\x1b", b"x")
    (tmp_path / "dump").write_bytes(COMPLETE + ram_start(blocks) + ram_end(normal(0, b"\x1b[2J")) + evil)
    for mode in ((), ("-m",), ("-x", "--output-dir", tmp_path / "out")):
        assert analyze(*mode, "-f", tmp_path / "dump") == 1
        assert "\x1b" not in "".join(capfd.readouterr())
    assert "%5Cx1b%5B2J" in files(tmp_path / "out")


# ---------------------------------------------------------------- other sources


def test_compressed_and_from_a_pipe(dump: Path, capfd: Captured) -> None:
    packed = dump.with_suffix(".gz")
    packed.write_bytes(gzip.compress(PRECOPY))
    for mode in ((), ("-m",)):
        assert analyze(*mode, "-f", dump) == 0
        expected = capfd.readouterr()
        assert analyze(*mode, "-f", packed) == 0
        assert capfd.readouterr() == expected
        piped = subprocess.run(
            [sys.executable, "-m", "migsniff", "analyze", *mode, "-f", "-"],
            input=PRECOPY,
            capture_output=True,
            cwd=ROOT,
            check=True,
        )
        assert (piped.stdout.decode(), piped.stderr) == (expected.out, b"")


def test_a_damaged_file_gives_what_it_holds(dump: Path, tmp_path: Path, capfd: Captured) -> None:
    packed = gzip.compress(PRECOPY + os.urandom(100_000))
    (tmp_path / "dump.gz").write_bytes(packed[: len(packed) // 2])
    assert analyze("-f", tmp_path / "dump.gz") == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["ram (2)"] == STATE["ram (2)"]
    assert "dump.gz" in err


@pytest.mark.parametrize("mode", ["-m", "-x"])
@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
def test_a_stripped_capture_has_no_memory_to_show(tmp_path: Path, capfd: Captured, mode: str) -> None:
    sample = rawsamples.FOLDER / rawsamples.NAMES[0]
    assert analyze(mode, "-f", sample, "--output-dir", tmp_path / "out") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith(
        "page contents are needed, and this capture was saved without them (--ram keep saves them)\n"
    )
    assert not (tmp_path / "out").exists()


def test_what_is_no_stream(tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "image").write_bytes(b"KDMV" + bytes(1000))
    assert analyze("-f", tmp_path / "image") == 1
    out, err = capfd.readouterr()
    assert out == "{}\n"
    assert err.startswith("migsniff: not-a-stream: no QEMU migration stream: this looks like a VMDK")


def test_a_file_that_is_not_there(tmp_path: Path, capfd: Captured) -> None:
    assert analyze("-f", tmp_path / "nothing") == 1
    assert capfd.readouterr() == ("", f"migsniff: {tmp_path / 'nothing'}: No such file or directory\n")


def test_an_output_folder_that_cannot_be(dump: Path, capfd: Captured) -> None:
    assert analyze("-x", "-f", dump, "--output-dir", dump / "below") == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err == f"migsniff: {dump / 'below'}: Not a directory\n"


def test_its_own_files_are_not_written_through_links(dump: Path, tmp_path: Path, capfd: Captured) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "state.json").symlink_to(tmp_path / "elsewhere")
    assert analyze("-x", "-f", dump, "--output-dir", out) == 2
    assert not (tmp_path / "elsewhere").exists()
    assert capfd.readouterr().err == "migsniff: state.json: it exists, and is no regular file\n"


def test_nothing_of_the_guest_stays_in_the_temporary_folder(
    dump: Path, tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert analyze("-m", "-f", dump) == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_output_that_cannot_be_written(dump: Path) -> None:
    with open("/dev/full", "wb") as full_disk:
        for mode in ((), ("-m",), ("-d", "desc")):
            done = subprocess.run(
                [sys.executable, "-m", "migsniff", "analyze", *mode, "-f", str(dump)],
                stdout=full_disk,
                stderr=subprocess.PIPE,
                cwd=ROOT,
                check=False,
            )
            assert done.returncode == 2
            assert done.stderr == b"migsniff: No space left on device\n"
