"""Descriptions remembered: what is kept of them, whatever stands in the folder, and the command."""

import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migsniff.cli import main
from migsniff.core.errors import CaptureError
from migsniff.core.events import DeviceSection
from migsniff.core.session import Session
from migsniff.descriptions import Learning, default_folder, open_store
from migsniff.feed import descriptionstore
from migsniff.feed.descriptions import Descriptions
from migsniff.feed.descriptionstore import (
    MAX_MACHINES,
    PER_SECTION,
    Described,
    Entry,
    Store,
    entries_of,
    file_name,
)
from tests import rawsamples, streams
from tests.catalogue import SMALL, SMALL_BLOCKS, SMALL_HEAD
from tests.playing import arrivals, decode, of, precopy
from tests.streams import EOF

HEAD = SMALL_HEAD + streams.ram_start(SMALL_BLOCKS) + streams.ram_end()
WHOLE = precopy(HEAD, streams.states(), EOF, streams.described(page_size=SMALL))
CUT = precopy(HEAD, streams.states())  # no description
SAMPLES = rawsamples.FOLDER
DAY = 24 * 3600


def entry(idstr: str = "d", device: str = '{"a":1}', *, seen: int = 1000, instance: int = 0) -> Entry:
    return Entry(idstr, instance, 1, seen, "test", msgspec.Raw(device.encode()))


def texts(entries: list[Entry]) -> list[str]:
    return [bytes(one.device).decode() for one in entries]


def learnt(store: Store | None, say: Callable[[str], None] = lambda text: None) -> Descriptions:
    """Descriptions that have seen one stream."""
    known = Descriptions(store, say=say)
    learning = Learning(known.learn)
    for event in decode(Session(), arrivals(WHOLE)):
        learning.show("m", 0, event)
    return known


def believed(known: Descriptions) -> list[str]:
    events = decode(Session(assumed=known.lookup), arrivals(CUT))
    return [event.idstr for event in of(events, DeviceSection) if event.assumed]


ALL = [device.idstr.decode() for device in streams.DEVICES]


