"""What the multifd channels of one migration share: their numbers, their syncs, how much of them waits."""

from dataclasses import dataclass, field

from migsniff.core.errors import StreamProblem
from migsniff.core.wire import MAX_MULTIFD_HISTORY, MAX_MULTIFD_WAIT, MAX_MULTIFD_WAIT_ALL


@dataclass(slots=True)
class MultifdFacts:
    """Shared by all multifd channels and the main channel of a migration.

    `ids`: channel by its number in the hello. `syncs`: SYNC packets of each channel. `end` is where the last
    RAM section ended, if the pass that ended there was not told yet.
    """

    ids: dict[int, str] = field(default_factory=dict)
    uuid: str | None = None
    syncs: dict[str, int] = field(default_factory=dict)
    end: tuple[str, int] | None = None
    _waiting: dict[str, int] = field(default_factory=dict)
    _history: dict[str, int] = field(default_factory=dict)

    def wait(self, channel: str, size: int, what: str) -> None:
        """`size` bytes of `channel` wait for `what`; StreamProblem if that is too much."""
        self._waiting[channel] = size
        if size > MAX_MULTIFD_WAIT or sum(self._waiting.values()) > MAX_MULTIFD_WAIT_ALL:
            del self._waiting[channel]
            raise StreamProblem("multifd-wait", what=what)

    def go_on(self, channel: str) -> None:
        """Nothing waits there any more."""
        self._waiting.pop(channel, None)

    def keep_history(self, channel: str, size: int) -> None:
        """A channel's inflater keeps so many bytes; StreamProblem if all together keep too much."""
        if self._history.get(channel) != size:
            self._history[channel] = size
            if sum(self._history.values()) > MAX_MULTIFD_HISTORY:
                del self._history[channel]
                raise StreamProblem("multifd-history", limit=MAX_MULTIFD_HISTORY)
