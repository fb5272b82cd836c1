"""--check-against: what is wrong is told while the migration runs, and changes nothing else."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.compare import watch
from migsniff.compare.checker import Checker
from migsniff.core.events import Event, Finding
from migsniff.core.session import Session
from migsniff.destination import Destination, read_destination
from migsniff.feed.descriptions import Descriptions
from migsniff.pipeline import Pipeline
from migsniff.values import large
from tests.finding import Keep
from tests.loading import stream as own_stream
from tests.playing import Cut, Stream, arrivals, bytewise, precopy, whole
from tests.qemu import Migration, poll, require
from tests.relays import Proxy
from tests.streams import (
    CPU,
    EOF,
    HEADER,
    PAGE_SIZE,
    SERIAL,
    TIMER,
    Device,
    configuration,
    described,
    full,
    ram_end,
    ram_start,
    states,
)
from tests.test_check import schema
from tests.test_proxy import Destination as Target
from tests.test_proxy import send
from tests.test_samples import NAMES, SAMPLES

HEAD = HEADER + configuration() + ram_start() + ram_end()
DEVICES = (TIMER, CPU, SERIAL)
SHORT = Device(TIMER.section_id, TIMER.idstr, TIMER.payload[:16], version=TIMER.version)


def destination(path: Path, content: bytes) -> Destination:
    path.write_bytes(content)
    return read_destination(str(path))


def stream_of(devices: Sequence[Device], *, head: bytes = HEAD, description: bool = True) -> bytes:
    return head + states(devices) + EOF + (described(devices) if description else b"")


def shown(stream: Stream, there: Destination | None, cut: Cut = whole, *, known: bool = True) -> list[Event]:
    """All that a pipeline shows; `known`: the destination's descriptions are tried."""
    entries = there.entries if there is not None and known else ()
    keep = Keep()
    session = Session(fields=True, assumed=Descriptions(None, destination=entries).lookup_for("m"))
    pipeline = Pipeline("m", session, [keep], finders=there.finders() if there is not None else ())
    for arrival in arrivals(stream, cut):
        for _ in pipeline.feed(arrival):
            pass
    for _ in pipeline.finish():
        pass
    return [event for _, event in keep.events]


def told(events: Sequence[Event]) -> list[Finding]:
    return [one for one in events if isinstance(one, Finding) and one.code.startswith("check-")]


# ---------------------------------------------------------------- in the pipeline

OTHER = {
    "machine": HEADER + configuration(b"pc-i440fx-7.1") + ram_start() + ram_end(),
    "block": HEADER + configuration() + ram_start({b"pc.ram": 64 * PAGE_SIZE}) + ram_end(),
    "length": HEADER
    + configuration()
    + ram_start({b"pc.ram": 32 * PAGE_SIZE, b"vga.vram": 16 * PAGE_SIZE})
    + ram_end(),
}


@pytest.mark.parametrize(
    ("there", "codes"),
    [
        (stream_of(DEVICES), []),
        (stream_of(DEVICES, head=OTHER["machine"]), ["check-machine"]),
        (stream_of(DEVICES, head=OTHER["block"]), ["check-block-unknown"]),
        (stream_of(DEVICES, head=OTHER["length"]), ["check-block-size"]),
        (stream_of((TIMER, SERIAL)), ["check-section-unknown"]),
        (stream_of((Device(0, b"timer", TIMER.payload, version=1), CPU, SERIAL)), ["check-version"]),
        (stream_of((*DEVICES, Device(8, b"more", b"x"))), ["check-extra-sections"]),
    ],
    ids=["the same", "machine", "block", "length", "section", "version", "more"],
)
@pytest.mark.parametrize("description", [True, False], ids=["described", "never described"])
def test_what_is_told_and_when(there: bytes, codes: list[str], description: bool, tmp_path: Path) -> None:
    """As soon as it has come, once, with the bytes that prove it, however the stream was cut."""
    local = destination(tmp_path / "there", there)
    data = stream_of(DEVICES, description=description)
    stream = precopy(data, outcome="completed")
    events = shown(stream, local)
    found = told(events)
    assert [one.code for one in found] == codes
    assert told(shown(stream, local, bytewise)) == found
    for one in found:
        evidence = bytes.fromhex(one.evidence)
        assert data[one.offset :].startswith(evidence)
        assert bool(evidence) is (one.severity == "error" and one.code != "check-machine")
        behind = events[events.index(one) - 1]
        if one.code != "check-extra-sections":  # nothing else has come between
            assert behind.offset <= one.offset <= behind.offset + behind.size
    assert [one for one in events if one not in found] == shown(stream, None) or local.entries


