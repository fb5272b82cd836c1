"""Where the rooms meet: arrivals go into a session, its events, and findings, to whoever shows them."""

from collections.abc import Generator, Iterable
from typing import Protocol

from migsniff.core.arrivals import Arrival, Chunk
from migsniff.core.events import (
    BREATH,
    Event,
    Undecodable,
    Verdict,
)
from migsniff.core.session import Session
from migsniff.expert import themes as themes  # registers the rules
from migsniff.expert.rules import Expert
from migsniff.show.stats import Stats


class Sink(Protocol):
    """Something that events become visible in.

    One that has an attribute `wants_no_more` lets reading end as soon as that is true of all sinks. Of the
    types of events in an attribute `ignores` it is shown none.
    """

    def show(self, migration: str, time: int, event: Event) -> None: ...

    def close(self) -> None: ...


class Finder(Protocol):
    """Something that finds what is worth knowing in events, beside the rules of expert; it never raises.

    Of findings that take long to make, BREATH may come between them.
    """

    def see(self, time: int, event: Event) -> Iterable[Event]: ...


class Pipeline:
    """One migration on its way from arrivals to sinks; `verdict` is there once `finish` is exhausted.

    `stats`, if given, is a sink that is also told how far the bytes have come.
    """

    def __init__(
        self,
        migration: str,
        session: Session,
        sinks: Iterable[Sink],
        stats: Stats | None = None,
        finders: Iterable[Finder] = (),
    ) -> None:
        self.migration = migration
        self.session = session
        self.sinks = list(sinks) if stats is None else [stats, *sinks]
        self._shown_in: dict[type[Event], list[Sink]] = {}  # by the type of event
        self.stats = stats
        self.time = 0
        self.events = 0
        self.verdict: Verdict | None = None
        self.bug = False
        self._looks = [each.see for each in (Expert(), *finders)]

    def feed(self, arrival: Arrival) -> Generator[None, None, None]:
        """Decode and show one arrival; yields behind each event, so that the caller may take turns."""
        self.time = max(self.time, arrival.time)
        yield from self.show(self.session.feed(arrival), arrival.time)
        if isinstance(arrival, Chunk) and self.stats is not None:
            name = self.session.channel(arrival.connection)
            if name is not None:
                self.stats.progress(self.migration, arrival.time, name, arrival.direction, arrival.end)

    def finish(self) -> Generator[None, None, None]:
        """Decode and show what the end of the migration brings."""
        return self.show(self.session.finish(), self.time)

    def show(self, events: Iterable[Event], time: int) -> Generator[None, None, None]:
        """Show events of one moment."""
        looks = self._looks  # for each event: what is not done is time for decoding
        for event in events:
            if event is BREATH:
                yield
                continue
            self.events += 1
            if isinstance(event, Verdict):
                self.verdict = event
            elif isinstance(event, Undecodable) and event.code == "decoder-bug":
                self.bug = True
            if not isinstance(event, Verdict):
                self._show(time, event)
            for look in looks:
                for finding in look(time, event):
                    if finding is not BREATH:
                        self._show(time, finding)
                    yield
            if isinstance(event, Verdict):  # the last word
                self._show(time, event)
            yield

    def _show(self, time: int, event: Event) -> None:
        kind = type(event)
        sinks = self._shown_in.get(kind)
        if sinks is None:
            sinks = [sink for sink in self.sinks if kind not in getattr(sink, "ignores", ())]
            self._shown_in[kind] = sinks
        for sink in sinks:
            sink.show(self.migration, time, event)

    @property
    def unwanted(self) -> bool:
        """Whether no sink wants any more: each has `wants_no_more`, and it is true."""
        return bool(self.sinks) and all(getattr(sink, "wants_no_more", False) for sink in self.sinks)

    @property
    def exit_code(self) -> int:
        """0: the stream was fine, 1: it was not, 3: migsniff's own decoder failed."""
        if self.bug:
            return 3
        return 0 if self.verdict is not None and self.verdict.ok else 1


def run(pipeline: Pipeline, arrivals: Iterable[Arrival]) -> bool:
    """Read all arrivals; False if the sinks wanted no more before the end.

    Raises what reading raises (CaptureError), after everything before it has been shown.
    """
    for arrival in arrivals:
        for _ in pipeline.feed(arrival):
            if pipeline.unwanted:
                return False
    return True
