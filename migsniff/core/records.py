"""Reading a record by its layout, one field behind the other: for what does not come by the million."""

from collections.abc import Generator, Iterator, Sequence
from itertools import chain, repeat
from typing import Any

from migsniff.core.arrivals import Chunk
from migsniff.core.bytequeue import ByteQueue
from migsniff.core.errors import StreamProblem
from migsniff.core.events import Event
from migsniff.core.layout import Layout, Tagged
from migsniff.core.text import readable, text_length

Values = dict[str, Any]
"""The fields by name: numbers, and the bytes of names. Contents are stepped over."""


def read_record(queue: ByteQueue, record: Tagged) -> Generator[Event | None, None, Values]:
    """The head of a record, and the parts that it says are there."""
    values: Values = {}
    yield from _fields(queue, record.head, values)
    for part in record.parts:
        if part.there(values[record.tag]):
            yield from _fields(queue, part.layout, values)
    return values


def _fields(queue: ByteQueue, layout: Layout, values: Values) -> Generator[Event | None, None, None]:
    size = layout.struct.size
    if size:
        if not queue.ensure(size):
            yield from queue.wait(size)
        values.update(zip(layout.fixed, layout.struct.unpack_from(queue.data, queue.pos), strict=True))
        queue.advance(size)
    for name, how in layout.open:
        if how == "str8":
            length = yield from queue.u8()
            values[name] = found = yield from queue.fitting(0, length, text_length)
            if text_length(found) < len(found):
                raise StreamProblem("string-text", what=f"the name of a {name}", found=readable(found))
            queue.advance(length)
        elif isinstance(how, tuple):
            count = values[how.counter] if how.counter else 1
            yield from queue.contents(count * how.unit)


def split_records(data: bytes, kinds: Sequence[Tagged]) -> Iterator[tuple[int, int, Tagged, Values]]:
    """The whole records of `data`, where they begin and end: one of each kind, the last kind repeated."""
    queue = ByteQueue()
    queue.push(Chunk(0, 0, "fwd", data, len(data)))
    for kind in chain(kinds[:-1], repeat(kinds[-1])) if kinds else ():
        start, values = queue.at, _whole(queue, kind)
        if values is None:
            return
        yield start, queue.at, kind, values


def _whole(queue: ByteQueue, kind: Tagged) -> Values | None:
    """The next record, None if it is not all there, or none."""
    steps = read_record(queue, kind)
    try:
        next(steps)
    except StopIteration as done:
        values: Values = done.value
        return values
    except StreamProblem:
        return None
    return None
