"""A target that takes 10 ms for each request, in real time: what a mirror keeps in flight decides how fast it is."""

from __future__ import annotations

from . import qemu
from .measure import Bound, Case, Chart, Contestant, Sample, Target
from .ours import Blkmirror, figures
from .programs import size_text

CHUNK = 64 << 10
LATENCY_MS = 10

OURS = "blkmirror, as many as the link takes"
QEMU = "QEMU mirror, 16 in flight"
FIGURE = "fragmented_mb_per_s"


def case(ours: Blkmirror, data: int) -> Case:
    def own() -> Sample:
        options = ["--real", "--latency", str(LATENCY_MS), "--in-flight", "0", "--data", str(data)]
        return figures(ours.row("latency", *options), FIGURE)

    what = f"{size_text(data)} in 64 KiB pieces, every second dirty, to a target with {LATENCY_MS} ms latency"
    return Case(
        name="latency",
        title=what,
        contestants=[Contestant(OURS, own, ours=True), Contestant(QEMU, lambda: peer(data // CHUNK), qemu.NEEDS_GUEST)],
        charts=[Chart(FIGURE, "MB/s")],
        targets=[Target(f"{what}: MB/s", FIGURE, OURS, Bound("ratio", ">=", 10), "higher", (QEMU,))],
    )


def peer(chunks: int) -> Sample:
    size = 2 * CHUNK * chunks
    with qemu.daemon() as running:
        running.add(*qemu.null_with_data("source", size), *qemu.null("target", size, LATENCY_MS * 1_000_000))
        cost = qemu.copy_every_second(running, CHUNK, chunks)
        return {FIGURE: cost["chunks"] * CHUNK / cost["seconds"] / 1e6}
