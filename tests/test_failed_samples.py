"""The samples of migrations that failed: what migsniff says of each, beside what the destination's log says.

captures/samples/failed.py makes them; `expected.json` beside each, written by hand, has

    case, log        its number in docs/cases.md, and what stands in destination.log
    outcome          of the verdict
    findings         the codes of all of them, in order
    line             one of them: what its sentence says, and its channel, section, field or bytes
    check            the first finding of `migsniff check` against the destination's own capture
    diff             a line of `migsniff diff` of both, where `check` has none
    shows            what `migsniff read -V` says of a section
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from migsniff.cli import main
from migsniff.expert.board import BOARD, FIRMWARE
from tests.rawsamples import raw
from tests.test_samples import SAMPLES

FAILED = SAMPLES / "failed"
DOCUMENT = Path(__file__).parent.parent / "docs/cases.md"
EXPECTED: dict[str, dict[str, Any]] = {
    path.parent.name: json.loads(path.read_text()) for path in sorted(FAILED.glob("*/expected.json"))
}
NAMES = sorted(path.parent.name for path in FAILED.glob("*/qemu.json"))
WORSE = {"error", "warn"}
FINE = {"completed", "opaque"}
MACHINES = (
    *("x86-72-pc", "x86-72-q35", "aarch64-100-virt", "riscv64-100-virt", "ppc64-100-pseries"),
    "s390x-100-ccw",
)
TIMES_ALONE = {"19-tls", "20-not-converging", "cancelled"}
"""What proves these are times, totals and ends, and no bytes."""


def having(key: str) -> list[str]:
    return [name for name, expected in EXPECTED.items() if key in expected]


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments, "--descriptions", "none"])
    return code, capfd.readouterr().out


def kept(name: str, file: str) -> bytes:
    packed = (FAILED / name / f"{file}.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(packed)


def golden(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in kept(name, "golden.ndjson").splitlines()]


def fits(finding: dict[str, Any], expected: dict[str, str]) -> bool:
    """Whether a finding says what is expected of it; only what is expected is compared."""
    wanted = {key: value for key, value in expected.items() if key != "says"}
    return expected["says"] in finding["message"] and wanted == {key: finding.get(key) for key in wanted}


def core(finding: dict[str, Any]) -> list[str]:
    return [str(finding.get(key)) for key in ("time", "channel", "offset", "code", "message", "evidence")]


def test_each_sample_has_its_expectation_and_a_line_in_the_document() -> None:
    assert list(EXPECTED) == NAMES
    listed = re.findall(r"`failed/([\w-]+)`", DOCUMENT.read_text())
    assert sorted(listed) == NAMES
    cases = re.findall(r"(?m)^\| (\d+) \|", DOCUMENT.read_text())
    assert list(map(int, cases)) == list(range(1, 25))


def test_the_lines_of_the_document_are_those_that_are_printed() -> None:
    checked = 0
    for row in DOCUMENT.read_text().splitlines():
        sample = re.search(r"`failed/([\w-]+)`", row)
        if not row.startswith("|") or sample is None:
            continue
        said = {
            "expert": [each["message"] for each in golden(sample[1]) if each["type"] == "finding"],
            "check": [EXPECTED[sample[1]].get("check", {}).get("says", "")],
            "diff": [EXPECTED[sample[1]].get("diff", "")],
        }
        for command, line in re.findall(r"(expert|check|diff): `([^`]+)`", row):
            checked += 1
            for part in line.split(" ..."):
                assert any(part in each for each in said[command]), (sample[1], line)
    assert checked > 20


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_decodes_as_it_did(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """If it should not: `python -m captures.samples.failed --golden`, and look at the difference."""
    code, out = run(capfd, "read", "-T", "ndjson", str(FAILED / name))
    assert out.encode() == kept(name, "golden.ndjson")
    assert code == (EXPECTED[name]["outcome"] not in FINE)


@pytest.mark.parametrize("name", NAMES)
def test_what_happened_is_told_in_one_line_with_its_bytes(name: str) -> None:
    expected = EXPECTED[name]
    assert expected["log"] in (FAILED / name / "destination.log").read_text()
    *events, verdict = golden(name)
    assert (verdict["type"], verdict["outcome"]) == ("verdict", expected["outcome"])
    found = [event for event in events if event["type"] in ("finding", "undecodable")]
    codes = [event["code"] for event in found]
    assert list(dict.fromkeys(codes)) == expected["findings"]
    assert any(fits(each, expected["line"]) for each in found if each["code"] == expected["line"]["code"])
    for each in found:  # what has a place in the stream has bytes
        if each["severity"] == "error":
            assert each["evidence"], each


def wire(name: str) -> dict[tuple[str, str], bytes]:
    """What came over each channel and direction, but for guest memory."""
    channels = {each["connection"]: each["channel"] for each in golden(name) if each["type"] == "channel"}
    sent: dict[tuple[str, str], bytes] = {}
    for number, direction, data in raw(f"failed/{name}").pieces:
        key = channels[number], direction
        sent[key] = sent.get(key, b"") + data
    return sent


def stands_there(finding: dict[str, Any], sent: dict[tuple[str, str], bytes]) -> bool:
    evidence = bytes.fromhex(finding["evidence"])
    begin = finding["offset"] - finding.get("inside", 0)  # of an end: the header of what was cut off
    return sent[finding["channel"], finding["direction"]][begin : begin + len(evidence)] == evidence


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_stand_where_they_are_said_to(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Those of the log and of `check`."""
    found = [event for event in golden(name) if event.get("evidence")]
    if "check" in EXPECTED[name]:
        path = FAILED / name
        _, out = run(capfd, "check", str(path), "--against", str(path / "destination"), "-T", "json")
        found += [each for each in json.loads(out)["findings"] if each.get("evidence")]
    assert bool(found) is (name not in TIMES_ALONE)
    sent = wire(name) if found else {}
    assert all(stands_there(each, sent) for each in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_view_tells_the_same(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The log (which is the live one), `expert`, `info`."""
    path = str(FAILED / name)
    found = [event for event in golden(name) if event["type"] == "finding"]
    assert found
    verdict = golden(name)[-1]["message"]
    _, log = run(capfd, "read", path)
    _, info = run(capfd, "info", path)
    _, expert = run(capfd, "expert", "-T", "json", path)
    told = json.loads(expert)
    assert sorted(map(core, told["findings"])) == sorted(map(core, found))
    for text in (" ".join(log.split()), " ".join(info.split())):
        assert verdict in text
        for each in found:
            assert " ".join(each["message"].split()) in text


@pytest.mark.parametrize("name", having("check"))
def test_check_says_first_what_the_destination_said(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Against the destination's own stream: the log's words, and the bytes."""
    path, expected = FAILED / name, EXPECTED[name]["check"]
    code, out = run(capfd, "check", str(path), "--against", str(path / "destination"), "-T", "json")
    first = next(each for each in json.loads(out)["findings"] if each["severity"] in WORSE)
    assert fits(first, expected), first
    assert code == (first["severity"] == "error")
    log = (path / "destination.log").read_text().replace("savevm section", "section")
    words = expected["says"].replace("savevm section", "section")
    footer = re.match(r"Missing section footer for [^ ]+(?=: )", words)
    assert (footer[0] if footer else words) in log


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"19-tls"}))
def test_check_says_what_is_missing_of_what_is_not_whole(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(FAILED / name)
    _, out = run(capfd, "check", path, "--against", path, "-T", "json")
    verdict = golden(name)[-1]["message"]
    missing = f"what is not in the stream, or behind what cannot be read: {verdict}"
    assert (missing in json.loads(out)["not_compared"]) is not verdict.startswith("the whole stream was sent")


@pytest.mark.parametrize("name", having("diff"))
def test_diff_tells_what_differs(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = FAILED / name
    code, out = run(capfd, "diff", str(path), str(path / "destination"))
    assert code == 1
    assert f"! {EXPECTED[name]['diff']}\n" in out


@pytest.mark.parametrize("name", having("shows"))
def test_the_register_is_shown_with_its_value(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Where `check` points to a byte, the tree has the register at its place."""
    shows = EXPECTED[name]["shows"]
    _, out = run(capfd, "read", "-V", "--section", shows["section"], str(FAILED / name))
    assert shows["says"] in out


def test_what_is_said_to_be_the_boards_own_was_seen() -> None:
    """Sections, and RAM blocks."""
    sections, blocks = set(), set()
    for machine in MACHINES:
        for event in golden(f"../{machine}"):
            if "idstr" in event:
                sections.add(f"{event['idstr']}/{event['instance_id']}")
            blocks |= {each["name"] for each in event["blocks"]} if event["type"] == "ram-blocks" else set()
    assert sections >= BOARD
    assert not any("virtio" in section for section in BOARD)
    assert all(any(block.startswith(each) for block in blocks) for each in FIRMWARE)


def test_the_samples_are_small_and_have_no_paths_of_the_host() -> None:
    files = [path for path in FAILED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for path in files:
        if path.suffix in (".log", ".json"):
            text = path.read_text()
            assert "/tmp" not in text, path
            assert "migsniff-" not in text.replace("migsniff-capture", ""), path
