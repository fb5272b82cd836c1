"""What can be wrong with a stream or a file, and the one place where each of these texts lives."""

from typing import Final, Literal

# code -> text. The code is stable and appears in JSON; the text says what stood there and what should have.
PROBLEMS: Final[dict[str, str]] = {
    "magic": "not a QEMU migration stream: it begins with {found}",
    "version": "migration stream version {found}: only version 3 is known",
    "item-type": "unknown section type {found:#04x}",
    "section-unknown": "{kind} of section {section_id}, which no START has announced",
    "section-id-reused": "section {section_id} begins again as {idstr!r}: it is {earlier!r} already",
    "footer": "section footer expected (0x7e and section {section_id}), found {found}",
    "idstr": "the name of section {section_id} is not text: {found}",
    "string-empty": "a name of no characters where {what} must stand",
    "string-text": "{what} is not text: {found}",
    "length": "{what} of {length} bytes: more than the {limit} that migsniff reads",
    "count": "{count} {what}: more than the {limit} that migsniff reads",
    "page-size": "the target's page size cannot be found: no table entry for machine {machine!r} and no size fits the first RAM records",
    "page-bits": "target page bits {found}: no target has such pages",
    "page-size-advised": "page size {found} in POSTCOPY_ADVISE: no target has such pages",
    "page-size-described": "the description says page size {found}, the stream was read with {used}",
    "ram-version": "RAM section version {found}: only version 4 is known",
    "ram-flags": "RAM record with flags {flags:#x}, which QEMU never sends",
    "ram-block": "RAM record names a block of {count} characters that begins with {name!r}, which is not in the block list",
    "ram-no-block": "RAM record continues a block, but none was named yet",
    "ram-offset": "RAM record at {address:#x} in block {name!r}, which is {length:#x} bytes long",
    "ram-blocks-total": "the RAM block lengths add up to more than the announced total of {total:#x} bytes",
    "ram-block-length": "RAM block {name!r} is {length:#x} bytes long, not a multiple of the page size {page_size}",
    "ram-no-list": "RAM record before the list of RAM blocks",
    "ram-block-numbers": "more than two numbers behind RAM block {name!r}",
    "mapped-ram-version": "mapped RAM header version {found}: only version 1 is known",
    "mapped-ram-page-size": "mapped RAM with pages of {found} bytes instead of {expected}",
    "mapped-ram-offset": "mapped RAM of block {name!r}: its pages at {pages:#x} begin inside its bitmap at {bitmap:#x}",
    "mapped-ram-place": "mapped RAM of block {name!r}: its bitmap is said to be at {bitmap:#x} of the file, but {expected:#x} is where it must be",
    "mapped-ram-hole": "mapped RAM of block {name!r}: its pages at {pages:#x} begin {hole} bytes behind its bitmap, more than the {limit} that migsniff believes",
    "ram-hook": "RDMA registration record in a socket stream",
    "xbzrle-header": "XBZRLE record with marker {found:#x}: only 1 is known",
    "xbzrle-length": "XBZRLE record of {length} bytes for a page of {page_size}",
    "xbzrle-delta": "the XBZRLE delta {what}",
    "xbzrle-unsent": "an XBZRLE delta for a page that was never sent whole",
    "inflate": "{what} cannot be decompressed: {detail}",
    "inflate-more": "{what} decompresses to more than its {expected} bytes",
    "inflate-less": "{what} decompresses to {found} bytes instead of {expected}",
    "inflate-short": "{what} is cut short: its compressed data ends behind {found} of {expected} bytes",
    "inflate-rest": "{what}: {left} bytes behind the end of its compressed data",
    "compress-length": "compressed page of {length} bytes for a page of {page_size}",
    "live-flags": "{what} record with flags {flags:#x}, which are not known",
    "zero-fill": "zero page filled with {found:#04x}: QEMU always sends 0",
    "command": "unknown command {command}",
    "command-length": "command {name} with {length} bytes, not {expected}",
    "colo-message": "unknown message of COLO in this direction: {found}",
    "return-path-type": "unknown return path message {found}",
    "return-path-length": "return path message {name} with {length} bytes, not {expected}",
    "page-request": "the destination asks for {length} bytes at {start:#x} of block {name!r}: {why}",
    "requests-unanswered": "page requests that no page answered: {count}, the first of them for {start:#x} of {name}",
    "discard": "{length} bytes at {start:#x} of block {name!r} are to be discarded: {why}",
    "payload-short": "{what} does not fit into its message",
    "recv-bitmap-size": "the received bitmap of block {name!r} has {length} bytes, not {expected}",
    "resumed-alone": "{kind} of section {section_id}: its START was on the connection that this one goes on, which was not seen",
    "package-end": "the package ends inside {item}",
    "package-eof": "EOF inside the package, {left} bytes before its end",
    "package-long": "the package goes on for {left} bytes behind POSTCOPY_RUN, its last command",
    "recv-bitmap-end": "received bitmap ends with {found:#x} instead of its end mark",
    "package-depth": "a package inside a package",
    "subsection-again": "configuration subsection {name!r} comes a second time, and QEMU sends each once",
    "subsection": "configuration subsection {name!r} version {version}: its length is not known",
    "multifd-magic": "multifd packet begins with {found:#010x} instead of 0x11223344",
    "multifd-version": "multifd version {found}: only version 1 is known",
    "multifd-method": "multifd compression method {found:#x} is not known",
    "multifd-pages": "multifd packet claims {pages} pages; a packet holds at most {limit}",
    "multifd-history": "the compressed channels would have to keep more than {limit} bytes of earlier pages: this one's are left out",
    "multifd-size": "multifd packet claims {size} bytes of data for {pages} pages",
    "multifd-block": "multifd packet names block {name!r}, which is not in the block list",
    "multifd-offset": "multifd packet with a page at {address:#x} in block {name!r}, which is {length:#x} bytes of pages of {page_size}",
    "multifd-device-state": "multifd packet claims {size} bytes of state of device {name!r}; 1 to {limit} can be",
    "multifd-wait": "too many multifd packets came before the main channel told {what}",
    "multifd-channel": "multifd channel {number} is there already, as {earlier}",
    "multifd-uuid": "multifd channel of the VM with uuid {found}, in the migration of {uuid}",
    "multifd-syncs": "{found} SYNC packets came, where the main channel tells of {expected}",
    "description-json": "the description is not valid JSON: {detail}",
    "description-shape": "the description is not what QEMU writes: {detail}",
    "description-depth": "the description nests deeper than {limit} levels",
    "description-nodes": "the description stands for more than {limit} fields",
    "field-short": "field {name!r} needs {size} bytes, {left} are left",
    "field-subsection": "subsection {name!r} expected at {at:#x}, found {found}",
    "subsection-undescribed": "{idstr} instance {instance_id}: {size} bytes at its end that its own description does not mention, subsection {name!r} version {version}",
    "walk-end": "{idstr} instance {instance_id}: by its description it ends at {at:#x}, in the stream at {found:#x}",
    "assumed-subsection": "subsection {name!r}, which no remembered description has, at {at:#x}",
    "assumed-short": "{idstr} instance {instance_id} does not fit its remembered description ({source}): it ends {missing} bytes before the end of field {field!r}",
    "assumed-long": "{idstr} instance {instance_id} does not fit its remembered description ({source}): {more} bytes stand between its last field and its end",
    "assumed-misfit": "{idstr} instance {instance_id} does not fit its remembered description ({source}), in field {field!r}: {detail}",
    "assumed-wrong": "{idstr} instance {instance_id} was assumed wrongly ({source}): {assumed}, and it is {exact}",
    "device-too-big": "device state of more than {limit} bytes is not kept: fields of {idstr!r} cannot be shown",
    "end-guessed": "neither footers nor a description: that the last device ends here is only likely",
    "hole": "{length} bytes at {at:#x}, which are needed here, are not in this capture",
    "pages-scattered": "pages stand so far apart that their states would take more than {limit} bytes: the rest is left out",
    "contents-missing": "page contents are needed, and this capture was saved without them (--ram keep saves them)",
    "tls-record": "no TLS record begins with {found}",
    "decoder-bug": "migsniff's own decoder failed ({detail}): a bug, please report it; the forwarding is not touched",
    "decoder-behind": "decoding fell more than {limit} bytes behind the wire and was stopped; the forwarding is not touched",
    "decoder-stopped": "migsniff was told to end: up to {left} bytes that had come were not decoded",
    "saver-place": "captures cannot be saved in {place}: {detail}; the forwarding is not touched",
    "saver-behind": "the disk fell more than {limit} bytes behind the wire: saving was stopped; the forwarding is not touched",
    "saver-failed": "saving stopped: {detail}; the forwarding is not touched",
}


