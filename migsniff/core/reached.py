"""How far a channel came: to its destination, and whether its source may be read on when that has gone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from migsniff.core.errors import StreamProblem
from migsniff.core.events import DeviceSection, EndOfStream, Event

if TYPE_CHECKING:
    from migsniff.core.connection import Connection

UNREAD: Final = "only a main channel that can be decoded tells whether a return path is open"
ALONE: Final = "there is no return path, so the source would believe that it is done"
POSTCOPY: Final = "it may go into postcopy, and then a source without a destination cannot resume its guest"
COLO: Final = "COLO takes over by itself when one side is gone"


class Reached(NamedTuple):
    """Where a channel stands at wire offset `offset`.

    `problem`: it could not be decoded up to here. `finished`: EOF has come; `complete`: and all behind it.
    """

    offset: int
    where: str
    problem: StreamProblem | None = None
    finished: bool = False
    complete: bool = False
    iteration: int = 0


def reached(connection: "Connection", told: object = None) -> Reached:
    """How far it has come by now; or a little further if that is `told`, by a capture that decides later."""
    at = connection.queues["fwd"].wire_end
    if isinstance(told, int) and at < told < 1 << 63:
        at = told
    decoder, main = connection.decoders.get("fwd"), connection.main
    if decoder is None:
        return Reached(at, "")
    where, problem = decoder.where_at(at), decoder.problem
    if main is None:
        return Reached(at, where, problem)
    return Reached(at, where, problem, main.finished, decoder.steps is None, main.context.memory.iteration)


def settled(came: Reached, event: Event) -> Reached:
    """The place as a later record tells it: where a device ends shows only in what follows."""
    end = event.offset + event.size
    into = came.offset - end
    if into < 0:
        return came
    match event:
        case DeviceSection(provisional=True):
            item, finished = "the header of a FULL section" if into else "between sections", came.finished
        case EndOfStream():
            item, finished = "the description" if into else "behind the end of the stream", True
        case _:
            return came
    return came._replace(where=f"{item}, {into} bytes into it" if into else item, finished=finished)


def may_drain(connections: Sequence["Connection"], connection: "Connection") -> tuple[bool, str]:
    """Whether the source of `connection` may be read on without its destination.

    If not, and that is not because there is nothing more to come: why it is refused.
    """
    mains = [each for each in connections if each.main is not None]
    if not mains or (main := mains[-1].main) is None:
        return False, UNREAD
    decoder, back, context = mains[-1].decoders["fwd"], mains[-1].return_path, main.context
    if mains[-1].ended("fwd") or (back is not None and back.shut == 0):
        return False, ""
    if decoder.steps is None:
        return False, "" if decoder.problem is None else UNREAD
    if connection is not mains[-1] and (main.finished or connection.main is not None):
        return False, ""
    if context.postcopy or context.advised:
        return False, POSTCOPY
    if context.colo:
        return False, COLO
    return context.return_path, "" if context.return_path else ALONE
