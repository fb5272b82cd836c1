"""QEMU's own counters (query-migrate) against migsniff's log, counted as QEMU counts (migration/ram.c)."""

from typing import Any

Events = list[dict[str, Any]]

PAGES_FROM_ALL = (8, 1)
"""From this version on `transferred` is every byte sent, before it was RAM's bytes."""


def agrees(version: str, ram: dict[str, int], events: Events) -> None:
    """Assert that the counters of query-migrate's `ram` that the wire can tell are what the log says."""
    differences = differing(version, ram, events)
    assert differences == {}


def differing(version: str, ram: dict[str, int], events: Events) -> dict[str, tuple[int, int]]:
    """The counters of `ram` that differ: name -> what the log says, what QEMU says."""
    own = counted(version, events)
    return {name: (own[name], said) for name, said in ram.items() if own.get(name, said) != said}


def counted(version: str, events: Events) -> dict[str, int]:
    """The counters of query-migrate's `ram`, from the log of a whole migration on one or more channels."""
    newer = tuple(map(int, version.split(".")[:2])) >= PAGES_FROM_ALL
    sections = _of(events, "ram-section")
    packets = _of(events, "multifd-packet")
    loose = _of(events, "loose-pages")
    # known from the machine's name or from the first pages, else only from the description, if there is one
    size = next((event["page_size"] for event in events if event.get("page_size")), 0)
    counts = [event["counts"] for event in sections + loose]
    normal = sum(one["normal"] for one in counts) + sum(packet["normal"] for packet in packets)
    zero = sum(one["zero"] for one in counts) + sum(packet["zero"] for packet in packets)
    listens = next((i for i, one in enumerate(events) if one.get("name") == "POSTCOPY_LISTEN"), len(events))
    late = [event for event in events[listens:] if event["type"] in ("ram-section", "loose-pages")]
    early = _of(events[:listens], "ram-section")
    multifd = sum(event["size"] for event in packets)
    if newer:
        multifd += sum(event["size"] for event in _of(events, "multifd-hello"))
    else:  # the pages as they were before they were compressed
        multifd += sum(packet["normal"] * size - packet["data_size"] for packet in packets)
    pages = sum(map(_bytes, sections + loose))
    if newer:
        # what is gathered first is counted when it is made and when it is sent: the package of a postcopy,
        # the devices of a background snapshot, which has no END of ram
        sent = sum(event["offset"] for event in _of(events, "end") if event["direction"] == "fwd")
        transferred = sent + sum(event["length"] for event in _of(events, "package"))
        if not any(section["section_type"] == "END" for section in sections) and _of(events, "eof"):
            main = next(
                e["offset"] for e in _of(events, "end") if e["direction"] == "fwd" and e["channel"] == "main"
            )
            transferred += main - min(event["offset"] for event in _of(events, "device"))
    else:
        transferred = pages + multifd
    sizes = {"normal-bytes": normal * size, "page-size": size} if size else {}
    return {
        "normal": normal,
        "duplicate": zero,
        **sizes,
        "total": next((event["total"] for event in events if event["type"] == "ram-blocks"), 0),
        "precopy-bytes": sum(_bytes(one) for one in early if one["section_type"] == "PART"),
        "downtime-bytes": sum(_bytes(one) for one in early if one["section_type"] == "END"),
        "postcopy-bytes": sum(map(_bytes, late)),
        "postcopy-requests": sum(
            one.get("name") in ("REQ_PAGES", "REQ_PAGES_ID") for one in _of(events, "return-path")
        ),
        "multifd-bytes": multifd,
        "transferred": transferred,
    }


def _of(events: Events, kind: str) -> Events:
    return [event for event in events if event["type"] == kind]


def _bytes(event: dict[str, Any]) -> int:
    """The bytes of page records, and of the word that ends a PART (but not of that which ends an END)."""
    pages = int(event["counts"]["bytes"])
    cut_off = event["type"] == "loose-pages" and not event["channel"].startswith("preempt")
    return pages + (8 if event.get("section_type") == "PART" or (cut_off and event["size"] > pages) else 0)
