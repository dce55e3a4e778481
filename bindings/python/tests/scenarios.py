"""Scenarios: what devices, a job and its guests do, step by step, drawn from seeds and kept in ``scenarios.json``.

The file is for every host of the library: it needs no generator, and who plays it twice sees the same twice. A scenario has

``name``, ``length`` (bytes of the disk), ``unit`` (guests' requests are multiples of it)
``source``, ``target``
    devices: ``length``; ``alignment``; ``max_transfer``; ``zero_alignment``; ``flags`` (of ``DeviceFlags``); from some scenario
    on ``memory_alignment``, which each buffer must have, and ``max_iov``
    ``supports``: the callbacks besides read and write
    ``answers``: ``inline``; ``early``: completed before the callback returns; ``held``: pending until a step completes it;
    ``polled``: until the device is polled
    ``depth``: how many it takes before it answers AGAIN, 0 for any number
    ``repeats``: after so many completions one is told a second time, 0 for never; it must be refused
    ``fill``: [offset, length, byte] that it holds at first, in blocks of 4096 that are then allocated; so ``base`` of the source's
    ``faults``: [kind, n, errno, torn]: the n-th request of this kind fails, counted from 1; torn: when half of it is done
``shape``
    ``full``; ``none``: the target holds a copy at first; ``top``: so it does of the source's base, which is not allocated in the
    source; ``overlay``: the target gets that base as its backing in the prepare hook, ``over-source``: it gets the source;
    ``commit``: the target is the base
``job``
    options of ``Job``; ``replaces``: another disk of that length is switched instead
``steps``
    ["write", offset, length, stamp, fua], ["zero", offset, length, may_unmap], ["discard", offset, length], ["flush"],
    ["read", offset, length]: a guest's request. A change that overlaps one under way is left out.
    ["host-write", offset, length, stamp]: the host's own, announced with begin and end. ["mark", offset, length]
    ["source" or "target", n, order]: completes n held requests, "first" or "last" come first
    ["poll", n]: n times; ["pass", ns]: so much time passes; ["wake"]: time passes until the job wants to be polled
    ["start"], ["pause"], ["resume"], ["complete"], ["finalize"], ["dismiss"], ["cancel", force], ["speed", n],
    ["change", copy_mode], ["drain"], ["undrain"], ["query"], ["free"], ["job"]: another one with these options, if there is none
    and everything is copied
``end``
    what a host does at last that wants the job over: ``complete``, ``cancel`` or ``force``

``python3 scenarios.py`` writes the file anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Sequence, TypeVar

FILE = Path(__file__).resolve().parent / "scenarios.json"
COUNT = 300
# Of those up to here no device copies without buffers, and none is particular about its buffers.
PLAIN = 240
T = TypeVar("T")

CHEAP_ZERO, READS_ZERO, DISCARD_ZEROES, UNATTACHED_BACKING = 2, 4, 8, 16
EIO, EXDEV, ENOSPC, ENOSYS, EPROTO, EOPNOTSUPP = 5, 18, 28, 38, 71, 95


class Random:
    """SplitMix64: the same numbers in any language and version."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def draw(self) -> int:
        mask = 2**64 - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        mixed = self.state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return mixed ^ (mixed >> 31)

    def within(self, low: int, high: int) -> int:
        """From the first to below the second."""
        return low + self.draw() % (high - low)

    def one_in(self, count: int) -> bool:
        return self.draw() % count == 0

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.draw() % len(choices)]


Scenario = Dict[str, Any]
Step = List[Any]


