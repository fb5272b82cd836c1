"""Regular expressions from users: RE2's, whose time is linear in the text, whatever the pattern."""

from collections.abc import Callable
from typing import Any, Final

MAX_PATTERN: Final = 1000  # characters
MAX_MEMORY: Final = 1 << 16  # bytes of a compiled pattern: a byte that is searched takes 20 us at worst


def pattern(text: str) -> Callable[[Any], bool]:
    """Whether a text or bytes have a match of the pattern `text`; raises ValueError for one that is none.

    Case is ignored, as in Wireshark; (?-i) makes it count.
    """
    if len(text) > MAX_PATTERN:
        raise ValueError(f"a pattern of more than {MAX_PATTERN} characters")
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.log_errors = False
    options.max_mem = MAX_MEMORY
    try:
        of_text = re2.compile(text, options)
        options.encoding = re2.Options.Encoding.LATIN1
        of_bytes = re2.compile(text.encode("utf-8"), options)
    except (re2.error, UnicodeError) as error:
        said = error.args[0] if error.args else error
        raise ValueError(said.decode(errors="replace") if isinstance(said, bytes) else str(said)) from None

    def matches(value: Any) -> bool:
        if isinstance(value, str):
            return of_text.search(value.encode("utf-8", "replace").decode()) is not None
        return of_bytes.search(value) is not None

    return matches
