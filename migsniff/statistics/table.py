"""A table: columns with a kind, rows of plain values; as text for people, as one JSON object for programs."""

import io
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

from migsniff.show.words import escape, memory, number, rate, seconds, wire

Kind = Literal["text", "count", "time", "bytes", "memory", "rate", "share", "offset"]
"""count: things. time: microseconds. bytes: on the wire. memory: of the guest. rate: bytes a second.
share: 0 to 1. offset: a number of bytes, exact."""
Value = str | int | float | None


class Column(NamedTuple):
    """`name` is the key in JSON, `heading` stands above the column."""

    name: str
    heading: str
    kind: Kind = "count"


class Table(NamedTuple):
    """`notes` say what the figures mean, or what is missing from them."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Value, ...]]
    notes: tuple[str, ...] = ()

    def to_dict(self, migration: str) -> dict[str, Any]:
        """The record of `-T json`: times in seconds, everything else as it is."""
        return {
            "migration": migration,
            "type": "statistics",
            "name": self.name,
            "rows": [
                {
                    column.name: value / 1e6 if column.kind == "time" and isinstance(value, int) else value
                    for column, value in zip(self.columns, row, strict=True)
                }
                for row in self.rows
            ],
            "notes": list(self.notes),
        }

    def text(self, migration: str) -> str:
        """Title, columns, notes, as tshark prints its statistics."""
        # it takes a twentieth of a second to load
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in self.columns:
            grid.add_column(
                Text(column.heading), justify="left" if column.kind == "text" else "right", no_wrap=True
            )
        for row in self.rows:
            grid.add_row(*(Text(cell(c.kind, value)) for c, value in zip(self.columns, row, strict=True)))
        out = io.StringIO()
        console = Console(file=out, width=WIDE, color_system=None, legacy_windows=False)
        console.print(Text(f"{self.title}, migration {escape(migration)}"))
        console.print(grid if self.rows else Text("nothing"))
        for note in self.notes:
            console.print(Text(f"  {escape(note)}"))
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


WIDE: Final = 4096  # lines are as long as they are
_FORMATS: Final[dict[Kind, Callable[[Any], str]]] = {
    "text": lambda value: escape(str(value)),
    "count": number,
    "time": seconds,
    "bytes": wire,
    "memory": memory,
    "rate": rate,
    "share": lambda value: f"{value:.1%}",
    "offset": str,
}


def cell(kind: Kind, value: Value) -> str:
    """A value as it stands in the text."""
    return "-" if value is None else _FORMATS[kind](value)
