"""The findings that rules make: code, severity and text of each (docs/expert.md explains them).

What the decoder itself finds has its texts in core/errors.py.
"""

from typing import Final, NamedTuple

from migsniff.core.events import (
    EVIDENCE,
    Event,
    Finding,
    Severity,
)


class Code(NamedTuple):
    """How bad it is, and the sentence, as far as there are some in the words of QEMU's own message."""

    severity: Severity
    text: str


TOO_OLD_PERHAPS: Final = (
    "{name}: incoming version_id {version} is too old for local minimum version_id, perhaps: the "
    "destination's version is {local}"
)

CODES: Final[dict[str, Code]] = {
    # ------------------------------------------------------------ convergence.py
    "not-converging": Code(
        "warn",
        "the migration does not converge: behind pass {number} the guest dirties at least {dirty} and "
        "{bandwidth} are sent; no pass had less than {floor} to send, which is {downtime} of downtime "
        "(downtime-limit is {limit} unless set): {estimate}; {hot}; {ways}",
    ),
    "converging": Code("note", "the migration converges now: pass {number} had only {sent} to send; {togo}"),
    "did-not-converge": Code(
        "warn",
        "the migration ended and had not converged: {passes} passes sent {sent}, {times} times the guest's "
        "memory, and the least that one had to send was {floor}",
    ),
    # ------------------------------------------------------------ speed.py
    "limited-by-source": Code(
        "note",
        "the source limits the speed: {rate}; in {time} bytes waited for the destination only {waited}"
        "{constant}",
    ),
    "limited-by-link": Code(
        "note",
        "the link to the destination limits the speed: {rate}; in {time} bytes waited {waited} for it while "
        "the destination had room ({window}){lost}",
    ),
    "limited-by-destination": Code(
        "note",
        "the destination limits the speed: {rate}; in {time} bytes waited {waited} because it does not read "
        "what has come{window}",
    ),
    # ------------------------------------------------------------ silence.py
    "silence": Code("warn", "idle for {time}; last: {last}; {who}; {back}"),
    "silence-over": Code("note", "bytes move again after {time} of silence: {what}"),
    # ------------------------------------------------------------ framing.py
    "section-misfit": Code(
        "error",
        "Unknown savevm section type {found}: section {name} ended before, at {at:#x}, and no section begins "
        "there: either {name} is longer than its format, or bytes are missing or too many",
    ),
    "footer-missing": Code(
        "error",
        "Missing section footer for {name}: by its format it ends at {at:#x}, and there stands {found}",
    ),
    "section-unknown-format": Code(
        "note",
        "section {name} ({kind}) is neither known nor described: its {bytes} bytes, up to its footer, are "
        "opaque; everything else is decoded",
    ),
    "ram-after-device": Code(
        "error",
        "{pages} of {block} came behind the state of {device}, which was sent at {at:#x} and does not know "
        'of them: the destination may say "VQ 0 size ... Guest index ... inconsistent with Host index ..."',
    ),
    # ------------------------------------------------------------ virtqueues.py, and compare/rings.py
    "virtqueue-no-address": Code("error", "VQ {index} address 0x0 inconsistent with Host index {host:#x}"),
    "virtqueue-index": Code(
        "warn",
        "VQ {index} size {entries:#x} Guest index {guest:#x} inconsistent with Host index {host:#x}: delta "
        "{delta:#x}: the guest's stands at {place:#x} of {block}, whose page came last at offset {came}, and "
        "the device's state at {at}; QEMU 7.2 and newer load it, but the device is broken until its driver "
        "resets it; QEMU 2.11 refused it",
    ),
    "virtqueue-in-flight": Code(
        "error",
        "VQ {index} size {entries:#x} < last_avail_idx {host:#x} - used_idx {guest:#x}: the used index is "
        "at {place:#x} of {block}, whose page came last at offset {came}, and the device's state at {at}",
    ),
    # ------------------------------------------------------------ inventory.py
    "refused-early": Code(
        "error",
        "the destination refused or died at the start, behind {sent}: {how}. It had read {read}. Its log "
        'says "Machine type received is ...", "Unknown ramblock", "Size mismatch" or "Length mismatch" if '
        "these are not its own: {blocks}; migsniff check tells which. It says none of that if it crashed or "
        "was killed",
    ),
    "load-failed": Code(
        "error",
        "the destination gave up loading: {how}. Its log names one of {count}, the likeliest first: "
        '{sections}. It says there "Unknown savevm section or instance", "Missing section footer for" or '
        '"error while loading state for instance 0x0 of device". {footers}; migsniff check tells which',
    ),
    # ------------------------------------------------------------ transport.py
    "stream-cut": Code(
        "error",
        "{channel} ends {where}: its reader gets an end of file inside (EIO, "
        '"Input/output error", or an irrelevant error about flags)',
    ),
    "ended-first": Code("error", "{who} {how} first: {place}; {back}{then}"),
    "source-done": Code(
        "note",
        "{who} {how} when it had sent all, as it does without a return path: {place}{then}",
    ),
    "channel-unlike-siblings": Code(
        "warn",
        "{channel} ended unlike the other multifd channels: {how}, behind {packet}; the others: {others}",
    ),
    "load-error-reported": Code(
        "error",
        "the destination reported an error on the return path (SHUT {value}): it has given up, and its log "
        "says why",
    ),
    "attempt-cost": Code("note", "the attempt cost {bytes} in {time}: all of it is to be sent again"),
    "tls-no-close-notify": Code(
        "note",
        "{channels} ended without close_notify{others}: main channels always do, and multifd channels of "
        "QEMU up to 9.2; a destination of QEMU 10.0 or newer may mind it of a multifd channel "
        '("The TLS connection was non-properly terminated.")',
    ),
    "tls-reset": Code(
        "warn",
        "the {who} {how}, and {channel} had not been closed in order (no close_notify): it has probably "
        "failed, and its log says why",
    ),
    "tls-alert": Code("error", "the {who} gave up with the alert {alert} on {channel}: its log says why"),
    "tls-cut": Code(
        "error",
        "{channel} ends {inside} bytes into a TLS record: its reader says "
        '"The TLS connection was non-properly terminated."',
    ),
    "tls-rekey": Code(
        "warn",
        "{records} TLS records on {channel}: behind 16777216 (2^24) GnuTLS changes the keys of TLS 1.3 by "
        "itself, which old ones do not survive while another thread reads, as with a return path "
        '("Cannot read from TLS channel: Input/output error")',
    ),
    # ------------------------------------------------------------ check (compare/checker.py)
    "check-machine": Code("error", "Machine type received is '{received}' and local is '{local}'"),
    "check-page-size": Code("error", "Received TARGET_PAGE_BITS is {received} but local is {local}"),
    "check-capability": Code(
        "warn",
        "Capability {name} is {local}, but received capability is {received}: unless it is set so for the "
        "incoming migration",
    ),
    "check-block-unknown": Code("error", 'Unknown ramblock "{block}", cannot accept migration'),
    "check-block-size": Code(
        "error",
        "Size mismatch: {block}: {received} != {local}: Invalid argument (old ones "
        'say "Length mismatch: {block}: {received} in != {local}")',
    ),
    "check-block-resized": Code(
        "note",
        "{block} has {received} bytes, {local} at the destination: it is resizeable there, and only if it "
        'may not become so large QEMU says "Size too large: {block}"',
    ),
    "check-section-unknown": Code(
        "error",
        "Unknown savevm section or instance '{name}' {instance}. Make sure that your current VM setup "
        'matches your saved VM setup (QEMU 11.1 says "Unknown section or instance")',
    ),
    "check-section-maybe": Code(
        "warn",
        "Unknown savevm section or instance '{name}' {instance}, perhaps: the destination's own stream has "
        "none, but it may know it",
    ),
    "check-version": Code("error", "savevm: unsupported version {version} for '{name}' v{local}"),
    "check-version-old": Code(
        "error", "{name}: incoming version_id {version} is too old for local minimum version_id {local}"
    ),
    "check-version-lower": Code("note", TOO_OLD_PERHAPS),
    "check-version-maybe": Code("warn", TOO_OLD_PERHAPS),
    "check-version-misfit": Code(
        "error", f"{TOO_OLD_PERHAPS}; if it loads that, Missing section footer for {{name}}: {{misfit}}"
    ),
    "check-subsection-version": Code(
        "error",
        "{subsection}: incoming version_id {version} is too {how} for local {least}version_id {local}",
    ),
    "check-footer": Code("error", "Missing section footer for {name}: {path}: {words}"),
    "check-footer-maybe": Code(
        "warn",
        "Missing section footer for {name}, perhaps: {path}: {words}; this may be told by the stream itself",
    ),
    "check-subsection-unknown": Code(
        "error",
        "error while loading state for instance {instance:#x} of device '{name}': the destination has no "
        "subsection {subsection}",
    ),
    "check-subsection-maybe": Code(
        "note",
        "{name} has the subsection {subsection}, the destination's own stream has not: it is sent only when "
        "needed; -dump-vmstate tells whether it is known there",
    ),
    "check-pci": Code(
        "error",
        "Bad config data: i=0x{i} read: {read} device: {device} cmask: {cmask} wmask: {wmask} w1cmask:0 "
        "({register})",
    ),
    "check-pci-maybe": Code(
        "warn",
        "Bad config data: i=0x{i} read: {read} device: {device}, perhaps: {register}, which the device or "
        "the guest may have changed",
    ),
    "check-virtio-features": Code(
        "warn",
        "Features {received} unsupported, perhaps: the guest uses {names}, which the destination's own guest "
        "does not use ({local}); what its host allows no stream tells",
    ),
    "check-too-large": Code(
        "note",
        "{name} has more than {limit} fields or blocks, and is not compared while others wait; migsniff "
        "check does",
    ),
    "check-extra-sections": Code(
        "note",
        "the destination has {count} sections that do not come, and keep their state after reset: {sections}",
    ),
    "check-extra-blocks": Code("note", "the destination has {count} RAM blocks that do not come: {blocks}"),
    # ------------------------------------------------------------ rules.py
    "expert-bug": Code(
        "error",
        "migsniff's rule {name} failed ({detail}): a bug, please report it; decoding goes on without it",
    ),
}

ASSUMED: Final = "; read by a description that is not this stream's own"
"""Behind what the fields of such a section show."""


def finding(
    code: str,
    at: Event,
    /,
    *,
    section: str = "",
    field: str = "",
    evidence: bytes = b"",
    offset: int | None = None,
    size: int | None = None,
    **details: object,
) -> Finding:
    """A finding at an event's place, or at `offset` of its channel; `details` fill in the text."""
    known = CODES[code]
    return Finding(
        channel=at.channel,
        direction=at.direction,
        offset=at.offset if offset is None else offset,
        size=(0 if offset is not None else at.size) if size is None else size,
        severity=known.severity,
        code=code,
        message=known.text.format(**details),
        section=section,
        field=field,
        evidence=evidence[:EVIDENCE].hex(),
    )
