"""What one channel of a migration learns and the others need."""

from dataclasses import dataclass, field

from migsniff.core.arrivals import Assumed
from migsniff.core.faults import PageRequests
from migsniff.core.multifdfacts import MultifdFacts
from migsniff.core.pages import GuestMemory


@dataclass(slots=True)
class SectionFacts:
    """A section as its START or FULL has announced it."""

    section_id: int
    idstr: str
    instance_id: int
    version_id: int


@dataclass(slots=True)
class Context:
    """The state that all channels of one migration share."""

    memory: GuestMemory = field(default_factory=GuestMemory)
    requests: PageRequests = field(default_factory=PageRequests)
    multifd: MultifdFacts = field(default_factory=MultifdFacts)
    page_size: int | None = None
    page_size_from: str = ""
    learned_page_size: int | None = None
    """What a live decoder found in page contents that this capture has not."""
    machine: str = ""
    uuid: str | None = None
    capabilities: tuple[str, ...] = ()
    sections: dict[int, SectionFacts] = field(default_factory=dict)
    footers: bool | None = None
    """Whether sections end with a footer; None until the first section of known length has ended."""
    file_offset: int | None = None
    """Where in its file a mapped-ram stream begins, from whose beginning its own offsets count."""
    return_path: bool = False
    advised: bool = False
    """Whether the source has said that it may go into postcopy."""
    postcopy: bool = False
    package_pings: set[int] = field(default_factory=set)
    """The pings in the package that were not answered yet: 3 stands behind its devices."""
    colo: bool = False
    checkpoint: int = 0
    """The checkpoint of COLO that is on its way, from 1."""
    want_contents: bool = False
    want_fields: bool = False
    assumed: Assumed | None = None
    """Descriptions from elsewhere, for device state whose own has not come."""
    breathe: bool = False
    """Whether BREATH is wanted in long stretches without an event."""

    def know_page_size(self, size: int, source: str) -> None:
        """The first to know the page size decides it (the order of sources is that of the stream)."""
        if self.page_size is None:
            self.page_size, self.page_size_from = size, source
            self.memory.set_page_size(size)
