"""Descriptions from elsewhere, for tests: those of a sample, or written by hand."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from migsniff.core.arrivals import Assumed, Remembered
from migsniff.core.events import DescriptionFound, DeviceSection
from tests import rawsamples
from tests.playing import of, play

Key = tuple[str, int, int]
"""idstr, instance, version."""


@cache
def descriptions(name: str) -> dict[Key, Remembered]:
    """How a sample describes its devices."""
    events = play(rawsamples.raw(name))
    versions = {(event.idstr, event.instance_id): event.version_id for event in of(events, DeviceSection)}
    found = {}
    for description in of(events, DescriptionFound):
        # no field of the samples' devices is a list of more than one element, so that nothing gets lost
        for device in json.loads(description.text)["devices"]:
            key = device["name"], device["instance_id"]
            found[(*key, versions[key])] = Remembered(json.dumps(device).encode(), name)
    return found


def assumed(*known: dict[Key, Remembered]) -> Assumed:
    """What a Session is given: the first description is the likeliest."""

    def lookup(machine: str, idstr: str, instance: int, version: int) -> list[Remembered]:
        return [one[idstr, instance, version] for one in known if (idstr, instance, version) in one]

    return lookup


def handmade(*devices: Iterable[dict[str, Any]] | dict[str, Any], idstr: str = "d") -> Assumed:
    """Descriptions of one device, each the fields of it or the whole object."""
    texts = [
        device
        if isinstance(device, dict)
        else {"name": idstr, "instance_id": 0, "vmsd_name": idstr, "version": 1, "fields": list(device)}
        for device in devices
    ]
    remembered = [Remembered(json.dumps(text).encode(), f"number {n}") for n, text in enumerate(texts)]
    return lambda machine, name, instance, version: remembered if name == idstr else []
