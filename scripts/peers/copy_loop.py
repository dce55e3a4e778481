"""The copy loop by itself: both ends do nothing, so processor time is the mirror's own."""

from __future__ import annotations

from . import qemu
from .measure import Bound, Case, Chart, Contestant, Sample, Target
from .ours import Blkmirror, figures

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 64 * KIB
SHARE = 1 / 8

OURS_64K = "blkmirror, contiguous, 64 KiB ops"
OURS_1M = "blkmirror, contiguous, 1 MiB ops"
OURS_SECOND = "blkmirror, every second 64 KiB"
QEMU_1M = "QEMU mirror, contiguous, 1 MiB ops"
QEMU_SECOND = "QEMU mirror, every second 64 KiB"


def case(ours: Blkmirror, size: int) -> Case:
    """`size` is what is copied at most; in large pieces more goes by in no time."""
    large = 4 * size

    def our_loop(pattern: str, *more: str) -> Sample:
        length = large if "--max-io" in more else size
        arguments = ["--pattern", pattern, "--in-flight", "16", "--rounds", "1", "--size", str(length)]
        return figures(ours.row("copy-loop", *arguments, *more), "cpu_ns_per_op", "ops_per_s")

    def contestant(name: str, pattern: str, *more: str) -> Contestant:
        return Contestant(name, lambda: our_loop(pattern, *more), ours=True)

    return Case(
        name="copy-loop",
        title="Copy loop, null to null, 16 in flight",
        contestants=[
            contestant(OURS_64K, "contiguous"),
            contestant(OURS_1M, "contiguous", "--max-io", "1M"),
            Contestant(QEMU_1M, lambda: qemu_contiguous(large), qemu.NEEDS),
            contestant(OURS_SECOND, "every-second"),
            Contestant(QEMU_SECOND, lambda: qemu_every_second(size), qemu.NEEDS_GUEST),
        ],
        charts=[Chart("cpu_ns_per_op", "CPU ns per op"), Chart("ops_per_s", "ops per s", drawn=False)],
        targets=[
            Target("copy loop, contiguous, 64 KiB ops: CPU ns per op", "cpu_ns_per_op", OURS_64K,
                   Bound("figure", "<=", 100)),
            Target("copy loop, every second 64 KiB: CPU ns per op", "cpu_ns_per_op", OURS_SECOND,
                   Bound("figure", "<=", 150)),
            Target("copy loop, contiguous, 1 MiB ops, against QEMU: CPU ns per op", "cpu_ns_per_op", OURS_1M,
                   Bound("ratio", "<=", SHARE), peers=(QEMU_1M,)),
        ],
    )


def per_op(cost: Sample, ops: float) -> Sample:
    return {"cpu_ns_per_op": cost["cpu_s"] * 1e9 / ops, "ops_per_s": ops / cost["seconds"]}


def qemu_contiguous(size: int) -> Sample:
    with qemu.daemon() as running:
        running.add(*qemu.null_with_data("source", size), *qemu.null("target", size))
        return per_op(qemu.copy_all(running, granularity=CHUNK), size / MIB)


def qemu_every_second(size: int) -> Sample:
    with qemu.daemon() as running:
        running.add(*qemu.null_with_data("source", size), *qemu.null("target", size))
        cost = qemu.copy_every_second(running, CHUNK, size // (2 * CHUNK))
        return per_op(cost, cost["chunks"])
