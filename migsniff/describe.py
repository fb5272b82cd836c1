"""Files that describe devices: a capture or dump with a description, the description alone, -dump-vmstate."""

from collections.abc import Callable
from io import BufferedReader
from typing import Final, NamedTuple

from migsniff.core.errors import CaptureError
from migsniff.core.session import Session
from migsniff.descriptions import Learning
from migsniff.feed.descriptionstore import Described, Entry, entries_of
from migsniff.feed.dumpvmstate import HEAD, from_dump, is_dump
from migsniff.feed.files import look_into, open_source
from migsniff.feed.pcap import PcapSource
from migsniff.feed.unpack import Peeked
from migsniff.packets import decode_packets
from migsniff.pipeline import Pipeline, run
from migsniff.show.words import escape
from migsniff.whole import Whole

MAX_JSON: Final = 64 << 20


class Found(NamedTuple):
    """What a file describes; `machine` None if it does not say of which machine type."""

    machine: str | None
    entries: list[Entry]


def read_descriptions(path: str, say: Callable[[str], None]) -> Found:
    """Read a file; raises CaptureError if it describes nothing. `say` is told of what cannot be used."""
    file = look_into(path)
    found = None if file is None else _json(path, file, say)
    if found is None:
        found = _stream(path, file)
    if not found.entries:
        raise CaptureError(f"{escape(path)}: it describes no device")
    return found


def _json(path: str, file: Peeked, say: Callable[[str], None]) -> Found | None:
    """A file of JSON; None if it is none."""
    try:
        if file.first(HEAD).lstrip()[:1] != b"{":
            return None
        with BufferedReader(file) as whole:
            text = whole.read(MAX_JSON + 1)
    except OSError as error:
        raise CaptureError(f"{escape(path)}: {error.strerror}") from None
    if len(text) > MAX_JSON:
        raise CaptureError(f"{escape(path)}: more than the {MAX_JSON} bytes of JSON that migsniff reads")
    source = _source(path)
    try:
        if is_dump(text):
            machine, entries, unused = from_dump(text, source)
            if unused:
                say(f"{path}: {unused}")
            return Found(machine, entries)
        return Found(None, entries_of(Described("", text, {}, source)))
    except CaptureError as error:
        raise CaptureError(f"{escape(path)}: {error}") from None


def _stream(path: str, file: Peeked | None) -> Found:
    """A capture, a dump, or whatever else holds a stream."""
    source = open_source(path, file=file)
    seen: list[Described] = []
    whole = Whole(source)

    def pipeline(*about: object) -> Pipeline:
        return Pipeline(_source(path), Session(), [Learning(seen.append), whole])

    if isinstance(source, PcapSource):
        decode_packets(source, pipeline, lambda pipeline: None)
    else:
        one = pipeline()
        run(one, source.arrivals())
        for _ in one.finish():
            pass
    if not seen:
        why = f": {escape(whole.strange)}" if whole.strange else ""
        raise CaptureError(f"{escape(path)}: it holds no description of device state{why}")
    return Found(seen[-1].machine, entries_of(seen[-1]))


def _source(path: str) -> str:
    return escape(path)[-200:]
