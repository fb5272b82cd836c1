"""virtio devices: against QEMU's x-query-virtio-*, in the samples, and for any bytes."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.qemu import Qemu
from migsniff.values.explain import explain
from migsniff.values.tables import virtio
from migsniff.values.virtio import VirtioState, virtio_state
from migsniff.values.virtiodevices import DEVICE_PARTS
from migsniff.values.virtiofeatures import feature_names, kind_of, status_names
from migsniff.values.virtiotransports import TRANSPORTS
from tests.test_samples import NAMES
from tests.valuing import Sections, assert_within, guest, inside, sample, saved, section, walk

DEVICES = (
    " -device virtio-net-{bus},mac=52:54:00:12:34:56 -device virtio-scsi-{bus}"
    " -drive if=none,id=disk,file=[folder]/disk,format=raw -device virtio-blk-{bus},drive=disk"
    " -device virtio-balloon-{bus} -device virtio-rng-{bus} -device virtio-serial-{bus} -device virtconsole"
)
MORE = (
    " -device virtio-gpu-pci -device virtio-keyboard-pci -device virtio-iommu-pci"
    " -object memory-backend-ram,id=more,size=64M -device virtio-mem-pci,memdev=more"
)
PCI, MMIO, CCW = (DEVICES.format(bus=bus) for bus in ("pci", "device", "ccw"))
Q35 = "-M q35 -m 64M,maxmem=1G,slots=1" + PCI + MORE
S390X = "-M s390-ccw-virtio -m 128 -no-shutdown -action panic=none"
# (11.1 dies of a query for the status of some device, by an assertion of its own)
GUESTS = {
    "7.2 q35": ("7.2", "x86_64", Q35),
    "10.0 q35": ("10.0", "x86_64", Q35),
    "10.0 legacy": ("10.0", "x86_64", "-M pc -m 64" + DEVICES.format(bus="pci,disable-modern=on")),
    "10.0 packed": ("10.0", "x86_64", "-M q35 -m 64" + DEVICES.format(bus="pci,packed=on")),
    "10.0 pseries": ("10.0", "ppc64", "-M pseries -m 256" + PCI),
    "10.0 virt": ("10.0", "aarch64", "-M virt -m 64" + MMIO),
    "10.0 virt modern": ("10.0", "aarch64", "-M virt -m 64 -global virtio-mmio.force-legacy=off" + MMIO),
    "7.2 ccw": ("7.2", "s390x", S390X + CCW),
    "10.0 ccw": ("10.0", "s390x", S390X + CCW),
}
# QEMU's names of devices in x-query-virtio, where sections are called otherwise
SECTIONS = {"virtio-serial": "virtio-console"}


def in_use(qemu: Qemu) -> bool:
    """The firmware drives a device: the disk, or a legacy network card, as it does not know legacy disks.

    Then the guest is stopped: the firmware soon goes on to another device.
    """
    qemu.execute("stop")
    for device in qemu.execute("x-query-virtio"):
        status = qemu.execute("x-query-virtio-status", path=device["path"])
        driven = any(words.startswith("VIRTIO_CONFIG_S_DRIVER_OK") for words in status["status"]["statuses"])
        modern = "VIRTIO_F_VERSION_1" in names(status["host-features"]["transports"])
        if driven and (device["name"] == "virtio-blk" or not modern):
            return True
    qemu.execute("cont")
    return False


def names(said: list[str]) -> set[str]:
    """QEMU's "NAME: what it means"."""
    return {words.partition(":")[0] for words in said} - {"VHOST_USER_F_PROTOCOL_FEATURES", "VHOST_F_LOG_ALL"}


def queue_facts(qemu: Qemu, path: str, number: int) -> list[tuple[int, ...]]:
    keys = ("vring-num", "vring-desc", "vring-avail", "vring-used", "last-avail-idx")
    found = []
    for queue in range(number):
        status = qemu.execute("x-query-virtio-queue-status", path=path, queue=queue)
        found.append(tuple(status[key] for key in keys))
    return found


