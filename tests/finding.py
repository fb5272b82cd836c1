"""Findings of streams made by hand, and of events that only claim to come from one."""

from collections.abc import Iterable

from migsniff.core.arrivals import Arrival
from migsniff.core.events import Event, Finding
from migsniff.core.session import Session
from migsniff.expert import themes as themes  # registers the rules
from migsniff.expert.rules import Expert
from migsniff.pipeline import Pipeline
from tests.playing import Cut, Stream, arrivals, whole


class Keep:
    """A sink that keeps events with their times."""

    def __init__(self) -> None:
        self.events: list[tuple[int, Event]] = []

    def show(self, migration: str, time: int, event: Event) -> None:
        self.events.append((time, event))

    def close(self) -> None:
        """Nothing is pending."""


def shown(source: Iterable[Arrival], *, fields: bool = False) -> list[Event]:
    """All that a pipeline shows of a migration."""
    keep = Keep()
    pipeline = Pipeline("m", Session(fields=fields), [keep])
    for arrival in source:
        for _ in pipeline.feed(arrival):
            pass
    for _ in pipeline.finish():
        pass
    return [event for _, event in keep.events]


def findings(stream: Stream, cut: Cut = whole, *, fields: bool = False) -> list[Finding]:
    """What the decoder and the rules find in a stream."""
    return [event for event in shown(arrivals(stream, cut), fields=fields) if isinstance(event, Finding)]


def judged(events: Iterable[tuple[int, Event]]) -> list[tuple[int, Finding]]:
    """What the rules find in events, each with its time."""
    expert = Expert()
    return [(time, found) for time, event in events for found in expert.see(time, event)]
