"""A stream that is cut off anywhere: no exception, nothing beyond the cut, and a verdict that says where."""

import pytest

from migsniff.core.arrivals import Direction
from migsniff.core.events import (
    ChannelFound,
    Configuration,
    DeviceSection,
    DirectionEnded,
    DirtySync,
    EndOfStream,
    Event,
    Finding,
    LiveSection,
    LoosePages,
    MultifdSync,
    Opaque,
    TlsEnded,
    Verdict,
)
from tests import rawsamples
from tests.catalogue import STREAMS
from tests.playing import Stream, by_direction, of, play, verdict

OUTCOMES = {"truncated", "cancelled", "paused"}
ALIKE = 12  # bytes of one kind around a cut that is as good as the next one


def cut_off(stream: Stream, length: int) -> Stream:
    """The first `length` bytes that pass, whatever their connection and direction."""
    pieces = []
    for number, direction, data in stream.pieces:
        pieces.append((number, direction, data[:length]))
        length -= len(data)
        if length <= 0:
            break
    return Stream(tuple(pieces))


def places(stream: Stream) -> list[int]:
    """Every byte, but only a few in the contents of a page and in the text of a description."""
    data = b"".join(data for _, _, data in stream.pieces)
    found = []
    for at in range(len(data)):
        around = data[max(0, at - ALIKE) : at + ALIKE]
        step = 97 if len(set(around)) == 1 else 7 if around.isascii() and around.decode().isprintable() else 1
        if at % step == 0:
            found.append(at)
    return found


def records(events: list[Event]) -> list[Event]:
    """Without what the end brings: sections and passes without end, and what multifd channels had begun."""
    ends = [number for number, event in enumerate(events) if isinstance(event, DirectionEnded)]
    kinds = DirectionEnded | LoosePages | Opaque | TlsEnded | Verdict
    found = [event for event in events if not isinstance(event, kinds) and not getattr(event, "cut", False)]
    late: list[Event] = [event for event in events[ends[0] :] if isinstance(event, DirtySync | Finding)]
    late += [event for event in events if isinstance(event, MultifdSync) and event.last]
    return [event for event in found if all(event is not other for other in late)]


@pytest.mark.parametrize("name", STREAMS)
def test_every_byte(name: str) -> None:
    stream = STREAMS[name]
    whole = by_direction(records(play(stream)))
    for length in places(stream):
        events = play(cut_off(stream, length))
        check(stream, whole, events, f"{name} cut off at {length}")


@pytest.mark.skipif(not rawsamples.NAMES, reason="no samples in captures/samples")
@pytest.mark.parametrize("name", rawsamples.NAMES)
def test_real_streams(name: str) -> None:
    stream = rawsamples.raw(name)
    whole = by_direction(records(play(stream)))
    total = sum(len(data) for _, _, data in stream.pieces)
    for part in range(1, 6):
        length = total * part // 6 + part
        check(stream, whole, play(cut_off(stream, length)), f"{name} cut off at {length}")


def check(
    stream: Stream, whole: dict[tuple[str, Direction], list[Event]], events: list[Event], what: str
) -> None:
    assert not [event for event in events if getattr(event, "code", "") == "decoder-bug"], what
    for key, found in by_direction(records(events)).items():
        lasting = certain(found)
        assert whole.get(key, [])[: len(lasting)] == lasting, what
    for end in of(events, DirectionEnded):
        told = [event for event in events if (event.channel, event.direction) == (end.channel, end.direction)]
        assert max(event.offset + event.size for event in told) == end.offset, what
    if stream.outcome == "completed" and not of(events, EndOfStream):
        judged = verdict(events)
        assert not judged.ok, what
        mains = [event.channel for event in of(events, ChannelFound) if event.role in ("main", "resumed")]
        if mains:
            assert judged.outcome in OUTCOMES, what
            assert f"at offset {judged.offset} of {mains[-1]}, " in judged.message, what


def certain(found: list[Event]) -> list[Event]:
    """Without what only an end makes certain, and the rest of the stream would have told otherwise.

    That are the role of a connection of which a few bytes came, a configuration whose subsections were still
    to come, what looks like the footer of a section, and the end of a device that has none.
    """
    match found:
        case [*before, Configuration()] | [*before, LiveSection(provisional=True)]:
            return before
        case [ChannelFound()]:
            return []
        case [*before, DeviceSection(footer=False), EndOfStream(), Finding()]:
            return before
    return found
