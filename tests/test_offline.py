"""Reading later: what is printed of a capture, and how it is chosen."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main

SAMPLES = Path(__file__).parent.parent / "captures" / "samples"
SAMPLE = SAMPLES / "x86-72-return-path"


def printed(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["read", *arguments]) == code
    return capfd.readouterr().out.splitlines()


def records(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed(capfd, *arguments, "-T", "ndjson", code=code)]


def test_a_count_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    everything = printed(capfd, str(SAMPLE))
    assert printed(capfd, str(SAMPLE), "-c", "5") == everything[:5]
    assert len(printed(capfd, str(SAMPLE), "-c", "1", "-V")) > 1  # a record with its tree
    assert len(json.loads("".join(printed(capfd, str(SAMPLE), "-c", "3", "-T", "json")))) == 3


def test_a_duration_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    everything = records(capfd, str(SAMPLE))
    limit = everything[len(everything) // 3]["time"]
    early = records(capfd, str(SAMPLE), "-a", f"duration:{limit}")
    assert early == [record for record in everything if record["time"] <= limit]


def test_a_size_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    everything = records(capfd, str(SAMPLE))
    early = records(capfd, str(SAMPLE), "-a", "size:1k")
    assert 0 < len(early) < len(everything)
    assert early == everything[: len(early)]


def test_sections_are_chosen_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    chosen = records(capfd, str(SAMPLE), "--section", "serial", "--section", "ide")
    assert {record.get("idstr", record["type"]) for record in chosen} == {
        "serial",
        "0000:00:01.1/ide",
        "verdict",
    }


@pytest.mark.parametrize("name", ["x86-72-pc", "x86-100-q35"])
def test_a_tree_lists_what_the_json_has_besides_fields(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An image (PCI, virtio) is one of the fields, and no fact of its own; only some sections have one."""
    sample = str(SAMPLE.parent / name)
    devices = [record for record in records(capfd, sample) if record["type"] == "device"]
    keys = {key for device in devices for key in device} | {"provisional", "undescribed"}
    tree = printed(capfd, sample, "-V", "-Y", "device")
    facts = {line.split(":")[0].strip() for line in tree if line.startswith(" " * 31) and line[31] != " "}
    assert {"section_id", "provisional"} <= facts <= keys


def test_absolute_times_are_the_manifests(capfd: pytest.CaptureFixture[str]) -> None:
    start = json.loads((SAMPLE / "manifest.json").read_text())["start"]
    first = printed(capfd, str(SAMPLE), "-t", "ad", "-c", "1")[0].split()[0]
    assert first[:19] == start[:19]


def test_json_is_one_array_of_the_same_records(capfd: pytest.CaptureFixture[str]) -> None:
    assert json.loads("\n".join(printed(capfd, str(SAMPLE), "-T", "json"))) == records(capfd, str(SAMPLE))


def test_info_is_one_screen(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(SAMPLE)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) < 50
    assert any(line.startswith("Machine:") and "pc-i440fx-7.2" in line for line in lines)
    assert main(["info", str(SAMPLE), "-T", "json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["verdict"]["outcome"] == "completed"


def test_downtime_is_the_same_live_and_later(capfd: pytest.CaptureFixture[str]) -> None:
    """A stream of 7.2 has no SWITCHOVER_START: the first byte of the END tells it, not the first record."""
    everything = records(capfd, str(SAMPLE))
    assert main(["info", str(SAMPLE), "-T", "json"]) == 0
    told = json.loads(capfd.readouterr().out)
    shut = next(record["time"] for record in everything if record.get("name") == "SHUT")
    assert told["downtime"]["seconds"] == pytest.approx(shut - told["switchover"], abs=1e-6)


def test_a_damaged_capture_is_read_as_far_as_it_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SAMPLE, tmp_path / "capture")
    timeline = tmp_path / "capture" / "timeline.ndjson.zst"
    text = subprocess.run(["zstd", "-dc", str(timeline)], capture_output=True, check=False).stdout
    if not text:
        pytest.skip("the zstd command is not installed")
    timeline.unlink()
    lines = text.splitlines(keepends=True)
    (tmp_path / "capture" / "timeline.ndjson").write_bytes(
        b"".join(lines[: len(lines) // 2]) + b'{"kind":"nons'
    )
    assert main(["read", str(tmp_path / "capture")]) == 1
    out, err = capfd.readouterr()
    assert "main> header" in out
    assert "verdict" in out
    assert "timeline.ndjson" in err


def test_standard_input_is_read_as_it_comes() -> None:
    command = [sys.executable, "-m", "migsniff", "read", "-", "-l"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        process.stdin.write(b"QEVM\0\0\0\3")
        process.stdin.flush()
        assert b"is main" in process.stdout.readline()
        assert b"version 3" in process.stdout.readline()
        process.stdin.close()
        assert b"TRUNCATED" in process.stdout.read()
        assert process.wait(20) == 1


def test_the_message_tells_where_the_stream_begins(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dump").write_bytes(bytes(4096) + b"QEVM\0\0\0\3")
    assert main(["read", str(tmp_path / "dump")]) == 1
    said = "this looks like zeroes; a stream begins at offset 4096: use --offset 4096"
    assert said in capfd.readouterr().out
    for offset in ("4096", "4k", "0x1000"):
        assert main(["read", str(tmp_path / "dump"), "--offset", offset]) == 1
        assert "QEMU migration stream version 3" in capfd.readouterr().out
    for offset in ("-1", "x", "4kk", "0x", str(1 << 70)):
        assert main(["read", str(tmp_path / "dump"), f"--offset={offset}"]) == 2
