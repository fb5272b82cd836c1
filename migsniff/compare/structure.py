"""Two streams: what they are made of, but for the insides of their sections."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from migsniff.compare.difference import Difference, Said
from migsniff.compare.ignore import Ignore
from migsniff.compare.side import Key, Side
from migsniff.core.events import Configuration, RamBlock, Section
from migsniff.show.words import escape, memory, name

ORDER_SHOWN: Final = 6

Text = str | None
Texts = Sequence[Text]
Placed = Section | Configuration | None
Name = TypeVar("Name")


def section_path(key: Key) -> str:
    """A section as the log names it: idstr/instance."""
    return f"{name(key[0])}/{key[1]}"


def block_path(block: str) -> str:
    """A RAM block as a path."""
    return f"ram/0.{name(block)}"


def structure(left: Side, right: Side, ignore: Ignore) -> Iterator[Difference]:
    """All but fields: configuration, modes, commands, RAM blocks, sections."""
    for difference in (
        *_configuration(left, right),
        *_modes(left, right),
        *_blocks(left, right),
        *_sections(left, right),
    ):
        if not ignore.all_of(difference.path):
            yield difference


# ---------------------------------------------------------------- what stands once


def _configuration(left: Side, right: Side) -> Iterator[Difference]:
    sides = left.inventory.configuration, right.inventory.configuration
    if None in sides:
        yield from _changed("configuration section", "", [None if side is None else "sent" for side in sides])
    facts: tuple[tuple[str, Callable[[Configuration], Text]], ...] = (
        ("machine type", lambda section: escape(section.machine)),
        (
            "page size in the configuration",
            lambda section: None if section.page_bits is None else f"2 ** {section.page_bits}",
        ),
        ("UUID", lambda section: None if section.uuid is None else escape(section.uuid)),
    )
    for what, tell in facts:
        yield from _changed(what, "", [None if side is None else tell(side) for side in sides], sides)
    lists = [None if side is None else side.capabilities for side in sides]
    yield from _changed("list of capabilities", "", [None if each is None else "sent" for each in lists])
    yield from _sets("capability", lists[0] or (), lists[1] or ())


def _modes(left: Side, right: Side) -> Iterator[Difference]:
    sides = left, right
    sizes = [side.inventory.page_size for side in sides]
    yield from _changed("page size", "", [None if size is None else str(size) for size in sizes])
    for role in sorted({*left.channels, *right.channels}):
        yield from _changed("channels", name(role), [str(side.channels[role]) for side in sides])
    yield from _sets("multifd compression", sorted(left.methods), sorted(right.methods))
    yield from _sets("command", left.inventory.commands, right.inventory.commands)
    if left.inventory.sections and right.inventory.sections:
        footers = [any(one.footer for one in side.inventory.sections.values()) for side in sides]
        yield from _changed("section footers", "", ["sent" if each else "not sent" for each in footers])


# ---------------------------------------------------------------- blocks and sections


def _blocks(left: Side, right: Side) -> Iterator[Difference]:
    sides = left.inventory.blocks, right.inventory.blocks
    for block in _union(*sides):
        one, other = pair = [side.get(block) for side in sides]
        path = block_path(block)
        if one is None or other is None:
            yield _one("RAM block", path, [None if each is None else memory(each.length) for each in pair])
            continue
        if one.length != other.length:
            lengths = [memory(each.length) for each in (one, other)]
            if lengths[0] == lengths[1]:
                lengths = [f"{each.length} bytes" for each in (one, other)]
            yield _one("length of RAM block", path, lengths)
        yield from _changed("page size of RAM block", path, [_page_size(each) for each in (one, other)])
        yield from _changed("address of RAM block", path, [_address(each) for each in (one, other)])
    yield from _order("order of RAM blocks", *sides, name)


def _page_size(block: RamBlock) -> str:
    return "not sent" if block.page_size is None else str(block.page_size)


def _address(block: RamBlock) -> str:
    return "not sent" if block.address is None else f"{block.address:#x}"


def _sections(left: Side, right: Side) -> Iterator[Difference]:
    sides = left.inventory.sections, right.inventory.sections
    unsent = [0, 0]
    for key in _union(*sides):
        one, other = pair = [side.get(key) for side in sides]
        path = section_path(key)
        if one is not None and other is not None:
            yield from _changed("kind of section", path, [_kind(each) for each in (one, other)], pair)
            versions = [str(each.version_id) for each in (one, other)]
            yield from _changed("version of section", path, versions, pair)
            continue
        lacks = 0 if one is None else 1
        if (left, right)[lacks].inventory.all_sent:
            yield _one(
                "section", path, [None if each is None else _section_text(each) for each in pair], pair
            )
        else:
            unsent[lacks] += 1
    for lacks, count in enumerate(unsent):
        if count:  # told once: they may have been to come
            texts = ["sent", "sent"]
            texts[lacks] = "not there, the stream breaks off"
            yield _one(f"{count} of {len(sides[1 - lacks])} sections", "", texts)
    yield from _order("order of sections", *sides, section_path)


def _kind(section: Section) -> str:
    return "device (FULL)" if section.section_type == "FULL" else "live (START, PART, END)"


def _section_text(section: Section) -> str:
    return f"{_kind(section)}, version {section.version_id}"


def _order(
    what: str, left: Mapping[Name, object], right: Mapping[Name, object], text: Callable[[Name], str]
) -> Iterator[Difference]:
    """What both have, but not in the same order: from the first to the last that stand elsewhere."""
    mine, its = [key for key in left if key in right], [key for key in right if key in left]
    apart = [index for index, pair in enumerate(zip(mine, its, strict=True)) if pair[0] != pair[1]]
    if apart:
        span = slice(apart[0], apart[-1] + 1)
        yield _one(what, "", [_listed([text(key) for key in side[span]]) for side in (mine, its)])


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > ORDER_SHOWN else ""
    return ", ".join(names[:ORDER_SHOWN]) + more


# ---------------------------------------------------------------- differences


def _union(left: Mapping[Name, object], right: Mapping[Name, object]) -> list[Name]:
    return [*left, *(key for key in right if key not in left)]


def _sets(what: str, left: Sequence[str], right: Sequence[str]) -> Iterator[Difference]:
    for each in dict.fromkeys((*left, *right)):
        yield from _changed(what, name(each), ["there" if each in side else None for side in (left, right)])


def _changed(
    what: str, path: str, texts: Texts, events: Sequence[Placed] = (None, None)
) -> Iterator[Difference]:
    if texts[0] != texts[1]:
        yield _one(what, path, texts, events)


def _one(what: str, path: str, texts: Texts, events: Sequence[Placed] = (None, None)) -> Difference:
    mine, its = (
        None if text is None else Said(text) if event is None else Said(text, event.channel, event.offset)
        for text, event in zip(texts, events, strict=True)
    )
    return Difference(group="structure", what=what, path=path, left=mine, right=its)