PROBLEM_SEVERITIES: Final[dict[str, Literal["note", "warn"]]] = {
    "page-size-described": "warn",
    "command": "warn",
    "page-request": "warn",
    "requests-unanswered": "note",
    "discard": "warn",
    "recv-bitmap-size": "warn",
    "package-long": "warn",
    "multifd-syncs": "warn",
    "description-shape": "warn",
    "field-short": "warn",
    "field-subsection": "warn",
    "subsection-undescribed": "note",
    "walk-end": "warn",
    "assumed-subsection": "note",
    "assumed-short": "note",
    "assumed-long": "note",
    "assumed-misfit": "note",
    "assumed-wrong": "note",
    "device-too-big": "warn",
    "end-guessed": "note",
}
"""How bad a problem is with which decoding goes on; all others are errors."""


class MigsniffError(Exception):
    """Every error that migsniff raises for what it was given; anything else that escapes is our bug."""


class StreamProblem(MigsniffError):
    """Bytes that contradict the format.

    `code` is a key of PROBLEMS, `text` the filled-in sentence, `details` what was filled in.
    """

    def __init__(self, code: str, **details: object) -> None:
        self.code = code
        self.details = details
        self.text = problem_text(code, **details)
        super().__init__(self.text)


class CaptureError(MigsniffError):
    """A capture, dump or other file that cannot be read: the message names the file and the reason."""


class UsageError(MigsniffError):
    """What the user asked for cannot be done: a bad endpoint, a missing argument (exit code 2)."""


def problem_text(code: str, **details: object) -> str:
    """The sentence for a problem code with its details filled in."""
    return PROBLEMS[code].format(**details)
