"""The tables of numbers are what the kernel's headers say."""

import ast
from pathlib import Path

import pytest

from tests import uapi

INCLUDE = Path("/usr/include")
HEADERS = INCLUDE / "linux/virtio_net.h"
MAKERS = {"pci": uapi.pci_table, "virtio": uapi.virtio_table}


def constants(source: str) -> dict[str, object]:
    """What a table assigns to names."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[ast.unparse(target)] = ast.literal_eval(node.value)
    return found


def table(name: str) -> str:
    return (uapi.TABLES / f"{name}.py").read_text()


@pytest.mark.parametrize("name", MAKERS)
def test_a_table_says_where_it_is_from(name: str) -> None:
    assert "of Linux 7.2.13; made by tests/uapi.py." in table(name).splitlines()[0]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.skipif(not HEADERS.exists(), reason="the kernel's headers (linux-libc-dev) are not installed")
def test_the_headers_here_say_the_same(name: str) -> None:
    """Older headers say less, newer ones more; none says anything else."""
    here, kept = constants(MAKERS[name](INCLUDE)), constants(table(name))
    if MAKERS[name](INCLUDE).splitlines()[0] == table(name).splitlines()[0]:
        assert here == kept
    assert len(here) >= len(kept) * 9 // 10
    for key, value in here.items():
        assert_agrees(value, kept[key], key)


def assert_agrees(here: object, kept: object, where: str) -> None:
    """What both have is equal; a list may be longer on one side."""
    if isinstance(here, dict) and isinstance(kept, dict):
        common = set(here) & set(kept)
        assert common, where
        for key in common:
            assert_agrees(here[key], kept[key], f"{where}[{key!r}]")
    elif isinstance(here, list) and isinstance(kept, list):
        assert all(one == other for one, other in zip(here, kept, strict=False)), where
    else:
        assert here == kept, where
