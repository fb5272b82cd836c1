"""The command line: commands, their arguments, and what those may be."""

import argparse

import migsniff
from migsniff.argumenttypes import autostop, offset, port, positive, seconds


def parser() -> argparse.ArgumentParser:
    """The command line, with all commands."""
    top = argparse.ArgumentParser(
        prog="migsniff",
        description="Wireshark for QEMU live migration: forward, decode, show and record migration streams.",
        epilog="Without a command: proxy, or read if -r is given.",
    )
    top.add_argument("--version", action="version", version=f"migsniff {migsniff.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_proxy(commands.add_parser("proxy", help="stand between source and destination (the default)"))
    _add_sniff(commands.add_parser("sniff", help="watch migrations pass on an interface"))
    _add_read(commands.add_parser("read", help="print what the live log printed, from a capture or a dump"))
    _add_info(commands.add_parser("info", help="one screen about a capture or a dump"))
    _add_expert(commands.add_parser("expert", help="what is worth knowing of a capture or a dump: findings"))
    _add_check(commands.add_parser("check", help="whether a guest would load at a destination, and why not"))
    _add_diff(commands.add_parser("diff", help="what is not the same in two captures or dumps"))
    _add_export(commands.add_parser("export", help="a capture as packets, for Wireshark"))
    _add_analyze(commands.add_parser("analyze", help="what QEMU's scripts/analyze-migration.py prints"))
    _add_descriptions(
        commands.add_parser("descriptions", help="what is remembered of devices, to name their fields early")
    )
    _add_fields(commands.add_parser("fields", help="the fields that -Y and -e can name"))
    _add_demo(commands.add_parser("demo", help="a real migration through the proxy, to see what it shows"))
    return top


def _add_proxy(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Forward migrations from --listen to --forward, decode them and save captures. Whoever connects to "
        "the listening port reaches QEMU's incoming socket, which serves one migration: see --allow."
    )
    end = "PORT, HOST:PORT, [IPv6]:PORT, tcp:HOST:PORT or unix:PATH"
    parser.add_argument(
        "--listen",
        action="append",
        required=True,
        metavar="ENDPOINT",
        help=f"where the source connects: {end}; port 0 picks one",
    )
    parser.add_argument(
        "--forward",
        action="append",
        required=True,
        metavar="ENDPOINT",
        help="where the destination waits; repeat both for more pairs",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="NETWORK",
        help="admit only sources in this network (repeatable)",
    )
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop (default: uvloop)"
    )
    parser.add_argument("--no-decode", action="store_true", help="only forward: nothing is shown or saved")
    parser.add_argument(
        "--drain-after-failure",
        type=seconds,
        default=0.0,
        metavar="N",
        help="when the destination has gone, read on from the source for N seconds, into the capture, before "
        "its connection is reset: only where a return path is open (default: not at all)",
    )
    saving = parser.add_argument_group("saving")
    saving.add_argument(
        "-w", "--write", default="captures", metavar="DIR", help="where captures go (default: captures)"
    )
    saving.add_argument("--no-save", action="store_true", help="keep no captures")
    saving.add_argument(
        "--ram",
        choices=("strip", "keep"),
        default="strip",
        help="strip: no guest memory on disk (default); keep: the wire's bytes",
    )
    view = parser.add_argument_group("showing")
    view.add_argument(
        "--log", action="store_true", help="the log instead of the live view, on a terminal too"
    )
    _add_against(parser)
    _add_known(parser)
    _add_log(parser)


