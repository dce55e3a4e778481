"""A guest that writes at random while its disk is copied over a link that is hardly faster than it, in real time.

Ours is driven in the process of `blkmirror bench converge --real`, over a simulated link; QEMU's daemon has a throttled null
device as its target, and fio is its guest, over a socket. fio counts a write's latency from when it is sent, ours from when it
was to be sent, which is never less.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator

from . import qemu
from .measure import Bound, Case, Chart, Contestant, Failed, Sample, Target
from .ours import Blkmirror, figures
from .programs import size_text

LINK = 105_000_000
WRITE = 4096
DEPTH = 32
FIO_START_S = 15


@dataclasses.dataclass(frozen=True)
class Conditions:
    size: int
    limit_s: int
    # What the guest wants, of the link.
    shares: tuple[float, ...]


QEMU_KINDS = {"QEMU mirror": 64 << 10, "QEMU mirror, 4 KiB chunks": 4 << 10}


def of_link(share: float) -> str:
    return f"T/{1 / share:.0f}" if share < 0.1 else f"{share:g} T"


def named(who: str, share: float) -> str:
    return f"{who}, guest {of_link(share)}"


def case(ours: Blkmirror, mode: str, conditions: Conditions) -> Case:
    def own(share: float) -> Callable[[], Sample]:
        options = ["--real", "--mode", mode, "--guest", str(share), "--size", str(conditions.size),
                   "--limit", str(conditions.limit_s), "--link", str(LINK)]
        return lambda: figures(ours.row("converge", *options), "ready_s", "guest_share", "p50_ms", "p99_ms")

    def theirs(share: float, granularity: int) -> Callable[[], Sample]:
        return lambda: peer(mode, share, granularity, conditions)

    def contestants() -> Iterator[Contestant]:
        for share in conditions.shares:
            yield Contestant(named("blkmirror", share), own(share), ours=True)
            for name, granularity in QEMU_KINDS.items():
                yield Contestant(named(name, share), theirs(share, granularity), qemu.NEEDS_GUEST)

    return Case(
        name=f"converge-{mode}",
        title=f"A guest's random writes while {size_text(conditions.size)} are copied over a link of T = {LINK // 1_000_000} MB/s, {mode}",
        contestants=list(contestants()),
        charts=[
            Chart("ready_s", "seconds until ready", drawn=mode == "background", none=f"not ready in {conditions.limit_s} s"),
            Chart("guest_share", "what the guest got of what it wanted", drawn=mode != "background"),
            Chart("p99_ms", "p99 of the guest's writes, ms", drawn=mode != "background"),
            Chart("p50_ms", "p50, ms", drawn=False),
        ],
        targets=list(targets(mode, conditions)),
        most_rounds=3,
    )


def targets(mode: str, conditions: Conditions) -> Iterator[Target]:
    for share in conditions.shares:
        ours = named("blkmirror", share)
        peers = tuple(named(name, share) for name in QEMU_KINDS)
        what = f"{mode}, guest writes {of_link(share)}"
        if mode == "background":
            yield Target(f"{what}: seconds until ready", "ready_s", ours, Bound("figure", "<=", conditions.limit_s), "lower", peers)
        elif share <= 0.7:
            yield Target(f"{what}: share that it gets", "guest_share", ours, Bound("figure", ">=", 0.9), "higher", peers)
            yield Target(f"{what}: p99 of its writes, ms", "p99_ms", ours, Bound("figure", "<=", 10), "lower", peers)


def peer(mode: str, share: float, granularity: int, conditions: Conditions) -> Sample:
    wanted = share * LINK
    throttle = f"throttle-group,id=link,x-bps-total={LINK}"
    with qemu.daemon("--object", throttle) as running:
        running.add(*qemu.null_with_data("source", conditions.size), *qemu.null("behind", conditions.size),
                    {"driver": "throttle", "node-name": "target", "throttle-group": "link", "file": "behind"})
        guest = qemu.fio_start(running.export("source"), [
            "--rw=randwrite", f"--bs={WRITE}", f"--iodepth={DEPTH}", f"--size={conditions.size}", f"--rate={wanted:.0f}",
            "--time_based=1", f"--runtime={conditions.limit_s + FIO_START_S}"])
        try:
            wait_until_writing(running)
            began = time.time()
            running.mirror(sync="full", copy_mode=mode, granularity=granularity)
            ready = running.wait_status({"ready"}, conditions.limit_s)
        finally:
            # It tells what it has measured until then.
            guest.send_signal(signal.SIGINT)
            told = qemu.collect(guest, interrupted=True)
    figures = qemu.guest_figures(told)
    sample = {"guest_share": figures["bytes_per_s"] / wanted, "p50_ms": figures["p50_ms"], "p99_ms": figures["p99_ms"]}
    return sample if ready is None else {"ready_s": ready - began, **sample}


def wait_until_writing(running: qemu.Daemon) -> None:
    """The daemon has nothing to do but the guest's writes: when it works, they have begun."""
    idle = running.cpu_s()
    deadline = time.monotonic() + FIO_START_S
    while running.cpu_s() - idle < 0.003:
        if time.monotonic() > deadline:
            raise Failed("fio has not begun to write")
        time.sleep(0.01)
