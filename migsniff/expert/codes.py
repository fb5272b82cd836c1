"""The findings that rules make: code, severity and text of each (docs/expert.md explains them).

What the decoder itself finds has its texts in core/errors.py.
"""

from typing import Final, NamedTuple

from migsniff.core.events import EVIDENCE, Event, Finding, Severity


class Code(NamedTuple):
    """How bad it is, and the sentence, as far as there are some in the words of QEMU's own message."""

    severity: Severity
    text: str


CODES: Final[dict[str, Code]] = {
    "expert-bug": Code(
        "error",
        "migsniff's rule {name} failed ({detail}): a bug, please report it; decoding goes on without it",
    ),
}


def finding(
    code: str,
    at: Event,
    *,
    section: str = "",
    field: str = "",
    evidence: bytes = b"",
    offset: int | None = None,
    size: int | None = None,
    **details: object,
) -> Finding:
    """A finding at an event's place, or at `offset` of its channel; `details` fill in the text."""
    known = CODES[code]
    return Finding(
        channel=at.channel,
        direction=at.direction,
        offset=at.offset if offset is None else offset,
        size=(0 if offset is not None else at.size) if size is None else size,
        severity=known.severity,
        code=code,
        message=known.text.format(**details),
        section=section,
        field=field,
        evidence=evidence[:EVIDENCE].hex(),
    )
