"""What each rule finds, in streams made by hand: what no QEMU here does, and what must not be found."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from migsniff.core.arrivals import (
    Arrival,
    Chunk,
    Ended,
    Noted,
    Opened,
    TlsFacts,
)
from migsniff.core.errors import PROBLEM_SEVERITIES, PROBLEMS
from migsniff.core.events import (
    DirtySync,
    Event,
    Finding,
    HotRange,
    PageCounts,
    RamBlock,
    RamBlocks,
    TcpInfo,
    TlsMessage,
    TlsRecords,
    Verdict,
)
from migsniff.core.wire import Command
from migsniff.expert.codes import CODES
from tests.catalogue import SMALL, SMALL_HEAD, STREAMS, page, passes
from tests.finding import findings, judged, shown
from tests.playing import Stream, arrivals, bytewise, precopy
from tests.streams import (
    DEVICES,
    EOF,
    TIMER,
    described,
    full,
    hello,
    multifd_packet,
    pong,
    ram_part,
    shut,
    states,
)
from tests.streams import command as sent_command
from tests.synthetic import command
from tests.synthetic import ram as ram_section
from tests.tlsstreams import BACK, FORWARD, client, record

DOCUMENT = Path(__file__).parent.parent / "docs/expert.md"
BROKEN = Ended(0, 0, "fwd", "reset", "destination", "ECONNRESET")
BROKEN_BACK = Ended(0, 0, "rev", "reset", "destination", "ECONNRESET")

TLS_ENDS = (Ended(0, 0, "fwd", "eof", "source"), Ended(0, 0, "rev", "eof", "destination"))
TLS_RESET = (TLS_ENDS[0], BROKEN_BACK)
OPEN = sent_command(Command.OPEN_RETURN_PATH)


def cut(data: bytes, by: str = "source") -> Stream:
    """A stream whose source, or destination, has gone behind these bytes."""
    party, how = ("source", "eof") if by == "source" else ("destination", "reset")
    return Stream(
        ((0, "fwd", data),),
        ends=(Ended(0, 0, "fwd", how, party), Ended(0, 0, "rev", how, party)),  # type: ignore[arg-type]
    )


def one(found: list[Finding], code: str) -> Finding:
    (finding,) = [each for each in found if each.code == code]
    return finding


# ---------------------------------------------------------------- all of them


def test_each_code_is_of_one_rule_and_in_the_document() -> None:
    entries = re.findall(r"^### `([a-z0-9-]+)`", DOCUMENT.read_text(), re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert set(entries) == set(CODES) | set(PROBLEMS)
    assert not set(CODES) & set(PROBLEMS)


@pytest.mark.parametrize("code", [*CODES, *PROBLEMS])
def test_an_entry_says_what_it_means_its_causes_and_what_to_do(code: str) -> None:
    _, _, rest = DOCUMENT.read_text().partition(f"### `{code}`")
    entry = rest.partition("\n##")[0]
    level = CODES[code].severity if code in CODES else PROBLEM_SEVERITIES.get(code, "error")
    assert entry.startswith(f" ({level})\n")
    assert "**Do:**" in entry


def test_problem_severities_are_of_problems() -> None:
    assert set(PROBLEM_SEVERITIES) <= set(PROBLEMS)


def everything() -> Iterator[tuple[str, Stream]]:
    yield from STREAMS.items()
    yield from MADE.items()


MADE = {
    "cut in a page": cut(SMALL_HEAD + passes()[:-400]),
    "cut by the destination": cut(SMALL_HEAD + passes()[:-400], "destination"),
    "cut in a device": cut(SMALL_HEAD + passes() + states()[:80]),
    "a section too short": precopy(SMALL_HEAD, passes(), b"\x7e\0\0\0", EOF),
    "memory behind a device": precopy(
        SMALL_HEAD, passes(), TIMER.item(), ram_part(page(0, b"ram")), EOF, described((TIMER,), SMALL)
    ),
    "a description that knows less": precopy(
        SMALL_HEAD,
        passes(),
        full(0, b"timer", bytes(24) + b"\5\x0atimer/more\0\0\0\1abcd"),
        EOF,
        described((TIMER,), SMALL),
    ),
}


@pytest.mark.parametrize("stream", [each for _, each in everything()], ids=[name for name, _ in everything()])
def test_evidence_is_what_stands_there(stream: Stream) -> None:
    """What is shown as evidence are the stream's own bytes at that place; and it does not depend on cuts."""
    sent: dict[tuple[str, str], bytes] = {}
    names: dict[int, str] = {}
    events = shown(arrivals(stream))
    for event in events:
        if type(event).__name__ == "ChannelFound":
            names[event.connection] = event.channel  # type: ignore[attr-defined]
    for number, direction, data in stream.pieces:
        key = names.get(number, f"unknown-{number}"), direction
        sent[key] = sent.get(key, b"") + data
    for event in events:
        raw = bytes.fromhex(getattr(event, "evidence", ""))
        begin = event.offset - getattr(event, "inside", 0)
        if raw:
            assert sent[event.channel, event.direction][begin : begin + len(raw)] == raw, event
    assert findings(stream) == findings(stream, bytewise) == findings(stream, fields=True)


