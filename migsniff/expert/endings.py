"""How a connection ended, in words."""

from typing import Final

from migsniff.core.events import DirectionEnded

HOW: Final = {
    "eof": "closed its connection (FIN)",
    "reset": "reset its connection (RST)",
    "timeout": "vanished, the kernel gave up on it,",
    "closed": "closed the connection",
    "refused": "could not be reached",
    "error": "failed",
}


def how_it_ended(end: DirectionEnded) -> str:
    """What was done to a connection, with the name of the error if there was one."""
    how = HOW[end.how]
    if not end.error:
        return how
    return f"{how[:-1]}, {end.error})" if how.endswith(")") else f"{how} ({end.error})"