def scenario(number: int) -> Scenario:
    """The scenario of this number."""
    random = Random(number)
    shape = random.pick(["full", "full", "full", "full", "none", "top", "overlay", "over-source", "commit"])
    alignment = random.pick([1, 1, 512, 4096])
    unit = max(512, alignment)
    length = unit * random.pick([1, 8, 16, 16, 24, 31]) * max(1, 4096 // unit)
    if alignment == 1 and random.one_in(4):
        length += 100
    source = device(random, length, alignment)
    target = device(random, length, alignment)
    source["fill"] = fill(random, length, unit, 16)
    if shape == "commit":
        source["supports"] = sorted({*source["supports"], "extents"})
        target["length"] = length if random.one_in(2) else length // 2 // unit * unit
        target["supports"] = sorted({*target["supports"], "truncate"})
    if shape in ("top", "overlay"):
        source["supports"] = sorted({*source["supports"], "extents"})
    if shape in ("commit", "top"):
        target["fill"] = fill(random, target["length"], unit, 4)
    elif shape == "overlay":
        # The base, which the target doesn't hold.
        source["base"] = fill(random, length, unit, 4)
    if shape in ("overlay", "over-source"):
        target["flags"] |= UNATTACHED_BACKING
        # It would show a backing that isn't the source's.
        target["supports"] = [kind for kind in target["supports"] if kind != "discard"]
    elif shape == "full" and random.one_in(3):
        target["flags"] |= READS_ZERO
    elif shape == "full":
        target["fill"] = fill(random, length, unit, 4)
    drawn = {
        "name": "%s-%03d" % (shape, number),
        "length": length,
        "unit": unit,
        "shape": shape,
        "source": source,
        "target": target,
        "job": job(random, shape, alignment),
        "steps": steps(random, length, unit),
        "end": random.pick(["complete", "complete", "complete", "cancel", "force"]),
    }
    if number > PLAIN:
        add_offload(random, drawn)
    return drawn


def add_offload(random: Random, drawn: Scenario) -> None:
    """Devices that copy without buffers, mostly, and that want their buffers aligned, or few."""
    source, target = drawn["source"], drawn["target"]
    for side in (source, target):
        side["memory_alignment"] = random.pick([1, 1, 512, 4096])
        side["max_iov"] = random.pick([0, 0, 1, 3])
        if not random.one_in(10):
            side["supports"] = sorted({*side["supports"], "copy"})
    if random.one_in(2):
        errno = random.pick([EIO, EIO, EIO, ENOSPC, EPROTO, EXDEV, ENOSYS, EOPNOTSUPP])
        target["faults"].append(["copy", random.within(1, 4), errno, random.one_in(3)])
    drawn["job"]["copy_offload"] = not random.one_in(8)


def device(random: Random, length: int, alignment: int) -> Dict[str, Any]:
    kinds = ["zero", "discard", "flush", "extents"]
    faults = []
    if random.one_in(2):
        for _ in range(random.within(1, 4)):
            kind = random.pick(["read", "write", "write", "zero", "zero", "flush", "discard", "extents"])
            # Of some kinds there are few.
            first = random.within(1, 9 if kind in ("read", "write") else 3)
            faults.append([kind, first, random.pick([EIO, EIO, ENOSPC, ENOSPC, EPROTO]), random.one_in(3)])
    return {
        "length": length,
        "alignment": alignment,
        "max_transfer": random.pick([0, 0, 4096, 8192, 65536]),
        "zero_alignment": random.pick([0, 0, 0, 4096, 16384]),
        "flags": random.pick([0, CHEAP_ZERO]) | random.pick([0, DISCARD_ZEROES]),
        "supports": [kind for kind in kinds if not random.one_in(3)],
        "answers": random.pick(["inline", "early", "held", "held", "held", "polled"]),
        "depth": random.pick([0, 0, 1, 2, 5]),
        "repeats": random.pick([0, 0, 0, 5]),
        "fill": [],
        "faults": faults,
    }


def fill(random: Random, length: int, unit: int, most: int) -> List[List[int]]:
    """What a device holds at first, of which some is zeroes that were written."""
    filled: List[List[int]] = []
    for _ in range(random.within(0, most)):
        offset, size = place(random, length, unit, 16)
        if size:
            filled.append([offset, size, random.pick([0, random.within(1, 256)])])
    return filled


def place(random: Random, length: int, unit: int, most: int) -> "tuple[int, int]":
    """A range of a few units, often where others are."""
    units = length // unit
    if units == 0:
        return 0, 0
    first = random.within(0, units if random.one_in(2) else min(units, 6))
    return first * unit, min(random.within(1, most), units - first) * unit


def job(random: Random, shape: str, alignment: int) -> Dict[str, Any]:
    granularity = max(random.pick([512, 1024, 4096, 4096, 16384, 65536]), alignment)
    options: Dict[str, Any] = {
        "granularity": granularity,
        "buf_size": granularity * random.within(1, 20),
        "max_in_flight": random.within(0, 9),
        "max_io": granularity * random.pick([1, 1, 2, 4, 8]),
        "speed": random.pick([0, 0, 0, 0, 1, 1000, 100_000]),
        "on_source_error": random.within(0, 5),
        "on_target_error": random.within(0, 5),
        "pass_interval_ns": random.pick([0, 50_000_000]),
        "guest_first_io": random.pick([0, 512, 4096]),
        "guest_first_in_flight": random.pick([0, 1, 2]),
        "unmap": not random.one_in(3),
        "detect_zeroes": not random.one_in(4),
        "auto_finalize": not random.one_in(3),
        "auto_dismiss": random.one_in(2),
        "auto_complete": random.one_in(6),
        "inline": random.one_in(3),
    }
    if shape in ("full", "none", "top") and random.one_in(8):
        options["replaces"] = True
    if shape != "commit":
        options["copy_mode"] = random.within(0, 2)
    if random.one_in(20):
        # One that makes no sense: the words are to be the same too.
        options.update(random.pick([{"granularity": 3000}, {"max_io": 7}, {"max_in_flight": 5000}, {"id": "1st"}]))
    return options


def steps(random: Random, length: int, unit: int) -> List[Step]:
    drawn: List[Step] = [["start"]] if not random.one_in(8) else []
    host = random.one_in(4)
    for _ in range(random.within(16, 48)):
        drawn.append(step(random, length, unit, host))
        if drawn[-1] == ["free"] and random.one_in(2):
            drawn += [["target", 9, "first"], ["job"], ["start"]]
    if random.one_in(4):
        drawn += last_moments(random, length, unit, host)
    return drawn


def last_moments(random: Random, length: int, unit: int, host: bool) -> List[Step]:
    """The job is led to its end, if it can be, with guests in the way."""
    busy: List[Step] = [["source", 99, "first"], ["target", 99, "first"], ["poll", 4], ["wake"]]
    drawn: List[Step] = [["resume"], ["undrain"], ["speed", 0], *busy, *busy, *busy, ["complete"], *busy]
    drawn += [guest(random, length, unit, host) for _ in range(3)]
    return [*drawn, ["poll", 2], ["query"], ["finalize"], *busy]


def step(random: Random, length: int, unit: int, host: bool) -> Step:
    what = random.within(0, 40)
    if what < 12:
        return ["poll", random.within(1, 4)]
    if what < 20:
        return [random.pick(["source", "target"]), random.within(1, 6), random.pick(["first", "first", "last"])]
    if what < 23:
        return ["wake"] if random.one_in(2) else ["pass", random.pick([1000, 1_000_000, 60_000_000, 2_000_000_000])]
    if what < 33:
        return guest(random, length, unit, host)
    if what < 35:
        return ["query"]
    return verb(random)


def guest(random: Random, length: int, unit: int, host: bool) -> Step:
    offset, size = place(random, length, unit, 8)
    kind = random.within(0, 12)
    if kind < 6:
        stamp = random.within(1, 1 << 32)
        if host:
            return ["host-write", offset, size, stamp] if kind < 5 else ["mark", offset, size]
        return ["write", offset, size, stamp, random.one_in(4)]
    if kind < 8:
        return ["zero", offset, size, random.one_in(2)]
    if kind < 9:
        return ["discard", offset, size]
    return ["flush"] if kind < 10 else ["read", offset, size]


def verb(random: Random) -> Step:
    name = random.pick(["pause", "resume", "resume", "complete", "complete", "finalize", "finalize", "dismiss", "drain",
                        "undrain", "speed", "change", "start", "cancel"])
    if name == "speed":
        return [name, random.pick([0, 0, 1, 1000, 100_000, 2**64 - 1])]
    if name == "change":
        return [name, random.within(0, 2)]
    if name == "cancel":
        # Else no job would live to see anything.
        if not random.one_in(3):
            return ["resume"]
        return ["free"] if random.one_in(2) else [name, random.one_in(3)]
    return [name]


def text() -> str:
    """The file: one scenario in a line."""
    lines = [json.dumps(scenario(number), separators=(",", ":")) for number in range(1, COUNT + 1)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def load() -> List[Scenario]:
    """The scenarios of the file."""
    loaded: List[Scenario] = json.loads(FILE.read_text())
    return loaded


if __name__ == "__main__":
    FILE.write_text(text())