def test_what_a_capture_claims_breaks_no_rule() -> None:
    """Times and counters of a capture are not to be believed."""
    wild = [-1, 0, 1 << 63, 1 << 70, -(1 << 80)]
    notes = [
        Noted(second * 1_000_000, 0, "tcp_info", {"leg": leg, **dict.fromkeys(FACTS, value)})
        for second, value in enumerate(wild * 4)
        for leg in ("source", "destination")
    ]
    main = precopy(SMALL_HEAD, passes()).main
    events = shown([Opened(0, 0, "", ""), Chunk(0, 0, "fwd", main, len(main)), *notes])
    assert "expert-bug" not in [getattr(event, "code", "") for event in events]


FACTS = ("waited", "busy_time", "rwnd_limited", "total_retrans", "snd_wnd", "unacked", "notsent_bytes")


@pytest.mark.parametrize("name", [name for name, stream in STREAMS.items() if stream.outcome == "completed"])
def test_what_completes_has_no_error_of_a_rule(name: str) -> None:
    assert [f for f in findings(STREAMS[name]) if f.code in CODES and f.severity == "error"] == []


# ---------------------------------------------------------------- framing


def test_a_section_that_came_short() -> None:
    """Case 15: which section it was, and the bytes."""
    found = one(findings(MADE["a section too short"]), "section-misfit")
    assert found.message.startswith("Unknown savevm section type 126: section ram/0 ended before, at ")
    assert (found.section, found.evidence) == ("ram/0", "7e000000027e")


def test_a_footer_that_is_not_there() -> None:
    found = one(findings(STREAMS["wrong footer"]), "footer-missing")
    assert found.message.startswith("Missing section footer for ")
    assert len(found.evidence) == 10


def test_memory_behind_a_device() -> None:
    """Case 14, as far as the order of the stream tells."""
    found = one(findings(MADE["memory behind a device"]), "ram-after-device")
    assert found.message.startswith("1 page of ram came behind the state of timer/0, which was sent at ")
    assert (found.section, found.field) == ("timer/0", "ram")


def test_a_subsection_that_the_description_does_not_mention() -> None:
    """Case 24: named by its own header, with its bytes; everything else is decoded."""
    found = one(findings(MADE["a description that knows less"]), "subsection-undescribed")
    assert found.message == (
        "timer instance 0: 20 bytes at its end that its own description does not mention, subsection "
        "'timer/more' version 1"
    )
    assert found.evidence == (b"\5\x0atimer/more\0\0\0\1abcd\x7e\0\0\0\0").hex()
    assert found.section == "timer/0"


