"""-T fields: the columns that -e picks, one line a record, as tshark prints them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from migsniff.core.errors import UsageError
from migsniff.core.events import UNLISTED, Event
from migsniff.filter.compile import Column
from migsniff.show.select import Wanted, selected
from migsniff.show.words import escape

_SEPARATORS: Final = {"/t": "\t", "/s": " "}
_QUOTES: Final = {"d": '"', "s": "'", "n": ""}


@dataclass(slots=True)
class Layout:
    """How columns are printed: what -E says.

    `occurrence`: of a field that a record has several times the first, the last or all, with `aggregator`
    between them. `quote` stands around each value, and twice where it is in one.
    """

    separator: str = "\t"
    aggregator: str = ","
    quote: str = ""
    header: bool = False
    occurrence: Literal["f", "l", "a"] = "a"

    @classmethod
    def of(cls, options: Sequence[str]) -> "Layout":
        """From `name=value` as in tshark; raises UsageError."""
        layout = cls()
        for option in options:
            name, _, value = option.partition("=")
            match name, value:
                case (("separator" | "aggregator"), _) if value in _SEPARATORS or (
                    len(value) == 1 and value.isprintable()
                ):
                    setattr(layout, name, _SEPARATORS.get(value, value))
                case "quote", ("d" | "s" | "n"):
                    layout.quote = _QUOTES[value]
                case "header", ("y" | "n"):
                    layout.header = value == "y"
                case "occurrence", ("f" | "l" | "a"):
                    layout.occurrence = value
                case _:
                    raise UsageError(
                        f"-E {escape(option)}: it takes header=y|n, separator=/t|/s|CHARACTER, "
                        "aggregator=,|/s|CHARACTER, occurrence=f|l|a and quote=d|s|n"
                    )
        return layout


class ColumnsLog:
    """A show sink that calls `write` once a record, with a line of its columns.

    `sections` and `wanted`: see `selected`.
    """

    ignores: Final[tuple[type[Event], ...]] = UNLISTED

    def __init__(
        self,
        write: Callable[[str], None],
        columns: Sequence[Column],
        layout: Layout,
        *,
        write_header: Callable[[str], None],
        sections: set[str] | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self._write = write
        self._write_header = write_header
        self._columns = columns
        self._layout = layout
        self._sections = sections
        self._wanted = wanted
        self._began = False

    def show(self, migration: str, time: int, event: Event) -> None:
        """Write the line of one event; runs of pages have none."""
        self._header()
        if isinstance(event, self.ignores) or not selected(self._sections, event):
            return
        if self._wanted is not None and not self._wanted(migration, time, event):
            return
        self._write(self._line([column.texts(migration, time, event) for column in self._columns]))

    def dropped(self, count: int) -> str:
        """The line that says how many records are missing here."""
        return f"# {count} records are missing here, because the log was read, or made, too slowly\n"

    def close(self) -> None:
        """A log without a record has its header."""
        self._header()

    def _header(self) -> None:
        if self._layout.header and not self._began:
            self._write_header(self._line([[column.expression] for column in self._columns]))
        self._began = True

    def _line(self, rows: Sequence[Sequence[str]]) -> str:
        layout = self._layout
        cells = []
        for values in rows:
            shown = (
                values[:1]
                if layout.occurrence == "f"
                else values[-1:]
                if layout.occurrence == "l"
                else values
            )
            text = escape(layout.aggregator.join(shown)) if shown else ""
            if layout.quote:
                text = f"{layout.quote}{text.replace(layout.quote, layout.quote * 2)}{layout.quote}"
            cells.append(text)
        return layout.separator.join(cells) + "\n"
