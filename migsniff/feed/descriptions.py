"""Descriptions of devices from elsewhere: what a session may ask of them, and what is learnt of its own."""

import queue
import threading
from collections.abc import Callable, Iterable
from typing import Final

from migsniff.core.arrivals import Assumed, Remembered
from migsniff.core.errors import CaptureError
from migsniff.feed.descriptionstore import Described, Entry, Store, entries_of

MAX_TRIED: Final = 8  # descriptions that are tried for a section


class _Index:
    """Entries by the last part of their name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_name: dict[str, list[Entry]] = {}
        for entry in entries:
            self._by_name.setdefault(_last_part(entry.idstr), []).append(entry)

    def find(self, idstr: str, instance: int, version: int) -> list[Entry]:
        """Those that may fit: of this device, of another instance, of one that stands elsewhere."""
        found = [
            entry
            for entry in self._by_name.get(_last_part(idstr), ())
            if entry.version is None or entry.version == version
        ]
        found.sort(key=lambda entry: (entry.idstr != idstr, entry.instance != instance))
        return found[:MAX_TRIED]


def _last_part(idstr: str) -> str:
    return idstr.rsplit("/", 1)[-1]


class Descriptions:
    """What is known from elsewhere: `given` by the user, for any machine, remembered in `store`, and, to be
    tried last, a destination's.

    `say` is told of the first thing that goes wrong. Without `start` files are read when they are asked for.
    """

    def __init__(
        self,
        store: Store | None,
        given: Iterable[Entry] = (),
        *,
        destination: Iterable[Entry] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._store = store
        self._say = say
        self._given = _Index(given)
        self._destination = _Index(destination)
        self._known: dict[str, _Index] = {}
        self._jobs: queue.SimpleQueue[Described | None] | None = None
        self._thread: threading.Thread | None = None
        self._told = False

    def lookup_for(self, migration: str) -> Assumed:
        """What a Session asks. What was learnt from this migration itself is left out: reading its capture
        prints what was printed while it passed."""
        return lambda *about: self.lookup(*about, migration=migration)

    def lookup(
        self, machine: str, idstr: str, instance: int, version: int, *, migration: str = ""
    ) -> list[Remembered]:
        """Descriptions for a section, the likeliest first (core.arrivals.Assumed)."""
        known = self._known.get(machine)
        if known is None and self._store is not None and self._jobs is None:
            known = self._known[machine] = _Index(self._store.load(machine))
        given = self._given.find(idstr, instance, version)
        found = [(entry, f"from {entry.source}") for entry in given]
        for entry in known.find(idstr, instance, version) if known is not None else ():
            if entry.source != migration:
                found.append((entry, f"seen in {entry.source}"))
        there = self._destination.find(idstr, instance, version)
        found += [(entry, f"of the destination, {entry.source}") for entry in there]
        return [
            Remembered(
                bytes(entry.device),
                source
                if (entry.idstr, entry.instance) == (idstr, instance)
                else f"{source}, as {entry.idstr}/{entry.instance}",
            )
            for entry, source in found
        ]

    def learn(self, described: Described) -> None:
        """Remember a description, in the thread if there is one."""
        if self._store is None:
            return
        if self._jobs is not None:
            self._jobs.put(described)
        else:
            self._learn(self._store, described)

    def _learn(self, store: Store, described: Described) -> None:
        try:
            store.add(described.machine, entries_of(described))
            self._known[described.machine] = _Index(store.load(described.machine))
        except (OSError, CaptureError) as error:
            self._tell(f"device descriptions are not remembered in {store.folder}: {_reason(error)}")

    # ------------------------------------------------------------ beside a running proxy

    def start(self) -> None:
        """Read everything, and from here on learn, in a thread of its own: a slow disk delays nobody."""
        if self._store is not None:
            self._jobs = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=self._run, args=(self._store, self._jobs), name="descriptions", daemon=True
            )
            self._thread.start()

    def close(self, timeout: float) -> None:
        """Wait so many seconds for what is still to be written."""
        if self._jobs is not None and self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout)

    def _run(self, store: Store, jobs: "queue.SimpleQueue[Described | None]") -> None:
        try:
            for found in store.load_all():
                self._known[found.machine] = _Index(found.entries)
        except OSError as error:
            self._tell(f"device descriptions cannot be read in {store.folder}: {_reason(error)}")
        while (described := jobs.get()) is not None:
            self._learn(store, described)

    def _tell(self, problem: str) -> None:
        if not self._told:
            self._told = True
            self._say(problem)


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