def test_sections_that_nothing_describes() -> None:
    """Case 23: an opaque span up to its footer."""
    stream = precopy(
        SMALL_HEAD,
        passes(),
        full(77, b"virtio-mem-early", bytes(40)),
        states(),
        EOF,
        described(DEVICES, SMALL),
    )
    found = one(findings(stream), "section-unknown-format")
    assert found.section == "virtio-mem-early/0"
    assert found.message == (
        "section virtio-mem-early/0 (FULL) is neither known nor described: its 75 bytes, up to its footer, "
        "are opaque; everything else is decoded"
    )


# ---------------------------------------------------------------- transport


def test_a_stream_that_ends_in_a_page() -> None:
    """Case 16: how far into which page, and the record's header."""
    data = SMALL_HEAD + passes()
    at = data.rindex(bytes.fromhex("aa") * SMALL) + 171
    found = one(findings(cut(data[:at])), "stream-cut")
    assert re.match(
        r"main ends \d+ bytes into section ram instance 0 \(\w+\), page 0x\w+ of \w+: its reader gets an end",
        found.message,
    )
    assert found.size == at - found.offset
    assert data[found.offset :].startswith(bytes.fromhex(found.evidence))
    assert len(found.evidence) >= 16


def test_a_file_that_ends_in_a_page() -> None:
    """Nobody closed anything: a dump that was cut has an end, and that is all that is said of it."""
    data = SMALL_HEAD + passes()
    data = data[: data.rindex(bytes.fromhex("aa") * SMALL) + 171]
    dump = Stream(((0, "fwd", data),), ends=(Ended(0, 0, "fwd", "eof", "file"),))
    found = [finding for finding in findings(dump) if finding.code != "attempt-cost"]
    assert [finding.code for finding in found] == ["stream-cut"]
    assert re.match(r"the file ends \d+ bytes into section ram instance 0 \(\w+\), page 0x", found[0].message)


def test_who_ended_first_in_a_device() -> None:
    """Case 18: the place in the stream, in a device, and what the return path said."""
    data = SMALL_HEAD + passes() + states()[:80]
    found = one(findings(cut(data, "destination")), "ended-first")
    assert found.message == (
        f"the destination reset its connection (RST) first: at offset {len(data)} of main, in section "
        "cpu_common instance 1 (FULL), 32 bytes into it; there is no return path"
    )
    assert found.section == "cpu_common/1"
    assert bytes.fromhex(found.evidence) == b"\4\0\0\0\5\x0acpu_common\0\0\0\1\0\0\0\1"


def test_a_destination_that_gives_up_while_the_description_comes() -> None:
    """All state was sent: it has failed to load that, whatever is missing behind."""
    data = SMALL_HEAD + passes() + states() + EOF + described(page_size=SMALL)[:90]
    events = shown(arrivals(cut(data, "destination")))
    verdict = events[-1]
    assert isinstance(verdict, Verdict)
    assert (verdict.outcome, verdict.ok) == ("failed", False)
    assert verdict.message.startswith(
        "all state was sent, then the destination reset the connection, at offset "
    )
    codes = [event.code for event in events if isinstance(event, Finding)]
    assert codes[:2] == ["load-failed", "ended-first"]


def test_an_error_on_the_return_path_is_told_at_once() -> None:
    found = one(findings(STREAMS["destination refuses a device"]), "load-error-reported")
    assert (found.evidence, found.direction) == ("0001000400000001", "rev")


def test_a_shut_behind_the_end_is_none() -> None:
    """So a destination answers a source that has gone."""
    stream = Stream(
        ((0, "fwd", SMALL_HEAD + passes()), (0, "rev", pong(1))),
        ends=(Ended(0, 0, "fwd", "eof", "source"),),
    )
    events = [*arrivals(stream)]
    late = Chunk(0, 0, "rev", shut(1), len(pong(1)) + len(shut(1)))
    events.insert(-1, late)
    codes = [event.code for event in shown(events) if isinstance(event, Finding)]
    assert "load-error-reported" not in codes


