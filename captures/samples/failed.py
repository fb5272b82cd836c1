"""Makes the samples of failed/ again, as make.py the others: `python -m captures.samples.failed [NAME ...]`.

Each is a migration that failed for one of the reasons in docs/cases.md, between two real QEMUs. Beside what
make.py writes stand

    destination.log         what the destination wrote to its standard error
    destination/            a capture of the destination's own command line, for `migsniff check --against`
    expected.json           what migsniff must say: written by hand, and left as it is

`--golden` only decodes the captures that are there again.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import zstandard

from captures.samples.failures import FAILURES, Failure
from captures.samples.make import HERE, decode, keep
from migsniff.qemu import QmpError
from tests.qemu import Migration, missing
from tests.relays import Changer, Proxy

FOLDER: Final = "failed"
EXPECTED: Final = "expected.json"


def make(name: str, failure: Failure) -> None:
    """Run the migration and put the sample in place of the one that is there.

    Raises RuntimeError if what is read from it is not what the live log said.
    """
    with tempfile.TemporaryDirectory(prefix="migsniff-") as scratch:
        sample = Path(scratch) / "sample"
        sample.mkdir()
        live = _failed(Path(scratch), sample, failure)
        if failure.own:
            (sample / "destination").mkdir()
            _own(Path(scratch), sample / "destination", failure)
        where = HERE / FOLDER / name
        if (where / EXPECTED).exists():
            shutil.copy(where / EXPECTED, sample)
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(sample, where)
    decode(f"{FOLDER}/{name}")
    if zstandard.decompress((where / "golden.ndjson.zst").read_bytes()) != live:
        raise RuntimeError(f"{name}: the live log said something else")


def _failed(work: Path, sample: Path, failure: Failure) -> bytes:
    """The migration that fails; returns the live log."""
    with (
        Migration(
            failure.source, destination_version=failure.destination, arch=failure.arch, **failure.guest
        ) as migration,
        Proxy(work / "failed", migration.listen(), "--descriptions", "none") as proxy,
        contextlib.ExitStack() as stack,
    ):
        time.sleep(failure.settle)
        versions = {
            side.name: side.execute("query-version")["qemu"]
            for side in (migration.source, migration.destination)
        }
        where = proxy.where
        if failure.change is not None:
            where = stack.enter_context(Changer(where, failure.change)).where
        migration.start(f"tcp:{where}")
        source = None
        with contextlib.suppress(QmpError):  # one that has been killed
            if failure.meanwhile:
                failure.meanwhile(migration, proxy)
            source = migration.wait().source
        proxy.verdicts()
        proxy.stop()
        log = migration.destination.log
        qemu = {
            "versions": {
                side: "{major}.{minor}.{micro}".format(**version) for side, version in versions.items()
            },
            "arch": failure.arch,
            "guest": {key: value for key, value in failure.guest.items() if key != "files"},
            "source": source,
        }
    _keep_capture(proxy, sample)
    (sample / "qemu.json").write_text(json.dumps(qemu, indent=1) + "\n")
    lines = [line for line in log.splitlines() if ": warning: " not in line]
    (sample / "destination.log").write_text("".join(f"{line}\n" for line in lines))
    return (proxy.folder / "log").read_bytes()


def _own(work: Path, folder: Path, failure: Failure) -> None:
    """What the destination would send itself: its command line, its guest, and nothing that happens."""
    guest = dict(failure.guest)
    guest.pop("source_args", None)
    guest["args"] = f"{guest.get('args', '')} {guest.pop('destination_args', '')}"
    with (
        Migration(failure.destination, arch=failure.arch, **guest) as migration,
        Proxy(work / "own", migration.listen(), "--descriptions", "none") as proxy,
    ):
        time.sleep(failure.settle)
        result = migration.run(f"tcp:{proxy.where}")
        if result.status != "completed":
            raise RuntimeError(f"the destination's own: {result.status}: {result.source}")
        proxy.verdicts()
        proxy.stop()
    _keep_capture(proxy, folder)


def _keep_capture(proxy: Proxy, folder: Path) -> None:
    for path in sorted(proxy.capture().iterdir()):
        keep(folder, path.name, path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", nargs="*", choices=[*FAILURES, []], help="which samples (all)", metavar="NAME"
    )
    parser.add_argument("--golden", action="store_true", help="only decode again")
    given = parser.parse_args()
    failed = 0
    for name in given.name or FAILURES:
        failure = FAILURES[name]
        reason = missing(failure.source, failure.arch) or missing(failure.destination, failure.arch)
        if reason and not given.golden:
            print(f"{name}: left as it is: {reason}", file=sys.stderr)
            failed = 1
            continue
        if given.golden:
            decode(f"{FOLDER}/{name}")
        else:
            make(name, failure)
        size = sum(path.stat().st_size for path in (HERE / FOLDER / name).rglob("*") if path.is_file())
        print(f"{name}: {size >> 10} KiB", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
