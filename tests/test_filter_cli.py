"""-Y, -T fields and `migsniff fields` as a user runs them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from migsniff.cli import main
from migsniff.core.events import UNLISTED, DeviceSection, Event
from migsniff.filter.compile import Filter
from migsniff.filter.names import names
from migsniff.show.matching import KEPT, Matching
from migsniff.values.explain import Explainer
from migsniff.values.meaning import TYPES
from tests.filtering import SAMPLES, sample
from tests.synthetic import PRECOPY

PC = str(SAMPLES / "x86-72-pc")
MULTIFD = str(SAMPLES / "x86-100-multifd")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--descriptions", "none"])
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.mark.parametrize(
    "expression", ["multifd and ram", "packet", 'channel == "multifd-1"', "time > 5ms", "verdict"]
)
def test_each_format_has_the_same_records(run: Run, expression: str) -> None:
    code, text, _ = run("read", MULTIFD, "-Y", expression)
    _, ndjson, _ = run("read", MULTIFD, "-Y", expression, "-T", "ndjson")
    _, array, _ = run("read", MULTIFD, "-Y", expression, "-T", "json")
    _, columns, _ = run("read", MULTIFD, "-Y", expression, "-T", "fields", "-e", "offset", "-e", "type")
    records = [json.loads(line) for line in ndjson.splitlines()]
    assert records == json.loads(array)
    assert len(records) > 0
    assert [int(line.split()[1]) for line in text.splitlines()] == [one["offset"] for one in records]
    assert columns.splitlines() == [f"{one['offset']}\t{one['type']}" for one in records]
    assert code == 0


def test_lines_are_those_of_the_whole_log(run: Run) -> None:
    """Times since the record before, and since a pass began, do not depend on what is shown."""
    _, whole, _ = run("read", PC)
    _, some, _ = run("read", PC, "-Y", "device or sync")
    first = [line for line in some.splitlines() if not line.endswith(" exact")]
    assert len(some.splitlines()) == len(first) + 31  # a filter lets both records of a device through
    assert first == [line for line in whole.splitlines() if line.split()[3] in ("FULL", "sync")]


def test_the_exit_code_is_the_verdicts(run: Run) -> None:
    refused = str(SAMPLES / "x86-72-refused")
    assert run("read", refused)[0] == 1
    assert run("read", refused, "-Y", "header")[0] == 1
    assert run("-r", PC, "-Y", "!ram and ram") == (0, "", "")


def test_sections_and_the_filter_must_both_agree(run: Run) -> None:
    _, out, _ = run("read", PC, "--section", "timer", "-Y", "section.provisional == false")
    assert [line.split()[4] for line in out.splitlines()] == ["timer/0"]


def test_fields_of_devices_are_decoded_for_the_filter(run: Run) -> None:
    _, out, err = run("read", PC, "-Y", "device.pckbd.kbd.status == 28")
    assert [line.split()[4] for line in out.splitlines()] == ["pckbd/0"]
    assert err == ""
    _, out, err = run("read", PC, "-Y", "device.pckbd.kbd.stats == 28")
    assert (out, err) == (
        "",
        "migsniff: no record in which device.pckbd.kbd.stats was looked for has it (`migsniff fields CAPTURE`"
        " lists those)\n",
    )


def test_counts_end_the_log(run: Run) -> None:
    _, out, _ = run("read", PC, "-Y", "device", "-c", "2")
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    "command", [["read", PC], ["sniff", "-i", "lo"], ["--listen", "0", "--forward", "1"]]
)
def test_an_error_is_shown_at_its_place(run: Run, command: list[str]) -> None:
    code, out, err = run(*command, "-Y", "ram and section.nmae == 1")
    assert (code, out) == (2, "")
    assert err == (
        "migsniff: there is no field section.nmae; "
        "did you mean section.name, section.instance, section.type?\n"
        "    ram and section.nmae == 1\n"
        "            ^~~~~~~~~~~~\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-T", "fields"], "-T fields and -e FIELD need each other"),
        (["-e", "time"], "-T fields and -e FIELD need each other"),
        (["-E", "header=y"], "-E is for -T fields"),
        (["-T", "fields", "-e", "tiem"], "there is no field tiem; did you mean time?"),
        (["-T", "fields", "-e", "time", "-E", "quote=x"], "-E quote=x: it takes header=y|n"),
        (["-T", "fields", "-e", "time", "-E", "separator=\x1b"], r"-E separator=\x1b: it takes"),
        (["-T", "fields", "-e", "time", "-E", "separator=ab"], "-E separator=ab: it takes"),
        (["-Y", ""], "an empty expression"),
    ],
)
def test_usage(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run("read", PC, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"migsniff: {said}")


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ([], "pc.ram\t6\t33554432\n"),
        (["separator=;"], "pc.ram;6;33554432\n"),
        (["header=y"], "ram.block[0:6]\tcount(ram.block)\tram.block.length\npc.ram\t6\t33554432\n"),
        (["quote=d", "separator=/s"], '"pc.ram" "6" "33554432"\n'),
    ],
)
def test_layout(run: Run, layout: list[str], expected: str) -> None:
    _, out, _ = run(
        *("read", PC, "-Y", "type == ram-blocks", "-T", "fields", "-E", "occurrence=f"),
        *(one for each in layout for one in ("-E", each)),
        *("-e", "ram.block[0:6]", "-e", "count(ram.block)", "-e", "ram.block.length"),
    )
    assert out == expected


def test_occurrences_quotes_and_what_is_missing(run: Run) -> None:
    what = [
        "read",
        PC,
        "-Y",
        "sync",
        "-T",
        "fields",
        "-e",
        "sync.block",
        "-e",
        "verdict.ok",
        "-e",
        "sync.final",
    ]
    _, out, _ = run(*what, "-E", "quote=d", "-E", "separator=/s", "-E", "aggregator=|")
    first = out.splitlines()[0]
    assert first.startswith('"pc.ram|')
    assert first.endswith(' "" "false"')
    _, out, _ = run(*what, "-E", "occurrence=l")
    assert out.splitlines()[0].split("\t")[0] == first.split('"')[1].split("|")[-1]


def test_a_log_without_records_has_its_header(run: Run) -> None:
    _, out, _ = run("read", PC, "-Y", "tls", "-T", "fields", "-e", "time", "-E", "header=y")
    assert out == "time\n"


# ---------------------------------------------------------------- the names


def test_the_general_fields_are_always_listed(run: Run) -> None:
    _, out, _ = run("fields")
    assert [line.split()[0] for line in out.splitlines()] == list(names())
    _, out, _ = run("fields", "-T", "json", "verdict.*")
    assert json.loads(out)[0] == {
        "name": "verdict.ok",
        "type": "boolean",
        "description": "whether all went well",
    }


def test_a_pattern_selects(run: Run) -> None:
    _, out, _ = run("fields", "time", "sync.block")
    assert [line.split()[0] for line in out.splitlines()] == ["time", "sync.block"]
    assert run("fields", "no/such/file")[0] == 2


@pytest.mark.parametrize("name", ["x86-72-pc", "x86-100-q35", "s390x-100-ccw", "aarch64-100-virt"])
def test_every_listed_field_of_a_device_is_in_a_record(run: Run, name: str) -> None:
    _, out, _ = run("fields", str(SAMPLES / name), "device.*", "device[[]*", "-T", "json")
    listed = [one["name"] for one in json.loads(out)]
    assert len(listed) > 100
    explainer = Explainer()
    events = [explainer.explained("m", event) for _, event in sample(name)]
    devices = [event for event in events if isinstance(event, DeviceSection)]
    for one in listed:
        wanted = Filter(one)
        assert any(wanted("m", 0, event) for event in devices), one


def test_descriptions_tell_the_same_names_as_a_capture(run: Run) -> None:
    """But for bytes the description does not have, elements of lists, what is inside images and arrays."""
    _, of_capture, _ = run("fields", PC, "device.*", "-T", "json")
    _, of_description, _ = run("fields", "--describe", PC, "device.*", "-T", "json")
    captured = {one["name"] for one in json.loads(of_capture) if one["type"] != "opaque"}
    told = {one["name"]: one["type"] for one in json.loads(of_description)}
    images = tuple(
        f"{name}{mark}" for name, kind in told.items() if kind in TYPES or kind.endswith("]") for mark in ".["
    )
    assert images
    assert {name for name in captured if not name.startswith(images)} == set(told)


# ---------------------------------------------------------------- the view


def matched(expression: str, records: Iterable[tuple[int, Event]]) -> Matching:
    matching = Matching(Filter(expression))
    for moment, event in records:
        matching.show("m", moment, event)
    matching.close()
    return matching


def test_the_view_keeps_the_last_that_match() -> None:
    matching = matched("section", PRECOPY)
    count = sum(1 for moment, event in PRECOPY if Filter("section")("m", moment, event))
    assert matching.title == f"{count} records match section"
    assert len(matching.last(100)) == count
    assert matching.last(0) == []
    assert len(matched("section", PRECOPY * KEPT).last(10 * KEPT)) == KEPT


def test_the_view_is_shown_nothing_that_has_no_record() -> None:
    matching = matched("verdict", PRECOPY)
    assert set(matching.ignores) >= set(UNLISTED)


def test_a_filter_in_the_view_takes_a_third_of_the_lines() -> None:
    from tests.test_ui import crowded, screen

    matching = matched("device", PRECOPY * 20)
    for running in ([], [crowded()], [crowded("a"), crowded("b")]):
        lines = screen(running, height=23, matching=matching)
        assert len(lines) <= 23
        assert lines[-7] == matching.title
        assert [line.rstrip() for line in lines[-6:]] == [
            line[:80] if len(line) <= 80 else line[:79] + "…" for line in matching.last(6)
        ]


def test_the_demo_filters_live(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["-Y", "device.pckbd.status >= 0 or verdict", "-e", "device.pckbd.status", "-e", "type"]
    code = main(["demo", "--replay", "--log", "-w", str(tmp_path), "-T", "fields", *options])
    out, _ = capfd.readouterr()
    assert code == 0
    assert [line.split("\t")[1] for line in out.splitlines()] == ["device", "verdict"]
    assert out.split("\t")[0].isdecimal()
