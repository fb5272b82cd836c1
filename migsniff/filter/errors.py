"""What is wrong with an expression, shown at its place."""

from typing import Final

from migsniff.core.errors import UsageError

SHOWN: Final = 100  # characters of a long expression that are shown around the place
_BEFORE: Final = 40


class FilterError(UsageError):
    """`message` says what is wrong with `expression` from index `start` to `end`; as text it points there."""

    def __init__(self, message: str, expression: str, start: int, end: int) -> None:
        self.message = message
        self.expression = expression
        self.start = max(0, min(start, len(expression)))
        self.end = max(self.start + 1, end)
        super().__init__(message)

    def __str__(self) -> str:
        first = max(0, self.start - _BEFORE) if len(self.expression) > SHOWN else 0
        # one character for one, so that the place stays below it
        shown = "".join(
            character if " " <= character <= "~" else "?"
            for character in self.expression[first : first + SHOWN]
        )
        place = self.start - first
        mark = "^" + "~" * (min(self.end - first, len(shown)) - place - 1)
        return f"{self.message}\n    {shown}\n    {' ' * place}{mark}"


def nearest(word: str, known: "list[str]") -> str:
    """The end of a message about a name that is none: those that it may have meant."""
    import difflib

    found = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    last = word.rpartition(".")[2]
    if not found and len(last) > 2:
        found = [name for name in known if last in name.split(".")][:3]
    return f"; did you mean {', '.join(found)}?" if found else ""