class TestStore:
    def test_what_one_stream_described_another_is_read_by(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "deep" / "down")
        assert believed(Descriptions(store)) == []
        assert believed(learnt(store)) == ALL
        assert believed(Descriptions(store)) == ALL
        (path,) = store.folder.glob("*.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700

    def test_the_newest_few_are_kept_each_once(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        for number in range(7):
            assert store.add("m", [entry(device=f'{{"a":{number}}}', seen=number)]) == 1
        assert store.add("m", [entry(device='{"a":4}', seen=4 + 2 * DAY)]) == 0
        assert texts(store.load("m")) == [f'{{"a":{number}}}' for number in (4, 6, 5, 3)]
        assert store.load("m")[0].seen == 4 + 2 * DAY

    def test_seen_again_on_the_same_day_nothing_is_written(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.add("m", [entry(), entry("e")])
        before = (tmp_path / "m.json").stat().st_ino
        assert store.add("m", [entry(seen=1001), entry("e", seen=1001)]) == 0
        assert (tmp_path / "m.json").stat().st_ino == before

    def test_bounds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(descriptionstore, "MAX_MACHINES", 3)
        monkeypatch.setattr(descriptionstore, "MAX_FILE", 4000)
        store = Store(tmp_path)
        for number in range(6):
            store.add(f"m{number}", [entry()])
            os.utime(tmp_path / f"m{number}.json", (number, number))
        assert [found.machine for found in store.load_all()] == ["m3", "m4", "m5"]
        store.add("m5", [entry(f"d{number}", seen=number) for number in range(100)])
        assert (tmp_path / "m5.json").stat().st_size <= 4000
        kept = store.load("m5")
        assert 5 < len(kept) < 100
        assert min(one.seen for one in kept) == 100 - len(kept) + (1 if entry() in kept else 0)

    def test_all_together(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(descriptionstore, "MAX_FILE", 4000)
        monkeypatch.setattr(descriptionstore, "MAX_TOTAL", 10000)
        store = Store(tmp_path)
        for number in range(8):
            store.add(f"m{number}", [entry(device='{"a":"' + "x" * 2500 + '"}')])
            os.utime(tmp_path / f"m{number}.json", (number, number))
        assert [found.machine for found in store.load_all()] == ["m5", "m6", "m7"]

    @pytest.mark.parametrize(
        "machine",
        [
            "",
            "..",
            "../../etc/passwd",
            "/",
            "a\0b",
            "x" * 5000,
            "\x1b[2J",
            ".hidden",
            "ü",
            "a/b",
            "~",
            "\ud800",
        ],
    )
    def test_names_stay_in_the_folder(self, machine: str, tmp_path: Path) -> None:
        name = file_name(machine)
        assert "/" not in name
        assert len(name) < 120
        assert name.isascii()
        assert name.isprintable()
        assert name[0] != "."
        if machine != "\ud800":  # which is in no JSON
            store = Store(tmp_path / "in")
            store.add(machine, [entry()])
            assert len(store.load(machine)) == 1
            assert os.listdir(tmp_path) == ["in"]

    def test_names_differ(self) -> None:
        machines = ["pc", "PC", "pc/", "pc\\", "pc.json", "~pc", "a" * 120, "a" * 121]
        assert len({file_name(machine) for machine in machines}) == len(machines)

    def test_several_at_once_lose_nothing(self, tmp_path: Path) -> None:
        def add(number: int) -> int:
            return Store(tmp_path).add("m", [entry(f"d{number}")])

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(add, range(24))) == 24
        assert len(Store(tmp_path).load("m")) == 24
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "m.json"]

    def test_what_a_killed_one_left_is_removed(self, tmp_path: Path) -> None:
        old = tmp_path / ".m.json.1.2"
        old.touch()
        os.utime(old, (1, 1))
        Store(tmp_path).add("m", [entry()])
        assert not old.exists()


class TestFaults:
    def test_a_folder_that_cannot_be_made_is_told_once(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        said: list[str] = []
        known = learnt(Store(tmp_path / "file" / "in"), said.append)
        known.learn(Described("m", b"{}", {}, "x"))
        assert len(said) == 1
        assert "are not remembered" in said[0]
        assert believed(known) == []

    @pytest.mark.parametrize("size", [0, 100])
    def test_a_full_disk(self, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(tmp_path)
        learnt(store)
        before = store.load("virt")

        def full(source: Any, target: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        said: list[str] = []
        known = Descriptions(store, say=said.append)
        known.learn(Described("virt", b'{"devices":[{"name":"new","instance_id":0}]}', {}, "x"))
        assert said == [f"device descriptions are not remembered in {tmp_path}: No space left on device"]
        assert store.load("virt") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "virt.json"]

    def test_none_is_wanted(self, tmp_path: Path) -> None:
        assert open_store("none") is None
        assert believed(learnt(None)) == []

    def test_where_they_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = os.environ["XDG_CACHE_HOME"]
        assert "pytest" in cache, "tests must not touch the user's cache"
        assert default_folder() == Path(cache) / "migsniff" / "descriptions"
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", "/home/somebody")
        assert default_folder() == Path("/home/somebody/.cache/migsniff/descriptions")

    def test_in_a_thread(self, tmp_path: Path) -> None:
        learnt(Store(tmp_path))
        said: list[str] = []
        known = Descriptions(Store(tmp_path), say=said.append)
        known.start()
        known.learn(Described("other", b'{"devices":[{"name":"new","instance_id":0}]}', {}, "x"))
        known.close(20)
        assert believed(known) == ALL
        assert len(Store(tmp_path).load("other")) == 1
        assert not said


STRANGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_bytes(b"\x7fELF" * 100),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "another shape": lambda path: path.write_bytes(b'{"machine":7,"entries":{}}'),
    "another machine's": lambda path: path.write_bytes(
        b'{"machine":"../x","entries":[],"format":"migsniff descriptions","version":1}'
    ),
    "of the future": lambda path: path.write_bytes(
        b'{"machine":"virt","entries":[],"format":"migsniff descriptions","version":2}'
    ),
    "too large": lambda path: path.write_bytes(b" " * (4 << 20) + b"{}"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a loop": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("what", STRANGE)
def test_whatever_stands_in_the_folder(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    STRANGE[what](tmp_path / "virt.json")
    said: list[str] = []
    known = Descriptions(Store(tmp_path), say=said.append)
    assert believed(known) == []
    known.start()
    known.close(20)
    assert not said
    assert main(["descriptions", "list", "--descriptions", str(tmp_path)]) == 1
    assert "1 file in" in capfd.readouterr().err


def test_bad_entries_are_left_out(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"idstr": ""},
        {"idstr": "a\x1bb"},
        {"source": "\x1b[2J"},
        {"device": 7},
        {"device": {"x": "y" * (300 << 10)}},
        {"seen": -1},
    ]
    good: dict[str, Any] = {"idstr": "d", "instance": 0, "version": 1, "seen": 1, "source": "s", "device": {}}
    entries = [{**good, **change} for change in [*bad, {}]]
    text = {"machine": "virt", "entries": entries, "format": "migsniff descriptions", "version": 1}
    (tmp_path / "virt.json").write_text(json.dumps(text))
    assert Store(tmp_path).load("virt") == [Entry("d", 0, 1, 1, "s", msgspec.Raw(b"{}"))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_a_damaged_file_harms_nobody(seed: int, tmp_path: Path) -> None:
    """Bytes changed, moved, left out: no exception, and what is not assumed stays as it is."""
    chance = random.Random(seed)
    path = tmp_path / "virt.json"
    path.unlink(missing_ok=True)
    learnt(Store(tmp_path))
    text = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3, 30))):
        at = chance.randrange(len(text))
        length = chance.choice((1, 1, 4, 50))
        new = chance.choice((bytes([chance.randrange(256)]), b"", b"9" * 20, b"[{", bytes(text[at:][:40])))
        text[at : at + length] = new
    path.write_bytes(text)
    known = Descriptions(Store(tmp_path))
    plain = decode(Session(), arrivals(CUT))
    events = decode(Session(assumed=known.lookup), arrivals(CUT))
    places = [(event.idstr, event.offset, event.size) for event in of(plain, DeviceSection)]
    assert [(event.idstr, event.offset, event.size) for event in of(events, DeviceSection)] == places
    assert events[-1] == plain[-1]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"devices":7}', b'{"devices":[7]}', b"{" * 9999, b"\xff"]
)
def test_a_text_that_is_no_description(text: bytes) -> None:
    with pytest.raises(CaptureError):
        entries_of(Described("m", text, {}, "x"))


def test_another_instance_or_place_comes_last() -> None:
    given = [entry("0000:00:02.0/nic"), entry("0000:00:03.0/nic", instance=1), entry("0000:00:03.0/nic")]
    found = Descriptions(None, given).lookup("any", "0000:00:03.0/nic", 0, 1)
    assert [one.source for one in found] == [
        "from test",
        "from test, as 0000:00:03.0/nic/1",
        "from test, as 0000:00:02.0/nic/0",
    ]
    assert Descriptions(None, given).lookup("any", "0000:00:03.0/nic", 0, 2) == []


# ---------------------------------------------------------------- the command


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
class TestCommand:
    def test_from_one_reading_to_the_next(self, capfd: pytest.CaptureFixture[str]) -> None:
        postcopy = str(SAMPLES / "x86-100-postcopy")
        assert main(["read", postcopy]) == 0
        assert "assumed" not in capfd.readouterr().out
        assert main(["read", str(SAMPLES / "x86-100-multifd")]) == 0
        capfd.readouterr()
        assert main(["read", "--descriptions", "none", postcopy]) == 0
        assert "assumed" not in capfd.readouterr().out
        assert main(["read", "-V", postcopy]) == 0
        out = capfd.readouterr().out
        assert out.count("provisional, assumed (seen in ") == 31
        assert 'runstate: "running"' in out
        assert main(["info", postcopy]) == 0
        assert "bytes of 31 devices, provisional, 31 of them assumed\n" in capfd.readouterr().out
        assert main(["info", "-T", "json", postcopy]) == 0
        told = json.loads(capfd.readouterr().out)["devices"]
        assert (told["count"], told["exact"], told["assumed"]) == (31, 0, 31)
        assert main(["info", str(SAMPLES / "x86-100-multifd")]) == 0
        assert "bytes of 31 devices, 31 exact\n" in capfd.readouterr().out

        assert main(["descriptions", "list", "-T", "json"]) == 0
        (listed,) = json.loads(capfd.readouterr().out)
        assert (listed["machine"], listed["devices"]) == ("pc-i440fx-10.0", 31)
        assert main(["descriptions", "list"]) == 0
        assert "pc-i440fx-10.0 " in capfd.readouterr().out
        assert main(["descriptions", "show", "pc-i440fx-10.0"]) == 0
        assert "0000:00:01.3/piix4_pm/0" in capfd.readouterr().out
        assert main(["descriptions", "show", "pc-i440fx-10.0", "-T", "json"]) == 0
        shown = json.loads(capfd.readouterr().out)["sections"]
        assert shown[0]["description"]["name"] == shown[0]["idstr"] == "timer"

        assert main(["descriptions", "show", "other"]) == 1
        assert main(["descriptions", "forget"]) == 2
        assert main(["descriptions", "forget", "other"]) == 1
        assert main(["descriptions", "forget", "pc-i440fx-10.0"]) == 0
        assert main(["descriptions", "forget", "--all"]) == 0
        assert main(["descriptions", "list"]) == 0
        assert "pc-i440fx" not in capfd.readouterr().out
        assert main(["descriptions", "list", "--descriptions", "none"]) == 2

    def test_reading_a_capture_twice_prints_the_same(self, capfd: pytest.CaptureFixture[str]) -> None:
        """It is not read by what was learnt from it."""
        arguments = ["read", "-V", str(SAMPLES / "x86-72-pc")]
        assert main(arguments) == 0
        first = capfd.readouterr().out
        assert main(arguments) == 0
        assert capfd.readouterr().out == first

    def test_files_that_describe(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        capture, postcopy = str(SAMPLES / "x86-100-multifd"), str(SAMPLES / "x86-100-postcopy")
        assert main(["analyze", "-d", "desc", "-f", capture]) == 0
        text = tmp_path / "description.json"
        text.write_text(capfd.readouterr().out)
        dump = tmp_path / "dump"
        dump.write_bytes(WHOLE.main)
        for path, count in (
            (capture, 31),
            (str(text), 31),
            (str(dump), 1),
        ):  # a buffer that happens to be as long
            arguments = ["read", "--descriptions", "none", "--describe", path, postcopy]
            assert main(arguments) == 0
            assert capfd.readouterr().out.count("provisional, assumed (from ") == count
        assert main(["descriptions", "add", capture]) == 0
        assert capfd.readouterr().out == "pc-i440fx-10.0: 31 descriptions, 31 of them new\n"
        assert main(["descriptions", "add", capture]) == 0
        assert capfd.readouterr().out == "pc-i440fx-10.0: 31 descriptions, 0 of them new\n"
        assert main(["descriptions", "add", str(text)]) == 2
        assert main(["descriptions", "add", "--machine", "pc-i440fx-10.0", str(text)]) == 0
        assert main(["descriptions", "add", postcopy]) == 1
        assert "holds no description" in capfd.readouterr().err

    def test_what_is_added_is_what_is_listed(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """Of one section no more than PER_SECTION are kept: what a file has beyond that is not new."""
        fields = [{"field": f"f{n}", "version_id": 0, "field_exists": False, "size": 4} for n in range(9)]
        devices = {
            f"device{n}": {
                "Name": f"device{n}",
                "version_id": 1,
                "minimum_version_id": 1,
                "Description": {
                    "name": "same",
                    "version_id": 1,
                    "minimum_version_id": 1,
                    "Fields": fields[: n + 1],
                },
            }
            for n in range(PER_SECTION + 3)
        }
        dump = tmp_path / "dump.json"
        dump.write_text(json.dumps({"vmschkmachine": {"Name": "pc"}, **devices}))
        cache = ["--descriptions", str(tmp_path / "cache")]
        assert main(["descriptions", "add", str(dump), *cache]) == 0
        count = PER_SECTION + 3
        beyond = f"3 not kept, beyond {PER_SECTION} for a section"
        told = f"pc: {count} descriptions, {PER_SECTION} of them new; {beyond}\n"
        assert capfd.readouterr().out == told
        assert main(["descriptions", "list", "-T", "json", *cache]) == 0
        (listed,) = json.loads(capfd.readouterr().out)
        assert listed["descriptions"] == PER_SECTION

    def test_files_beyond_those_that_are_looked_at_are_counted(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(4 * MAX_MACHINES + 2):
            (tmp_path / f"m{number}.json").write_text("{")
        assert main(["descriptions", "list", "--descriptions", str(tmp_path)]) == 1
        said = capfd.readouterr().err
        assert f"{4 * MAX_MACHINES} files in " in said
        assert said.endswith("; 2 more files there were not looked at\n")

    @pytest.mark.parametrize("place", ["-", "/dev/stdin"])
    @pytest.mark.parametrize("kind", ["stream", "description"])
    def test_what_describes_may_come_out_of_a_pipe(
        self, kind: str, place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Whose bytes can be read once."""
        if kind == "stream":
            content, machine = WHOLE.main, []
        else:
            assert main(["analyze", "-d", "desc", "-f", str(SAMPLES / "x86-100-multifd")]) == 0
            content, machine = capfd.readouterr().out.encode(), ["--machine", "virt"]
        (tmp_path / "file").write_bytes(content)

        def told(path: str, folder: str) -> tuple[int, bytes]:
            add = ["descriptions", "add", *machine, path, "--descriptions", str(tmp_path / folder)]
            run = [sys.executable, "-m", "migsniff", *add]
            ended = subprocess.run(run, input=content, capture_output=True, check=False)
            return ended.returncode, ended.stdout

        expected = told(str(tmp_path / "file"), "one")
        assert expected[0] == 0
        assert told(place, "other") == expected

    @pytest.mark.parametrize(
        "content", [b"{}", b"{", b'{"devices":[]}', b"text", b'{"vmschkmachine":7}', b""]
    )
    def test_files_that_describe_nothing(
        self, content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        for command in (["descriptions", "add", str(path)], ["info", "--describe", str(path), "x"]):
            assert main(command) == 1
            assert capfd.readouterr().err.count("\n") == 1
        assert main(["descriptions", "add", str(tmp_path / "missing")]) == 1

    def test_a_file_without_end(self, capfd: pytest.CaptureFixture[str]) -> None:
        for command in (["descriptions", "add"], ["fields", "--describe"], ["read", "x", "--describe"]):
            assert main([*command, "/dev/zero"]) == 1
            assert "/dev/zero: it holds no description of device state: no QEMU" in capfd.readouterr().err
