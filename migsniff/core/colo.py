"""COLO: behind the first migration the source goes on for ever, with a checkpoint every few seconds.

A checkpoint is messages of 4 bytes, either way; VMSTATE_SEND brings the sections of RAM up to an EOF,
VMSTATE_SIZE as many bytes of device state, which is laid out as the description of the first migration says.
Format: migration/colo.c, QEMU 5.2 to 10.2.
"""

from migsniff.core.bytequeue import Steps
from migsniff.core.errors import StreamProblem
from migsniff.core.events import ColoMessage, EndOfStream
from migsniff.core.records import read_record
from migsniff.core.stream import MainReader
from migsniff.core.wire import COLO_MESSAGE, MAX_COLO_STATE, ColoMessageType, ItemType


def read_stream(main: MainReader) -> Steps:
    """A whole main channel, and the checkpoints behind it."""
    yield from main.run()
    if main.context.colo:
        yield from _checkpoints(main)


def _checkpoints(main: MainReader) -> Steps:
    queue, context = main.queue, main.context
    main.checkpoints = 0
    while True:
        main.item = f"behind checkpoint {main.checkpoints}" if main.checkpoints else "behind the description"
        if context.checkpoint > main.checkpoints:
            main.item = f"checkpoint {context.checkpoint}"
        start = queue.mark = queue.at
        message = yield from read_record(queue, COLO_MESSAGE)
        number, length = message["message"], message.get("size")
        if number == ColoMessageType.CHECKPOINT_REQUEST:
            context.checkpoint = main.checkpoints + 1
        elif length is not None:
            if not 0 < length <= MAX_COLO_STATE:
                raise StreamProblem(
                    "length", what="a checkpoint's state", length=length, limit=MAX_COLO_STATE
                )
        elif number != ColoMessageType.VMSTATE_SEND:
            raise StreamProblem("colo-message", found=number)
        yield ColoMessage(
            channel=main.channel,
            direction="fwd",
            offset=start,
            size=queue.at - start,
            message=number,
            name=ColoMessageType(number).name,
            checkpoint=context.checkpoint,
            length=length,
        )
        if number == ColoMessageType.VMSTATE_SEND:
            yield from main.items(None)
        elif length is not None:
            yield from _state(main, length)
            main.checkpoints += 1


def _state(main: MainReader, length: int) -> Steps:
    """The devices of one checkpoint, and the EOF behind them."""
    queue, devices = main.queue, main.devices
    devices.seen.clear()
    yield from main.items(queue.at + length - 1)
    start = queue.mark = queue.at
    if (found := (yield from queue.u8())) != ItemType.EOF:
        raise StreamProblem("item-type", found=found)
    yield EndOfStream(channel=main.channel, direction="fwd", offset=start, size=1)
    if main.description is not None:
        yield from devices.describe(main.description)
    devices.release()
