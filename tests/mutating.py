"""Real streams with random errors, decoded under limits: `python -m tests.mutating SEEDS EVERY`, for a test.

It is a process of its own, so that the limits on memory and time are the kernel's.
"""

import random
import resource
import sys
from pathlib import Path

from tests import rawsamples
from tests.playing import Stream, play, verdict

RATES = (0, 0.0001, 0.001, 0.005, 0.02)  # 0: a single error
MEMORY = 256 << 20  # bytes beyond what the interpreter and the streams take
SECONDS = 100


def broken(stream: Stream, chance: random.Random) -> Stream:
    """The stream with errors: a byte anew, a bit turned, or one of the numbers that lengths are made of."""
    rate = chance.choice(RATES)
    spared = chance.choice((0, 0, 300, 1000))  # bytes at the beginning, where most errors end it all
    pieces = []
    for number, direction, data in stream.pieces:
        errors = max(1, int(len(data) * rate)) if rate or chance.random() < 1 / len(stream.pieces) else 0
        wrong = bytearray(data)
        for _ in range(errors if len(data) > spared else 0):
            at = chance.randrange(spared, len(data))
            wrong[at] = chance.choice((chance.randrange(256), data[at] ^ 1 << chance.randrange(8), 0, 255))
        pieces.append((number, direction, bytes(wrong)))
        spared = 0
    return Stream(tuple(pieces), stream.ends)


def main(seeds: int, every: int) -> None:
    """Print a line for each stream whose decoding found a bug of ours; of the samples one in `every`."""
    streams = {name: rawsamples.raw(name) for name in rawsamples.NAMES[::every]}
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    for seed in range(seeds):
        for name, stream in streams.items():
            events = play(broken(stream, random.Random(f"{name} {seed}")), fields=True)
            verdict(events)
            for event in events:
                if getattr(event, "code", "") == "decoder-bug":
                    print(f"{name}, seed {seed}: {event}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
