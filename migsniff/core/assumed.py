"""Device state read by a description from elsewhere: an earlier migration's, or a file's.

It is a hint. Subsections come and go, some fields have another size each time; what is read is believed only
if it ends exactly where the section does. Such a description is as hostile as a stream's own.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Final, NamedTuple

from migsniff.core.arrivals import Data, Remembered
from migsniff.core.assumingwalk import AssumingWalker, Candidate, shortened, subsections, variable_fields
from migsniff.core.budget import Budget
from migsniff.core.context import Context, SectionFacts
from migsniff.core.description import Description, DeviceDescription, Vmsd
from migsniff.core.errors import StreamProblem
from migsniff.core.events import BREATH, Event, Field
from migsniff.core.vmdesc import BREATHS, Walking, images, walk
from migsniff.core.wire import (
    MAX_ASSUMED,
    MAX_ASSUMED_DESCRIPTION,
    MAX_ASSUMED_FIELDS,
    MAX_FIELDS,
)

UNKNOWN: Final = "unknown"


class Guess(NamedTuple):
    """A section as a description from elsewhere explains it, all of it or up to where the stream ends.

    `place` is the field in which the stream ends, in words.
    """

    fields: tuple[Field, ...]
    undescribed: int
    remembered: Remembered
    place: str = ""


class Assumptions:
    """What is known from elsewhere of the devices of one channel."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.left = MAX_FIELDS  # fields that they may still stand for, in descriptions and in walks

    def whole(
        self, facts: SectionFacts, payload: Data, offset: int, *, fields: bool
    ) -> Walking[Guess | StreamProblem | None]:
        """A section's payload, which begins at wire offset `offset`: how it reads, or why it does not fit."""
        candidates = yield from self.candidates(facts)
        doubtful: Guess | None = None
        for device, remembered in candidates:
            budget = self.budget()
            breathe = self.context.breathe
            walked = yield from walk(
                device, payload, 0, offset, fields=fields, budget=budget, breathe=breathe
            )
            self.spend(budget)
            yield from self.breath()
            if walked.problem is None and walked.end == len(payload):
                guess = Guess(walked.fields, walked.undescribed, remembered)
                if not walked.undescribed:
                    return guess
                doubtful = doubtful or guess
        known = subsections(candidates)
        for adapt in ("", "counts", "size"):
            for device, remembered in candidates:
                variable = list(variable_fields(device.vmsd)) if adapt == "size" else []
                if adapt == "size" and len(variable) != 1:
                    continue
                walker = self.walker(payload, offset, known)
                walker.counts = adapt == "counts"
                yield from self.breath()
                reached, problem = yield from walker.device(
                    device, variable[0] if variable else None, len(payload)
                )
                if problem is None and reached.end == len(payload):
                    return Guess(
                        reached.fields if fields else images(reached.fields), reached.undescribed, remembered
                    )
        if doubtful is not None or not candidates:
            return doubtful
        return (yield from self.misfit(facts, payload, offset, candidates[0], known))

    def cut_off(self, facts: SectionFacts, payload: Data, offset: int) -> Walking[Guess | None]:
        """What has come of a section when the stream ends inside of it."""
        candidates = yield from self.candidates(facts)
        known = subsections(candidates)
        for device, remembered in candidates:
            walker = self.walker(payload, offset, known)
            walker.cut = True
            reached, problem = yield from walker.device(device, None, len(payload))
            if problem is None:
                more = len(payload) - reached.end
                place = f"{more} bytes behind its last field" if more else "behind its last field"
                rest = "undescribed"
            elif problem.code == "field-short":
                rest = walker.name
                place = walker.place(problem)
            else:
                continue
            fields = reached.fields
            if reached.end < len(payload) and self.context.want_fields:
                raw = bytes(memoryview(payload)[reached.end :])
                fields += (Field(rest, "opaque", offset + reached.end, len(raw), raw=raw),)
            return Guess(
                fields if self.context.want_fields else (),
                reached.undescribed + len(payload) - reached.end,
                remembered,
                f"{place} ({remembered.source})",
            )
        return None

    def difference(
        self, facts: SectionFacts, payload: Data, offset: int, device: DeviceDescription, assumed: Remembered
    ) -> Walking[StreamProblem | None]:
        """Where a section that was read by `assumed` reads otherwise by its own description."""
        candidates = yield from self.candidates(facts)
        candidates = [one for one in candidates if one.remembered == assumed]
        if not candidates or candidates[0].device.vmsd == device.vmsd:
            return None
        guess = yield from self.whole(facts, payload, offset, fields=True)
        budget = self.budget()
        breathe = self.context.breathe
        exact = yield from walk(device, payload, 0, offset, fields=True, budget=budget, breathe=breathe)
        self.spend(budget)
        if not isinstance(guess, Guess):
            return None
        pairs = zip_longest(leaves(guess.fields), leaves(exact.fields))
        for number, (one, other) in enumerate(pairs):
            if number % BREATHS == 0:
                yield from self.breath()
            if one and other and one[1] == UNKNOWN:  # it did not say which type
                other = other[0], UNKNOWN, *other[2:]
            if one != other:
                return StreamProblem(
                    "assumed-wrong",
                    idstr=facts.idstr,
                    instance_id=facts.instance_id,
                    source=assumed.source,
                    assumed=told(one),
                    exact=told(other),
                )
        return None

    # ------------------------------------------------------------ what there is to try

    def breath(self) -> Iterator[Event]:
        """Between two tries."""
        if self.context.breathe:
            yield BREATH

    def candidates(self, facts: SectionFacts) -> Walking[list[Candidate]]:
        """Descriptions for a section, the likeliest first; those that are none are left out."""
        lookup = self.context.assumed
        if lookup is None:
            return []
        found = []
        remembered = lookup(self.context.machine, facts.idstr, facts.instance_id, facts.version_id)
        for one in remembered[:MAX_ASSUMED]:
            nodes = one.text.count(b"{")
            if len(one.text) > MAX_ASSUMED_DESCRIPTION or nodes > self.left:
                continue
            self.left -= nodes
            try:
                (device,) = Description.parse(b'{"devices":[' + one.text + b"]}").devices
            except (StreamProblem, ValueError):
                continue
            found.append(Candidate(device, one))
            yield from self.breath()
        return found

    def budget(self) -> Budget:
        """For one walk."""
        return Budget(max(0, min(MAX_ASSUMED_FIELDS, self.left)))

    def spend(self, budget: Budget) -> None:
        """Count what a walk has used up."""
        self.left = max(0, self.left - min(MAX_ASSUMED_FIELDS, self.left) + max(0, budget.fields))

    def walker(self, payload: Data, offset: int, known: dict[str, Vmsd]) -> "AssumingWalker":
        return AssumingWalker(memoryview(payload), offset, self, known)

    def misfit(
        self,
        facts: SectionFacts,
        payload: Data,
        offset: int,
        candidate: Candidate,
        known: dict[str, Vmsd],
    ) -> Walking[StreamProblem]:
        """Why a section does not fit: the first field for which that can be said."""
        walker = self.walker(payload, offset, known)
        reached, problem = yield from walker.device(candidate.device, None, len(payload))
        about = {
            "idstr": facts.idstr,
            "instance_id": facts.instance_id,
            "source": candidate.remembered.source,
        }
        if problem is None:
            return StreamProblem("assumed-long", more=len(payload) - reached.end, **about)
        if problem.code == "field-short":
            missing = walker.missing(problem)
            return StreamProblem("assumed-short", missing=missing, field=walker.name, **about)
        return StreamProblem("assumed-misfit", field=walker.name or facts.idstr, detail=problem.text, **about)


Leaf = tuple[str, str, int, int]
"""Path, type, wire offset and size of a field that holds no others."""


def leaves(fields: Sequence[Field], path: str = "") -> Iterator[Leaf]:
    """The fields that hold no others."""
    for field in fields:
        name = f"{path}{field.name}"
        if field.children:
            yield from leaves(field.children, f"{name}.")
        else:
            yield name, field.type, field.offset, field.size


def told(leaf: Leaf | None) -> str:
    """A leaf in words."""
    if leaf is None:
        return "nothing more"
    path, kind, offset, size = leaf
    return f"field {shortened(path)!r} ({shortened(kind)}, {size} bytes at {offset})"
