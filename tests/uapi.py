"""Makes the tables in migsniff/values/tables: numbers and names out of the kernel's headers for user space.

    python -m tests.uapi [/usr/include]

reads INCLUDE/linux/{pci_regs,virtio_*}.h and, for their version, INCLUDE/linux/version.h. Debian has them in
linux-libc-dev. Only facts are taken: names, numbers, and the layout of configuration spaces.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

VALUES = Path(__file__).parent.parent / "migsniff/values"
TABLES = VALUES / "tables"

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFINE = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+\(?(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\)?[ \t]*$", re.MULTILINE
)
_SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


def text(include: Path, name: str) -> str:
    """A header without its comments."""
    return _COMMENT.sub("", (include / "linux" / f"{name}.h").read_text())


def version(include: Path) -> str:
    """The kernel's: "6.1.187"."""
    found = dict(_DEFINE.findall((include / "linux/version.h").read_text()))
    parts = (found[f"LINUX_VERSION_{part}"] for part in ("MAJOR", "PATCHLEVEL", "SUBLEVEL"))
    return ".".join(parts)


def defines(include: Path, name: str) -> dict[str, int]:
    """What a header defines to be a plain number."""
    return {key: int(value, 0) for key, value in _DEFINE.findall(text(include, name))}


def used(table: str) -> set[str]:
    """Names in a table that the decoders use."""
    return {
        name for path in VALUES.glob("*.py") for name in re.findall(rf"\b{table}\.(\w+)", path.read_text())
    }


def features(include: Path) -> dict[str, dict[int, str]]:
    """Feature bits by kind of device; "" are those that all have."""
    found: dict[str, dict[int, str]] = {}
    for path in sorted((include / "linux").glob("virtio_*.h")):
        for name, value in defines(include, path.stem).items():
            if match := re.fullmatch(r"VIRTIO_(?:([A-Z0-9]+)_)?F_\w+", name):
                kind = (match[1] or "").lower()
                if kind != "transport":
                    found.setdefault("" if kind == "ring" else kind, {}).setdefault(value, name)
    return found


def members(body: str, structs: dict[str, str], prefix: str = "") -> Iterator[tuple[str, str, int]]:
    """(name, type, elements; 0: no array) of a struct; nested ones in place, of a union the first."""
    pattern = re.compile(
        r"(struct|union)\s*\w*\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*(\w*)\s*;|(?:struct\s+)?(\w+)\s+(\w+)\s*(?:\[(\w+)\])?\s*;"
    )
    for match in pattern.finditer(body):
        nested, inside, label, kind, name, count = match.groups()
        if nested == "struct":
            yield from members(inside, structs, f"{prefix}{label}_")
        elif nested == "union":
            yield next(members(inside, structs, prefix))
        elif kind in structs:
            yield from members(structs[kind], structs, f"{prefix}{name}_")
        else:
            yield prefix + name, kind, {None: 0, "ETH_ALEN": 6}.get(count) or int(count or 0)


def layouts(include: Path) -> dict[str, list[tuple[str, int, int, bool]]]:
    """Configuration space by kind of device: (name, bytes, elements, always little-endian) in order."""
    found = {}
    for path in sorted((include / "linux").glob("virtio_*.h")):
        source = re.sub(r"#.*", "", text(include, path.stem))
        structs = dict(re.findall(r"^struct\s+(\w+)\s*\{(.*?)^\}", source, re.DOTALL | re.MULTILINE))
        for name, body in structs.items():
            match = re.fullmatch(r"virtio_(\w+)_config", name)
            if not match or path.stem != f"virtio_{match[1]}" or match[1] in ("input", "bt"):
                continue
            layout = []
            at = 0
            for label, kind, count in members(body, structs):
                number = re.fullmatch(r"__(u|le|virtio)(\d+)", kind)
                assert number, f"{path}: {kind} {label}"
                size = _SIZES[number[2]]
                assert at % size == 0 or match[1] == "net", f"{path}: padding before {label}"
                layout.append((label, size, count, number[1] == "le"))
                at += size * max(1, count)
            found[match[1]] = layout
    return found


def pci_table(include: Path) -> str:
    """migsniff/values/tables/pci.py."""
    numbers = defines(include, "pci_regs")
    lines = [
        f'"""Registers of PCI: linux/pci_regs.h of Linux {version(include)}; made by tests/uapi.py."""',
        "",
    ]
    lines += [f"{name} = {numbers[name]:#x}" for name in numbers if name in used("pci")]
    return "\n".join(lines) + "\n"


def virtio_table(include: Path) -> str:
    """migsniff/values/tables/virtio.py."""
    config, pci = defines(include, "virtio_config"), defines(include, "virtio_pci")
    capabilities = {
        value: name for name, value in pci.items() if re.fullmatch(r"VIRTIO_PCI_CAP_\w+_CFG", name)
    }
    status = {value: name for name, value in config.items() if name.startswith("VIRTIO_CONFIG_S_")}
    lines = [f'"""virtio: linux/virtio_*.h of Linux {version(include)}; made by tests/uapi.py."""', ""]
    lines += [f"{name} = {value:#x}" for name, value in pci.items() if name in used("virtio")]
    lines += [f"STATUS: dict[int, str] = {status!r}", f"PCI_CAPABILITIES: dict[int, str] = {capabilities!r}"]
    lines += [f"FEATURES: dict[str, dict[int, str]] = {features(include)!r}"]
    lines += ['"""Kind of device ("": all) -> bit -> name."""', ""]
    lines += [f"CONFIG: dict[str, list[tuple[str, int, int, bool]]] = {layouts(include)!r}"]
    lines += ['"""Kind of device -> name, bytes, elements (0: no array), whether always little-endian."""']
    return "\n".join(lines) + "\n"


def formatted(source: str) -> str:
    """As ruff has it."""
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(TABLES / "x.py"), "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def main() -> None:
    include = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/include")
    for name, table in (("pci", pci_table), ("virtio", virtio_table)):
        (TABLES / f"{name}.py").write_text(formatted(table(include)))


if __name__ == "__main__":
    main()
