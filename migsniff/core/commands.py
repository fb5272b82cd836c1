"""Commands of the main channel, and what they change for the bytes that follow.

Format: migration/savevm.c, QEMU 5.2 to 11.1.
"""

from typing import TYPE_CHECKING, Final

from migsniff.core.bytequeue import Steps
from migsniff.core.context import Context
from migsniff.core.errors import StreamProblem
from migsniff.core.events import CommandSent, Package
from migsniff.core.messages import COMMANDS, Arguments, resumed_command
from migsniff.core.wire import COMMAND_HEADER, PAGE_SIZES, Command

if TYPE_CHECKING:
    from migsniff.core.stream import MainReader

HEADER: Final = COMMAND_HEADER.struct
MAX_PACKAGE_PINGS: Final = 16


def read_command(main: "MainReader", limit: int | None) -> Steps:
    """Read a command and do what it says; `limit` is the wire offset at which the package ends, if in one."""
    queue = main.queue
    start = queue.at
    main.item = "a command"
    yield from queue.wait(HEADER.size)
    _, number, length = HEADER.unpack_from(queue.data, queue.pos)
    queue.advance(HEADER.size)
    if main.resumed:
        number = resumed_command(number, length)
    entry = COMMANDS.get(number)
    if entry is None:
        yield from queue.contents(length)  # nobody knows what it is
        yield main.finding(start, "command", command=number)
        return
    main.item = f"command {entry.name}"
    if not entry.least <= length <= entry.most:
        raise StreamProblem("command-length", name=entry.name, length=length, expected=entry.least)
    payload = yield from queue.take(length)
    arguments = entry.arguments(payload)
    discarded = _discarded(main.context, arguments) if number == Command.POSTCOPY_RAM_DISCARD else None
    yield CommandSent(
        channel=main.channel,
        direction="fwd",
        offset=start,
        size=queue.at - start,
        command=number,
        name=entry.name,
        arguments=arguments,
    )
    if discarded is not None:
        yield main.finding(start, "discard", **discarded)
    yield from _obey(main, Command(number), arguments, limit)


def _discarded(context: Context, arguments: Arguments) -> dict[str, object] | None:
    """Count the pages of a discard; what is wrong with the first range that cannot be, if any."""
    name, ranges = arguments["block"], arguments["ranges"]
    assert isinstance(name, str)
    assert isinstance(ranges, tuple)
    if not context.page_size:
        return None
    arguments["pages"] = sum(length for _, length in ranges) // context.page_size
    for start, length in ranges:
        if why := context.memory.misfit(name, start, length):
            return {"name": name, "start": start, "length": length, "why": why}
    return None


def _obey(main: "MainReader", command: Command, arguments: Arguments, limit: int | None) -> Steps:
    """What a command changes for the bytes that follow."""
    context, queue = main.context, main.queue
    if command == Command.OPEN_RETURN_PATH:
        context.return_path = True
    elif command == Command.ENABLE_COLO:
        context.colo = True
    elif command == Command.POSTCOPY_ADVISE:
        context.advised = True
        if isinstance(size := arguments.get("page_size"), int):
            if size not in PAGE_SIZES:
                raise StreamProblem("page-size-advised", found=size)
            context.know_page_size(size, "POSTCOPY_ADVISE")
    elif command == Command.POSTCOPY_LISTEN:
        context.postcopy = True
        yield from context.memory.completed(main.channel, queue.at, everything=True)
        if context.memory.pass_tallies:
            yield main.ram.counter.end_pass(queue.at, final=False)
        context.memory.begin_postcopy()
        context.memory.round += 1
        main.ram.forget_block()
    elif command == Command.POSTCOPY_RUN and limit is not None and queue.at < limit:
        # the destination stops reading its package here
        main.item = "behind the package's end"
        yield main.finding(queue.at, "package-long", left=limit - queue.at)
        yield from queue.contents(limit - queue.at)
    elif command == Command.POSTCOPY_RESUME:
        main.ram.forget_block()
    elif command == Command.PING and main.in_package and isinstance(value := arguments["value"], int):
        if len(context.package_pings) < MAX_PACKAGE_PINGS:
            context.package_pings.add(value)
    elif command == Command.PACKAGED and isinstance(length := arguments.get("length"), int):
        if limit is not None:
            raise StreamProblem("package-depth")
        main.switched = main.in_package = True
        yield Package(channel=main.channel, direction="fwd", offset=queue.at, size=0, length=length)
        yield from main.items(queue.at + length)
        main.in_package = False
