"""scapy's fields and layers for the layouts that the decoder reads with."""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, ClassVar, Final

try:
    from scapy.fields import (
        ByteEnumField,
        ByteField,
        ConditionalField,
        Field,
        FieldLenField,
        FieldListField,
        IntEnumField,
        IntField,
        LongEnumField,
        LongField,
        PacketListField,
        ShortEnumField,
        ShortField,
        StrField,
        StrFixedLenField,
        StrLenField,
        XIntField,
    )
    from scapy.packet import Packet, Raw
except ImportError:
    raise ImportError("migsniff.scapy needs scapy: pip install 'migsniff[scapy]'") from None

from migsniff.core import wire
from migsniff.core.layout import Contents, Layout, Named, Names, Part, Tagged
from migsniff.core.multifdmethods import METHODS
from migsniff.core.wire import MultifdFlag, RamFlag

Fields = list[Any]
NUMBERS: Final = {"B": ByteField, "H": ShortField, "I": IntField, "Q": LongField}
NAMED: Final = {"B": ByteEnumField, "H": ShortEnumField, "I": IntEnumField, "Q": LongEnumField}
WIDTHS: Final = {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF, "Q": 0xFFFFFFFFFFFFFFFF, "str8": 0xFF}
WIDTHS["str32"] = WIDTHS["I"]
MAX_ELEMENTS: Final = wire.MAX_RAM_BLOCKS
LOW_FLAGS: Final = 0xFF
ONLY_LOW: Final = RamFlag.ZERO | RamFlag.MEM_SIZE | RamFlag.PAGE | RamFlag.XBZRLE


class Record(Packet):
    """A record of the stream. What a layer does not take of its bytes is its payload."""

    behind: ClassVar[dict[int, type[Packet]]] = {}
    """The layers of what can stand behind this record, by first byte, if that is all it takes to tell."""

    def guess_payload_class(self, payload: bytes) -> type[Packet]:
        """The record that begins behind this one."""
        return self.behind.get(payload[0], Raw)


class Element(Record):
    """One of several that stand one behind the other: the next begins where it ends."""

    def extract_padding(self, rest: bytes) -> tuple[bytes, bytes]:
        return b"", rest


class FlagsField(Field[int, int]):
    """A number with flags, whose other bits may be an address; set also by names ("BITS|EOS")."""

    __slots__ = ("flags", "names")

    def __init__(self, name: str, default: int, code: str, names: Names) -> None:
        super().__init__(name, default, code)
        self.names = names
        self.flags = sum(set(names))

    def any2i(self, packet: Packet | None, value: Any) -> Any:
        """A number, or the names of its flags."""
        return sum({self.names[name] for name in value.split("|")}) if isinstance(value, str) else value

    def i2repr(self, packet: Packet | None, value: Any) -> str:
        number = int(value or 0)
        known = self.names(number & self._flags_in(number))
        named = known.name or str(int(known))
        rest = number - known
        if self.names is MultifdFlag and rest and (method := METHODS.get(rest)) is not None:
            return f"{known.name} {method.name}" if known else method.name
        return f"{rest:#x} {named}" if rest or self.fmt.endswith("Q") else named

    def _flags_in(self, number: int) -> int:
        if self.names is RamFlag and number & ONLY_LOW:
            return LOW_FLAGS  # with pages of 256 bytes the upper flags are bits of the address then
        return self.flags


def fields_of(layout: Layout, **defaults: Any) -> Fields:
    """scapy's fields for a layout."""
    found: Fields = []
    counted = {how.counter: (name, how.unit) for name, how in layout.fields if isinstance(how, Contents)}
    for name, how in layout.fields:
        default = defaults.get(name)
        if isinstance(how, Layout):
            found.append(_repeated(name, how))
        elif isinstance(how, Contents):
            found.append(_contents(name, how))
        elif name in counted:
            found.append(_counter(name, how, *counted[name]))
        elif how in ("str8", "str32"):
            found += _counted(name, how, default)
        elif how == "rest":
            found.append(StrField(name, default or b""))
        elif how[-1] in "sx" and how[:-1]:
            size = int(how[:-1])
            found.append(StrFixedLenField(name, default or bytes(size), length=size))
        else:
            found.append(_number(name, how, default or 0))
    return found


def _number(name: str, how: str, default: int) -> Any:
    if name == "magic":
        return XIntField(name, default)
    if not isinstance(how, Named):
        return NUMBERS[how](name, default)
    if not issubclass(how.names, IntEnum):
        return FlagsField(name, default, str(how), how.names)
    return NAMED[str(how)](name, int(default), {int(kind): kind.name for kind in how.names})


def _counted(name: str, how: str, default: Any) -> Fields:
    """Text behind its length, which is counted unless it is given."""
    length = f"{name}_length"
    return [
        _counter(length, how, name, 1),
        StrLenField(name, default or b"", length_from=lambda packet: int(getattr(packet, length))),
    ]


def _counter(name: str, how: str, counted: str, unit: int) -> Any:
    """A number that counts what stands in another field, unless it is given."""
    code = {"str8": "B", "str32": "I"}.get(how, how)
    return FieldLenField(
        name, None, fmt=code, length_of=counted, adjust=lambda _, size: size // unit & WIDTHS[code]
    )


def _contents(name: str, how: Contents) -> Any:
    def size(packet: Packet) -> int:
        return int(packet.getfieldval(how.counter) or 0) * how.unit if how.counter else how.unit

    return StrLenField(name, b"", length_from=size)


def _repeated(name: str, layout: Layout) -> Any:
    if len(layout.fields) == 1 and isinstance(layout.fields[0][1], str):
        return FieldListField(
            name, [], NUMBERS[layout.fields[0][1]](layout.fields[0][0], 0), max_count=MAX_ELEMENTS
        )
    return PacketListField(name, [], make(name.capitalize(), layout, base=Element), max_count=MAX_ELEMENTS)


def parts_of(tag: str, parts: tuple[Part, ...]) -> Fields:
    """The fields of parts that stand there only if the number `tag` says so."""

    def there(part: Part) -> Callable[[Packet], bool]:
        return lambda packet: bool(part.there(int(packet.getfieldval(tag) or 0)))

    return [ConditionalField(field, there(part)) for part in parts for field in fields_of(part.layout)]


def make(
    name: str,
    layout: Layout,
    before: Fields | None = None,
    base: type[Record] | None = None,
    **defaults: Any,
) -> type[Record]:
    """A layer named `name` for a layout, behind other fields if they are given."""
    fields = [*(before or []), *fields_of(layout, **defaults)]
    return type(name, (base or Record,), {"name": name, "fields_desc": fields})


def make_tagged(record: Tagged) -> type[Record]:
    """The layer of a record whose first number tells what follows."""
    fields = [*fields_of(record.head), *parts_of(record.tag, record.parts)]
    return type(record.name, (Element,), {"name": record.name, "fields_desc": fields})
