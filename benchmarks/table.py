"""What a benchmark returns: rows of numbers, shown as a Markdown table and kept as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field

Cell = str | int | float | None


@dataclass
class Table:
    """One benchmark's result. `samples` are the single measurements behind the medians, by row."""

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        cells = [list(self.columns), *[[_text(cell) for cell in row] for row in self.rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [f"## {self.title}", ""]
        for number, row in enumerate(cells):
            aligned = [
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(f"| {' | '.join(aligned)} |")
            if number == 0:
                marks = [("-" * (width - 1) + ":") if i else "-" * width for i, width in enumerate(widths)]
                lines.append(f"| {' | '.join(marks)} |")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes), ""])


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell
