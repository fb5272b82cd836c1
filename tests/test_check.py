"""`migsniff check`, its parts, and what hostile files do to it. Real destinations: test_check_qemu.py."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from migsniff.check import Check, not_compared
from migsniff.cli import main
from migsniff.compare.checker import JUDGED, Checker
from migsniff.compare.inventory import Inventory
from migsniff.compare.layout import Fit
from migsniff.compare.omitted import LISTED
from migsniff.compare.pciconfig import compared, difference
from migsniff.compare.schema import MAX_NODES, read_schema
from migsniff.core.errors import CaptureError
from migsniff.core.events import EndOfStream, Field, RamBlock, RamBlocks, Verdict
from migsniff.core.session import Session
from migsniff.core.wire import DUMPED_MACHINE
from migsniff.feed.dumpvmstate import HEAD, State
from migsniff.pipeline import Pipeline
from tests.packets import pcap, talks
from tests.playing import Stream, precopy
from tests.streams import (
    BLOCKS,
    EOF,
    HEADER,
    PAGE_SIZE,
    configuration,
    description,
    full,
    ram_end,
    ram_start,
    subsection,
)
from tests.test_drain import COMPLETE, OPEN, RAM, STATES, drained
from tests.test_samples import NAMES, SAMPLES
from tests.valuing import section


def checked(
    capsys: pytest.CaptureFixture[str], capture: Path, against: Path
) -> tuple[int, list[tuple[str, str]], dict[str, Any]]:
    code = main(["check", str(capture), "--against", str(against), "-T", "json", "--descriptions", "none"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, [(each["code"], each["message"]) for each in found["findings"]], found


def written(
    path: Path, *, machine: bytes = b"pc", blocks: dict[bytes, int] = BLOCKS, more: bytes = b""
) -> Path:
    path.write_bytes(HEADER + configuration(machine) + ram_start(blocks) + ram_end() + more + EOF)
    return path


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_fits_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, findings, found = checked(capsys, SAMPLES / name, SAMPLES / name)
    assert code == (0 if found["complete"] else 4), findings
    assert found["complete"] is (name != "x86-72-cancelled")
    assert [each for each in found["findings"] if each["severity"] in ("warn", "error")] == []
    assert found["not_compared"]


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ({"machine": b"a"}, {"machine": b"b"}, "Machine type received is 'a' and local is 'b'"),
        ({"machine": b"ab"}, {"machine": b"a"}, "Machine type received is 'ab' and local is 'a'"),
        ({"blocks": {b"x": 4096}}, {"blocks": {b"y": 4096}}, 'Unknown ramblock "x", cannot accept migration'),
        (
            {"blocks": {b"x": 4096}},
            {"blocks": {b"x": 8192}},
            "Size mismatch: x: 0x1000 != 0x2000: Invalid argument",
        ),
        ({"more": full(7, b"dev", b"abcd", instance=3)}, {}, "Unknown savevm section or instance 'dev' 3."),
        (
            {"more": full(7, b"dev", b"abcd", version=4)},
            {"more": full(7, b"dev", b"abcd", version=2)},
            "savevm: unsupported version 4 for 'dev' v2",
        ),
    ],
)
def test_what_fails(
    here: dict[str, Any],
    there: dict[str, Any],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capture, against = written(tmp_path / "here", **here), written(tmp_path / "there", **there)
    code, findings, found = checked(capsys, capture, against)
    assert code == 1
    assert not found["loads"]
    assert findings[0][1].startswith(expected)
    assert main(["check", str(capture), "--against", str(against), "--descriptions", "none"]) == 1
    out = capsys.readouterr().out
    assert expected in out.splitlines()[-1]
    assert "Not compared:" in out


@pytest.mark.parametrize(
    ("here", "there", "code"),
    [
        ({"machine": b"virt"}, {"machine": b"virt-11.1", "more": full(7, b"d", b"")}, "check-extra-sections"),
        ({"blocks": {b"/rom@x": 4096}}, {"blocks": {b"/rom@x": 8192}}, "check-block-resized"),
        ({"more": full(7, b"globalstate", b"abcd")}, {}, "check-section-maybe"),
        ({"more": full(7, b"audio", b"")}, {}, "check-section-maybe"),  # known where there is an -audiodev
        (
            {"more": full(7, b"dev", b"abcd")},  # as it was called before devices had paths
            {"more": full(7, b"0000:00:01.0/dev", b"abcd")},
            "check-section-maybe",
        ),
        ({}, {"more": full(7, b"dev", b"abcd")}, "check-extra-sections"),
        ({"blocks": {b"x": 4096}}, {"blocks": {b"x": 4096, b"y": 4096}}, "check-extra-blocks"),
    ],
)
def test_what_need_not_fail(
    here: dict[str, Any], there: dict[str, Any], code: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, findings, _ = checked(capsys, written(tmp_path / "a", **here), written(tmp_path / "b", **there))
    assert result == 0
    assert code in [each for each, _ in findings]


Both = tuple[dict[str, Any], dict[str, Any]]
OTHER_ROM: Both = {"blocks": {b"x": 4096}}, {"blocks": {b"x": 8192}}
NO_GLOBALSTATE: Both = {"more": full(7, b"globalstate", b"abcd")}, {}
SAME_MACHINE: Both = {}, {}


@pytest.mark.parametrize(
    ("pair", "cut", "code", "last"),
    [
        (SAME_MACHINE, 0, 0, "Loads, as far as can be told"),
        (NO_GLOBALSTATE, 0, 0, "May fail: 1 warning, first: Unknown savevm section or instance"),
        (OTHER_ROM, 0, 1, "Will fail (1 error); first: Size mismatch: x: 0x1000 != 0x2000"),
        (OTHER_ROM, 1, 1, "Will fail (1 error); first: Size mismatch: x: 0x1000 != 0x2000"),
        (
            SAME_MACHINE,
            1,
            4,
            "Cannot load as it stands (TRUNCATED: incomplete); up to there nothing was found",
        ),
        (
            NO_GLOBALSTATE,
            1,
            4,
            "Cannot load as it stands (TRUNCATED: incomplete); up to there it may fail: 1 warning, first: ",
        ),
    ],
)
def test_the_answer(
    pair: Both,
    cut: int,
    code: int,
    last: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the last line says is what the exit code and JSON say, of a stream that is cut off too."""
    here, there = (written(tmp_path / name, **more) for name, more in zip("ab", pair, strict=True))
    if cut:
        here.write_bytes(here.read_bytes()[:-cut])
    assert main(["check", str(here), "--against", str(there), "--descriptions", "none"]) == code
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)
    again, _, found = checked(capsys, here, there)
    assert again == code
    assert found["loads"] is {0: True, 1: False, 4: None}[code]
    assert (found["complete"], found["outcome"]) == ((False, "truncated") if cut else (True, "completed"))