def _add_sniff(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decode migrations that pass on an interface, as packets. Nothing is sent or changed."
    )
    parser.add_argument("-i", "--interface", required=True, metavar="IFACE", help='the interface, or "any"')
    _add_port(parser)
    saving = parser.add_argument_group("saving")
    saving.add_argument("-w", "--write", metavar="DIR", help="where captures go (default: none are kept)")
    saving.add_argument(
        "--ram",
        choices=("strip", "keep"),
        default="strip",
        help="strip: no guest memory on disk (default); keep: the bytes as they passed",
    )
    view = parser.add_argument_group("showing")
    view.add_argument(
        "--log", action="store_true", help="the log instead of the live view, on a terminal too"
    )
    _add_against(parser)
    _add_known(parser)
    _add_log(parser)


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print a capture, a dump (migrate exec:cat>FILE, file:FILE), the migrations in a packet capture "
        "(pcap, pcapng) or standard input (-)."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", metavar="CAPTURE|FILE|-")
    source.add_argument("-r", "--read-file", metavar="FILE", help="as in tshark")
    _add_port(parser)
    _add_place(parser)
    _add_against(parser)
    _add_known(parser)
    _add_log(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_against(parser)
    _add_known(parser)
    parser.add_argument("file", metavar="CAPTURE|FILE|-")
    _add_format(parser)
    _add_port(parser)
    _add_place(parser)


def _add_expert(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print what is worth knowing of a migration, by severity, each finding with its place, one sentence "
        "and the bytes that prove it; and the verdict. docs/expert.md says what each code means."
    )
    parser.add_argument("file", metavar="CAPTURE|FILE|-")
    _add_format(parser)
    parser.add_argument(
        "--severity",
        choices=("chat", "note", "warn", "error"),
        default="chat",
        help="only what is at least as bad (default: chat, which is all)",
    )
    _add_port(parser)
    _add_place(parser)
    _add_against(parser)
    _add_known(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare a stream with a destination: what fails first comes first, in QEMU's words. Exit code 0: it "
        "loads as far as can be told, 1: it will fail, 4: it breaks off, and up to there nothing was found, "
        "2: one of the files cannot be read."
    )
    parser.add_argument("file", metavar="CAPTURE|FILE|-")
    parser.add_argument(
        "--against",
        required=True,
        metavar="DEST",
        help="a stream of the destination's own command line (migrate exec:cat>FILE), which tells most, or "
        "what its qemu -dump-vmstate FILE wrote",
    )
    _add_format(parser)
    _add_port(parser)
    _add_place(parser)
    _add_known(parser)


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare two migrations: structure, then values, then guest memory page by page. Exit code 0: "
        "the same, 1: they differ, 2: one of them cannot be read."
    )
    parser.add_argument("left", metavar="A")
    parser.add_argument("right", metavar="B", help="captures, dumps, packet captures or standard input (-)")
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out what stands at paths that match (timer/0.cpu_ticks*), or values that always differ: "
        "clocks, registers (repeatable)",
    )
    parser.add_argument("-q", dest="brief", action="store_true", help="say only whether they differ")
    parser.add_argument("-V", dest="verbose", action="store_true", help="the offsets in both as well")
    _add_format(parser)
    parser.add_argument("--no-ram", dest="ram", action="store_false", help="do not compare guest memory")
    each = "given twice: of A, and of B"
    parser.add_argument(
        "--port", type=port, action="append", default=[], metavar="N", help=f"of a packet capture; {each}"
    )
    parser.add_argument(
        "--offset",
        type=offset,
        action="append",
        default=[],
        metavar="N",
        help=f"where the stream begins in the file; {each}",
    )
    parser.add_argument(
        "--snapshot", action="append", default=[], metavar="NAME|ID", help=f"of a qcow2 disk image; {each}"
    )
    _add_known(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--offset",
        type=offset,
        default=0,
        metavar="N",
        help="where the stream begins in the file, bytes (suffix k, M, G; 0x: hex): migrate file:F,offset=N",
    )
    parser.add_argument(
        "--snapshot", metavar="NAME|ID", help="of a qcow2 disk image: the snapshot whose state to read"
    )


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Write a capture as TCP packets that Wireshark opens, with a comment for each record. Guest memory "
        "that a capture has not is missing at the end of packets, as if they had been cut short."
    )
    parser.add_argument("file", metavar="CAPTURE|FILE|-")
    _add_place(parser)
    parser.add_argument("--pcapng", required=True, metavar="OUT", help="where to write; - is standard output")


def _add_port(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port", type=port, metavar="N", help="of a packet capture: all connections to this port, none else"
    )


def _add_analyze(parser: argparse.ArgumentParser) -> None:
    parser.description = "Print device state or its description as QEMU's scripts/analyze-migration.py does."
    parser.add_argument("-f", "--file", required=True, help="migration dump or capture to read from")
    _add_place(parser)
    parser.add_argument("-m", "--memory", action="store_true", help="dump RAM contents as well")
    parser.add_argument(
        "-d", "--dump", choices=("state", "desc"), default="state", help="what to dump (default: state)"
    )
    parser.add_argument("-x", "--extract", action="store_true", help="extract contents into individual files")
    parser.add_argument("--output-dir", default=".", metavar="DIR", help="where -x puts them (default: here)")