def multifd_ends(*ends: tuple[int, Ended], completes: bool = False) -> list[Finding]:
    items = [states(), EOF, described(DEVICES, SMALL)] if completes else []
    main = precopy(SMALL_HEAD, passes(), *items).main
    arrived: list[Arrival] = [Opened(0, 0, "", ""), Chunk(0, 0, "fwd", main, len(main))]
    for number in range(1, 5):
        data = hello(number) + multifd_packet(7 + number, b"ram", zero=1, page_size=SMALL)
        arrived += [Opened(0, number, "", ""), Chunk(0, number, "fwd", data, len(data))]
    for time, end in ends:
        arrived.append(Ended(time, end.connection, end.direction, end.how, end.by, end.error))
    return [event for event in shown(arrived) if isinstance(event, Finding)]


def test_a_channel_that_ends_unlike_its_siblings() -> None:
    """Case 17: which channel, which side, and its last packet."""
    found = multifd_ends(
        (100, Ended(0, 3, "fwd", "reset", "destination", "EPIPE")),
        *((200, Ended(0, number, "fwd", "eof", "source")) for number in (1, 2, 4, 0)),
    )
    alone = one(found, "channel-unlike-siblings")
    assert alone.channel == "multifd-3"
    assert alone.message == (
        "multifd-3 ended unlike the other multifd channels: the destination reset its connection (RST, "
        "EPIPE), between packets, behind packet 10 (flags 0x0); the others: the source closed its connection "
        "(FIN)"
    )
    assert alone.evidence == "112233440000000100000000"
    first = one(found, "ended-first")
    assert "of multifd-3, between packets, behind packet 10 (flags 0x0)" in first.message
    assert "; then the source closed its connection (FIN)" in first.message


def test_how_a_channel_is_closed_says_nothing_once_all_was_loaded() -> None:
    """A real 7.2 may close one with a reset (EPIPE) before its source has."""
    ends = [
        (100, Ended(0, 3, "fwd", "reset", "destination", "EPIPE")),
        *((200, Ended(0, number, "fwd", "eof", "source")) for number in (1, 2, 4, 0)),
    ]
    assert "channel-unlike-siblings" not in [each.code for each in multifd_ends(*ends, completes=True)]


def test_a_channel_that_ends_long_before_its_siblings() -> None:
    found = multifd_ends(
        (100, Ended(0, 2, "fwd", "eof", "source")),
        *((900_000, Ended(0, number, "fwd", "eof", "source")) for number in (1, 3, 4, 0)),
    )
    assert "899.9 ms before the next" in one(found, "channel-unlike-siblings").message


def test_channels_that_end_together_are_alike() -> None:
    found = multifd_ends(*((200, Ended(0, number, "fwd", "eof", "source")) for number in (1, 2, 3, 4, 0)))
    assert "channel-unlike-siblings" not in [each.code for each in found]


# ---------------------------------------------------------------- TLS


def tls(total: int, version: str = "1.3", cipher: str = "AES_256_GCM_SHA384") -> list[str]:
    place = {"channel": "tls-0", "direction": "fwd", "offset": 0, "size": 10}
    facts = TlsFacts(message="ServerHello", version=version, cipher=cipher)
    events: list[tuple[int, Event]] = [
        (0, TlsMessage(channel="tls-0", direction="rev", offset=0, size=10, facts=facts)),
        *((0, TlsRecords(**place, records=8192, total=total + more)) for more in (0, 8192)),  # type: ignore[arg-type]
    ]
    return [found.code for _, found in judged(events)]