def test_a_section_that_is_refused_needs_no_more_than_its_header(tmp_path: Path) -> None:
    """The destination goes when it has read that much: the rest may never come."""
    local = destination(tmp_path / "there", stream_of((TIMER, SERIAL)))
    data = stream_of(DEVICES, description=False)
    header = data.index(CPU.idstr) + len(CPU.idstr) + 8
    for come in range(header, data.index(SERIAL.idstr)):
        events = shown(precopy(data[:come]), local)
        assert [one.code for one in told(events) if one.severity == "error"] == ["check-section-unknown"]


@pytest.mark.parametrize("known", [True, False], ids=["descriptions", "no descriptions"])
def test_a_section_that_nothing_describes_can_be_too_short(known: bool, tmp_path: Path) -> None:
    local = destination(tmp_path / "there", stream_of(DEVICES))
    (found,) = told(shown(precopy(stream_of((SHORT, CPU, SERIAL), description=False)), local, known=known))
    assert (found.code, found.section) == ("check-footer-maybe", "timer/0")  # a field may not be needed
    assert "16 bytes in the stream, at least 24 at the destination" in found.message


def test_a_dump_tells_of_versions_at_once(tmp_path: Path) -> None:
    local = destination(tmp_path / "there", json.dumps(schema()).encode())
    head = HEADER + configuration(b"pc") + ram_start() + ram_end()
    stream = precopy(head, full(7, b"0000:00:01.0/dev", b"abcd", version=2), EOF)
    (found,) = told(shown(stream, local))
    assert found.code == "check-version"


@pytest.mark.parametrize("when", ["sees", "yields"])
def test_a_fault_ends_the_checker_alone(when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Checker, event: Event) -> Any:
        if when == "sees":
            raise RecursionError("deep")
        return iter([None])

    local = destination(tmp_path / "there", stream_of(DEVICES))
    stream = precopy(stream_of(DEVICES))
    fine = shown(stream, local)
    monkeypatch.setattr(Checker, "see", fails)
    events = shown(stream, local)
    bugs = [one for one in events if isinstance(one, Finding) and one.code == "expert-bug"]
    assert len(bugs) == 1
    assert "rule Watch failed" in bugs[0].message
    assert [one for one in events if one not in bugs] == fine


def test_what_is_too_large_is_left_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MAX_FIELDS", 0)
    monkeypatch.setattr(large, "MAX_FIELDS", 0)
    local = destination(tmp_path / "there", stream_of((TIMER, SERIAL)))
    found = told(shown(precopy(stream_of(DEVICES)), local))
    assert {one.code for one in found} == {"check-too-large", "check-section-unknown"}
    assert len(found) == len(DEVICES) + 2
    assert found[0].section == "ram/0"


