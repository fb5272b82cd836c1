"""The state of devices as layers for scapy, made of the fields that the stream's description has told."""

from collections.abc import Callable, Iterable, Iterator
from keyword import iskeyword
from re import compile as regex
from typing import Any, Final

from migsniff.core.events import DeviceSection, Field
from migsniff.core.fieldtypes import integers
from migsniff.core.registry import field_type
from migsniff.core.wire import FOOTER
from migsniff.scapyfields import Fields, Record

# behind what says what is missing if it is
from scapy.fields import Field as Number  # isort: skip
from scapy.fields import FieldListField, StrFixedLenField  # isort: skip
from scapy.packet import Packet, Raw  # isort: skip

NO_LETTER: Final = regex("[^A-Za-z0-9]+")
MAX_LEAVES: Final = 1 << 15  # of one section (real ones: up to 24577)
MAX_ELEMENTS: Final = 1024  # of an array of numbers; more are shown as bytes
Leaf = tuple[str, Field]


class DeviceState(Record):
    """The state of one device, field by field; each section's has a class of its own, of this one."""

    name = "DeviceState"
    match_subclass = True


class BytesField(StrFixedLenField):
    """Bytes that are shown whole: zeroes at the end of a device's state are state."""

    def i2repr(self, packet: Packet | None, value: Any) -> str:
        """All of them."""
        return repr(value)


def device_layer(event: DeviceSection) -> Callable[[bytes], Packet]:
    """What makes a layer of the payload of a section that is described."""
    leaves = list(_leaves(event.fields, ""))

    def build(data: bytes) -> Packet:
        fields = _fields(leaves, event.offset + event.size, len(data), footer=event.footer)
        if fields is None or len(leaves) > MAX_LEAVES:
            return Raw(data)
        # named so it is not kept in scapy's list of all layers
        names = {"name": event.idstr, "fields_desc": fields}
        kind: type[Packet] = type("_DeviceState", (DeviceState,), names)
        return kind(data)

    return build


def _leaves(fields: Iterable[Field], path: str) -> Iterator[Leaf]:
    for field in fields:
        name = path + field.name + ("" if field.index is None else f"[{field.index}]")
        if field.children:
            yield from _leaves(field.children, f"{name}.")
        elif field.size:
            yield name, field


def _fields(leaves: list[Leaf], stop: int, size: int, *, footer: bool) -> Fields | None:
    """scapy's fields for `size` bytes; None if these fields do not stand in them one behind the other."""
    end = stop - (FOOTER.struct.size if footer else 0)
    at = start = end - size
    found: Fields = []
    taken: set[str] = set()
    for name, field in leaves:
        if field.offset < at or field.offset + field.size > end:
            return None
        if field.offset > at:
            found.append(_bytes(_identifier(f"byte {at - start}", taken), field.offset - at))
        found.append(_field(_identifier(name, taken), field))
        at = field.offset + field.size
    if at < end:
        found.append(_bytes(_identifier(f"byte {at - start}", taken), end - at))
    return found


def _identifier(name: str, taken: set[str]) -> str:
    """The name as scapy needs it: an identifier of Python, which no other field has."""
    found = plain = NO_LETTER.sub("_", name).strip("_")
    if iskeyword(plain) or not plain.isidentifier():
        found = plain = f"_{plain}"
    number = 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    taken.add(found)
    return found


def _field(name: str, field: Field) -> Any:
    decode = field_type.get(field.type)
    count = field.array_len or 1
    letter = None if decode is None or field.size % count else integers(decode, field.size // count)
    if letter is None or (field.array_len is not None and (letter in "bB" or count > MAX_ELEMENTS)):
        return _bytes(name, field.size)
    if field.array_len is None:
        return Number(name, 0, letter)
    return FieldListField(name, [], Number("", 0, letter), count_from=lambda _: count, max_count=count)


def _bytes(name: str, size: int) -> Any:
    return BytesField(name, bytes(size), length=size)