@pytest.mark.parametrize(
    ("total", "version", "cipher", "expected"),
    [
        (1 << 24, "1.3", "AES_256_GCM_SHA384", ["tls-rekey"]),
        (1 << 20, "1.3", "AES_256_GCM_SHA384", []),
        (1 << 24, "1.2", "ECDHE_RSA_AES_128_GCM_SHA256", []),
        (1 << 24, "1.3", "CHACHA20_POLY1305_SHA256", []),
    ],
)
def test_tls_near_a_change_of_keys(total: int, version: str, cipher: str, expected: list[str]) -> None:
    assert tls(total, version, cipher) == expected


def test_tls_without_close_notify() -> None:
    """Case 19."""
    codes = {
        name: [each.code for each in findings(STREAMS[name])] for name in STREAMS if name.startswith("tls")
    }
    assert any("tls-no-close-notify" in each for each in codes.values())
    assert all("tls-cut" not in each for name, each in codes.items() if "else" not in name)


@pytest.mark.parametrize(
    ("forward", "back", "ends", "expected"),
    [
        (FORWARD, BACK, TLS_ENDS, []),
        (FORWARD[:-24], BACK, TLS_ENDS, ["tls-no-close-notify"]),
        (FORWARD, BACK, TLS_RESET, []),  # close_notify came when nobody read any more
        (FORWARD[:-24], BACK, TLS_RESET, ["tls-reset", "tls-no-close-notify"]),
        (
            client(0x0304),
            record(21, b"\2\x30"),
            TLS_ENDS,
            ["tls-alert", "tls-no-close-notify"],
        ),
    ],
)
def test_how_tls_ended(forward: bytes, back: bytes, ends: tuple[Ended, ...], expected: list[str]) -> None:
    """Case 19: who resets what nobody has closed in order has failed, a source that closes has not."""
    found = findings(Stream(((0, "fwd", forward), (0, "rev", back)), ends))
    assert [each.code for each in found] == expected
    for each in found:
        assert (each.code, each.severity) != ("ended-first", "error")


@pytest.mark.parametrize(("opened", "code"), [(b"", "source-done"), (OPEN, "ended-first")])
def test_a_source_that_is_done_has_not_failed(opened: bytes, code: str) -> None:
    """Without a return path it closes when it has sent all; the destination goes when it cannot load that."""
    data = SMALL_HEAD + opened + passes() + states() + EOF + described(page_size=SMALL)
    ends = (Ended(0, 0, "fwd", "eof", "source"), Ended(9, 0, "rev", "reset", "destination", "ECONNRESET"))
    found = [each for each in findings(Stream(((0, "fwd", data),), ends)) if each.code != "attempt-cost"]
    assert [each.code for each in found] == ["load-failed", code]
    assert found[1].severity == ("error" if opened else "note")
    assert "then the destination reset its connection (RST, ECONNRESET)" in found[1].message


def test_tls_cut() -> None:
    found = findings(Stream(((0, "fwd", FORWARD + b"\x17\x03\x03\x01\x00abc"), (0, "rev", BACK)), TLS_ENDS))
    torn = one(found, "tls-cut")
    assert "ends 8 bytes into a TLS record" in torn.message
    assert torn.evidence == "1703030100"
    assert one(found, "ended-first").message.split("; ")[1] == "what the return path said is encrypted"
    assert "stream-cut" not in [each.code for each in found]


def test_what_is_only_named_like_tls_is_cut_like_anything() -> None:
    data = SMALL_HEAD + passes() + full(77, b"TLS", bytes(40))[:60]
    found = findings(cut(data))
    assert one(found, "stream-cut").section == "TLS/0"
    assert one(found, "ended-first").message.endswith("; there is no return path")


# ---------------------------------------------------------------- convergence

MIB = 1 << 20
BLOCK = RamBlocks(
    channel="main",
    direction="fwd",
    offset=40,
    size=30,
    total=1 << 30,
    page_size=4096,
    page_size_from="machine type",
    blocks=(RamBlock("pc.ram", 1 << 30),),
)
ENDED = Verdict(channel="main", direction="fwd", offset=0, size=0, ok=False, outcome="cancelled", message="")


