"""Postcopy that was broken off and went on over another connection."""

from migsniff.core.events import (
    CommandSent,
    DirectionEnded,
    EndOfStream,
    Event,
    ReturnPathMessage,
)
from migsniff.show.words import several


class RecoveryStats:
    """How often postcopy went on, and how many of the guest's pages the destination had the last time."""

    def __init__(self) -> None:
        self.times = 0
        self.received = self.pages = 0
        self._running = False  # it may break off
        self._asking = False

    def update(self, event: Event) -> str | None:
        """Take an event into account; returns the phase that begins with it, if one does."""
        match event:
            case EndOfStream():
                self._running = False
            case DirectionEnded(direction="fwd") if self._running and event.channel.startswith(_MAIN):
                self._asking = False
                return "postcopy paused"
            case CommandSent(name="POSTCOPY_RUN"):
                self._running = True
            case CommandSent(name="RECV_BITMAP"):
                if not self._asking:
                    self._asking, self.received, self.pages = True, 0, 0
                return "postcopy recovery"
            case CommandSent(name="POSTCOPY_RESUME"):
                self._running, self._asking = True, False
                self.times += 1
                return "postcopy"
            case ReturnPathMessage(name="RECV_BITMAP", arguments={"received": int(had), "pages": int(all_)}):
                self.received += had
                self.pages += all_
        return None

    def text(self) -> str:
        """All of it in one line."""
        had = f"; the destination had {self.received} of {self.pages} pages" if self.pages else ""
        return f"{several(self.times, 'time')}{had}"

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {"times": self.times, "received": self.received, "pages": self.pages}


_MAIN = ("main", "resumed")
