"""Timers and interrupt controllers: against what QEMU's monitor says of them, and for any fields whatever."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.qemu import Qemu
from migsniff.values.explain import Explainer, explain
from migsniff.values.meaning import DEVICES
from migsniff.values.pctimers import HPET_TICK
from migsniff.values.words import bit_ranges, bits_text, date, duration, frequency, ranges
from tests import guests
from tests.test_samples import NAMES
from tests.test_values_cpu import VALUES
from tests.valuing import Sections, clock_of, explained_device, guest, monitor, sample, saved, section, walk

# ---------------------------------------------------------------- what QEMU says

DISK = "-m 32 -drive file={folder}/disk,format=raw -rtc base=2001-02-03T04:05:06,clock=vm"
PCS = [("7.2", "pc"), ("10.0", "q35"), ("11.1", "pc")]


@pytest.mark.parametrize(("version", "machine"), PCS)
def test_interrupt_controllers_are_what_qemu_shows(version: str, machine: str, tmp_path: Path) -> None:
    def ready(qemu: Qemu) -> bool:
        return re.search(r"^IRR\s+65", monitor(qemu, "info lapic"), re.MULTILINE) is not None

    with guest(version, f"-M {machine} {DISK}", ready, disk=guests.x86_64_registers()) as qemu:
        local, pins = monitor(qemu, "info lapic"), monitor(qemu, "info pic")
        sections = saved(qemu, version, tmp_path / "state")
    compare_local(local, sections)
    check_hpet(sections)
    compare_pins(pins, sections)


def compare_local(said: str, sections: Sections) -> None:
    apic = explained_device(sections, "apic")
    vectors = re.findall(
        r"^(LVT\w+)\s+0x(\w+) (active-\w+) (\w+)( +masked)? +(one-shot|periodic)? *(\w+)",
        said,
        re.MULTILINE,
    )
    assert len(vectors) == 6
    for name, value, polarity, trigger, masked, mode, delivery in vectors:
        entry = apic[f"lvt.{name}"]
        assert entry.value == int(value, 16)
        assert ("active low" in entry.meaning) == (polarity == "active-lo")
        assert ("masked" in entry.meaning) == bool(masked)
        assert (mode or trigger) in entry.meaning
        assert entry.meaning.lower().startswith(delivery.lower())
    assert apic["lvt.LVTT"].meaning == "FIXED vector 65, periodic"
    for name in ("ISR", "IRR"):
        found = re.search(rf"^{name}\s+(.*)$", said, re.MULTILINE)
        assert found
        numbers = " ".join(re.findall(r"\d+", found[1]))
        assert apic[name.lower()].meaning == (f"vectors {numbers}" if numbers else "none")
    counts = re.search(r"divide by (\d+)\) initial_count = (\d+) current_count = (\d+)", said)
    assert counts
    divisor, initial, current = map(int, counts.groups())
    assert apic["divide_conf"].meaning == f"divided by {divisor}"
    assert apic["initial_count"].value == initial
    expiry, clock = apic["timer_expiry"].value, clock_of(sections)
    assert isinstance(expiry, int)
    assert clock is not None
    assert abs(expiry - clock - current * divisor) <= divisor  # it counts nanoseconds
    assert apic["timer_expiry"].meaning == f"at {duration(expiry)}, in {duration(expiry - clock)}"


def check_hpet(sections: Sections) -> None:
    """Its period is that which the guest read; it counts since the guest started it, on the virtual clock."""
    period = explained_device(sections, "cpu")["env.regs.rsi"].value
    assert period == HPET_TICK * 1_000_000
    hpet = explained_device(sections, "hpet")
    assert hpet["config"].meaning == "ENABLE"
    assert hpet["timer[0].config"].meaning == "ENABLE PERIODIC"
    assert hpet["timer[0].period"].meaning == "100 ms"
    counter, clock = hpet["hpet_counter"].value, clock_of(sections)
    assert isinstance(counter, int)
    assert clock is not None
    assert 0 < counter * HPET_TICK < clock
    assert hpet["hpet_counter"].meaning == duration(counter * HPET_TICK)
    following, expiry = hpet["timer[0].cmp"].value, hpet["timer[0].qemu_timer"].value
    assert isinstance(following, int)
    assert isinstance(expiry, int)
    # the timer is armed for the time at which the counter will be there
    assert abs((following - counter) * HPET_TICK - (expiry - clock)) < 1000


def compare_pins(said: str, sections: Sections) -> None:
    ioapic = explained_device(sections, "ioapic")
    pins = re.findall(
        r"pin (\d+) +0x(\w+) dest=(\w+) vec=(\d+) +active-(\w+) (\w+) +(masked)? *(\w+) +(\w+)", said
    )
    assert len(pins) == 24
    for pin, value, target, vector, polarity, trigger, masked, delivery, mode in pins:
        entry = ioapic[f"ioredtbl.pin{pin}"]
        assert entry.value == int(value, 16)
        words = entry.meaning.lower().split(", ")
        assert words[0].startswith(
            f"{delivery} vector {vector} to {'logical' if mode == 'logical' else 'apic'}"
        )
        assert int(words[0].split()[-1], 0) == int(target, 0)
        assert trigger in words
        assert ("active low" in words) == (polarity == "lo")
        assert ("masked" in words) == bool(masked)
    assert ioapic["ioredtbl.pin5"].meaning == "LOWEST vector 55 to logical 0x3, level, active low"
    for instance in (0, 1):
        found = re.search(
            rf"pic{instance}: irr=(\w+) imr=(\w+) isr=(\w+) .*irq_base=(\w+) .*elcr=(\w+)", said
        )
        assert found
        pic = explained_device(sections, "i8259", instance)
        names = ("irr", "imr", "isr", "irq_base", "elcr")
        for name, text in zip(names, found.groups(), strict=True):
            assert pic[name].value == int(text, 16)
            if name != "irq_base":
                lines = [8 * instance + bit for bit in range(8) if int(text, 16) >> bit & 1]
                assert numbers_of(pic[name].meaning.removeprefix("IRQ ")) == lines


def numbers_of(text: str) -> list[int]:
    """0-3, 7 -> 0 1 2 3 7."""
    found: list[int] = []
    for part in text.split(", ") if text else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.mark.parametrize(("version", "machine"), PCS)
def test_clocks_are_what_they_were_set_to(version: str, machine: str, tmp_path: Path) -> None:
    """A clock that began at a known second, and follows the virtual one."""
    start = time.monotonic()
    with guest(version, f"-M {machine} {DISK}", lambda qemu: time.monotonic() > start + 1) as qemu:
        sections = saved(qemu, version, tmp_path / "state")
    ran = time.monotonic() - start
    clock = clock_of(sections)
    assert clock is not None
    assert 0.5e9 < clock < ran * 1e9
    assert explained_device(sections, "timer")["cpu_clock_offset"].meaning == duration(clock)
    rtc = explained_device(sections, "mc146818rtc")
    began = 981173106  # 2001-02-03 04:05:06 UTC
    assert began <= int(str(rtc["base_rtc"].value)) <= began + clock // 10**9
    assert re.match(r"2001-02-03 04:05:(0[6-9]|1\d)", rtc["cmos_data"].meaning)
    pit = explained_device(sections, "i8254")
    assert pit["channels[0]"].meaning == "mode 2, 54.925401 ms"  # 18.2 times a second
    following = pit["channels[0].next_transition_time"].value
    assert isinstance(following, int)
    assert -(10**7) < following - clock < 54_925_402  # (a timer may be late)


@pytest.mark.parametrize(
    ("version", "arch", "machine", "device", "field"),
    [
        ("7.2", "aarch64", "virt", "pl031", "tick_offset_vmstate"),
        ("11.1", "aarch64", "virt", "pl031", "tick_offset_vmstate"),
        ("10.0", "riscv64", "virt", "goldfish_rtc", "tick_offset"),
        ("7.2", "ppc64", "pseries", "rtc", "ns_offset"),
    ],
)
def test_the_clocks_of_other_boards(
    version: str, arch: str, machine: str, device: str, field: str, tmp_path: Path
) -> None:
    """All begin where -rtc says, when the virtual clock is 0."""
    arguments = f"-M {machine} -m 256 -rtc base=2001-02-03T04:05:06,clock=vm"
    with guest(version, arguments, lambda qemu: True, arch) as qemu:
        sections = saved(qemu, version, tmp_path / "state")
    assert explained_device(sections, device)[field].meaning == "2001-02-03 04:05:06 UTC"


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_the_clock_of_s390x(version: str, tmp_path: Path) -> None:
    """It is the host's."""
    arguments = "-M s390-ccw-virtio -m 64 -kernel {folder}/disk"
    with guest(version, arguments, lambda qemu: True, "s390x", guests.s390x_registers()) as qemu:
        before = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=10)
        sections = saved(qemu, version, tmp_path / "state")
    said = explained_device(sections, "todclock")["data"].meaning
    assert before < datetime.strptime(said, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC) <= datetime.now(UTC)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, ""),
        (-1, ""),
        (-4, ""),
        (1, "0"),
        (0b1000_1111, "0-3, 7"),
        (0b11, "0-1"),
        (1 << 255 | 1 << 254, "254-255"),
        ((1 << 64) - 1, "0-63"),
    ],
)
def test_bits_as_ranges(value: int, text: str) -> None:
    assert ranges(value) == text
    assert bit_ranges(value) == (f"bit{'s' if text not in ('0',) else ''} {text}" if text else "")


