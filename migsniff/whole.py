"""Reading a stream to its end: what is looked for may stand there."""

from migsniff.core.events import ChannelFound, Event
from migsniff.feed.files import Source
from migsniff.feed.pcap import PcapSource
from migsniff.pipeline import Sink


class Whole:
    """A show sink that wants all of a source, and shows it in `sink`, if there is one.

    Of what turns out to be no stream it wants nothing more: /dev/zero has no end. `strange` says why it is
    none, "" if it may be one.
    """

    def __init__(self, source: Source, sink: Sink | None = None) -> None:
        # another connection of a capture may be a stream
        self._alone = not isinstance(source, PcapSource) and source.capture is None
        self._sink = sink
        self.strange = ""

    @property
    def wants_no_more(self) -> bool:
        """Whether reading may end."""
        return bool(self.strange)

    def show(self, migration: str, time: int, event: Event) -> None:
        """Take one event into account."""
        if self._alone and isinstance(event, ChannelFound) and event.role == "unknown":
            self.strange = f"no QEMU migration stream: it {event.detail}"
        if self._sink is not None:
            self._sink.show(migration, time, event)

    def close(self) -> None:
        """Nothing is pending."""
        if self._sink is not None:
            self._sink.close()
