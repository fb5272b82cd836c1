"""`migsniff expert`, and where else findings show: by severity, with place and bytes; and no false ones."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.core.events import EVIDENCE, Finding, Undecodable
from migsniff.show.fields import tree
from migsniff.show.findings import MAX_KEPT, Findings, dump
from migsniff.show.info import finding_rows
from migsniff.show.migration import MigrationStats
from tests.packets import pcap, talks
from tests.playing import precopy
from tests.streams import HEADER
from tests.test_samples import NAMES, SAMPLES

# what the decoder or the rules find in samples, each looked at and true
TRUE = {
    "x86-100-refused": {"load-failed", "ended-first"},
    "x86-72-refused": {"load-failed", "ended-first"},
}


def expert(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> dict[str, Any]:
    main(["expert", str(path), "-T", "json", "--descriptions", "none", *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_no_false_warning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = expert(capsys, SAMPLES / name, "--severity", "warn")
    assert {each["code"] for each in found["findings"]} == TRUE.get(name, set())
    if found["verdict"]["ok"]:
        assert found["counts"]["error"] == {}


def test_the_text_has_the_worst_first_with_its_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expert", str(SAMPLES / "x86-72-refused"), "--descriptions", "none"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("migration ")
    assert lines[2] == "error (2): 1 load-failed, 1 ended-first"
    assert re.fullmatch(r"  0\.\d{6} \d+ main> 0000:00:05\.0/virtio-net/0 \[load-failed\]", lines[3])
    told = lines[4].strip().split(". ")
    assert (
        told[0]
        == "the destination gave up loading: it reset the connection (ECONNRESET), so it had not read all"
    )
    assert told[1].startswith(
        "Its log names one of 32 sections, the likeliest first: 0000:00:05.0/virtio-net/0, "
    )
    assert told[-1].endswith("migsniff check tells which")
    assert re.fullmatch(
        r" +\d+  04 00 00 00 .. 17 30 30 30 30 3a .. .. .. .. ..  +\.\.\.\..\.0000:00:05", lines[5]
    )
    assert lines.index("note (1): 1 attempt-cost") > lines.index(lines[2])
    assert lines[-1].startswith("Verdict: FAILED: the whole stream was sent, then the destination reset")


def test_severity_selects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["expert", str(SAMPLES / "x86-72-refused"), "--severity", "error"]) == 1
    out = capsys.readouterr().out
    assert "attempt-cost" not in out
    assert "load-failed" in out
    assert main(["expert", str(SAMPLES / "x86-72-refused"), "--severity", "bad"]) == 2


def test_what_is_no_stream_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken"
    path.write_bytes(HEADER + b"\x55" * 40)
    found = expert(capsys, path)
    assert found["counts"]["error"] == {"item-type": 1}
    assert found["findings"][0]["evidence"] == "55"
    assert main(["expert", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith("migsniff: ")


def test_each_migration_of_a_packet_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.pcap"
    both = (
        talks(precopy(HEADER, bytes([byte]) * 40), port=port) for byte, port in ((0x55, 4444), (0x66, 4445))
    )
    path.write_bytes(pcap([packet for packets in both for packet in packets]))
    main(["expert", str(path)])
    out = capsys.readouterr().out
    assert out.count("migration ") >= 2
    assert "unknown section type 0x55" in out
    assert "unknown section type 0x66" in out


def found(severity: str = "warn", code: str = "command", evidence: str = "") -> Finding:
    return Finding(
        channel="main",
        direction="fwd",
        offset=77,
        size=5,
        severity=severity,  # type: ignore[arg-type]
        code=code,
        message=f"a {code}",
        section="timer/0",
        field="a.b",
        evidence=evidence,
    )


def test_the_tree_shows_the_bytes_where_they_stand() -> None:
    lines = list(tree(found(evidence="7e0000002a")))
    assert f"{77:>10} {5:>7}  evidence: 7e 00 00 00 2a" in lines
    assert any('section: "timer/0"' in line for line in lines)
    assert any('field: "a.b"' in line for line in lines)


def test_the_dump_is_of_lines_of_sixteen() -> None:
    lines = dump(100, bytes(range(0x30, 0x30 + EVIDENCE)))
    assert [line.split()[0] for line in lines] == ["100", "116"]
    assert lines[0].endswith("0123456789:;<=>?")


def test_all_are_counted_and_some_are_kept() -> None:
    findings = Findings()
    for _ in range(MAX_KEPT + 5):
        findings.show("m", 0, found())
    assert (len(findings.kept), findings.counts["warn", "command"]) == (MAX_KEPT, MAX_KEPT + 5)


def test_the_summary_shows_the_worst() -> None:
    stats = MigrationStats("m")
    bad = Undecodable(
        channel="main", direction="fwd", offset=0, size=0, code="item-type", message="a bad item", where=""
    )
    for event in (found("note", "one"), found("warn", "two"), bad, found("note", "three")):
        stats.update(0, event)
    rows = [row.split(maxsplit=1) for row in finding_rows(stats, 2)]
    assert rows == [["error:", "a bad item"], ["warn:", "a two"], ["and", "2 more findings"]]


def test_old_null_pointers_read_as_those_that_are_described(capfd: pytest.CaptureFixture[str]) -> None:
    """css of s390x: 256 pointers, which QEMU up to 9.x describes like the first of them, NULL."""

    def shape(field: dict[str, Any]) -> list[Any]:
        inside = [shape(child) for child in field.get("children", [])]
        return [field["name"], field["type"], field["size"], field.get("array_len"), inside]

    shapes = []
    for name in ("s390x-52-ccw", "s390x-72-ccw", "s390x-100-ccw"):
        main(["read", "-T", "ndjson", "--descriptions", "none", str(SAMPLES / name)])
        events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        (css,) = [e for e in events if e.get("idstr") == "s390_css" and e.get("described")]
        assert css["undescribed"] == 0
        shapes.append([shape(field) for field in css["fields"]])
    assert shapes[0] == shapes[1] == shapes[2]
    assert [each[:2] for each in shapes[0][-4:-1]] == [
        ["css", "nullptr"],
        ["css", "struct"],
        ["css", "nullptr"],
    ]
    assert len(shapes[0][-3][4]) == 256