@given(st.sets(st.integers(0, 300)))
def test_any_bits_as_ranges(bits: set[int]) -> None:
    assert numbers_of(ranges(sum(1 << bit for bit in bits))) == sorted(bits)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 ns"),
        (640, "640 ns"),
        (1500, "1.5 us"),
        (54_925_401, "54.925401 ms"),
        (12_345_678_901, "12.345678 s"),
        (60 * 10**9, "60 s"),
        (-1_500_000, "-1.5 ms"),
        ((1 << 63) - 1, "9223372036.854775 s"),
    ],
)
def test_durations(value: int, text: str) -> None:
    assert duration(value) == text


def test_other_words() -> None:
    assert date(0) == "1970-01-01 00:00:00 UTC"
    assert date(1 << 62) == date(-(1 << 62)) == ""
    assert [frequency(value) for value in (50, 1000, 62_500_000, 2_400_000_000)] == [
        "50 Hz",
        "1 kHz",
        "62.5 MHz",
        "2.4 GHz",
    ]
    assert bits_text(0b1011, {0: "A", 1: "B"}) == "A B bit 3"
    assert bits_text(0, {0: "A"}) == ""
    assert bits_text(-1, {0: "A", 5: "B"}) == "A B"


# ---------------------------------------------------------------- the virtual clock