@pytest.mark.parametrize("name", GUESTS)
def test_it_is_what_qemu_shows(name: str, tmp_path: Path) -> None:
    version, arch, arguments = GUESTS[name]
    has_firmware = arch == "x86_64"
    ready = in_use if has_firmware else lambda qemu: True
    with guest(version, arguments.replace("[folder]", "{folder}"), ready, arch) as qemu:
        truth: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {}
        for device in qemu.execute("x-query-virtio"):
            status = qemu.execute("x-query-virtio-status", path=device["path"])
            queues = queue_facts(qemu, device["path"], status["num-vqs"])
            truth[SECTIONS.get(device["name"], device["name"])] = status, queues
        sections = saved(qemu, version, tmp_path / "state")
    found = {
        each.idstr.rpartition("/")[2]: (each, state)
        for each in sections.found
        if (state := virtio_state(each, sections.machine)) is not None
    }
    assert set(found) == set(truth)
    assert len(found) >= 6
    for device, (status, queues) in truth.items():
        each, state = found[device]
        assert set(status_names(state.status)) == names(status["status"]["statuses"])
        own = status["guest-features"]
        assert set(feature_names(device, state.features)) == names(own["dev-features"]) | names(
            own["transports"]
        )
        assert state.isr == status["isr"]
        assert state.queue_sel == status["queue-sel"]
        assert state.started == status["started"]
        assert state.disabled == status["disabled"]
        assert state.broken == status["broken"]
        assert [
            (queue.size, queue.desc, queue.avail, queue.used, queue.last_avail_idx) for queue in state.queues
        ] == queues
        explained = explain(each, sections.machine)
        field = next(field for _, field in walk(explained.fields) if field.type == "virtio")
        assert_within(field)
        assert field.children[-1].offset + field.children[-1].size == field.offset + field.size
    # what QEMU itself calls features, it calls as we do, but for a slip of its own
    known = {bit for bits in virtio.FEATURES.values() for bit in bits.values()}
    known.add("VIRTIO_MEM_F_PERSISTENT_SUSPND")
    for status, _ in truth.values():
        host = status["host-features"]
        assert names(host["dev-features"]) | names(host["transports"]) <= known
    if has_firmware:
        (driven, *_) = (each for each, state in found.values() if state.started)
        children = inside(explain(driven, sections.machine).fields, "virtio").children
        if driven.idstr.endswith("/virtio-blk"):
            assert inside(children, "config.capacity").value == 2048
        else:
            assert inside(children, "config.mac").raw == inside(children, "device.mac").raw


# ---------------------------------------------------------------- samples