def test_as_many_blocks_as_there_can_be_take_turns(tmp_path: Path) -> None:
    """Each finding lets others go on, and all of them together do not take much longer than one by one."""
    blocks = {f"block{number}".encode(): PAGE_SIZE for number in range(2000)}
    local = destination(tmp_path / "there", stream_of(DEVICES))
    keep = Keep()
    pipeline = Pipeline("m", Session(), [keep], finders=local.finders())
    turns, longest = 0, 0.0
    for arrival in arrivals(precopy(HEADER + configuration() + ram_start(blocks))):
        began = time.thread_time()
        for _ in pipeline.feed(arrival):
            turns += 1
            longest = max(longest, time.thread_time() - began)
            began = time.thread_time()
    assert len(told([event for _, event in keep.events])) == len(blocks) + 1
    assert turns > len(blocks)
    assert longest < 0.5  # of all at once it would be seconds, were each looked up in the whole list


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_fits_itself_while_it_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all modes, with descriptions and without: nothing is said, and no other finding changes."""
    sample = str(SAMPLES / name)
    common = ["expert", sample, "-T", "json", "--descriptions", "none"]

    def found(*options: str) -> tuple[int, Any, list[tuple[str, str]]]:
        code = main([*common, *options])
        told = json.loads(capsys.readouterr().out)
        return code, told["verdict"], [(one["severity"], one["code"]) for one in told["findings"]]

    code, verdict, findings = found()
    watched_code, _, watched = found("--check-against", sample)
    assert watched_code == code
    checks = [one for one in watched if one[1].startswith("check-")]
    assert all(severity == "note" for severity, _ in checks)
    others = [one for one in watched if one not in checks and not one[1].startswith("assumed-")]
    assert others == findings
    assert verdict is not None


# ---------------------------------------------------------------- through the proxy


def test_the_moment_the_memory_list_has_come(tmp_path: Path) -> None:
    """No later byte is needed; what is forwarded is what was sent."""
    there = tmp_path / "there"
    there.write_bytes(stream_of(DEVICES, head=OTHER["length"]))
    target = Target()
    try:
        with Proxy(tmp_path, target.where, "--check-against", str(there)) as proxy:
            host, _, port = proxy.where.rpartition(":")
            with socket.create_connection((host, int(port))) as source:
                source.sendall(HEAD)
                assert poll(lambda: any(one.get("code") == "check-block-size" for one in proxy.events), 20)
                assert bytes(target.received[0]) == HEAD
                source.sendall(stream_of(DEVICES)[len(HEAD) :])
                source.shutdown(socket.SHUT_WR)
                while source.recv(4096):
                    pass
            proxy.verdicts()
            assert bytes(target.received[0]) == stream_of(DEVICES)
            finding = next(one for one in proxy.events if one.get("code") == "check-block-size")
            assert finding["severity"] == "error"
            assert finding["field"] == "pc.ram"
            assert proxy.stop() == 0
            manifest = json.loads((proxy.capture() / "manifest.json").read_text())
            assert manifest["facts"]["check_against"] == str(there)
    finally:
        target.close()


def test_what_a_capture_tells_is_what_was_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there"
    there.write_bytes(stream_of((TIMER, SERIAL), head=OTHER["length"]))
    options = ["--check-against", str(there), "--descriptions", "none"]
    target = Target()
    try:
        with Proxy(tmp_path, target.where, *options) as proxy:
            send(proxy.where, stream_of(DEVICES))
            proxy.verdicts()
            assert proxy.stop() == 0
            live, capture = proxy.events, str(proxy.capture())
    finally:
        target.close()
    assert main(["read", capture, "-T", "ndjson", *options]) == 0
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == live
    assert main(["expert", capture, "-T", "json", *options]) == 0
    counts = json.loads(capfd.readouterr().out)["counts"]["error"]
    assert counts == {"check-block-size": 1, "check-section-unknown": 1}
    assert main(["info", capture, *options]) == 0
    assert "Unknown savevm section or instance 'cpu_common' 1" in capfd.readouterr().out
    assert main(["read", capture, *options]) == 0
    assert "Size mismatch: pc.ram: 0x40000 != 0x20000" in capfd.readouterr().out


@pytest.mark.parametrize(
    "content", [None, b"", b"nonsense", HEADER, b'{"vmschkmachine": 1}', b'{"vmschkmachine']
)
@pytest.mark.parametrize(
    "command",
    [
        ["--listen", "127.0.0.1:0", "--forward", "127.0.0.1:1"],
        ["read", "{capture}"],
        ["info", "{capture}"],
        ["expert", "{capture}"],
    ],
    ids=lambda command: command[0],
)
def test_a_destination_that_cannot_be_read(
    command: list[str], content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    if content is not None:
        there.write_bytes(content)
    (tmp_path / "capture").write_bytes(stream_of(DEVICES))
    arguments = [each.format(capture=tmp_path / "capture") for each in command]
    assert main([*arguments, "--check-against", str(there), "--descriptions", "none"]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"migsniff: {there}: ")
    assert told.out == ""


def test_nothing_can_be_checked_without_decoding(capsys: pytest.CaptureFixture[str]) -> None:
    endpoints = ["--listen", "127.0.0.1:0", "--forward", "127.0.0.1:1"]
    assert main([*endpoints, "--no-decode", "--check-against", "x"]) == 2
    assert "--check-against is for what is decoded" in capsys.readouterr().err


# ---------------------------------------------------------------- real destinations

REFUSALS = {
    "a ROM that is not there": (
        "-device virtio-net-pci,addr=5",
        "-device virtio-net-pci,addr=5,romfile=",
        "check-block-unknown",
        'Unknown ramblock "0000:00:05.0/virtio-net-pci.rom", cannot accept migration',
    ),
    "a device that is not there": (
        "-device virtio-rng-pci",
        "",
        "check-section-unknown",
        "virtio-rng' 0",
    ),
    "other MSI-X vectors": (
        "-device virtio-net-pci,addr=5",
        "-device virtio-net-pci,addr=5,vectors=8",
        "check-pci",
        "Bad config data: i=0x9a read: 3 device: 7",
    ),
}


def test_a_virtio_device_that_is_cut_off_is_compared_as_far_as_it_has_come(tmp_path: Path) -> None:
    here, there, code, words = REFUSALS["other MSI-X vectors"]
    require("7.2")
    local = destination(tmp_path / "there", own_stream("7.2", f"-M pc-i440fx-7.2 {there}"))
    data = own_stream("7.2", f"-M pc-i440fx-7.2 {here}")
    header = b"0000:00:05.0/virtio-net" + bytes(4) + b"\0\0\0\x0b"  # instance, version
    config = data.index(header) + len(header) + 4  # behind the version of PCIDevice
    for come, codes in (config + 255, []), (config + 256, [code]), (config + 1500, [code]):
        found = told(shown(precopy(data[:come]), local))
        assert [one.code for one in found] == codes
        assert all(words in one.message for one in found)


@pytest.mark.parametrize("caps", [[], ["return-path"]], ids=["", "return path"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_real_refusal_is_told_before_it_happens(
    name: str, caps: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No description comes of a migration that fails: the destination's own stream has one."""
    here, there, code, words = REFUSALS[name]
    require("7.2")
    (tmp_path / "there").write_bytes(own_stream("7.2", f"-M pc-i440fx-7.2 {there}"))
    options = ["--check-against", str(tmp_path / "there"), "--descriptions", "none"]
    settings: dict[str, Any] = {"machine": "pc-i440fx-7.2", "source_args": here, "destination_args": there}
    with Migration("7.2", caps=caps, **settings) as migration:
        with Proxy(tmp_path, migration.listen(), *options) as proxy:
            migration.run(f"tcp:{proxy.where}")
            (verdict,) = proxy.verdicts()
            assert not verdict["ok"]
            # where the reset overtakes the rest of the section, what is said of the end comes before
            told = [one for one in proxy.events if one.get("code", "").startswith("check-")]
            first = next(one for one in told if one["severity"] == "error")
            assert first["code"] == code
            assert words in first["message"]
            assert proxy.stop() == 1
        assert words in migration.destination.log
    against = ["--against", str(tmp_path / "there"), "--descriptions", "none"]
    assert main(["check", str(proxy.capture()), *against]) == 1
    assert words in capsys.readouterr().out.splitlines()[-1]