@pytest.mark.parametrize(
    ("machines", "cut", "code"),
    [
        ((b"pc", b"pc"), (0, 0), 0),
        ((b"pc", b"pc"), (0, 1), 4),
        ((b"pc", b"pc"), (1, 0), 4),
        ((b"pc", b"other"), (1, 0), 1),
        ((b"other", b"pc"), (0, 1), 1),
        ((b"other", b"pc"), (0, 0), 1),
    ],
)
def test_of_several_migrations_the_worst_counts(
    machines: tuple[bytes, bytes],
    cut: tuple[int, int],
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That one will fail is worse than that of another nobody can tell; which comes first is all the same."""
    packets = []
    for number, (machine, missing) in enumerate(zip(machines, cut, strict=True)):
        data = written(tmp_path / "one", machine=machine).read_bytes()
        packets += talks(Stream(((0, "fwd", data[: len(data) - missing]),)), port=4444 + number)
    (tmp_path / "a.pcap").write_bytes(pcap(packets))
    there = str(written(tmp_path / "there"))
    assert main(["check", str(tmp_path / "a.pcap"), "--against", there, "--descriptions", "none"]) == code
    assert capsys.readouterr().out.count("Not compared:") == 2


def test_what_failed_when_all_was_sent_is_told_from_what_is_cut_off(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A whole stream can load elsewhere, whatever its own destination said."""
    failed = SAMPLES / "failed"
    for name, code, last in (
        (
            "10-serial",
            0,
            "Loads, as far as can be told; all was sent, though this migration itself ended as FAILED",
        ),
        ("18-killed", 4, "Cannot load as it stands (RESET: incomplete); up to there nothing was found"),
    ):
        path = str(failed / name)
        assert main(["check", path, "--against", path, "--descriptions", "none"]) == code
        assert capsys.readouterr().out.splitlines()[-1] == last


def test_errors_are_in_stream_order_with_their_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = written(tmp_path / "here", machine=b"a", blocks={b"x": 4096}, more=full(7, b"dev", b"abcd"))
    _, _, found = checked(capsys, capture, written(tmp_path / "there", machine=b"b"))
    errors = [each for each in found["findings"] if each["severity"] == "error"]
    assert [each["code"] for each in errors] == [
        "check-machine",
        "check-block-unknown",
        "check-section-unknown",
    ]
    assert [each["offset"] for each in errors] == sorted(each["offset"] for each in errors)
    data = capture.read_bytes()
    for each in errors[1:]:
        evidence = bytes.fromhex(each["evidence"])
        assert evidence
        assert data[each["offset"] :].startswith(evidence)


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        HEADER,
        b"{" + b"[" * 100_000,
        b'{"vmschkmachine": 1}',
        b'{"vmschkmachine": {"Name": "a"}, "x": []}',
    ],
)
def test_a_destination_that_is_none(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    assert (
        main(["check", str(written(tmp_path / "a")), "--against", str(path), "--descriptions", "none"]) == 2
    )
    assert capsys.readouterr().err.startswith("migsniff: ")


@pytest.mark.parametrize("kind", ["dump", "stream", "packed"])
@pytest.mark.parametrize("place", ["-", "/dev/stdin"])
@pytest.mark.parametrize("command", [["check", "--against"], ["expert", "--check-against"]])
def test_a_destination_out_of_a_pipe(command: list[str], place: str, kind: str, tmp_path: Path) -> None:
    """Its bytes can be read once: the answer is that of the same file."""
    against, capture = tmp_path / "there", tmp_path / "here"
    with_fields(capture, ("data", "uint16", 2), machine=b"other")
    with_fields(against, *[("data", "uint32", 4)] * 1500)
    if kind == "packed":
        against.write_bytes(gzip.compress(against.read_bytes()))
    elif kind == "dump":
        more = [{"field": f"field{number}", "field_exists": True} for number in range(200)]
        against.write_text(json.dumps(schema(Fields=[{"field": "data", "size": 4}, *more])))

    def answer(there: str) -> tuple[int, list[tuple[str, int]], str]:
        verb, option = command
        every = [verb, str(capture), option, there, "-T", "json", "--descriptions", "none"]
        run = [sys.executable, "-m", "migsniff", *every]
        ended = subprocess.run(run, input=against.read_bytes(), capture_output=True, check=False)
        found = [(each["code"], each["offset"]) for each in json.loads(ended.stdout)["findings"]]
        return ended.returncode, found, ended.stderr.decode()

    assert len(against.read_bytes()) > HEAD or kind == "packed"
    expected = answer(str(against))
    assert {code for code, _ in expected[1]} >= {"check-machine", "check-footer"}
    assert answer(place) == expected


@pytest.mark.parametrize(
    ("sent", "whole"),
    [(COMPLETE, True), (COMPLETE[:-3], False), (OPEN + RAM + STATES, False), (OPEN + RAM, False)],
    ids=["all of it", "half a description", "no description", "no EOF"],
)
def test_what_was_read_on_without_a_destination_is_compared(sent: bytes, whole: bool) -> None:
    """The verdict is of what reached the destination; that more was not compared is said if so."""
    check = Check(Inventory())
    pipeline = Pipeline("m", Session(fields=True), [check])
    for arrival in drained(precopy(sent), len(OPEN + RAM)):
        list(pipeline.feed(arrival))
    list(pipeline.finish())
    assert check.verdict is not None
    assert not check.verdict.ok
    words = f"what is not in the stream, or behind what cannot be read: {check.verdict.message}"
    assert (words in not_compared(check)) is not whole


def test_a_destination_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "migsniff", "check", str(written(tmp_path / "a")), "--against", "-"]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stderr is not None
        with pytest.raises(BrokenPipeError):
            program.stdin.write(bytes(64 << 20))
        assert b"it begins with 00 00 00 00 00 00 00 00: zeroes" in program.stderr.read()
    assert program.returncode == 2


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, none = str(written(tmp_path / "a")), str(tmp_path / "none")
    assert main(["check", none, "--against", good, "--descriptions", "none"]) == 2
    assert main(["check", good, "--against", none, "--descriptions", "none"]) == 2
    assert main(["check", "-", "--against", "-"]) == 2
    assert main(["read", "-", "--check-against", "-"]) == 2
    assert main(["check", good]) == 2
    capsys.readouterr()


