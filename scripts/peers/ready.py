"""What a job that is ready takes from a guest on the same processor, which writes as fast as it can.

Each run measures the guest without a job and then beside one, so the shares are of one run. Ours: the guest is a thread of the
same process, at a file device. QEMU: fio is the guest, over a socket. All threads are confined to one processor.
"""

from __future__ import annotations

import os
import pathlib

from . import qemu
from .files import Pair, fill
from .measure import Bound, Case, Chart, Contestant, Failed, Sample, Target
from .ours import Blkmirror, figures

OURS = "blkmirror, io_uring, direct"
QEMU = "QEMU mirror, io_uring, direct"
DEPTH = 32
WRITE = 4096


def case(ours: Blkmirror, folder: pathlib.Path, where: str, size: int, seconds: float) -> Case:
    pair = Pair(folder)
    processor = max(os.sched_getaffinity(0))

    def prepare() -> None:
        fill(pair.source, size)
        fill(pair.target, size)

    def own() -> Sample:
        options = ["guest-ready", "--dir", str(folder), "--direct", "--depth", str(DEPTH), "--write", str(WRITE),
                   "--size", str(size), "--seconds", str(seconds), "--rounds", "1"]
        without, beside = ours.on(processor).bench(*options)
        return {**figures(beside, "iops", "p99_us", "iops_share", "p99_x"), "iops_alone": float(without["iops"] or 0)}

    return Case(
        name=f"ready-{where}",
        title=f"A guest's random 4 KiB writes, {DEPTH} at a time, on the processor of a job that is ready, {where}",
        contestants=[
            Contestant(OURS, own, ("taskset",), ours=True),
            Contestant(QEMU, lambda: peer(pair, size, seconds, processor), (*qemu.NEEDS_GUEST, "taskset")),
        ],
        charts=[
            Chart("iops_share", "IOPS beside the job, of those without"),
            Chart("p99_x", "p99 beside the job, by that without"),
            Chart("iops", "IOPS beside the job", drawn=False),
            Chart("iops_alone", "IOPS without", drawn=False),
            Chart("p99_us", "p99 beside the job, µs", drawn=False),
        ],
        targets=[
            Target(f"guest beside a job that is ready, {where}: share of its IOPS", "iops_share", OURS,
                   Bound("figure", ">=", 0.8), "higher", (QEMU,)),
            Target(f"guest beside a job that is ready, {where}: p99, by that without a job", "p99_x", OURS,
                   Bound("figure", "<=", 1.3), "lower", (QEMU,)),
        ],
        before=prepare,
        after=pair.remove,
    )


def peer(pair: Pair, size: int, seconds: float, processor: int) -> Sample:
    with qemu.daemon(cpu=processor) as running:
        running.add(qemu.file("source", pair.source, "io_uring", True), qemu.file("target", pair.target, "io_uring", True))
        address = running.export("source")

        def guest() -> Sample:
            options = ["--rw=randwrite", f"--bs={WRITE}", f"--iodepth={DEPTH}", f"--size={size}", "--time_based=1",
                       f"--runtime={seconds:g}"]
            return qemu.guest_figures(qemu.fio(address, options, processor))

        alone = guest()
        running.mirror(sync="none")
        if running.wait_status({"ready"}, qemu.START_S) is None:
            raise Failed("the mirror was not ready in time")
        beside = guest()
        running.command("job-cancel", {"id": "job"})
        running.wait_done(qemu.MIRROR_S)
    return {"iops": beside["iops"], "p99_us": beside["p99_ms"] * 1e3, "iops_share": beside["iops"] / alone["iops"],
            "p99_x": beside["p99_ms"] / alone["p99_ms"], "iops_alone": alone["iops"]}
