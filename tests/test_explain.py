"""What fields mean, as a whole: where it is shown, and that what has no meaning is left as it is."""

from msgspec.structs import replace

from migsniff.core.events import DeviceSection, Field
from migsniff.values.explain import explain


def section(*fields: Field, idstr: str = "0000:00:02.0/anything") -> DeviceSection:
    """A section with these fields."""
    return DeviceSection(
        channel="main", direction="fwd", offset=0, size=1, section_type="FULL", section_id=1,
        idstr=idstr, instance_id=0, version_id=1, footer=True, provisional=False, fields=fields,
    )  # fmt: skip


def test_what_has_no_meaning_is_not_copied() -> None:
    leaf = Field("x", "uint8", 20, 1, raw=b"\1", value=1)
    plain = section(leaf, Field("s", "struct", 21, 1, children=(leaf, leaf)))
    assert explain(plain) is plain
    empty = replace(plain, fields=())
    assert explain(empty) is empty