def _add_fields(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "List the fields that display filters and columns can name, with their types. Fields of devices are "
        "those that descriptions tell: remembered ones, and those of the captures that are given."
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="CAPTURE|PATTERN",
        help="a capture or dump, whose device fields to list; what is no file is a pattern that a name must "
        'match: "ram.*", "device.pckbd*"',
    )
    _add_format(parser)
    _add_known(parser)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Run a real migration between two QEMUs through the proxy; without QEMU, play a bundled capture."
    )
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop (default: uvloop)"
    )
    parser.add_argument(
        "--replay", action="store_true", help="play the bundled capture even if QEMU is there"
    )
    parser.add_argument("-w", "--write", default="captures", metavar="DIR", help="where the capture goes")
    parser.set_defaults(descriptions="none", describe=[], check_against=None)
    _add_log(parser)
    parser.add_argument("--log", action="store_true", help="the log instead of the live view")


def _add_log(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log")
    log.add_argument("-V", dest="verbose", action="store_true", help="print the field tree of each record")
    log.add_argument(
        "-T",
        dest="format",
        choices=("text", "json", "ndjson", "fields"),
        default="text",
        help="output format; fields: the columns that -e picks",
    )
    log.add_argument(
        "-Y",
        dest="wanted",
        metavar="FILTER",
        help='only records that match: section.name == "timer" && size > 100 (docs/filter.md; `migsniff '
        "fields` lists the names)",
    )
    log.add_argument(
        "-e",
        dest="columns",
        action="append",
        default=[],
        metavar="FIELD",
        help="with -T fields: a column (repeatable)",
    )
    log.add_argument(
        "-E",
        dest="layout",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with -T fields: header=y|n, separator=/t|/s|CHARACTER, aggregator=CHARACTER, occurrence=f|l|a, "
        "quote=d|s|n",
    )
    log.add_argument(
        "-t",
        dest="time_format",
        choices=("ad", "r"),
        default="r",
        help="times: absolute with date, or relative (default)",
    )
    log.add_argument("-l", dest="flush_each", action="store_true", help="flush after each record")
    log.add_argument("-c", dest="count", type=positive, metavar="N", help="end the log after N records")
    log.add_argument(
        "-a",
        dest="autostop",
        action="append",
        default=[],
        type=autostop,
        metavar="duration:S|size:N",
        help="end the log after S seconds or N bytes (suffix k, M, G) of migration",
    )
    log.add_argument(
        "-z",
        dest="statistics",
        action="append",
        default=[],
        metavar="STATISTIC",
        help="a table behind the records of each migration: iterations, ram, devices, channels, downtime, "
        "io,INTERVAL (repeatable)",
    )
    log.add_argument("-q", dest="quiet", action="store_true", help="no records, only what -z asks for")
    log.add_argument("--section", action="append", metavar="NAME", help="only this section (repeatable)")


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-T", dest="format", choices=("text", "json"), default="text", help="output format")


def _add_known(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("descriptions of device state")
    _add_folder(group)
    group.add_argument(
        "--describe",
        action="append",
        default=[],
        metavar="FILE",
        help="read device state by this, until its own description comes: a capture or dump that has one, a "
        "description in JSON, or what qemu -dump-vmstate wrote (repeatable)",
    )


def _add_against(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check-against",
        metavar="DEST",
        help="warn as soon as it shows that the migration will not load at this destination: what DEST is "
        "check --against tells",
    )


def _add_folder(parser: "argparse._ActionsContainer") -> None:
    parser.add_argument(
        "--descriptions",
        metavar="DIR|none",
        help="where descriptions are remembered (default: migsniff/descriptions in the user's cache); none: "
        "not at all",
    )


def _add_descriptions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Descriptions of device state that migsniff has seen, by machine type. They name the fields of "
        "devices whose own description has not come yet, or never comes."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the machine types that are known")
    showing = actions.add_parser("show", help="what is known of one")
    adding = actions.add_parser("add", help="remember what a file describes")
    forgetting = actions.add_parser("forget", help="forget a machine type, or all")
    showing.add_argument("name", metavar="MACHINE", help="as listed")
    adding.add_argument("file", metavar="FILE", help="as for --describe of the other commands")
    adding.add_argument("--machine", metavar="NAME", help="the machine type, if the file does not tell it")
    forgetting.add_argument("name", nargs="?", metavar="MACHINE")
    forgetting.add_argument("--all", action="store_true", help="all machine types")
    for action in (listing, showing, adding, forgetting):
        _add_folder(action)
    for action in (listing, showing):
        _add_format(action)
