"""The rules and who runs them: expert info as Wireshark has it.

A rule is a class, registered with `@rule(CODE, ...)`, of which each migration has an instance: it watches
some types of events, sees them with their times, and yields findings. What it yields depends on events and
times alone, so that a capture, read later, has the findings of the live log.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Final

from migsniff.core.events import Event, Finding
from migsniff.expert.codes import CODES, finding

RULES: Final[list[type["Rule"]]] = []


class Rule:
    """Watches the events of one migration. `watches` are the exact types that `see` is called with."""

    watches: ClassVar[tuple[type[Event], ...]] = ()

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """Take one event into account, `time` microseconds after the migration began."""
        raise NotImplementedError


def rule(*codes: str) -> Callable[[type[Rule]], type[Rule]]:
    """Register a rule by the codes of its findings; raises ValueError for one that CODES has not."""

    def register(made: type[Rule]) -> type[Rule]:
        if unknown := set(codes) - set(CODES):
            raise ValueError(f"no such code: {', '.join(sorted(unknown))}")
        RULES.append(made)
        return made

    return register


class Expert:
    """The rules of one migration. Whatever goes wrong in one ends that rule, and nothing else."""

    def __init__(self) -> None:
        self._watching: dict[type[Event], list[Rule]] = {}
        for each in RULES:
            made = each()
            for watched in each.watches:
                self._watching.setdefault(watched, []).append(made)

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        """What the rules find with this event; those on a verdict are to be shown before it."""
        for each in self._watching.get(type(event), ()):
            try:
                yield from each.see(time, event)
            except Exception as bug:
                for rules in self._watching.values():
                    if each in rules:
                        rules[:] = [other for other in rules if other is not each]
                yield finding(
                    "expert-bug", event, name=type(each).__name__, detail=f"{type(bug).__name__}: {bug}"
                )
