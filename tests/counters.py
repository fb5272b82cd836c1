"""QEMU's own counters (query-migrate) against migsniff's log, counted as QEMU counts (migration/ram.c)."""

from typing import Any

Events = list[dict[str, Any]]


def agrees(version: str, ram: dict[str, int], events: Events) -> None:
    """Assert that the counters of query-migrate's `ram` that the wire can tell are what the log says."""
    own = {**_counted(events), "transferred": _transferred(version, events)}
    said = {name: value for name, value in ram.items() if name in own}
    assert {name: own[name] for name in said} == said


def _counted(events: Events) -> dict[str, int]:
    sections = [event for event in events if event["type"] == "ram-section"]
    # known from the machine's name or from the first pages, else only from the description
    size = next(event["page_size"] for event in events if event.get("page_size"))
    normal = sum(section["counts"]["normal"] for section in sections)
    return {
        "normal": normal,
        "normal-bytes": normal * size,
        "duplicate": sum(section["counts"]["zero"] for section in sections),
        "page-size": size,
        "total": next(event["total"] for event in events if event["type"] == "ram-blocks"),
        "precopy-bytes": _bytes(sections, "PART"),
        "downtime-bytes": _bytes(sections, "END"),
        "postcopy-bytes": 0,
        "postcopy-requests": 0,
        "multifd-bytes": 0,
    }


def _bytes(sections: Events, kind: str) -> int:
    """The bytes of page records, and of the word that ends a PART (but not of that which ends an END)."""
    word = 8 if kind == "PART" else 0
    return sum(one["counts"]["bytes"] + word for one in sections if one["section_type"] == kind)


def _transferred(version: str, events: Events) -> int:
    """RAM's bytes up to 8.0, every byte sent from 8.1 on."""
    if tuple(map(int, version.split(".")[:2])) < (8, 1):
        sections = [event for event in events if event["type"] == "ram-section"]
        return _bytes(sections, "PART") + _bytes(sections, "END")
    return sum(event["offset"] for event in events if event["type"] == "end" and event["direction"] == "fwd")