def states(sections: Sections) -> dict[str, VirtioState]:
    return {
        each.idstr.rpartition("/")[2]: state
        for each in sections.found
        if (state := virtio_state(each, sections.machine)) is not None
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_virtio_device_of_a_sample_is_taken_apart(name: str) -> None:
    sections = sample(name)
    for each in sections.found:
        for _, field in walk(explain(each, sections.machine).fields):
            if field.type == "virtio":
                assert field.children, each.idstr
                assert_within(field)
                assert field.children[-1].offset + field.children[-1].size == field.offset + field.size
                assert field.raw
                assert not any(child.name == "device_state" for child in field.children)


def test_the_samples_have_each_transport_and_kind() -> None:
    transports: set[str] = set()
    kinds: set[str] = set()
    for name in NAMES:
        found = states(sample(name))
        transports |= {state.transport for state in found.values()}
        kinds |= {kind_of(device) for device in found}
    assert transports == {transport.name for transport in TRANSPORTS}
    assert kinds >= set(DEVICE_PARTS)
    assert kinds & set(virtio.CONFIG) >= {"net", "blk", "scsi", "balloon", "console", "gpu", "mem"}


def blk() -> tuple[DeviceSection, Field]:
    """The disk that the firmware of a sample uses."""
    for each in sample("x86-100-q35").found:
        if each.idstr.endswith("/virtio-blk"):
            return each, explain(each).fields[0]
    raise AssertionError


def test_a_disk_in_words() -> None:
    each, field = blk()
    assert field.meaning == ("over PCI; ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK; queues: 1, set up: 1")
    children = field.children
    assert inside(children, "config.capacity").meaning == "sectors of 512 bytes, 1 MiB"
    assert inside(children, "queue[0]").meaning == "256 descriptors at 0x1fdc000"
    assert inside(children, "virtio/64bit_features.guest_features").meaning == "SEG_MAX BLK_SIZE VERSION_1"
    assert inside(children, "device.requests").meaning == "none on its way"
    assert inside(children, "virtio/extra_state.virtio_pci/modern_state.queue[0].desc").meaning == "0x1fdc000"
    assert inside(children, "virtio/started.started").value == 1
    state = virtio_state(each)
    assert state is not None
    assert feature_names("virtio-blk", state.features) == [
        "VIRTIO_BLK_F_SEG_MAX",
        "VIRTIO_BLK_F_BLK_SIZE",
        "VIRTIO_F_VERSION_1",
    ]
    raw = field.raw
    for queue in state.queues:  # offsets are those of the bytes
        at = queue.offset - field.offset
        assert struct.unpack_from(">IQH", raw, at) == (queue.size, queue.desc, queue.last_avail_idx)
    assert raw[state.status_offset - field.offset] == state.status
    assert raw[state.features_offset - field.offset :].startswith(struct.pack(">Q", state.features))


def test_features_by_name() -> None:
    """Those of a failure that people searched for (virtio-net, 9.2 to 8.2): the four that are not allowed."""
    unsupported = 0x1C0010130AFFFA7 & ~0x179BFFFE7
    assert feature_names("virtio-net", unsupported) == [
        "VIRTIO_F_RING_RESET",
        "VIRTIO_NET_F_GUEST_USO4",
        "VIRTIO_NET_F_GUEST_USO6",
        "VIRTIO_NET_F_HOST_USO",
    ]
    assert feature_names("virtio-rng", 1 | 1 << 29) == ["feature bit 0", "VIRTIO_RING_F_EVENT_IDX"]
    assert feature_names("virtio-net", 1 << 65) == ["VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO"]
    assert feature_names("virtio-console", 2) == ["VIRTIO_CONSOLE_F_MULTIPORT"]
    assert feature_names("vhost-user-net", 1) == ["VIRTIO_NET_F_CSUM"]
    assert feature_names("virtio-net", 0) == []


# ---------------------------------------------------------------- broken and hostile ones


def blobs() -> list[tuple[str, Field]]:
    """One blob of each transport and device."""
    found = {}
    for name in ("x86-100-q35", "s390x-100-ccw", "aarch64-100-virtio-mmio"):
        for each in sample(name).found:
            for _, field in walk(each.fields):
                if field.type == "virtio":
                    found[f"{name} {each.idstr}"] = each.idstr, field
    return list(found.values())


BLOBS = blobs()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_a_blob(data: st.DataObject) -> None:
    """It is taken apart to the last byte, or left as it is; never an exception, never a field outside."""
    idstr, field = data.draw(st.sampled_from(BLOBS))
    raw = bytearray(field.raw)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(raw), 1500) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    cut = data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))
    changed = replace(field, raw=bytes(raw[:cut]), size=cut)
    each = section(changed, idstr=idstr)
    explained = explain(each, "s390-ccw-virtio").fields[0]
    assert_within(explained)
    state = virtio_state(each)
    assert (state is not None) == bool(explained.children)
    if explained.children:
        assert explained.children[-1].offset + explained.children[-1].size == field.offset + cut


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    for head in (b"", b"\0\0\0\2", b"\0\0\0\2" + bytes(272)):
        field = Field("virtio", "virtio", 7, len(head + raw), raw=head + raw)
        assert_within(explain(section(field, idstr="a/virtio-net")).fields[0])


