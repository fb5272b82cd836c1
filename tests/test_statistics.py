"""-z: what each table says of a real capture, by the records of that capture, and of what no capture has."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from migsniff.cli import main
from migsniff.core.errors import UsageError
from migsniff.core.events import Blocked, LoosePages, PageCounts
from migsniff.show.migration import MigrationStats
from migsniff.statistics.io import Io
from migsniff.statistics.sink import Statistics
from migsniff.statistics.statistic import MAX_ROWS, STATISTICS, parse

ROOT = Path(__file__).parent.parent
SAMPLES = sorted(path.parent for path in (ROOT / "captures/samples").glob("*/manifest.json"))
ALL = [word for name in STATISTICS for word in ("-z", name)]
Records = list[dict[str, Any]]


def printed(capfd: pytest.CaptureFixture[str], *arguments: str) -> Records:
    capfd.readouterr()
    assert main(["read", "--descriptions", "none", "-T", "ndjson", *arguments]) in (0, 1)
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def rows(tables: Records, name: str) -> Records:
    (table,) = [table for table in tables if table["name"] == name]
    return list(table["rows"])


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_the_tables_are_what_the_records_add_up_to(sample: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records = printed(capfd, str(sample))
    tables = printed(capfd, str(sample), "-q", *ALL)
    assert {table["type"] for table in tables} == {"statistics"}
    assert [table["name"] for table in tables] == list(STATISTICS)
    passes = [r for r in records if r["type"] == "dirty-sync"]
    told = rows(tables, "iterations")
    assert [row["pages"] for row in told][: len(passes)] == [pages(r["counts"]) for r in passes]
    sent = [r for r in records if r["type"] in ("ram-section", "loose-pages")]
    packets = [r for r in records if r["type"] == "multifd-packet" and r["method"] != "device-state"]
    everything = sum(pages(r["counts"]) for r in sent) + sum(r["normal"] + r["zero"] for r in packets)
    assert sum(row["pages"] for row in rows(tables, "ram")) == everything
    assert sum(row["pages"] for row in rows(tables, "channels")) == everything
    assert sum(row["pages"] for row in rows(tables, "io")) == everything
    devices = {(r["idstr"], r["instance_id"]) for r in records if r["type"] in ("device", "live-section")}
    assert {row["section"] for row in rows(tables, "devices")} == {f"{a}/{b}" for a, b in devices}
    ends = {(r["channel"], r["direction"]): r["offset"] for r in records if r["type"] == "end"}
    told_ends = {
        (r["channel"], "fwd" if r["direction"] == ">" else "rev"): r["bytes"]
        for r in rows(tables, "channels")
    }
    assert {key: told_ends[key] for key in ends} == ends


def pages(counts: dict[str, int]) -> int:
    return counts["normal"] + counts["zero"] + counts["xbzrle"] + counts["compressed"]


def test_downtime_is_split_from_the_switchover_to_the_word_of_the_destination(
    capfd: pytest.CaptureFixture[str],
) -> None:
    sample = ROOT / "captures/samples/x86-72-return-path"
    records = printed(capfd, str(sample))
    steps = rows(printed(capfd, str(sample), "-q", "-z", "downtime"), "downtime")
    assert [step["step"] for step in steps] == ["RAM", "devices", "EOF", "description", "reply"]
    assert sum(step["took"] for step in steps) == pytest.approx(steps[-1]["at"])
    (shut,) = [r["time"] for r in records if r.get("name") == "SHUT"]
    (end,) = [r for r in records if r.get("section_type") == "END"]
    assert steps[-1]["at"] - steps[0]["at"] == pytest.approx(shut - end["time"])
    assert steps[0]["bytes"] == end["size"]
    assert steps[-1]["what"] == "SHUT 0"


@pytest.mark.parametrize("name", ["x86-100-multifd", "x86-100-multifd-16", "x86-100-multifd-zstd"])
def test_downtime_has_the_pages_of_multifd_channels(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """They may come behind the main channel's last byte: nothing runs at the destination without them."""
    sample = str(ROOT / "captures/samples" / name)
    records = printed(capfd, sample)
    steps = rows(printed(capfd, sample, "-q", "-z", "downtime"), "downtime")
    ends = (i for i, r in enumerate(records) if r.get("name") == "SWITCHOVER_START")
    behind = [r for r in records[next(ends) :] if r["type"] == "multifd-packet" and r["normal"] + r["zero"]]
    assert behind
    carried = [step for step in steps if step["step"] == "multifd"]
    assert sum(step["bytes"] for step in carried) == sum(r["size"] for r in behind)
    (start,) = [r["time"] for r in records if r.get("name") == "SWITCHOVER_START"]
    assert steps[-1]["at"] >= carried[-1]["at"] == pytest.approx(behind[-1]["time"] - start)


