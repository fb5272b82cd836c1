"""What the multifd channels of one migration share: their numbers, their syncs, how much of them waits.

Pages of several channels come in no order. What orders them are the SYNC packets: QEMU sends one on each
channel before it begins to go over memory again (migration/ram.c find_dirty_block, QEMU 5.2 to 11.1), so a
page comes at most once between two syncs.
"""

from dataclasses import dataclass, field

from migsniff.core.errors import StreamProblem
from migsniff.core.wire import MAX_MULTIFD_HISTORY, MAX_MULTIFD_WAIT, MAX_MULTIFD_WAIT_ALL


@dataclass(slots=True)
class MultifdFacts:
    """Shared by all multifd channels and the main channel of a migration.

    `ids`: channel by its number in the hello. `flushes` and `sections` are MULTIFD_FLUSH records and ends of
    RAM sections on the main channel, `syncs` each channel's SYNC packets, `ends` its last full packet's last
    page. `end` is where the last RAM section ended, if the pass that ended there was not told yet.
    """

    ids: dict[int, str] = field(default_factory=dict)
    uuid: str | None = None
    flushes: int = 0
    sections: int = 0
    syncs: dict[str, int] = field(default_factory=dict)
    newest: int = 0
    ends: dict[str, tuple[str, int]] = field(default_factory=dict)
    pages: bool = False
    end: tuple[str, int] | None = None
    _waiting: dict[str, int] = field(default_factory=dict)
    _history: dict[str, int] = field(default_factory=dict)
    _pass: tuple[int, int] = (0, 0)  # the running pass, and how many syncs there had been when it began

    @property
    def expected(self) -> int:
        """SYNC packets that each channel has sent by now: machine types up to 8.0 do with each section."""
        return self.flushes or self.sections

    def caught_up(self) -> bool:
        """Whether all channels have come as far as the main channel."""
        return min(self.syncs.values(), default=self.expected) >= self.expected

    def synced(self, channel: str) -> None:
        """A SYNC packet of a channel has come."""
        count = self.syncs[channel] = self.syncs[channel] + 1
        self.newest = max(self.newest, count)

    def may_begin_pass(self, channel: str, iteration: int) -> bool:
        """Whether a page of `channel` that comes again belongs to the pass behind `iteration`.

        Not if there was no sync since that began, nor if other channels are ahead of this one: then the page
        is only late.
        """
        if self._pass[0] != iteration:
            self._pass = iteration, self.newest
        count = self.syncs[channel]
        return count > self._pass[1] and count == self.newest

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
