"""Those who run the rules: a rule that fails ends, and is told of; nothing else does."""

from collections.abc import Iterator

import pytest

from migsniff.core.events import Event, Finding, Header
from migsniff.expert import rules
from migsniff.expert.codes import finding
from migsniff.expert.rules import Expert, Rule, rule

HEADER = Header(channel="main", direction="fwd", offset=7, size=8, version=3)


class Failing(Rule):
    watches = (Header,)

    def see(self, time: int, event: Event) -> Iterator[Finding]:
        yield finding("expert-bug", event, name="x", detail="first")
        raise KeyError("gone")


def test_a_rule_that_fails_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "RULES", [Failing])
    expert = Expert()
    first = list(expert.see(0, HEADER))
    assert [each.code for each in first] == ["expert-bug", "expert-bug"]
    assert "rule Failing failed (KeyError: 'gone')" in first[1].message
    assert (first[1].channel, first[1].offset, first[1].severity) == ("main", 7, "error")
    assert not list(expert.see(0, HEADER))


def test_a_rule_must_name_codes_that_there_are() -> None:
    with pytest.raises(ValueError, match="no such code: no-such"):
        rule("no-such")(Failing)
