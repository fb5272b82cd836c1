"""The log: records in the wanted format, on their way to a file descriptor, up to where it was to stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from migsniff.core.events import DeviceSection, Event, Verdict
from migsniff.filter.compile import Column, Filter
from migsniff.show.aside import CLOSING, Aside, unmade_text
from migsniff.show.columns import ColumnsLog, Layout
from migsniff.show.json import JsonLog
from migsniff.show.output import Output
from migsniff.show.select import selected
from migsniff.show.text import TextLog
from migsniff.values.explain import Explainer

if TYPE_CHECKING:
    from migsniff.statistics.table import Table

WRITING: Final = 2.0  # seconds for what waits to be written at the end
UNWRITTEN: Final = "the log was not read to its end in time: what was left of it is missing"

Format = Literal["text", "json", "ndjson", "fields"]


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the user asked of the log. `count` records, `duration` µs or `size` bytes of migration end it.

    `statistics`: tables behind the records of each migration (-z); `quiet`: nothing but those. `wanted`: the
    records that -Y asks for; `columns` and their `layout`: what -T fields prints of them.
    """

    format: Format = "text"
    verbose: bool = False
    time_format: Literal["r", "ad"] = "r"
    flush_each: bool = False
    sections: set[str] | None = None
    count: int | None = None
    duration: int | None = None
    size: int | None = None
    prefix: bool = False
    color: bool = False
    statistics: tuple[str, ...] = ()
    quiet: bool = False
    wanted: Filter | None = None
    columns: tuple[Column, ...] = ()
    layout: Layout = field(default_factory=Layout)

    @property
    def fields(self) -> bool:
        """Whether device state is to be decoded to fields: programs and -V want it, and some filters."""
        whole = self.verbose if self.format == "text" else self.format != "fields"
        return (whole or self.looked_at) and not self.quiet

    @property
    def looked_at(self) -> bool:
        """Whether a filter or column looks at fields of device state."""
        looking = [column.fields for column in self.columns]
        return any(looking) or (self.wanted is not None and self.wanted.fields)


class Log:
    """A show sink that writes the log to `target`.

    `blocking`: a slow reader is waited for, as when a file is read; otherwise others wait: records are made
    in a thread of its own, and of a very large section not all fields are shown. Records of a slow reader are
    then dropped and counted, and so are those for which `close` has no time, all but the verdicts. A bug in
    that thread goes to `report`. `wants_no_more` is true once nobody reads any more, or what was asked for
    has been written.
    """

    def __init__(
        self,
        options: LogOptions,
        target: int,
        *,
        blocking: bool,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.missing = ""  # what is not in the log, because there was no time for it when it was closed
        self._options = options
        self._full = False
        self._read: dict[tuple[str, str, str], int] = {}
        self._text: TextLog | None = None
        self._sink: TextLog | JsonLog | ColumnsLog
        if options.format == "text":
            self._sink = self._text = TextLog(
                self._write,
                verbose=options.verbose,
                time_format=options.time_format,
                color=options.color,
                sections=options.sections,
                wanted=options.wanted,
                prefix=options.prefix,
            )
        elif options.format == "fields":
            self._sink = ColumnsLog(
                self._write,
                options.columns,
                options.layout,
                write_header=lambda text: self._output.write_last(text),
                sections=options.sections,
                wanted=options.wanted,
            )
        else:
            self._sink = JsonLog(
                self._write,
                options.format == "json",
                sections=options.sections,
                wanted=options.wanted,
                write_last=lambda text: self._output.write_last(text),
            )
        self._output = Output(
            target, flush_each=options.flush_each, blocking=blocking, dropped=self._sink.dropped
        )
        # what is below is the business of the thread that makes the records
        self._explainer = Explainer()
        self._left = options.count
        self._enough = False  # so many have been written
        self._kept = False  # what is being written must not be dropped
        self._aside: Aside | None = None
        if not blocking:
            self._aside = Aside(
                "migsniff-records",
                self._show,
                lost=self._output.lose,
                report=report,
                at_once=options.flush_each,
            )

    @property
    def ignores(self) -> tuple[type[Event], ...]:
        """Types of events that make no difference here."""
        ends = self._options.duration is not None or self._options.size is not None
        return () if ends else self._sink.ignores

    @property
    def wants_no_more(self) -> bool:
        """Whether further records would go nowhere."""
        return self._full or self._enough or self._output.closed

    @property
    def error(self) -> OSError | None:
        """What ended the log, if it was neither its end nor a reader that left."""
        return self._output.error

    @property
    def failed(self) -> str | None:
        """The bug of ours for which a record is missing, if one is."""
        return None if self._aside is None else self._aside.failed

    def begins(self, migration: str, start_time: datetime | None) -> None:
        """Time 0 of a migration, for absolute times."""
        if self._text is not None and start_time is not None:
            self._do(self._text.begins, migration, start_time)

    def several(self) -> None:
        """There is more than one migration: from here on lines say whose they are."""
        if self._text is not None:
            self._do(setattr, self._text, "prefix", True)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Write the record of one event."""
        options = self._options
        if options.duration is not None and time > options.duration:
            self._full = True
        if options.size is not None:
            stream = migration, event.channel, event.direction
            self._read[stream] = max(self._read.get(stream, 0), event.offset + event.size)
            self._full = self._full or sum(self._read.values()) > options.size
        if self.wants_no_more or options.quiet or isinstance(event, self._sink.ignores):
            return
        if self._aside is None:
            self._show(migration, time, event)
        else:
            self._aside.show(migration, time, event)

    def tables(self, migration: str, tables: "Sequence[Table]") -> None:
        """Write statistics of a migration."""
        self._do(self._tables, migration, tables)

    def close(self, timeout: float = CLOSING) -> None:
        """End the log, and write what waits, for about so many seconds."""
        self._do(self._sink.close)
        unmade = 0 if self._aside is None else self._aside.close(timeout)
        if unmade and not self.wants_no_more:
            self.missing = unmade_text(unmade)
        gone = self._output.closed
        if not self._output.close(min(timeout, WRITING)) and not gone and self.error is None:
            self.missing = self.missing or UNWRITTEN

    def _do(self, call: Callable[..., None], *arguments: object) -> None:
        """Do something in its turn among the records."""
        if self._aside is None:
            call(*arguments)
        else:
            self._aside.do(call, *arguments)

    # ------------------------------------------------------------ what is done in the thread

    def _show(self, migration: str, time: int, event: Event) -> None:
        options = self._options
        if self._enough or self._output.closed:
            return
        self._kept = isinstance(event, Verdict)
        if isinstance(event, DeviceSection) and options.fields and selected(options.sections, event):
            event = self._explainer.explained(migration, event)
        else:
            self._explainer.learn(migration, event)
        self._sink.show(migration, time, event)

    def _tables(self, migration: str, tables: "Sequence[Table]") -> None:
        self._kept, self._left = True, None
        for table in tables:
            if isinstance(self._sink, JsonLog):
                self._sink.extra(table.to_dict(migration))
            else:
                self._write(f"\n{table.text(migration)}")

    def _write(self, text: str) -> None:
        if self._kept:
            self._output.write_last(text)
        else:
            self._output.write(text)
        if self._left is not None:
            self._left -= 1
            self._enough = self._left <= 0