def test_timers_are_told_from_the_virtual_clock() -> None:
    """Whoever sees the stream's section timer first knows how far off a timer is; a time of day is one."""
    armed = section(Field("t", "timer", 9, 8, value=12_000_000_000), idstr="x")
    assert explain(armed).fields[0].meaning == ""
    assert explain(armed, clock=10_000_000_000).fields[0].meaning == "the virtual clock + 2 s"
    assert explain(armed, clock=13_500_000_000).fields[0].meaning == "the virtual clock - 1.5 s"
    of_day = section(Field("t", "timer", 9, 8, value=981173106_500000000), idstr="x")
    assert explain(of_day, clock=1).fields[0].meaning == "2001-02-03 04:05:06 UTC"
    explainer = Explainer()
    clock = section(Field("cpu_clock_offset", "int64", 1, 8, value=11_000_000_000), idstr="timer")
    explainer.learn("m", clock)

    def meaning(migration: str) -> str:
        event = explainer.explained(migration, armed)
        assert isinstance(event, DeviceSection)
        return event.fields[0].meaning

    assert meaning("m") == "the virtual clock + 1 s"
    assert meaning("other") == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_samples_have_no_timer_that_is_due_long_ago(name: str) -> None:
    """Timers of the virtual clock lie ahead of it, or are just due: so it is that clock."""
    sections = sample(name)
    clock = clock_of(sections)
    assert clock is not None or not sections.found
    for each in sections.found:
        for path, field in walk(each.fields):
            if field.type == "timer" and isinstance(field.value, int) and field.value < 10**18:
                assert clock is not None
                assert field.value > clock - 10**9, f"{each.idstr} {path}"


# ---------------------------------------------------------------- whatever a stream may hold


@given(st.data())
def test_any_value_of_any_device(data: st.DataObject) -> None:
    """Real sections of the samples whose values are replaced by others: no exception, the same fields."""
    each, machine = data.draw(st.sampled_from(REAL))
    fields = list(each.fields)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(fields) - 1))
        fields[index] = replace(
            fields[index], value=data.draw(VALUES), raw=data.draw(st.binary(max_size=130)), children=()
        )
    explained = explain(
        replace(each, fields=tuple(fields)), machine, data.draw(st.one_of(st.none(), st.integers(0, 1 << 63)))
    )
    assert [field.name for field in explained.fields] == [field.name for field in fields]


def real() -> list[tuple[DeviceSection, str]]:
    """One section of each device that has a meaning."""
    found: dict[tuple[str, str], tuple[DeviceSection, str]] = {}
    for name in ("x86-100-q35", "aarch64-100-virt", "riscv64-100-virt", "ppc64-100-pseries", "s390x-100-ccw"):
        sections = sample(name)
        for each in sections.found:
            if (device := each.idstr.rpartition("/")[2]) in DEVICES:
                found[name, device] = each, sections.machine
    return list(found.values())


REAL = real()