def sync(number: int, pages: int, *, final: bool = False) -> DirtySync:
    counts = PageCounts(normal=pages, bytes=pages * 4104, resent=pages)
    hot = (HotRange("pc.ram", 0x100000, 0x900000, pages),)
    return DirtySync(
        channel="main",
        direction="fwd",
        offset=number * MIB,
        size=0,
        iteration=number,
        counts=counts,
        final=final,
        hot=hot,
    )


def converge(*sizes: int, rate: float = 100e6, end: Verdict | None = None) -> list[Finding]:
    """Passes of so many pages at so many bytes a second, behind the first over all of memory."""
    time = 0
    events: list[tuple[int, Event]] = [(0, BLOCK)]
    for number, pages in enumerate((262144, *sizes), 1):
        time += int(pages * 4104 / rate * 1e6)
        events.append((time, sync(number, pages)))
    if end is not None:
        events.append((time, end))
    return [found for _, found in judged(events)]


def test_a_floor_that_is_too_high() -> None:
    (found,) = converge(20000, 15000, 15200, 15100, 15000)
    assert found.code == "not-converging"
    assert (
        "no pass had less than 61.6 MB (pass 3, 15000 pages) to send, which is 615.6 ms of downtime"
        in found.message
    )
    assert (
        "at this rate it never ends; block pc.ram is hot: pc.ram[0x100000..0x900000] (15000 pages); "
        in found.message
    )


def test_a_floor_low_enough_is_none() -> None:
    assert converge(20000, 5000, 5000, 5000, 5000, 5000, 5000) == []


def test_passes_that_become_smaller_are_no_alarm() -> None:
    assert converge(100000, 70000, 49000, 34000, 24000, 17000, 12000) == []


def test_it_is_told_again_after_twice_the_time_and_when_it_changes() -> None:
    found = converge(*[15000] * 40, 11000, 8000, 3000, end=ENDED)
    codes = [each.code for each in found]
    assert codes == ["not-converging", "not-converging", "converging"]
    assert "pass 42 had only 45.1 MB to send; at this rate 1 more pass, about " in found[-1].message


def test_the_pass_that_the_end_cuts_short_is_not_judged() -> None:
    """All went on as before: the guest stopped because its time allowed it, in the middle of a pass."""
    time = 0
    events: list[tuple[int, Event]] = [(0, BLOCK)]
    for number, pages in enumerate((262144, *[15000] * 8, 4000, 15000), 1):
        time += int(pages * 4104 / 100)
        events.append((time, sync(number, pages, final=number == 11)))
    assert [found.code for _, found in judged(events)] == ["not-converging"]


def test_passes_that_hardly_become_smaller_have_an_estimate() -> None:
    (found,) = converge(*[int(40000 * 0.94**number) for number in range(6)])
    assert re.search(r"at this rate \d+ more passes, about \S+ s, to go", found.message)


def test_one_that_ends_without_having_converged() -> None:
    found = converge(*[15000] * 6, end=ENDED)
    assert [each.code for each in found] == ["not-converging", "did-not-converge"]
    assert "7 passes sent 1.45 GB, 1.3 times the guest's memory" in found[-1].message


def test_postcopy_ends_it_where_it_is_possible() -> None:
    advised = command(100, "POSTCOPY_ADVISE", 3)
    time = 0
    events: list[tuple[int, Event]] = [(0, advised), (0, BLOCK)]
    for number, pages in enumerate((262144, 20000, 15000, 15200, 15100, 15000), 1):
        time += int(pages * 4104 / 100)
        events.append((time, sync(number, pages)))
    ((_, found),) = judged(events)
    assert found.message.endswith("; postcopy is possible: migrate-start-postcopy ends it")


# ---------------------------------------------------------------- speed and silence


def info(offset: int, facts: dict[str, int]) -> TcpInfo:
    """A sample of the leg to the destination."""
    return TcpInfo(
        channel="main",
        direction="fwd",
        offset=offset,
        size=0,
        leg="destination",
        facts={"waited": 0, **facts},
    )


