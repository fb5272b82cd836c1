"""How the pages of a multifd packet stand in its data: the methods of `multifd-compression`.

Framing and counting need no method: a packet tells its size and its pages. A method's inflater is asked only
where page contents are wanted.
"""

from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from migsniff.core.arrivals import Data
from migsniff.core.inflaters import Qatzip, Qpl, Uadk, Zlib, Zstd
from migsniff.core.registry import Registry


class Inflater(Protocol):
    """Turns the data of one channel's packets, in their order, into pages.

    `history`: how many bytes of earlier pages it may have to keep, known when it has seen a packet.
    """

    @property
    def history(self) -> int: ...

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """Exactly `count * page_size` bytes: the normal pages of a packet with this data.

        Never holds more than that, whatever the data say; raises StreamProblem if they say anything else.
        """


class Method(msgspec.Struct, frozen=True):
    """A method: its name, and what makes the inflater of a channel."""

    name: str
    open: Callable[[], Inflater]


class Plain:
    """Pages as they are: the reader has checked that the size is theirs."""

    history = 0

    def pages(self, data: memoryview, count: int, page_size: int) -> Data:
        """The data themselves."""
        return data


METHODS: Final[Registry[int, Method]] = Registry("multifd method")
"""By their bits in a packet's flags."""
NONE: Final = 0x00
METHODS(NONE, source="migration/multifd-nocomp.c")(Method("none", Plain))
METHODS(0x02, source="migration/multifd-zlib.c")(Method("zlib", Zlib))
METHODS(0x04, source="migration/multifd-zstd.c")(Method("zstd", Zstd))
METHODS(0x08, source="migration/multifd-qpl.c")(Method("qpl", Qpl))
METHODS(0x10, source="migration/multifd-uadk.c")(Method("uadk", Uadk))
METHODS(0x20, source="migration/multifd-qatzip.c")(Method("qatzip", Qatzip))