def test_a_migration_that_failed_has_no_downtime(capfd: pytest.CaptureFixture[str]) -> None:
    """The steps are there all the same: they tell how far it came."""
    failed = ROOT / "captures/samples/failed/01-footer-piix4"
    assert main(["read", "-q", "-z", "downtime", "--descriptions", "none", str(failed)]) == 1
    said = capfd.readouterr().out
    title = r"^Downtime: none, since it failed; [\d.]+ ms, from the switchover to the end of the description"
    assert re.search(title, said, re.MULTILINE)
    assert re.search(r"^ *devices ", said, re.MULTILINE)


def test_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    sample = str(ROOT / "captures/samples/x86-72-return-path")
    assert main(["read", "-q", "--descriptions", "none", "-z", "iterations", "-z", "ram", sample]) == 0
    text = capfd.readouterr().out
    assert text.startswith("\nPasses over guest memory, migration 20261123T070716-b075\npass ")
    assert "\n   1   7.3 ms  59.3 ms   8322    1521  6801 " in text
    assert "\npc.ram                  32 MiB      8192       8192  100.0%        9089 " in text
    assert main(["read", "--descriptions", "none", "-z", "iterations", sample]) == 0
    both = capfd.readouterr().out
    assert both.index("verdict") < both.index("Passes over guest memory")


def test_an_array_of_json_stays_one(capfd: pytest.CaptureFixture[str]) -> None:
    sample = str(ROOT / "captures/samples/x86-72-return-path")
    capfd.readouterr()
    assert main(["read", "--descriptions", "none", "-T", "json", "-z", "ram", "-c", "3", sample]) == 0
    records = json.loads(capfd.readouterr().out)
    assert len(records) == 4
    assert (records[-1]["type"], records[-1]["name"]) == ("statistics", "ram")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("nothing", "-z nothing: there is .*, no 'nothing'"),
        ("ram,5", "-z ram,5: it takes no argument"),
        ("io,0", "-z io,0: an interval is a number with us, ms, s or m"),
        ("io,1h", "-z io,1h: an interval"),
        ("io,10us", "-z io,10us: an interval"),
        ("", "no ''"),
        ("\x1b[31m", r"-z \\x1b\[31m: there is"),
        ("ram,\x1b[31m", r"-z ram,\\x1b\[31m: it takes"),
    ],
)
def test_what_cannot_be_asked(asked: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=message):
        parse(asked)
    assert main(["read", "-z", asked, str(SAMPLES[0])]) == 2
    assert capfd.readouterr().out == ""


def loose(offset: int, count: int = 1) -> LoosePages:
    counts = PageCounts(normal=count)
    return LoosePages(channel="main", direction="fwd", offset=offset, size=1, iteration=1, counts=counts)


def test_intervals_become_longer_instead_of_more() -> None:
    statistic = Io("1ms")
    times = [number * 1_000 for number in range(3 * MAX_ROWS)]
    for offset, time in enumerate(times):
        statistic.update(time, loose(offset))
    table = statistic.table(MigrationStats("m"))
    assert len(table.rows) <= MAX_ROWS
    assert table.title == "Every 0.004 s"
    assert sum(int(row[1] or 0) for row in table.rows) == len(times)
    assert "the interval is 0.004 s" in table.notes[-1]


def test_times_of_a_hostile_capture_cost_little() -> None:
    statistic = Io("1ms")
    statistic.update(0, Blocked(channel="main", direction="fwd", offset=0, size=0, blocked=True))
    statistic.update(1 << 48, Blocked(channel="main", direction="fwd", offset=0, size=0, blocked=False))
    table = statistic.table(MigrationStats("m"))
    assert len(table.rows) <= MAX_ROWS
    assert sum(float(row[6] or 0) for row in table.rows) == pytest.approx(len(table.rows), rel=0.01)


def test_a_migration_that_was_not_read_to_its_end_has_tables() -> None:
    from migsniff.show.stats import Stats

    stats, told = Stats(), list[str]()
    statistics = Statistics(["iterations"], stats, lambda migration, tables: told.append(migration))
    stats.show("m", 0, loose(0))
    statistics.show("m", 0, loose(0))
    assert not told
    statistics.close()
    assert told == ["m"]


def test_reading_without_tables_loads_no_terminal_library() -> None:
    code = "import sys; from migsniff.cli import main; main(sys.argv[1:]); print('rich' in sys.modules)"
    command = [sys.executable, "-c", code, "read", "-q", str(SAMPLES[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