def seconds(*steps: dict[str, int]) -> list[str]:
    """The codes for seconds with these increments."""
    sums: dict[str, int] = {"busy_time": 0, "rwnd_limited": 0}
    events: list[tuple[int, Event]] = []
    for number, step in enumerate(steps):
        sums = {key: sums.get(key, 0) + step.get(key, 0) for key in (*sums, *step)}
        facts = {key: value for key, value in sums.items() if key != "offset"}
        events.append((number * 1_000_000, info(sums.get("offset", 0), facts)))
    return [found.code for _, found in judged(events)]


SOURCE = {"offset": 20_000_000, "waited": 1000, "busy_time": 300_000}
LINK = {"offset": 20_000_000, "waited": 950_000, "busy_time": 990_000, "rwnd_limited": 0}
DESTINATION = {"offset": 20_000_000, "waited": 950_000, "busy_time": 990_000, "rwnd_limited": 900_000}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([SOURCE] * 6, ["limited-by-source"]),
        ([LINK] * 6, ["limited-by-link"]),
        ([DESTINATION] * 6, ["limited-by-destination"]),
        ([DESTINATION] * 6 + [SOURCE] * 6, ["limited-by-destination", "limited-by-source"]),
        ([DESTINATION, SOURCE] * 6, []),
        ([SOURCE] * 3, []),  # too short to be sure
        ([{"offset": 10}] * 8, []),  # nothing moves
    ],
)
def test_who_limits_the_speed(steps: list[dict[str, int]], expected: list[str]) -> None:
    assert seconds(*steps) == expected


def test_a_bandwidth_limit_is_among_the_causes_although_the_rate_is_not_constant() -> None:
    """Zero pages, which cost a source with max-bandwidth nothing, make its rate uneven."""
    events: list[tuple[int, Event]] = [
        (number * 1_000_000, info(number * 20_000_000 + number % 2 * 5_000_000, {"waited": number * 1000}))
        for number in range(7)
    ]
    ((_, found),) = judged(events)
    assert found.code == "limited-by-source"
    assert found.message.endswith(": max-bandwidth, its processor, its memory, or the way from it")


def test_a_unix_socket_has_no_link() -> None:
    events: list[tuple[int, Event]] = [
        (number * 1_000_000, info(number * 10**7, {"waited": number * 950_000})) for number in range(7)
    ]
    ((_, found),) = judged(events)
    assert found.code == "limited-by-destination"
    assert "on a unix socket nothing tells them apart" in found.message


def test_silence_is_told_with_growing_pauses_and_its_end() -> None:
    events: list[tuple[int, Event]] = [(second * 1_000_000, info(1000, {})) for second in range(90)]
    events.append((90_000_000, info(2000, {})))
    found = judged(events)
    assert [(time // 1_000_000, each.code) for time, each in found] == [
        (10, "silence"),
        (20, "silence"),
        (40, "silence"),
        (80, "silence"),
        (90, "silence-over"),
    ]
    assert found[-1][1].message.startswith("bytes move again after 90 s of silence: the source went on")


def test_a_packet_capture_has_no_clock() -> None:
    events: list[tuple[int, Event]] = [(0, sync_section()), (312_000_000, sync_section(500))]
    ((_, found),) = judged(events)
    assert found.code == "silence-over"
    assert "after 312 s of silence" in found.message


def sync_section(offset: int = 0) -> Event:
    return ram_section(offset, 100, "PART", PageCounts())


# ---------------------------------------------------------------- what is hostile


def test_many_findings_are_told_a_few_times() -> None:
    blocks = b"".join(full(100 + n, f"dev{n}".encode(), b"x") for n in range(200))
    stream = precopy(SMALL_HEAD, passes(), blocks, EOF, described((TIMER,), SMALL))
    codes = [each.code for each in findings(stream)]
    assert codes.count("section-unknown-format") == 32
