"""What stands before QEMU's stream in a file that libvirt saved: by `virsh save` or as a memory snapshot.

Format: src/qemu/qemu_saveimage.h and .c, libvirt 9.0 and 11: a header of 92 bytes in the writer's byte order,
then the domain's XML, a cookie and padding, then the stream as the header's format says.
"""

from io import RawIOBase
from struct import Struct
from typing import Final, NamedTuple
from xml.parsers import expat

from migsniff.core.errors import CaptureError
from migsniff.feed.unpack import FORMATS

COMPLETE: Final = b"LibvirtQemudSave"
PARTIAL: Final = b"LibvirtQemudPart"
MAGICS: Final = (COMPLETE, PARTIAL)
HEADER_SIZE: Final = 92
NUMBERS: Final = "5I"  # behind the magic: version, length of the data, was running, format, cookie's offset
VERSION: Final = 2
FORMS: Final = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
AS_IT_IS: Final = ("raw", "sparse")  # sparse is a mapped-ram file, with offsets from the file's beginning
MAX_XML: Final = 4 << 20
MAX_DATA: Final = 256 << 20  # XML, cookie and padding: stepped over, never held
MAX_FACT: Final = 256  # characters of a name that are shown
MAX_DEPTH: Final = 256
MAX_SHOWN_DEPTH: Final = 3
PIECE: Final = 64 << 10

# where in the XML what is shown stands: elements below the root, and an attribute or none
SHOWN: Final = (
    ("Domain", ("name",), None),
    ("Domain UUID", ("uuid",), None),
    ("Domain memory", ("memory",), None),
    ("Domain CPUs", ("vcpu",), None),
    ("Domain machine", ("os", "type"), "machine"),
    ("Emulator", ("devices", "emulator"), None),
)


class SaveImage(NamedTuple):
    """The header. `form` is a name in FORMS, `end` where the stream begins in the file."""

    complete: bool
    running: bool
    form: str
    end: int
    facts: tuple[tuple[str, str], ...]

    @property
    def packed(self) -> str | None:
        """How the stream is compressed: a name in FORMATS, None if it is not."""
        return None if self.form in AS_IT_IS else self.form


def read_header(file: RawIOBase, name: str) -> SaveImage:
    """Read up to where the stream begins. Raises CaptureError."""
    header = _exactly(file, HEADER_SIZE)
    if len(header) < HEADER_SIZE:
        raise CaptureError(f"{name}: the file ends inside the header of a libvirt save file")
    # the writer's byte order is that in which the version is small
    numbers = min(Struct(order + NUMBERS).unpack_from(header, len(COMPLETE)) for order in "<>")
    version, length, running, number, cookie = numbers
    if not 1 <= version <= VERSION:
        raise CaptureError(
            f"{name}: libvirt save file version {version}: only versions up to {VERSION} are known"
        )
    if number >= len(FORMS):
        raise CaptureError(f"{name}: libvirt save format {number} is not known")
    form = FORMS[number] if version == VERSION else "raw"
    if length > MAX_DATA:
        raise CaptureError(
            f"{name}: libvirt's XML and cookie of {length} bytes: more than the {MAX_DATA} that"
            " migsniff reads"
        )
    if cookie > length:
        raise CaptureError(f"{name}: libvirt's cookie at {cookie} of {length} bytes of XML and cookie")
    xml = _exactly(file, min(length, MAX_XML))
    left = length - len(xml)
    while left and (some := file.read(min(left, PIECE))):
        left -= len(some)
    if len(xml) < min(length, MAX_XML) or left:
        raise CaptureError(
            f"{name}: the file ends inside libvirt's XML and cookie, which take {length} bytes"
        )
    if form not in AS_IT_IS and form not in FORMATS:
        raise CaptureError(
            f"{name}: a libvirt save file, {form}: unpack it first"
            f" (tail -c +{HEADER_SIZE + length + 1} FILE | {form} -dc | migsniff read -)"
        )
    complete = header.startswith(COMPLETE)
    facts = (
        ("Saved by libvirt", "complete" if complete else "unfinished: libvirt did not come to its end"),
        ("Saved as", form),
        ("Domain was", "running" if running else "paused or stopped"),
        *domain_facts(xml[: cookie or length].split(b"\0", 1)[0]),
    )
    return SaveImage(complete, bool(running), form, HEADER_SIZE + length, facts)


def domain_facts(xml: bytes) -> tuple[tuple[str, str], ...]:
    """What the domain's XML says of it, label and text; nothing in it is trusted.

    It is walked, not kept: entities and document types, of which libvirt writes none, are refused.
    """
    path: list[str] = []
    texts: dict[str, str] = {}
    units: dict[str, str] = {}

    def at() -> tuple[str, str | None] | None:
        """The label of the element that is being read, and its attribute."""
        below = tuple(path[1:]) if len(path) <= MAX_SHOWN_DEPTH and path[0] == "domain" else ()
        return next(((label, attribute) for label, place, attribute in SHOWN if place == below), None)

    def begin(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag)
        if len(path) > MAX_DEPTH:
            raise ValueError(f"it nests deeper than {MAX_DEPTH} levels")
        if (found := at()) is not None:
            label, attribute = found
            if attribute is not None:
                texts[label] = attributes.get(attribute, "")[:MAX_FACT]
            elif "unit" in attributes:
                units[label] = attributes["unit"][:MAX_FACT]

    def text(some: str) -> None:
        if (found := at()) is not None and found[1] is None:
            texts[found[0]] = (texts.get(found[0], "") + some)[:MAX_FACT]

    def end(tag: str) -> None:
        path.pop()

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type or entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    problem: tuple[tuple[str, str], ...] = ()
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        problem = (("Domain XML", f"cannot be read: {error}"),)
    words = ((label, f"{texts.get(label, '').strip()} {units.get(label, '')}") for label, _, _ in SHOWN)
    return (*((label, said.strip()) for label, said in words if said.strip()), *problem)


def _exactly(file: RawIOBase, size: int) -> bytes:
    """The next `size` bytes, or what is left."""
    taken = bytearray()
    while len(taken) < size and (some := file.read(min(size - len(taken), PIECE))):
        taken += some
    return bytes(taken)
