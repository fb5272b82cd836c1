"""Draining, as the decoder sees it: when it may be, the verdict, and that a capture tells the same later."""

import random
from collections.abc import Iterator

import msgspec
import pytest

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Noted,
    Opened,
)
from migsniff.core.events import (
    DescriptionFound,
    Draining,
    Event,
    Finding,
    RamPages,
    Verdict,
)
from migsniff.core.reached import ALONE, COLO, POSTCOPY, UNREAD
from migsniff.core.session import Session
from migsniff.core.verdict import AT_THE_START
from migsniff.core.wire import Command
from migsniff.pipeline import Pipeline
from migsniff.show.infojson import info_dict
from migsniff.show.stats import Stats
from migsniff.show.words import wire
from tests import catalogue, streams
from tests.catalogue import SMALL_HEAD, STREAMS
from tests.playing import Stream, arrivals, decode, of, strip, verdict
from tests.streams import EOF, command, hello, ping, pong, shut

OPEN = SMALL_HEAD + command(Command.OPEN_RETURN_PATH) + ping(1)
RAM = catalogue.passes()
STATES = streams.states() + EOF
COMPLETE = OPEN + RAM + STATES + streams.described(page_size=256)
RESET = Ended(0, 0, "rev", "reset", "destination", "ECONNRESET")
BY_PROXY = Ended(0, 0, "fwd", "closed", "proxy")


# ---------------------------------------------------------------- whether it may be

