"""Descriptions of one device, written short, and walks over its bytes."""

import json
from typing import Any

import pytest

from migsniff.core.arrivals import Data
from migsniff.core.budget import Budget
from migsniff.core.description import Description, DeviceDescription
from migsniff.core.vmdesc import Walk, walk

BASE = 1000  # wire offset of the first byte of the device


def entry(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size, **more}


def struct(name: str, size: int, *fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return entry(name, "struct", size, struct={"vmsd_name": name, "version": 1, "fields": fields}, **more)


def description(*fields: dict[str, Any], **more: Any) -> Description:
    device = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 3, "fields": fields, **more}
    return Description.parse(json.dumps({"page_size": 4096, "devices": [device]}).encode())


def with_field(text: str) -> str:
    return f'{{"devices":[{{"name":"d","instance_id":0,"fields":[{text}]}}]}}'


def read(parsed: Description, data: bytes, *, fields: bool = True, budget: Budget | None = None) -> Walk:
    return walked(parsed.devices[0], b"??" + data, 2, BASE, fields=fields, budget=budget or Budget())


def walked(
    device: DeviceDescription, data: Data, start: int, wire_offset: int, *, fields: bool, budget: Budget
) -> Walk:
    """A whole walk in one piece."""
    steps = walk(device, data, start, wire_offset, fields=fields, budget=budget)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Walk = end.value
            return result
        pytest.fail("a walk without `breathe` takes no breath")