# ---------------------------------------------------------------- schemas


def state(**more: Any) -> dict[str, Any]:
    """A class as -dump-vmstate has it."""
    description = {"name": "dev", "version_id": 1, "minimum_version_id": 1, "Fields": [], **more}
    return {"Name": "dev-class", "Description": description}


def schema(**more: Any) -> dict[str, Any]:
    return {DUMPED_MACHINE: {"Name": "pc"}, "dev-class": state(**more)}


def verdict(ok: bool) -> Verdict:
    return Verdict(channel="main", direction="fwd", offset=0, size=0, ok=ok, outcome="completed", message="")


@pytest.mark.parametrize(
    ("version", "state", "expected"),
    [
        (1, {}, None),
        (2, {}, "savevm: unsupported version 2 for 'dev' v1"),
        (
            1,
            {"version_id": 3, "minimum_version_id": 2},
            "dev: incoming version_id 1 is too old for local minimum",
        ),
    ],
)
def test_versions_of_a_schema(
    version: int,
    state: dict[str, Any],
    expected: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "schema"
    path.write_text(json.dumps(schema(**state)))
    capture = written(tmp_path / "a", more=full(7, b"0000:00:01.0/dev", b"abcd", version=version))
    code, findings, found = checked(capsys, capture, path)
    assert code == (expected is not None)
    if expected:
        assert (
            expected.replace("'dev'", "'0000:00:01.0/dev'").replace("dev: ", "0000:00:01.0/dev: ")
            in findings[0][1]
        )
    assert any("-dump-vmstate has none" in words for words in found["not_compared"])


def test_a_schema_that_is_too_deep_is_no_schema() -> None:
    state: dict[str, Any] = {"name": "x"}
    for _ in range(40):
        state = {"name": "x", "Subsections": [state]}
    known = read_schema(json.dumps(schema(Subsections=[state])).encode())
    assert set(known.find("dev")[0].subsections_below) == {"x"}
    text = b'{"vmschkmachine":{"Name":"a"},"d":{"Description":' + b'{"name":"x","Subsections":[' * 20_000
    with pytest.raises(CaptureError, match="not what qemu -dump-vmstate writes"):
        read_schema(text)


@pytest.mark.parametrize(("classes", "distinct", "known"), [(500, 1, 1), (20, 20, 20), (500, 500, 0)])
def test_classes_that_share_a_name(classes: int, distinct: int, known: int) -> None:
    """As many are tried as real ones share, though a file may have any number."""
    found: dict[str, Any] = {DUMPED_MACHINE: {"Name": "pc"}}
    for number in range(classes):
        found[f"class{number}"] = {"Description": {"name": "dev", "version_id": number % distinct}}
    assert len(read_schema(json.dumps(found).encode()).find("0000:00:01.0/dev")) == known


LEAVES = [{"field": f"field{number}"} for number in range(MAX_NODES + 1)]


@pytest.mark.parametrize(
    "found",
    [
        {"class": state(Fields=LEAVES)},
        {"class": state(Subsections=[{"name": f"dev/{number}"} for number in range(MAX_NODES + 1)])},
        {"class": state(Fields=[{"field": "inside", "Description": {"name": "x", "Fields": LEAVES}}])},
        {f"class{half}": state(version_id=half, Fields=LEAVES[half::2]) for half in (0, 1)},  # of one name
    ],
)
def test_no_name_of_a_schema_has_more_than_can_be_gone_through(found: dict[str, Any]) -> None:
    text = json.dumps({DUMPED_MACHINE: {"Name": "pc"}, **found}).encode()
    with pytest.raises(CaptureError, match=f"dev has .* more than {MAX_NODES}"):
        read_schema(text)


def test_a_vmstate_is_taken_apart_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sections have its name."""
    fields = [{"field": "a", "size": 1}]
    inner = {"name": "dev/sub", "version_id": 1, "Fields": fields}
    checker = Checker(read_schema(json.dumps(schema(Fields=fields, Subsections=[inner])).encode()))
    within = Mock(side_effect=State.within)
    monkeypatch.setattr(State, "within", lambda self: within(self))
    made = [leaf("a", 1), leaf("dev/sub", 9, kind="subsection", version=2, children=(leaf("a", 1),))]
    for number in range(5):
        event = replace(section(*made, idstr="dev"), instance_id=number, described=True)
        assert [each.code for each in checker.see(event)] == ["check-subsection-version"]
    assert within.call_count == 1


def test_of_the_classes_that_share_a_name_the_one_that_fits_counts() -> None:
    classes = {
        f"class{number}": state(Fields=[{"field": f"field{number}", "size": 1}], Subsections=[])
        for number in range(3)
    }
    text = json.dumps({DUMPED_MACHINE: {"Name": "pc"}, **classes}).encode()
    found = {}
    for number in range(4):
        subsections = [leaf(f"dev/{each}", 9, kind="subsection") for each in range(2 * JUDGED)]
        event = section(leaf(f"field{number}", 1), *(subsections if number == 2 else ()), idstr="dev")
        found[number] = [each.code for each in Checker(read_schema(text)).see(replace(event, described=True))]
    assert found[0] == found[1] == []
    assert found[2] == ["check-subsection-unknown"] * 2 * JUDGED
    assert found[3] == []  # renamed, perhaps


# ---------------------------------------------------------------- large destinations


class Counted(dict[Any, Any]):
    """One that tells how many of its items were gone through."""

    gone = 0

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            self.gone += 1
            yield each


@pytest.mark.parametrize("ok", [True, False])
def test_an_unknown_section_is_not_looked_for_in_the_whole_destination(ok: bool) -> None:
    there = Inventory(sections=Counted())
    for number in range(1000):
        there.show("m", 0, section(idstr=f"0000:00:01.0/dev{number}"))
    there.verdict = verdict(ok)
    checker = Checker(there)
    for number in range(100):
        (found,) = checker.see(section(idstr=f"other{number}"))
        assert found.code == ("check-section-unknown" if ok else "check-section-maybe")
    (found,) = checker.see(section(idstr="dev500"))
    assert found.code == "check-section-maybe"
    assert isinstance(there.sections, Counted)
    assert there.sections.gone == 0


def test_of_what_is_missing_only_a_few_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = Mock(side_effect=str)
    monkeypatch.setattr("migsniff.compare.checker.name", name)
    blocks = [RamBlock(f"block{number}", PAGE_SIZE, None, None) for number in range(1000)]
    there = Inventory(blocks={block.name: block for block in blocks})
    for number in range(1000):
        there.show("m", 0, section(idstr=f"dev{number}"))
    checker = Checker(there)
    place: dict[str, Any] = {"channel": "main", "direction": "fwd", "offset": 0, "size": 0}
    sent = RamBlocks(blocks=tuple(blocks[:2]), total=0, page_size=PAGE_SIZE, page_size_from="a test", **place)
    (extra,) = checker.see(sent)
    assert list(checker.see(section(idstr="dev0"))) == []
    assert list(checker.see(section(idstr="dev0"))) == []  # the same once more
    assert list(checker.see(EndOfStream(**place))) == []
    (missing,) = checker.see(verdict(True))
    for found, what in ((extra, "998"), (missing, "999")):
        assert what in found.message
        assert f"and {int(what) - LISTED} more" in found.message
    assert 2 * LISTED <= name.call_count < 4 * LISTED


# ---------------------------------------------------------------- inside of sections


def with_fields(
    path: Path,
    *fields: tuple[str, str, int],
    sub: tuple[int, int] | None = None,
    version: int = 1,
    machine: bytes = b"pc",
) -> Path:
    """A stream with one device: (name, type, size) of its fields, version and size of its subsection."""
    told: list[dict[str, Any]] = [{"name": each, "type": kind, "size": size} for each, kind, size in fields]
    device: dict[str, Any] = {"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": version}
    device["fields"] = told
    payload = bytes(sum(size for _, _, size in fields))
    if sub is not None:
        inner = {"name": "more", "type": "buffer", "size": sub[1]}
        device["subsections"] = [{"vmsd_name": "dev/sub", "version": sub[0], "fields": [inner]}]
        payload += subsection(b"dev/sub", bytes(sub[1]), sub[0])
    text = description(json.dumps({"page_size": PAGE_SIZE, "devices": [device]}).encode())
    head = HEADER + configuration(machine) + ram_start() + ram_end()
    path.write_bytes(head + full(7, b"dev", payload, version=version) + EOF + text)
    return path


SAME = ("data", "uint32", 4)
SUB_STATE = {"name": "dev/sub", "version_id": 2, "minimum_version_id": 2}
SUB_FIELD = {"field": "more", "version_id": 0, "field_exists": False, "size": 3}


@pytest.mark.parametrize(
    ("sub", "there", "expected"),
    [
        ((2, 3), (2, 3), None),
        ((1, 3), (2, 3), None),  # of an older one the destination may know how to read it
        (None, (2, 3), None),
        ((3, 3), (2, 3), "dev/sub: incoming version_id 3 is too new for local version_id 2"),
        ((2, 4), (2, 3), "Missing section footer for dev: dev/sub.more: 4 bytes in the stream, 3 at the"),
    ],
)
def test_subsections_that_both_have_sent(
    sub: tuple[int, int] | None,
    there: tuple[int, int],
    expected: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = with_fields(tmp_path / "here", SAME, sub=sub)
    code, findings, _ = checked(capsys, here, with_fields(tmp_path / "there", SAME, sub=there))
    assert code == (expected is not None)
    assert [words.startswith(expected or "") for _, words in findings] == [True] * (expected is not None)


@pytest.mark.parametrize(
    ("field", "sub", "expected"),
    [
        (SAME, None, None),
        (SAME, (2, 3), None),
        (SAME, (3, 3), "dev/sub: incoming version_id 3 is too new for local version_id 2"),
        (SAME, (1, 3), "dev/sub: incoming version_id 1 is too old for local minimum version_id 2"),
        (
            ("data", "uint16", 2),
            None,
            "Missing section footer for dev: data: 2 bytes in the stream, 4 at",
        ),
        (
            ("data", "uint64", 8),
            None,
            "Missing section footer for dev: data: 8 bytes in the stream, 4 at",
        ),
        (("data", "handmade", 8), None, None),  # what it has in memory says nothing of the wire
    ],
)
def test_inside_of_a_section_against_a_dump(
    field: tuple[str, str, int],
    sub: tuple[int, int] | None,
    expected: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "there").write_text(
        json.dumps(
            schema(
                Fields=[{"field": "data", "version_id": 0, "field_exists": False, "size": 4}],
                Subsections=[{**SUB_STATE, "Fields": [SUB_FIELD]}],
            )
        )
    )
    here = with_fields(tmp_path / "here", field, sub=sub)
    code, findings, _ = checked(capsys, here, tmp_path / "there")
    assert code == (expected is not None)
    assert [words.startswith(expected or "") for _, words in findings] == [True] * (expected is not None)


# ---------------------------------------------------------------- fields


def leaf(name: str, size: int, value: int | None = None, kind: str = "uint8", **more: Any) -> Field:
    return Field(name=name, type=kind, offset=0, size=size, value=value, **more)


@pytest.mark.parametrize(
    ("here", "there", "path", "certain"),
    [
        ([leaf("a", 1)], [leaf("a", 1)], None, None),
        ([leaf("a", 4)], [leaf("renamed", 4)], None, None),
        ([leaf("a", 4)], [leaf("a", 1), leaf("b", 3)], None, None),  # divided
        ([leaf("a", 4)], [leaf("a", 8)], "a", True),
        ([leaf("a", 4, array_len=4)], [leaf("a", 8, array_len=8)], "a", True),
        ([leaf("a", 1), leaf("b", 2)], [leaf("a", 1)], "b", True),
        ([leaf("a", 1)], [leaf("a", 1), leaf("b", 2)], "b", True),
        ([leaf("q", 9, kind="qtailq")], [leaf("q", 1, kind="qtailq")], None, None),
        ([leaf("s", 9, kind="subsection")], [], None, None),
        ([leaf("h", 9, kind="handmade")], [leaf("h", 1, kind="handmade")], "h", False),
    ],
)
def test_layouts(here: list[Field], there: list[Field], path: str | None, certain: bool | None) -> None:
    found = Fit(here, there).misfit()
    assert (found and found.path, found and found.certain) == (path, certain)


def told(number: int, *fields: Field, kind: str = "uint8") -> list[Field]:
    """A number, and what may depend on it."""
    return [leaf("n", 1, number, kind), *fields]


DATA = leaf("data", 512, kind="buffer")
REST = leaf("rest", 1)
ELEMENTS = [leaf("e", 8, kind="struct", children=(leaf("x", 8),)) for _ in range(3)]


@pytest.mark.parametrize(
    ("here", "there", "older", "path", "certain"),
    [
        (told(1, DATA, REST), told(0, REST), False, None, None),  # ide_drive
        (told(0, REST), told(1, DATA, REST), False, None, None),
        (told(0, DATA, REST), told(1, REST), False, "data", False),  # it says the contrary
        (told(1, REST, DATA), told(0, REST), False, "data", False),  # other fields may tell it too
        (told(1, DATA, REST), told(1, REST), False, "data", True),  # nothing tells it
        (told(1, leaf("acpi_pci_hotplug.x", 4)), told(0), False, None, None),
        (told(0, leaf("acpi_pci_hotplug.x", 4)), told(1), False, "acpi_pci_hotplug.x", True),
        (told(4, leaf("a", 4, array_len=4)), told(8, leaf("a", 8, array_len=8)), False, None, None),
        (
            told(4, leaf("a", 4, array_len=4), kind="int32 le"),  # which has a limit
            told(8, leaf("a", 8, array_len=8), kind="int32 le"),
            False,
            "a",
            False,
        ),
        (told(4, leaf("a", 24, array_len=24)), told(8, leaf("a", 48, array_len=48)), False, "a", False),
        (told(4, leaf("a", 4, array_len=4)), told(2, leaf("a", 8, array_len=8)), False, "a", True),
        (told(4, leaf("a", 4, array_len=4)), told(0), False, None, None),
        (told(3, leaf("b", 3, kind="buffer")), told(9, leaf("b", 9, kind="buffer")), False, None, None),
        (told(3, leaf("b", 3, kind="buffer")), told(3, leaf("b", 9, kind="buffer")), False, "b", True),
        ([leaf("data", 8, kind="buffer")], [leaf("data", 99, kind="buffer")], False, None, None),
        (told(1), told(1, REST), True, None, None),  # which came with the later version
        (told(1, REST), told(1), True, "rest", False),
        (told(1, leaf("a", 8)), told(1, leaf("a", 4)), True, "a", True),
        (told(1, leaf("a[1]", 8)), told(1, leaf("a[1]", 4)), True, "a[1]", False),
        (
            [leaf("b", 4), replace(ELEMENTS[0], index=0), replace(ELEMENTS[1], index=1), ELEMENTS[2]],
            [leaf("b", 8), *ELEMENTS],  # of none the index is told
            False,
            "b",
            True,
        ),
    ],
)
def test_what_two_streams_can_tell(
    here: list[Field], there: list[Field], older: bool, path: str | None, certain: bool | None
) -> None:
    """Of a field that one alone has, of lengths that a number tells, of an older version."""
    found = Fit(here, there, older=older).misfit()
    assert (found and found.path, found and found.certain) == (path, certain)


IDLE = leaf("t", 8, kind="timer", raw=b"\xff" * 8)
VALUES = [
    (leaf("n", 1, 1, raw=b"\1"), leaf("n", 1, 0, raw=b"\0")),
    (IDLE, leaf("t", 8, 0, kind="timer", raw=bytes(8))),
    (leaf("b", 2, kind="buffer", raw=b"ab"), leaf("b", 2, kind="buffer", raw=b"ac")),
    (replace(leaf("m", 8, kind="bitmap", raw=b"\1"), value="0"), leaf("m", 8, kind="bitmap", raw=b"\0")),
    (replace(leaf("f", 8, kind="float64"), value=1.0), replace(leaf("f", 8, kind="float64"), value=2.0)),
    (leaf("q", 9, kind="qtailq"), leaf("q", 1, kind="qtailq")),
    (leaf("q", 9, kind="qtailq"), None),
    (
        leaf("q", 9, kind="qtailq", children=(leaf("x", 1, 1),)),
        leaf("q", 9, kind="qtailq", children=(leaf("x", 1, 0),)),
    ),
]
"""Fields that differ, of every type that tells its value in a way of its own."""


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("one", "other"), VALUES)
def test_any_value_may_tell_whether_a_field_comes(one: Field, other: Field | None, swapped: bool) -> None:
    """Whichever side has it; "mid" lest it is right before."""
    mid, more = leaf("mid", 1, 0), leaf("more", 1, 1)
    sides = [[one, mid], [*([other] if other else []), mid]]
    sides[swapped].append(more)
    found = Fit(sides[0], sides[1]).misfit()
    assert (found and found.path, found and found.certain) == ("more", False)
    equal = [one, mid]
    found = Fit([*equal, more], equal).misfit()
    assert (found and found.path, found and found.certain) == ("more", True)


def test_what_is_uncertain_hides_nothing() -> None:
    here = told(1, REST, DATA, leaf("a", 4))
    found = Fit(here, told(0, REST, leaf("a", 8))).misfit()
    assert found is not None
    assert (found.path, found.certain) == ("a", True)


def test_the_fields_of_a_section_may_tell_of_its_subsections() -> None:
    inner = leaf("s", 9, kind="subsection", version=1, children=(leaf("x", 1), REST))
    other = replace(inner, children=(leaf("x", 1),))
    for numbers, certain in (((1, 1), True), ((1, 2), False)):
        found = Fit(told(numbers[0]), told(numbers[1])).subsection(inner, other)
        assert found is not None
        assert (found.path, found.certain) == ("s.rest", certain)


@pytest.mark.parametrize(
    ("fields", "local", "code"),
    [
        ([SAME], [SAME], "check-version-lower"),
        ([SAME], [SAME, ("more", "uint8", 1)], "check-version-lower"),
        ([("other", "uint32", 4)], [SAME], "check-version-maybe"),
        ([SAME, ("gone", "uint8", 1)], [SAME], "check-version-maybe"),
        ([SAME], [("data", "uint8", 1)], "check-version-misfit"),
    ],
)
def test_what_a_lower_version_may_mean(
    fields: list[tuple[str, str, int]],
    local: list[tuple[str, str, int]],
    code: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The destination's minimum is in no stream."""
    here = with_fields(tmp_path / "here", *fields, version=1)
    result, findings, _ = checked(capsys, here, with_fields(tmp_path / "there", *local, version=2))
    ((found, words),) = findings
    assert (found, result) == (code, code == "check-version-misfit")
    assert words.startswith("dev: incoming version_id 1 is too old for local minimum version_id, perhaps: ")
    assert ("Missing section footer for dev: data: 4 bytes" in words) is (code == "check-version-misfit")


# ---------------------------------------------------------------- PCI


def config(vectors: int = 4, *, size: int = 256) -> bytearray:
    """A device with an MSI-X capability at 0x98."""
    data = bytearray(size)
    data[0:4] = b"\xf4\x1a\x00\x10"
    data[0x06], data[0x34] = 0x10, 0x98
    data[0x98:0xA4] = bytes([0x11, 0, vectors - 1, 0, 1, 0, 0, 0, 1, 8, 0, 0])
    return data


@pytest.mark.parametrize(
    ("at", "value", "differs"),
    [
        (0x00, 0x36, True),
        (0x02, 0x44, True),
        (0x04, 0x07, False),  # the guest's
        (0x06, 0x00, True),
        (0x06, 0x18, False),  # another status bit
        (0x3C, 0x0B, False),
        (0x34, 0x84, True),
        (0x50, 0xFF, False),  # in no capability
        (0x9A, 0x07, True),
        (0x9B, 0x80, False),  # MSI-X enabled
        (0x9C, 0x02, True),
    ],
)
def test_bytes_of_pci_configuration(at: int, value: int, differs: bool) -> None:
    stream = config()
    stream[at] = value
    found = difference(bytes(stream), bytes(config()))
    assert (found is not None) is differs
    if found is not None:
        assert (found.at, found.read, found.device) == (at, value, config()[at])
        assert found.certain


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_some_configuration(one: bytes, other: bytes) -> None:
    for size in (256, 4096):
        stream, device = one.ljust(size, one[-1:] or b"\0"), other.ljust(size, other[-1:] or b"\xff")
        assert all(0 <= each.at < size for each in compared(device))
        found = difference(stream, device)
        assert found is None or (found.read ^ found.device) & found.mask
        assert difference(device, device) is None
