"""The export command: a capture as packets that Wireshark opens, each record's line a comment."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import BinaryIO, Final

import migsniff
from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Data,
    Ended,
    Opened,
)
from migsniff.core.errors import CaptureError, UsageError
from migsniff.core.events import Event, Verdict
from migsniff.core.session import Session
from migsniff.expert import themes as themes  # registers the rules
from migsniff.expert.rules import Expert
from migsniff.feed.files import Source, open_source
from migsniff.feed.pcapwrite import MAX_PAYLOAD, Conversation, PcapngWriter
from migsniff.offline import session_for
from migsniff.show.text import TextLog
from migsniff.show.words import escape

UNACKNOWLEDGED: Final = 256  # packets after which the other side answers
Piece = tuple[Data, int, list[str]]
"""Bytes that are known, the length on the wire (what is not known is at the end), comments."""


def export(path: str, target: str, *, offset: int = 0, snapshot: str | None = None) -> int:
    """Write the capture at `path` as pcapng to `target`, "-" for standard output; returns the exit code.

    See open_source for what is read.
    """
    source = open_source(path, offset=offset, snapshot=snapshot)
    if target == "-" and sys.stdout.isatty():
        raise UsageError("packets are not for a terminal: give a file, or a pipe")
    with nullcontext(sys.stdout.buffer) if target == "-" else open(target, "wb", opener=_private) as file:
        exporter = Exporter(file, source)
        try:
            for arrival in source.arrivals():
                exporter.arrive(arrival)
        except CaptureError as damage:
            exporter.finish()
            print(f"migsniff: {damage}", file=sys.stderr)
            return 1
        exporter.finish()
    if exporter.verdict is None or exporter.verdict.ok:
        return 0
    print(f"migsniff: {exporter.verdict.outcome}: {escape(exporter.verdict.message)}", file=sys.stderr)
    return 1


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Exporter:
    """Turns arrivals into packets. What it holds is one chunk."""

    def __init__(self, file: BinaryIO, source: Source) -> None:
        self._writer = PcapngWriter(file, f"migsniff {migsniff.__version__}")
        self._session: Session = session_for(source, note_omitted=not source.contents)
        self._lines: list[str] = []
        self.verdict: Verdict | None = None
        self._log = TextLog(self._lines.append)
        self._zero = 0 if source.start_time is None else round(source.start_time.timestamp() * 1_000_000)
        self._conversations: dict[int, Conversation] = {}
        self._at: dict[tuple[int, str], int] = {}
        self._time = 0
        self._expert = Expert()
        self._waiting: list[str] = []  # comments of what is no packet, for the next one

    def arrive(self, arrival: Arrival) -> None:
        """Write what has arrived."""
        if isinstance(arrival, Chunk):
            self._chunk(arrival)
        elif isinstance(arrival, Opened):
            list(self._session.feed(arrival))
            found = Conversation(self._writer, arrival.source, arrival.destination, arrival.connection)
            # time 0 is when the first connection was made
            found.open(self._clock(arrival.time if self._conversations else 0))
            self._conversations[arrival.connection] = found
        elif isinstance(arrival, Ended):
            comments = self._take(arrival.time, self._session.feed(arrival))
            found = self._conversation(arrival.connection, arrival.time)
            closes_fwd = arrival.direction == "fwd" if arrival.how != "reset" else arrival.by == "source"
            side = 0 if closes_fwd else 1
            found.end(self._clock(arrival.time), side, reset=arrival.how == "reset", comments=comments)
        else:
            self._waiting = self._take(arrival.time, self._session.feed(arrival))

    def finish(self) -> None:
        """The verdict, on the last packet."""
        self._writer.finish(self._take(self._time, self._session.finish()))

    def _clock(self, time: int) -> int:
        self._time = max(self._time, time)
        return self._zero + self._time

    def _conversation(self, connection: int, time: int) -> Conversation:
        if connection not in self._conversations:
            self.arrive(Opened(time, connection, "", ""))
        return self._conversations[connection]

    def _comments(self, time: int, events: Iterable[Event]) -> Iterator[tuple[int, str]]:
        """Where each record ends, and its line."""
        for event in events:
            if isinstance(event, Verdict):
                self.verdict = event
                shown = [*self._expert.see(time, event), event]
            else:
                shown = [event, *self._expert.see(time, event)]
            for one in shown:
                self._log.show("", time, one)
                for line in self._lines:
                    yield event.offset + event.size, line.strip()
                self._lines.clear()

    def _take(self, time: int, events: Iterable[Event]) -> list[str]:
        """The lines of these events, behind those that wait."""
        waiting, self._waiting = self._waiting, []
        return waiting + [line for _, line in self._comments(time, events)]

    def _chunk(self, chunk: Chunk) -> None:
        found = self._conversation(chunk.connection, chunk.time)
        key = chunk.connection, chunk.direction
        start = self._at.get(key, 0)
        self._at[key] = chunk.end
        waiting, self._waiting = [(start, line) for line in self._waiting], []
        lines = sorted(self._comments(chunk.time, self._session.feed(chunk)), key=lambda each: each[0])
        comments = waiting + lines
        omitted = [(int(a), int(b)) for a, b in self._session.omitted] if chunk.kept == "framed" else []
        side = 0 if chunk.direction == "fwd" else 1
        time = self._clock(chunk.time)
        for number, (data, length, some) in enumerate(pieces(chunk, start, omitted, comments)):
            found.data(time, side, data, length, some)
            if number % UNACKNOWLEDGED == UNACKNOWLEDGED - 1:
                found.acknowledge(time, 1 - side)
        found.acknowledge(time, 1 - side)


def pieces(
    chunk: Chunk, start: int, omitted: Sequence[tuple[int, int]], comments: Sequence[tuple[int, str]]
) -> Iterator[Piece]:
    """A chunk's bytes from wire offset `start` on, cut behind each record and each span that was left out."""
    spans = [span for span in omitted if start <= span[0] < span[1] <= chunk.end]
    data = memoryview(chunk.data)
    left = sum(stop - first for first, stop in spans)
    if len(data) + left != chunk.end - start:  # nothing tells where what is missing stood: behind the rest
        spans = [(start + len(data), chunk.end)] if len(data) < chunk.end - start else []
    ends = sorted({end for end, _ in comments if start < end < chunk.end} | {stop for _, stop in spans})
    waiting = list(comments)[::-1]
    at, taken = start, 0
    missing = iter([*spans, (chunk.end, chunk.end)])
    hole = next(missing)
    for end in [*ends, chunk.end]:
        while at < end:
            if at >= hole[1] and hole[1] < chunk.end:
                hole = next(missing)
            stop = min(end, at + MAX_PAYLOAD)
            known = max(0, min(stop, hole[0]) - at)
            lines = []
            while waiting and (waiting[-1][0] <= stop or stop == chunk.end):
                lines.append(waiting.pop()[1])
            yield data[taken : taken + known], stop - at, lines
            at, taken = stop, taken + known
