"""The sniff command: migrations that pass on an interface are decoded as the proxy does, and not touched."""

import argparse
import asyncio
import signal
from collections.abc import Callable
from typing import Final

from migsniff.core.arrivals import Chunk
from migsniff.feed.flow import Found, Migration
from migsniff.feed.flows import Flows
from migsniff.feed.interface import Interface
from migsniff.feed.packets import segment
from migsniff.live import LiveMigration
from migsniff.proxy import Proxy
from migsniff.show.log import LogOptions

TURN: Final = 256  # packets that are taken before others may have their turn
IDLE: Final = 0.05  # seconds after which what has come is decoded though no packet follows
CHECK: Final = 20  # such times after which the kernel is asked whether it has dropped packets


def sniff(options: argparse.Namespace, log_options: LogOptions) -> int:
    """Watch an interface until a signal ends it; returns the worst exit code of its migrations."""
    options.listen, options.forward, options.loop = [f"passively on {options.interface}"], [], "asyncio"
    options.no_decode, options.no_save = False, options.write is None
    with asyncio.Runner() as runner:
        sniffer = Sniffer(options, log_options, Interface(options.interface))
        return runner.run(sniffer.watch())


class Sniffer(Proxy):
    """A proxy without relays: its migrations come out of packets."""

    waiting = "decoding what has come"

    def __init__(self, options: argparse.Namespace, log_options: LogOptions, interface: Interface) -> None:
        super().__init__(options, log_options)
        self._interface = interface
        self._flows = Flows(options.port)
        self._live: dict[Migration, LiveMigration] = {}
        self._since_check = 0

    async def watch(self) -> int:
        """Decode what passes until a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGUSR1, self._status)
        self._known.start()
        try:
            self._show()
            loop.add_reader(self._interface.fileno(), self._take)
            self.say(f"sniffing on {self.options.interface}")
            while not self._ended.is_set():
                await asyncio.sleep(IDLE)
                if self._signalled is None:
                    self._idle()
        finally:
            if self._signalled is None:
                self._accept_no_more()
            self._tell_drops()
            self._interface.close()
            for note in self._flows.counts.notes():
                self.say(note)
            await self._close()
        return self.exit_code

    def _accept_no_more(self) -> None:
        """Watch no more: what has come is all."""
        asyncio.get_running_loop().remove_reader(self._interface.fileno())
        self._pass_on(self._flows.finish())

    def _take(self) -> None:
        """Packets have come."""
        for time, data, start, end, wire, link in self._interface.packets(TURN):
            self._pass_on(self._flows.packet(time, segment(data, start, end, wire, link), data))

    def _idle(self) -> None:
        self._pass_on(self._flows.idle())
        self._since_check += 1
        if self._since_check >= CHECK:
            self._tell_drops()

    def _tell_drops(self) -> None:
        self._since_check = 0
        if dropped := self._interface.drops():
            self.say(f"{dropped} packets were dropped by the kernel: decoding is slower than the network")

    def _pass_on(self, found: list[Found]) -> None:
        for migration, arrival in found:
            live = self._live.get(migration)
            if live is None:
                live = self._live[migration] = self._begin(
                    migration.name, migration.start_time, migration.source, migration.destination
                )
                migration.resumable = _resumable(live)
            if arrival is None:
                del self._live[migration]
                live.end()
                continue
            if isinstance(arrival, Chunk) and arrival.kept == "none":
                self._stop_saving(live)
            # a migration ends when its flows say so: until then some direction counts as open
            live.open = 1
            live.paused = False
            live.arrive(arrival)

    def _stop_saving(self, live: LiveMigration) -> None:
        """A capture is what passed, and this one has a hole."""
        if live.capture is not None:
            live.capture.close({"verdict": None, "decoding": "saving stopped: packets were not captured"})
            live.capture = None
            self.say(f"{live.migration}: saving stopped: packets were not captured")


def _resumable(live: LiveMigration) -> Callable[[], bool]:
    return lambda: not live.finished and live.pipeline.session.resumable
