"""The proxy command: endpoints, signals, what is shown while it runs, and the exit code."""

import argparse
import asyncio
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from migsniff.against import asked_destination, finders_of
from migsniff.core.devices import DeviceStateBudget
from migsniff.core.errors import UsageError
from migsniff.core.session import Session
from migsniff.descriptions import Learning, open_descriptions
from migsniff.feed.capture import CaptureWriter
from migsniff.feed.captureplace import why_not_saved
from migsniff.feed.endpoints import Endpoint, Network, parse_endpoint, parse_network
from migsniff.feed.recognise import recognise
from migsniff.feed.relay import Relay
from migsniff.live import LiveMigration, close_all
from migsniff.pipeline import Pipeline, Sink
from migsniff.show.info import status_line
from migsniff.show.log import Log, LogOptions
from migsniff.show.matching import Matching
from migsniff.show.output import Output
from migsniff.show.stats import MAX_FINISHED, Stats
from migsniff.show.ui import LiveView, usable
from migsniff.show.words import escape
from migsniff.statistics.sink import Statistics
from migsniff.statistics.statistic import MAX_ROWS
from migsniff.statistics.table import Table
from migsniff.taps import Migrations

SAME_SIGNAL: Final = 0.2  # seconds within which two signals are one, sent on by whoever started migsniff
SWITCH_INTERVAL: Final = 0.0005  # seconds a thread of ours may hold the interpreter while bytes wait
CLOSING: Final = 0.5  # seconds for what waits to be decoded when a second signal has come
AT_ONCE: Final = 0.25  # seconds for the records that wait then
PATIENCE: Final = 5.0  # and for those that wait when all migrations have ended
GRACE: Final = 5.0  # seconds for the disk to take what is left


def serve(options: argparse.Namespace, log_options: LogOptions) -> int:
    """Run the proxy until it is told to end; returns the worst exit code of its migrations."""
    if len(options.listen) != len(options.forward):
        raise UsageError("each --listen needs a --forward")
    if options.no_decode and options.drain_after_failure:
        raise UsageError("--drain-after-failure needs to see a return path: it goes not with --no-decode")
    if options.no_decode and options.check_against is not None:
        raise UsageError("--check-against is for what is decoded")
    pairs = [
        (parse_endpoint(listen, listening=True), parse_endpoint(forward, listening=False))
        for listen, forward in zip(options.listen, options.forward, strict=True)
    ]
    networks = tuple(parse_network(network) for network in options.allow)
    sys.setswitchinterval(SWITCH_INTERVAL)
    with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
        proxy = Proxy(options, log_options)
        return runner.run(proxy.run(pairs, networks))


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """The event loop by its name."""
    if name == "asyncio":
        return asyncio.SelectorEventLoop
    try:
        import uvloop
    except ImportError:
        raise UsageError("uvloop is not installed: use --loop asyncio") from None
    return uvloop.new_event_loop