MAY: dict[str, tuple[bytes, bytes, bool, str]] = {
    "nothing has come": (b"", b"", False, UNREAD),
    "no return path": (SMALL_HEAD + RAM, b"", False, ALONE),
    "among RAM": (OPEN + RAM[: len(RAM) // 2], pong(1), True, ""),
    "inside a device": (OPEN + RAM + STATES[: len(STATES) // 2], pong(1), True, ""),
    "the destination has failed": (OPEN + RAM, pong(1) + shut(1), True, ""),
    "behind EOF": (OPEN + RAM + STATES, pong(1), True, ""),
    "inside the description": (COMPLETE[:-3], pong(1), True, ""),
    "complete": (COMPLETE, pong(1), False, ""),
    "the destination runs": (OPEN + RAM + STATES, pong(1) + shut(0), False, ""),
    "postcopy is possible": (OPEN + streams.advise(256) + RAM, pong(1), False, POSTCOPY),
    "postcopy of dirty bitmaps": (OPEN + command(Command.POSTCOPY_ADVISE) + RAM, pong(1), False, POSTCOPY),
    "COLO": (OPEN + command(Command.ENABLE_COLO) + RAM, pong(1), False, COLO),
    "not decodable": (OPEN + b"\xff" + RAM, pong(1), False, UNREAD),
    "TLS": (STREAMS["tls"].main, b"", False, UNREAD),
}


@pytest.mark.parametrize("name", MAY)
def test_whether_a_source_may_be_read_on(name: str) -> None:
    forward, back, may, why = MAY[name]
    session = Session()
    told: list[Arrival] = [Opened(0, 0, "", "")]
    told += [Chunk(0, 0, "fwd", forward, len(forward))] if forward else []
    told += [Chunk(0, 0, "rev", back, len(back))] if back else []
    for arrival in told:
        assert all(not isinstance(event, Draining) for event in session.feed(arrival))
    assert session.may_drain(0) == (may, why)


@pytest.mark.parametrize(
    ("forward", "may", "why"),
    [
        (OPEN + RAM, True, ""),
        (COMPLETE[:-3], False, ""),  # destinations close these first, when all is well
        (SMALL_HEAD + RAM, False, ALONE),
    ],
)
def test_whether_another_channel_may_be(forward: bytes, may: bool, why: str) -> None:
    session = Session()
    for number, data in enumerate((forward, hello(0))):
        for arrival in (Opened(0, number, "", ""), Chunk(0, number, "fwd", data, len(data))):
            assert of(session.feed(arrival), Draining) == []
    assert session.may_drain(1) == (may, why)
    assert list(session.feed(BY_PROXY))
    assert session.may_drain(1) == (False, ""), "without the main channel it is of no use"


# ---------------------------------------------------------------- the verdict


def drained(stream: Stream, at: int, number: int = 0, told: object = None) -> Iterator[Arrival]:
    """The stream, whose connection `number` loses its destination at offset `at`; its capture says `told`."""
    came = 0
    for arrival in arrivals(Stream(stream.pieces, ends=stream.ends)):
        mine = isinstance(arrival, Chunk) and (arrival.connection, arrival.direction) == (number, "fwd")
        if not isinstance(arrival, Chunk) or not mine or not came <= at < arrival.end:
            if isinstance(arrival, Ended) and arrival.connection == number:
                if arrival.direction == "rev":
                    continue
                arrival = Ended(0, number, "fwd", "closed", "proxy")
            yield arrival
        else:
            first = arrival.data[: at - came]
            if first:
                yield Chunk(0, number, "fwd", first, at)
            yield Ended(0, number, "rev", "reset", "destination", "ECONNRESET")
            offset = at if told is None else told
            yield Noted(0, number, "draining", {"direction": "fwd", "offset": offset})
            yield Chunk(0, number, "fwd", arrival.data[at - came :], arrival.end)
        came = arrival.end if mine and isinstance(arrival, Chunk) else came


WHOLE = Stream(((0, "fwd", OPEN), (0, "rev", pong(1)), (0, "fwd", COMPLETE[len(OPEN) :])))


def undrained(at: int) -> Verdict:
    """The verdict if the destination goes at an offset and the source is told at once."""
    came: list[Arrival] = [
        Opened(0, 0, "", ""),
        Chunk(0, 0, "fwd", OPEN, len(OPEN)),
        Chunk(0, 0, "rev", pong(1), 8),
        RESET,
        Ended(0, 0, "fwd", "reset", "destination", "ECONNRESET"),
    ]
    rest = COMPLETE[len(OPEN) : at]
    return verdict(
        decode(Session(), [*came[:3], *([Chunk(0, 0, "fwd", rest, at)] if rest else []), *came[3:]])
    )


def test_the_verdict_is_of_what_reached_the_destination() -> None:
    """At each byte: as if the rest had never come, but that this is said of it."""
    unlike = []
    for at in range(len(OPEN), len(COMPLETE)):
        without = undrained(at)
        live, kept = strip(drained(WHOLE, at))
        judged = verdict(live)
        message = without.message
        if at == len(OPEN + RAM + STATES):  # as no description came it was whole, and then one came
            place = f", at offset {at} of main, behind the end of the stream; "
            message = message.replace("the whole stream", "all state").replace("; ", place)
        if judged.outcome != without.outcome:
            unlike.append((at, without.outcome, judged.outcome))
            message = message.replace("; the return path", f": {AT_THE_START}; the return path")
        more = len(COMPLETE) - at
        assert judged.message == f"{message}; {more} bytes more were read from the source alone"
        assert (judged.ok, judged.offset) == (False, at)
        assert [(each.offset, each.channel) for each in of(live, Draining)] == [(at, "main")]
        assert len(of(live, DescriptionFound)) == 1, "what came behind it is decoded"
        assert decode(Session(), kept) == [event for event in live if not isinstance(event, RamPages)], at
    # that the first pass, in which an end is a refusal, is over shows with 8 more bytes, or the end
    assert [outcomes for _, *outcomes in unlike] == [["reset", "refused"]] * 8


SAMPLED = [
    (name, number)
    for name, stream in STREAMS.items()
    for number in {number for number, direction, _ in stream.pieces if direction == "fwd"}
]


@pytest.mark.parametrize(("name", "number"), SAMPLED)
def test_a_capture_tells_later_where_it_began(name: str, number: int) -> None:
    """On any channel of any stream, also in the middle of bytes that are held back."""
    stream = STREAMS[name]
    size = sum(len(data) for each, way, data in stream.pieces if (each, way) == (number, "fwd"))
    dice = random.Random(name)
    for at in sorted({*dice.sample(range(size), min(25, size)), *range(min(24, size))}):
        live, kept = strip(drained(stream, at, number))
        assert decode(Session(), kept) == [event for event in live if not isinstance(event, RamPages)], at
        assert [event.offset for event in of(live, Draining)] == [at]
        if number == 0 and verdict(live).ok:
            # TLS tells of no more than that it was there, and a resumed migration went on elsewhere
            assert verdict(live).outcome == "opaque" or name == "resumed"


@pytest.mark.parametrize("told", [-1, 0, 1 << 70, "5", [], 3.5, True])
def test_what_a_capture_says_is_not_believed(told: object) -> None:
    at = len(OPEN) + 50
    events = decode(Session(), drained(WHOLE, at, told=told))
    assert [event.offset for event in of(events, Draining)] == [at]
    assert not verdict(events).ok


def test_a_capture_may_say_that_more_went_on_than_came() -> None:
    events = decode(Session(), drained(WHOLE, len(OPEN) + 50, told=1 << 40))
    assert "read from the source alone" not in verdict(events).message
    assert (verdict(events).ok, verdict(events).offset) == (False, 1 << 40)


def test_it_begins_once_and_not_behind_the_end() -> None:
    note = Noted(0, 0, "draining", {"direction": "fwd", "offset": 0})
    events = decode(Session(), [*drained(WHOLE, 90), note])
    assert len(of(events, Draining)) == 1
    told: list[Arrival] = [
        Opened(0, 0, "", ""),
        Chunk(0, 0, "fwd", COMPLETE, len(COMPLETE)),
        BY_PROXY,
        note,
        note,
    ]
    assert of(decode(Session(), told), Draining) == []


def test_a_channel_that_was_drained_makes_the_migration_fail() -> None:
    """Whatever the main channel looks like: only the destination's own word outweighs it."""
    stream = Stream(
        (
            (0, "fwd", OPEN),
            (0, "rev", pong(1)),
            (1, "fwd", hello(0)),
            (0, "fwd", COMPLETE[len(OPEN) :]),
        )
    )
    assert not verdict(decode(Session(), drained(stream, 10, 1))).ok


# ---------------------------------------------------------------- what is made of it


def shown(source: Iterator[Arrival]) -> tuple[list[Finding], Stats]:
    """The findings, and what info has."""
    told: list[Event] = []

    class Sink:
        def show(self, migration: str, time: int, event: Event) -> None:
            told.append(event)

        def close(self) -> None: ...

    stats = Stats()
    stats.begins("m", "source", "destination")
    pipeline = Pipeline("m", Session(), [Sink()], stats)
    for arrival in source:
        for _ in pipeline.feed(arrival):
            pass
    for _ in pipeline.finish():
        pass
    assert isinstance(told[-1], Verdict)
    return of(told, Finding), stats


def test_findings_are_of_what_reached_the_destination() -> None:
    at = len(OPEN + RAM) + len(streams.TIMER.item()) + 3
    found, _ = shown(drained(WHOLE, at))
    failed = {each.code: each for each in found}
    assert "Its log names one of 2 sections" in failed["load-failed"].message
    assert "timer/0" in failed["load-failed"].message
    assert "serial" not in failed["load-failed"].message
    assert f"at offset {at} of main" in failed["ended-first"].message
    early, _ = shown(drained(WHOLE, len(OPEN) + 4))
    assert "refused-early" not in {each.code for each in early}, "it has not even got the list of blocks"


def test_the_cost_of_the_attempt_is_what_reached_the_destination() -> None:
    at = len(OPEN + RAM) + 10
    found, _ = shown(msgspec.structs.replace(arrival, time=1_000_000) for arrival in drained(WHOLE, at))
    (cost,) = [each for each in found if each.code == "attempt-cost"]
    assert cost.offset == at
    assert f"the attempt cost {wire(at)} in " in cost.message


def test_info_tells_how_much_was_drained_and_no_downtime() -> None:
    at = len(OPEN + RAM) + 10
    _, stats = shown(drained(WHOLE, at))
    one = stats.by_migration["m"]
    more = len(COMPLETE) - at
    assert info_dict(one, {})["drained"] == {"main": {"offset": at, "bytes": more}}
    assert one.downtime is None
