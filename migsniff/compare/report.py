"""A diff as people and programs read it."""

import json
import textwrap
from collections.abc import Callable
from typing import Final

import msgspec

from migsniff.compare.difference import Difference, Said, Tally
from migsniff.show.words import escape, several

WIDTH: Final = 110
RED, GREEN, BOLD, PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"


class TextReport:
    """Differences as lines: `-` what only the left has, `+` what only the right has, `!` what both have.

    `labels` are what the sides are called; `places`: the offsets too. Nothing is written if nothing differs.
    """

    def __init__(
        self,
        out: Callable[[str], object],
        labels: tuple[str, str],
        *,
        places: bool = False,
        color: bool = False,
    ) -> None:
        self._out = out
        self._labels = labels
        self._places = places
        self._color = color
        self._group = ""

    def show(self, difference: Difference) -> None:
        """Write one."""
        if not self._group:
            self._line(f"--- {escape(self._labels[0])}", RED)
            self._line(f"+++ {escape(self._labels[1])}", GREEN)
        if difference.group != self._group:
            self._line(difference.group, BOLD)
            self._group = difference.group
        left, right = difference.left, difference.right
        path = f" {difference.path}" if difference.path else ""
        what = path.strip() if difference.group == "values" else f"{difference.what}{path}"
        if left is None or right is None:
            side = left or right
            assert side is not None
            text = f"{'missing' if right is None else 'extra'}: {what}"
            if side.text not in ("sent", "there"):
                text += f" ({side.text})" if difference.group == "structure" else f": {side.text}"
            self._line(
                f"{'-' if right is None else '+'} {text}{self._place(side)}", RED if right is None else GREEN
            )
        elif left == right:
            self._same_words(f"! {what}: {left.text}")
        elif len(f"! {what}: {left.text} -> {right.text}") <= WIDTH and not self._places:
            self._line(f"! {what}: {left.text} -> {right.text}")
        else:
            self._line(f"! {what}:")
            self._line(f"    - {left.text}{self._place(left)}", RED)
            self._line(f"    + {right.text}{self._place(right)}", GREEN)

    def end(self, tally: Tally) -> None:
        """Write a line that sums up, if anything was written."""
        if not self._group:
            return
        parts = [f"{count} in {group}" for group, count in tally.found.items()]
        text = f"{several(tally.found.total(), 'difference')}: {', '.join(parts)}"
        if tally.clocks:
            text += f"; {tally.clocks} of them are clocks (--ignore clocks)"
        if tally.ignored:
            text += f"; {tally.ignored} ignored"
        self._line(text, BOLD)

    def _place(self, side: Said) -> str:
        return f"  @{side.offset} {escape(side.channel)}" if self._places and side.offset is not None else ""

    def _same_words(self, text: str) -> None:
        """What both say, on as many lines as it takes."""
        for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False):
            self._line(line)

    def _line(self, text: str, color: str = "") -> None:
        self._out(f"{color}{text}{PLAIN}\n" if self._color and color else f"{text}\n")


class JsonReport:
    """Differences as one JSON object (docs/diff.md), written as they come."""

    def __init__(self, out: Callable[[str], object], labels: tuple[str, str]) -> None:
        self._out = out
        self._began = False
        self._head = json.dumps({"left": labels[0], "right": labels[1]})[:-1]

    def show(self, difference: Difference) -> None:
        """Write one."""
        self._begin()
        self._out(",\n" if self._began else "\n")
        self._began = True
        self._out("  " + json.dumps(msgspec.to_builtins(difference)))

    def end(self, tally: Tally) -> None:
        """Write the rest."""
        self._begin()
        rest = {
            "same": not tally.found,
            "ignored": tally.ignored,
            "not_compared": tally.not_compared,
        }
        self._out(("\n ]," if self._began else "],") + json.dumps(rest)[1:] + "\n")

    def _begin(self) -> None:
        if self._head:
            self._out(self._head + ', "differences": [')
            self._head = ""