class Proxy:
    """Relays, the migrations in them, and who shows them."""

    waiting = "waiting for the running migration to end"

    def __init__(self, options: argparse.Namespace, log_options: LogOptions) -> None:
        self.options = options
        self.exit_code = 0
        self.relays: list[Relay] = []
        self.running: dict[str, LiveMigration] = {}
        self.stats = Stats(keep_passes=MAX_ROWS) if log_options.statistics else Stats()
        self._statistics = Statistics(log_options.statistics, self.stats, self._tables)
        self._tables_later: deque[tuple[str, list[Table]]] = deque(maxlen=MAX_FINISHED)
        self.log: Log | None = None
        self.view: LiveView | None = None
        self.matching: Matching | None = None
        self._log_options = log_options
        self._messages = Output(2, flush_each=True)
        self._migrations = Migrations(self._begin)
        self._captures: list[CaptureWriter] = []
        self._budget = DeviceStateBudget()
        self._destination = asked_destination(options)
        self._known = open_descriptions(options, self.say, destination=self._destination)
        self._ended = asyncio.Event()
        self._signalled: float | None = None

    async def run(self, pairs: Sequence[tuple[Endpoint, Endpoint]], networks: Sequence[Network]) -> int:
        """Serve until a signal ends it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGUSR1, self._status)
        if not self.options.no_decode:
            self._known.start()
        try:
            for pair, (listen, forward) in enumerate(pairs):
                await self._listen(pair, listen, forward, networks)
            self._show()
            await self._ended.wait()
        finally:
            for relay in self.relays:
                await relay.close()
            await self._close()
        return self.exit_code

    # ------------------------------------------------------------ starting

    async def _listen(
        self, pair: int, listen: Endpoint, forward: Endpoint, networks: Sequence[Network]
    ) -> None:
        relay = Relay(
            listen,
            forward,
            lambda source, destination: (
                None if self.options.no_decode else self._migrations.tap(source, destination, pair)
            ),
            allow=networks,
            report=self.say,
            drain=self.options.drain_after_failure,
        )
        await relay.start()
        self.relays.append(relay)
        self.say(f"listening on {', '.join(relay.addresses)}, forwarding to {forward}")

    def _show(self) -> None:
        """Tell what will be saved, and begin to show."""
        options = self.options
        if not options.no_save and not options.no_decode:
            what = "with all guest memory" if options.ram == "keep" else "without guest memory (see --ram)"
            self.say(f"saving captures {what} in {options.write}")
            # a disk that hangs must hold up nothing
            threading.Thread(target=self._try_to_save, daemon=True).start()
        console = Console()
        if not options.log and self._log_options.format == "text" and usable(console):
            listening = [address for relay in self.relays for address in relay.addresses]
            if self._log_options.wanted is not None:
                self.matching = Matching(self._log_options.wanted, report=self.say)
            self.view = LiveView(
                self.stats.by_migration, console, listening=listening, matching=self.matching
            )
            self.view.start()
        elif not options.no_decode:
            self.log = Log(self._log_options, 1, blocking=False, report=self.say)

    def _try_to_save(self) -> None:
        if (why := why_not_saved(Path(self.options.write))) is not None:
            self.say(why)

    def _begin(self, migration: str, started: datetime, source: str, destination: str) -> LiveMigration:
        """A migration begins: its session, whoever shows it, and its capture."""
        options = self.options
        shown = self._log_options.fields if self.log is not None else self._log_options.looked_at
        session = Session(
            fields=shown or self._destination is not None,
            note_omitted=not options.no_save,
            breathe=True,
            budget=self._budget,
            assumed=self._known.lookup_for(migration),
            looks_like=recognise,
        )
        self.stats.begins(migration, source, destination)
        sinks: list[Sink] = [Learning(self._known.learn)]
        if self.log is not None:
            if self.running:
                self.log.several()
            self.log.begins(migration, started)
            sinks.append(self.log)
        if self.matching is not None:
            self.matching.begins(migration, started, several=bool(self.running))
            sinks.append(self.matching)
        if self._log_options.statistics:
            sinks.append(self._statistics)
        capture = None if options.no_save else self._capture(migration, started)
        live = LiveMigration(
            Pipeline(migration, session, sinks, self.stats, finders_of(self._destination)),
            capture,
            say=self.say,
            done=self._done,
        )
        self.running[migration] = live
        return live

    def _capture(self, migration: str, started: datetime) -> CaptureWriter:
        options = self.options
        facts = {"listen": options.listen, "forward": options.forward, "loop": options.loop}
        if options.check_against is not None:
            facts["check_against"] = escape(options.check_against)
        capture = CaptureWriter(
            Path(options.write),
            ram=options.ram,
            migration=migration,
            facts=facts,
            start=started,
            on_problem=lambda problem: self.say(f"{migration}: {problem}"),
        )
        self._captures = [*(c for c in self._captures if not c.join(0)), capture]
        return capture

    # ------------------------------------------------------------ while it runs

    def say(self, text: str) -> None:
        """A message of migsniff's own: standard error, or above the live view. From any thread."""
        if self.view is not None:
            self.view.message(text)
        else:
            self._messages.write(f"migsniff: {escape(text)}\n")

    def _tables(self, migration: str, tables: list[Table]) -> None:
        """What -z asked for: a part of the log, or behind the live view."""
        if self.log is not None:
            self.log.tables(migration, tables)
        else:
            self._tables_later.append((migration, tables))

    def _print_tables(self) -> None:
        for migration, tables in self._tables_later:
            for table in tables:
                print(f"\n{table.text(migration)}", end="")

    def _done(self, live: LiveMigration) -> None:
        """A migration has got its verdict."""
        self.running.pop(live.migration, None)
        self.exit_code = max(self.exit_code, live.exit_code)
        if self.log is None and self.view is None and live.pipeline.verdict is not None:
            self.say(f"{live.migration}: {live.pipeline.verdict.message}")
        if self._signalled is not None and not self.running:
            self._ended.set()

    def _signal(self) -> None:
        """Ctrl-C or SIGTERM: finish what runs; a second one ends it."""
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            self._accept_no_more()
            if not self._has_running():
                self._ended.set()
            else:
                self.say(f"{self.waiting}; a second signal ends it now")
        elif now - self._signalled > SAME_SIGNAL:
            self._ended.set()

    def _accept_no_more(self) -> None:
        """No migration is to begin."""
        for relay in self.relays:
            relay.stop_accepting(self._has_running)
        for live in [live for live in self.running.values() if live.paused]:
            live.close()  # nothing is accepted any more by which it could be resumed

    def _status(self) -> None:
        """SIGUSR1: a line about each running migration."""
        for live in self.running.values():
            line = status_line(self.stats.by_migration[live.migration], live.now())
            doing = "postcopy is paused at" if live.paused else "decoding at"
            state = live.failed or f"{doing} {live.pipeline.session.where()}"
            saving = (
                ""
                if live.capture is None
                else f"; {live.capture.problem or f'saving in {live.capture.path}'}"
            )
            self.say(f"{live.migration}: {line}; {state}{saving}")
        if not self.running:
            self.say(f"no migration is running; {len(self.stats.by_migration)} have ended")

    def _has_running(self) -> bool:
        return bool(self.running)

    async def _close(self) -> None:
        """Write what waits: the captures, the log, the view's summary."""
        patience = AT_ONCE if self.running else PATIENCE
        close_all(self.running.values(), CLOSING)
        deadline = time.monotonic() + GRACE
        for capture in self._captures:
            if not capture.join(max(0.0, deadline - time.monotonic())):
                self.say(f"the disk did not take the capture in {capture.path} in time")
        self._known.close(max(0.0, deadline - time.monotonic()))
        if self.matching is not None:
            self.matching.close(patience)
        if self.view is not None:
            self.view.stop()
            self.view = None  # which shows no messages any more
        self._statistics.close()
        self._print_tables()
        if self.log is not None:
            self.log.close(patience)
            if self.log.error is not None:
                self.say(f"the log ended: {self.log.error.strerror}")
        for shown in (self.log, self.matching):
            if shown is not None and shown.missing:
                self.say(shown.missing)
            if shown is not None and shown.failed is not None:
                self.exit_code = 3
        if (wanted := self._log_options.wanted) is not None and wanted.failed is not None:
            for said in wanted.notes():
                self.say(said)
        self._messages.close()
