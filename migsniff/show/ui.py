"""The live view on a terminal. A thread of its own draws it: a stalled terminal stalls nothing else."""

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from migsniff.show.info import summary_lines, wrapped
from migsniff.show.matching import Matching
from migsniff.show.migration import MigrationStats
from migsniff.show.screen import draw
from migsniff.show.words import escape, several

REFRESH_SECONDS: Final = 0.25
MESSAGES_HELD: Final = 200
SMALLEST: Final = (40, 10)
SUMMARY_PASSES: Final = 5
MATCHING_LEFT: Final = 20  # lines of records that stay behind the view


def usable(console: Console) -> bool:
    """Whether a live view makes sense there: a terminal that can move its cursor, and not a tiny one."""
    width, height = console.size
    width, height = console.size
    return (
        console.is_terminal
        and not console.is_dumb_terminal
        and width >= SMALLEST[0]
        and height >= SMALLEST[1]
    )


class LiveView:
    """Draws what `stats_by_migration` holds, a few times a second, from `start` to `stop`.

    The models are read while the event loop fills them; nothing waits for the terminal but the view's thread.
    `listening`: the endpoints that are shown while nothing happens. `matching`: records that a filter wants.
    """

    def __init__(
        self,
        stats_by_migration: Mapping[str, MigrationStats],
        console: Console,
        *,
        listening: Iterable[str] = (),
        matching: Matching | None = None,
    ) -> None:
        self.listening = tuple(listening)
        self._stats = stats_by_migration
        self._matching = matching
        self._console = console
        self._messages: deque[str] = deque()
        self._messages_lost = 0
        self._summarised: set[str] = set()
        self._clock: dict[str, tuple[int, float]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="migsniff-view", daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def message(self, text: str) -> None:
        """Show a line of migsniff's own above the view, where it stays."""
        if len(self._messages) < MESSAGES_HELD:
            self._messages.append(text)
        else:
            self._messages_lost += 1

    def stop(self, timeout: float = 2.0) -> bool:
        """Leave the summary behind; tells whether the terminal took it within `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            with Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live:
                while not self._stopping.wait(REFRESH_SECONDS):
                    over = self._over()  # leaves the view first, lest that push its summary off the screen
                    live.update(self._drawn(), refresh=True)
                    self._say(over)
                live.update(Text(), refresh=True)
            self._say(self._over())
            self._summarise([key for key in list(self._stats) if key not in self._summarised])
            if self._matching is not None:
                self._console.print(Text(self._matching.title))
                for line in self._matching.last(MATCHING_LEFT):
                    self._console.print(Text(line))
        except (OSError, ValueError):  # the terminal is gone, or its file is closed
            return

    def _over(self) -> list[str]:
        """The migrations that are over and have no summary yet."""
        known = list(self._stats.items())
        return [key for key, stats in known if stats.verdict is not None and key not in self._summarised]

    def _say(self, over: list[str]) -> None:
        """Print what stays: messages, and a summary of each migration that is over."""
        while self._messages:
            self._console.print(Text(escape(self._messages.popleft())))
        lost, self._messages_lost = self._messages_lost, 0
        if lost:
            self._console.print(Text(f"{several(lost, 'message')} more, because the terminal was too slow"))
        self._summarise(over)
        self._summarised &= set(self._stats)

    def _summarise(self, migrations: list[str]) -> None:
        for key in migrations:
            stats = self._stats.get(key)
            if stats is None:
                continue
            self._summarised.add(key)
            *lines, last = summary_lines(stats, SUMMARY_PASSES)
            for line in lines:
                self._print(line)
            self._print(last, _verdict_style(stats))

    def _print(self, line: str, style: str = "") -> None:
        for part in wrapped(line, self._console.width):
            self._console.print(Text(part, style=style))

    def _drawn(self) -> RenderableType:
        """A fault of the view must not end it silently, nor anything else."""
        try:
            running = [stats for stats in list(self._stats.values()) if stats.verdict is None]
            return draw(
                running,
                self._console.height - 1,
                width=self._console.width,
                listening=self.listening,
                now=self._now,
                matching=self._matching,
            )
        except Exception as error:
            return Text(f"the live view failed: {error!r}; the forwarding is not touched", style="red")

    def _now(self, stats: MigrationStats) -> int:
        """The migration's time now: that of its last event, and what has passed since it was first seen."""
        elapsed, seen = self._clock.get(stats.migration, (-1, 0.0))
        if elapsed != stats.elapsed:
            elapsed, seen = stats.elapsed, time.monotonic()
            self._clock = {key: value for key, value in self._clock.items() if key in self._stats}
            self._clock[stats.migration] = (elapsed, seen)
        return elapsed + int((time.monotonic() - seen) * 1e6)


def _verdict_style(stats: MigrationStats) -> str:
    if stats.verdict is None:
        return "yellow"
    return "bold green" if stats.verdict.ok else "bold red"
