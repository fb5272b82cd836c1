"""The JSON description: read as QEMU writes it, refused where it is anything else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migsniff.core.budget import Budget
from migsniff.core.description import Description
from migsniff.core.errors import StreamProblem
from migsniff.core.events import BREATH
from migsniff.core.wire import MAX_DESCRIPTION_DEPTH, MAX_DEVICE_DESCRIPTION, MAX_FIELDS
from tests.describing import description, entry, read, struct, walked, with_field


def test_parse() -> None:
    text = json.dumps(
        {
            "configuration": {
                "vmsd_name": "configuration",
                "version": 1,
                "fields": [entry("len", "uint32", 4)],
            },
            "page_size": 4096,
            "devices": [
                {"name": "timer", "instance_id": 0, "vmsd_name": "timer", "version": 2, "fields": []},
                {
                    "name": "slirp",
                    "instance_id": 0x80000000,
                    "size": 9,
                    "fields": [entry("data", "buffer", 9)],
                },
                {"name": "older", "instance_id": -1, "size": 3},
            ],
        }
    ).encode()
    parsed = Description.parse(text)
    assert (parsed.page_size, parsed.text) == (4096, text)
    assert parsed.configuration is not None
    assert parsed.configuration.vmsd.fields[0].name == "len"
    assert [(device.name, device.instance_id, device.vmsd.version) for device in parsed.devices] == [
        ("timer", 0, 2),
        ("slirp", 0x80000000, None),
        ("older", 0xFFFFFFFF, None),
    ]
    assert [device.vmsd.fixed for device in parsed.devices] == [0, 9, 3]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "description-json"),
        ("{", "description-json"),
        ('{"devices":[]} x', "description-json"),
        ('{"devices":[],"a":"\udcff"}', "description-json"),
        (with_field('{"name":"a","type":"uint8","size":' + "9" * 5000 + "}"), "description-json"),
        ("[]", "description-shape"),
        ("7", "description-shape"),
        ("{}", "description-shape"),
        ('{"devices":{}}', "description-shape"),
        ('{"devices":[7]}', "description-shape"),
        ('{"devices":[{}]}', "description-shape"),
        ('{"devices":[],"page_size":0}', "description-shape"),
        ('{"devices":[],"page_size":true}', "description-shape"),
        ('{"devices":[],"page_size":1e3}', "description-shape"),
        ('{"devices":[],"configuration":[]}', "description-shape"),
        ('{"devices":[{"name":"d","instance_id":"0","fields":[]}]}', "description-shape"),
        ('{"devices":[{"name":"d","instance_id":4294967296,"fields":[]}]}', "description-shape"),
        ('{"devices":[{"name":"\\ud800","instance_id":0,"fields":[]}]}', "description-json"),
        ('{"devices":[{"name":"d","instance_id":0}]}', "description-shape"),
        ('{"devices":[{"name":"d","instance_id":0,"fields":[],"version":null}]}', "description-shape"),
        ('{"devices":[{"name":"d","instance_id":0,"fields":[],"subsections":[{}]}]}', "description-shape"),
        (
            '{"devices":[{"name":"d","instance_id":0,"fields":[],"subsections":[{"fields":[]}]}]}',
            "description-shape",
        ),
        (with_field("[]"), "description-shape"),
        (with_field("{}"), "description-shape"),
        (with_field('{"name":"a","type":"uint8"}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":-1}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":true}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":1.0}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":NaN}'), "description-json"),
        (with_field('{"name":"a","type":"uint8","size":99999999999999999999}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":1,"array_len":-1}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":1,"array_len":[1]}'), "description-shape"),
        (with_field('{"name":"a","type":"uint8","size":1,"index":"0"}'), "description-shape"),
        (with_field('{"name":[],"type":"uint8","size":1}'), "description-shape"),
        (with_field('{"name":"a","type":1,"size":1}'), "description-shape"),
        (with_field('{"name":"a","type":"struct","size":1}'), "description-shape"),
        (with_field('{"name":"a","type":"struct","size":1,"struct":7}'), "description-shape"),
        (with_field('{"name":"a","type":"struct","size":1,"struct":{"fields":7}}'), "description-shape"),
        (with_field('{"name":"a","type":"struct","size":2,"struct":{}}'), "description-shape"),
        (with_field('{"name":"a","type":"nullptr","size":2}'), "description-shape"),
        ("[" * 100_000, "description-shape"),
        ('{"devices":[' + "[" * 100_000, "description-depth"),
        ('{"a":' * 100_000, "description-depth"),
        (
            '{"devices":[{"a":' + "[" * MAX_DESCRIPTION_DEPTH + "]" * MAX_DESCRIPTION_DEPTH + "}]}",
            "description-depth",
        ),
        (
            '{"devices":['
            + '{"a":' * (MAX_DESCRIPTION_DEPTH + 1)
            + "0"
            + "}" * (MAX_DESCRIPTION_DEPTH + 1)
            + "]}",
            "description-depth",
        ),
        (with_field('{"name":"' + "a" * MAX_DEVICE_DESCRIPTION + '","type":"uint8","size":1}'), "length"),
        # a string without end, of which each quote could begin another
        ('"' + '\\"' * (1 << 20), "description-json"),
        ('"",' * MAX_FIELDS + '""' * (2 * MAX_FIELDS), "description-nodes"),
        ('""' * (3 * MAX_FIELDS), "description-nodes"),
        ('{"devices":[' + "{}," * MAX_FIELDS + "{}]}", "description-nodes"),
        ('{"devices":[' + "0," * (MAX_FIELDS + 1) + "0]}", "description-nodes"),
    ],
)
def test_parse_refuses(text: str, code: str) -> None:
    with pytest.raises(StreamProblem) as caught:
        Description.parse(text.encode("utf-8", "surrogateescape"))
    assert caught.value.code == code
    assert len(caught.value.text) < 300


def test_a_breath_behind_each_device() -> None:
    device = '{"name":"d","instance_id":0,"fields":[]}'
    text = f'{{"devices":[{",".join([device] * 50)}]}}'.encode()
    assert list(Description.read(text, breathe=True)) == [BREATH] * 50
    assert len(Description.parse(text).devices) == 50


def test_brackets_in_names_are_no_depth() -> None:
    name = "[{" * 100 + '"\\'
    assert read(description(entry(name, "uint8", 1)), b"\1").fields[0].name == name


# ---------------------------------------------------------------- anything at all

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([1 << 31, 1 << 64]),
    st.floats(),
    st.text(max_size=3),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "devices",
                    "fields",
                    "struct",
                    "name",
                    "type",
                    "size",
                    "array_len",
                    "index",
                    "version",
                    "subsections",
                ]
            ),
            inner,
        ),
    ),
)


@given(JUNK)
def test_junk_raises_nothing_but_a_stream_problem(junk: Any) -> None:
    for text in (json.dumps(junk), with_field(json.dumps(junk)), f'{{"devices":{json.dumps(junk)}}}'):
        try:
            parsed = Description.parse(text.encode())
        except StreamProblem:
            continue
        for device in parsed.devices:
            walked(device, b"\0" * 40, 0, 0, fields=True, budget=Budget(fields=1000))


DAMAGED = description(
    struct("p", 1, entry("a", "uint8", 1), array_len=2),
    subsections=[{"vmsd_name": "d/s", "version": 2, "fields": [entry("b", "uint16", 2)]}],
)


@given(st.binary(max_size=12), st.integers(0, 400), st.integers(0, 12))
def test_damaged_text_raises_nothing_but_a_stream_problem(junk: bytes, at: int, cut: int) -> None:
    text = DAMAGED.text
    try:
        parsed = Description.parse(text[:at] + junk + text[at + cut :])
    except StreamProblem:
        return
    for device in parsed.devices:
        walked(device, b"\0" * 40, 0, 0, fields=True, budget=Budget(fields=1000))