def test_many_beginnings_of_subsections_are_no_burden() -> None:
    """A blob full of what looks like subsections takes time in proportion to its size only."""
    head = next(field for idstr, field in BLOBS if "mmio" in idstr and idstr.endswith("rng")).raw[:46]
    header = b"\x05\x0dvirtio/broken\0\0\0\1\0"
    raw = head + header * 100_000
    field = Field("virtio", "virtio", 7, len(raw), raw=raw)
    assert virtio_state(section(field, idstr="a/virtio-rng")) is not None


@pytest.mark.parametrize("device", ["virtio-console", "virtio-net"])
def test_no_device_makes_many_fields_of_few_facts(device: str) -> None:
    """A megabyte of ones in place of a device's own state: a field for all of it, or a few hundred."""
    head = next(field for idstr, field in BLOBS if "mmio" in idstr and idstr.endswith("rng")).raw[:46]
    raw = head + b"\xff" * (1 << 20)
    for junk in (
        raw,
        head + struct.pack(">HHI", 0, 0, 1 << 24) + raw,
        head + bytes(545) + b"\xff" * (1 << 20),
    ):
        field = Field("virtio", "virtio", 7, len(junk), raw=junk)
        explained = explain(section(field, idstr=f"virtio-mmio@1/{device}"))
        assert sum(1 for _ in walk(explained.fields)) < 700


def test_a_device_that_is_none_has_no_state() -> None:
    assert virtio_state(section(Field("x", "uint8", 1, 1, raw=b"\0", value=0))) is None
    assert virtio_state(section(Field("virtio", "virtio", 1, 3, raw=b"abc"))) is None


def test_packed_queues_and_flags_and_the_features_beyond_64() -> None:
    """A stream built byte by byte: what no firmware in the tests uses."""
    packed = struct.pack(">H?H?I", 0x12, True, 0x34, False, 3).ljust(1024 * 10, b"\0")
    parts = {
        "virtio/device_endian": b"\2",
        "virtio/128bit_features": struct.pack(">Q", 2),
        "virtio/64bit_features": struct.pack(">Q", 1 << 34),
        "virtio/broken": b"\1",
        "virtio/packed_virtqueues": packed,
        "virtio/disabled": b"\1",
    }
    raw = (
        struct.pack(">3I", 0, 0, 12)
        + struct.pack(">BBHII", 15, 3, 0, 0, 8)
        + bytes.fromhex("5254001234560001")
    )
    raw += struct.pack(">I", 1) + struct.pack(">IIQH", 256, 4096, 0x1000, 7)
    for name, content in parts.items():
        raw += b"\x05" + bytes([len(name)]) + name.encode() + b"\0\0\0\1" + content
    each = section(Field("virtio", "virtio", 0, len(raw), raw=raw), idstr="virtio-mmio@1/virtio-net")
    state = virtio_state(each)
    assert state is not None
    assert (state.transport, state.broken, state.disabled, state.started) == ("mmio", True, True, False)
    assert feature_names("virtio-net", state.features) == [
        "VIRTIO_F_RING_PACKED",
        "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO",
    ]
    (queue,) = state.queues
    assert (queue.last_avail_idx, queue.used_idx) == (0x12, 0x34)
    # a legacy device's rings: descriptors, then avail, then used on the next page
    assert (queue.desc, queue.avail, queue.used) == (0x1000, 0x2000, 0x3000)
    children = explain(each).fields[0].children
    assert inside(children, "isr").meaning == "queue interrupt, configuration changed"
    assert inside(children, "config.status").value == 1  # big-endian, as device_endian says
    assert inside(children, "virtio/packed_virtqueues.queue[0].inuse").meaning == "3 in flight"


def test_json_has_it_all() -> None:
    """What is shown goes through JSON: no value in it is larger than 64 bits."""
    _, field = blk()
    for _, each in walk([field]):
        assert not isinstance(each.value, int) or each.value < 1 << 64
    json.dumps(field.meaning)
