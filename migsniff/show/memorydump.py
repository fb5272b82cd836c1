"""The JSON of `analyze -m`: each page once, where it first came, as it was at last."""

import json
import os
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from migsniff.core.events import Event, RamPages
from migsniff.show.extract import RamFiles
from migsniff.show.folder import Folder
from migsniff.show.pagestates import BROKEN, ZERO, Pages
from migsniff.show.script import INDENT

ORDER_FILE: Final = "%order"  # no block's file is called so


class MemoryDump:
    """A show sink for what `analyze -m` prints.

    The pages wait in sparse files and their order in another, all in `folder`, which only we can read.
    """

    def __init__(self, folder: Folder) -> None:
        self._files = RamFiles(folder, self._note)
        self._order = os.fdopen(folder.create(ORDER_FILE), "w+b")
        self._blocks: dict[str, int] = {}
        self._page_size = 0

    @property
    def problems(self) -> list[str]:
        """What is missing, in sentences."""
        return self._files.problems

    def show(self, migration: str, time: int, event: Event) -> None:
        """Keep pages, and the order in which they came first."""
        if isinstance(event, RamPages):
            self._page_size = event.page_size
        self._files.show(migration, time, event)

    def _note(self, block: str, addresses: Pages) -> None:
        if not len(addresses):
            self._order.seek(0)
            self._order.truncate()
            self._blocks.clear()
            return
        number = self._blocks.setdefault(block, len(self._blocks))
        self._order.write(np.stack((np.full_like(addresses, number), addresses), axis=1).tobytes())

    def write(self, write: Callable[[str], object], indent: str) -> None:
        """Write the JSON object of all pages."""
        self._files.flush()
        blocks = [(block, json.dumps(block)[:-1]) for block in self._blocks]
        head = "{\n"
        for index, address in self._in_order():
            block, quoted = blocks[index]
            value = self._value(block, address)
            if value is not None:
                write(f'{head}{indent}{INDENT}{quoted} (0x{address:016x})": "{value}"')
                head = ",\n"
        write("{}" if head == "{\n" else f"\n{indent}}}")

    def _in_order(self) -> Iterator[tuple[int, int]]:
        self._order.seek(0)
        while part := self._order.read(1 << 20):
            entries = np.frombuffer(part, np.uint64).reshape(-1, 2)
            yield from zip(entries[:, 0].tolist(), entries[:, 1].tolist(), strict=True)

    def _value(self, block: str, address: int) -> str | None:
        state = self._files.states.get(block, address // self._page_size)
        if state & BROKEN:
            return "could not be put together"
        if state & ZERO:
            return "Filled with 0x00"
        page = self._files.read(block, address, self._page_size)
        return None if page is None else page.hex(" ")

    def close(self) -> None:
        """Close the files."""
        self._files.close()
        self._order.close()
