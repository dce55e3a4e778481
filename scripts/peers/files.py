"""A file copied to a file by ours, by QEMU's mirror and by copy tools, all on the same two files.

The target's blocks or pages exist before, where the data is dense: a fresh one measures the file system's allocation and
little else. Every contestant's first copy is compared with the source.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence

from . import programs, qemu
from .measure import Bound, Case, Chart, Contestant, Failed, Sample, Target
from .ours import Blkmirror
from .programs import size_text

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PIECE = 64 * KIB
BLOCK = 4 * MIB
SPOT = 4 * KIB

OURS_DIRECT = "blkmirror, io_uring, direct"
OURS_CACHED = "blkmirror, cached"
OURS_SHORT = "blkmirror, the same over an eighth"
QEMU_KINDS = {
    "QEMU mirror, io_uring, direct": ("io_uring", True),
    "QEMU mirror, native, direct": ("native", True),
    "QEMU mirror, threads, cached": ("threads", False),
}
CONVERT = "qemu-img convert -W -m 16"
CONVERT_ZERO = "qemu-img convert --target-is-zero"
NBDCOPY_LOCAL = "nbdcopy, local files"
NBDCOPY_NBDKIT = "nbdcopy, through two nbdkit"
DD = "dd bs=1M, direct"
CP = "cp --sparse=auto"


class Pair:
    """The two files, in a folder of their own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        self.target = folder / "target"
        self.verified: set[str] = set()

    def remove(self) -> None:
        for path in (self.source, self.target):
            path.unlink(missing_ok=True)


def fill(path: pathlib.Path, size: int) -> None:
    """Random bytes from end to end, on the disk."""
    with path.open("wb") as file:
        for at in range(0, size, BLOCK):
            file.write(os.urandom(min(BLOCK, size - at)))
        file.flush()
        os.fsync(file.fileno())


def scatter(path: pathlib.Path, data: int, length: int) -> None:
    """Random pieces of 64 KiB wherever chance says, and holes between them."""
    chance = random.Random(1)
    with path.open("wb") as file:
        file.truncate(length)
        for piece in sorted(chance.sample(range(length // PIECE), data // PIECE)):
            file.seek(piece * PIECE)
            file.write(chance.randbytes(PIECE))
        file.flush()
        os.fsync(file.fileno())


def spoil(path: pathlib.Path) -> None:
    """Changes a spot in each MiB, so that a copy that isn't made is seen. Blocks stay as they are."""
    chance = random.Random(2)
    with path.open("r+b") as file:
        for at in range(0, path.stat().st_size - SPOT, MIB):
            file.seek(at + chance.randrange(0, min(MIB, path.stat().st_size - at) - SPOT))
            file.write(chance.randbytes(SPOT))


def forget(pair: Pair) -> None:
    programs.forget(pair.source)
    programs.forget(pair.target)


def data_in(path: pathlib.Path) -> Iterator[tuple[int, int]]:
    """Where a file has data: begin and end."""
    with path.open("rb") as file:
        end, length = 0, path.stat().st_size
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            yield begin, min(end, length)


def same(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Byte by byte, but what both have as holes is not read."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        for path in (one, other):
            for begin, end in data_in(path):
                for at in range(begin, end, BLOCK):
                    size = min(BLOCK, end - at)
                    if os.pread(first.fileno(), size, at) != os.pread(second.fileno(), size, at):
                        return False
    return True


def qemu_copy(pair: Pair, aio: str, direct: bool, unmap: bool) -> Sample:
    with qemu.daemon() as running:
        running.add(qemu.file("source", pair.source, aio, direct), qemu.file("target", pair.target, aio, direct, unmap))
        return qemu.copy_all(running)


def tools(pair: Pair, sparse: bool) -> list[Contestant]:
    """Those that are one command each. All of them flush in the end."""
    source, target = str(pair.source), str(pair.target)
    # -S 0: nbdcopy would look for zeroes in all that it reads.
    nbdcopy = ["nbdcopy", "--flush", *(["--destination-is-zero"] if sparse else ["-S", "0"])]
    convert = ["qemu-img", "convert", "-n", "-W", "-m", "16", "-t", "none", "-T", "none", "-f", "raw", "-O", "raw"]
    served = [word for path in (source, target) for word in ("[", "nbdkit", "--exit-with-parent", "file", path, "]")]
    commands = {
        CONVERT_ZERO if sparse else CONVERT: [*convert, *(["--target-is-zero"] if sparse else []), source, target],
        NBDCOPY_LOCAL: [*nbdcopy, source, target],
        NBDCOPY_NBDKIT: [*nbdcopy, "--", *served],
    }
    if sparse:
        commands[CP] = ["sh", "-c", 'cp --reflink=never --sparse=auto "$0" "$1" && sync "$1"', source, target]
    else:
        commands[DD] = ["dd", f"if={source}", f"of={target}", "bs=1M", "iflag=direct", "oflag=direct",
                        "conv=notrunc,fsync", "status=none"]
    needs: dict[str, tuple[str, ...]] = {NBDCOPY_NBDKIT: ("nbdcopy", "nbdkit"), CP: ("cp",)}
    return [command_line(name, command, needs.get(name, (command[0],))) for name, command in commands.items()]


def command_line(name: str, command: Sequence[str], needs: tuple[str, ...], ours: bool = False) -> Contestant:
    return Contestant(name, lambda: programs.timed(command), needs, ours)


def contestants(ours: Blkmirror, pair: Pair, sparse: bool) -> list[Contestant]:
    def own(name: str, *options: str) -> Contestant:
        zeroes = "--target-is-zero" if sparse else "--no-unmap"
        command = ["mirror", "--json", "--no-copy-offload", zeroes, *options, str(pair.source), str(pair.target)]
        return command_line(name, [str(ours.program), *command], (), ours=True)

    def peer(aio: str, direct: bool) -> Callable[[], Sample]:
        return lambda: qemu_copy(pair, aio, direct, unmap=sparse)

    return [
        own(OURS_DIRECT, "--direct"),
        own(OURS_CACHED),
        *(Contestant(name, peer(*kind), qemu.NEEDS) for name, kind in QEMU_KINDS.items()),
        *tools(pair, sparse),
    ]


def dense(ours: Blkmirror, folder: pathlib.Path, where: str, size: int) -> Case:
    pair = Pair(folder)

    def prepare() -> None:
        fill(pair.source, size)
        fill(pair.target, size)

    def checked(contestant: Contestant) -> Contestant:
        def run() -> Sample:
            first = contestant.name not in pair.verified
            if first:
                spoil(pair.target)
            forget(pair)
            cost = contestant.run()
            if first and not same(pair.source, pair.target):
                raise Failed("the copy differs from the source")
            pair.verified.add(contestant.name)
            return {"seconds": cost["seconds"], "mb_per_s": size / cost["seconds"] / 1e6,
                    "cpu_s_per_gib": cost["cpu_s"] * GIB / size}
        return Contestant(contestant.name, run, contestant.needs, contestant.ours)

    def targets() -> Iterator[Target]:
        what = f"{size_text(size)}, {where}: "
        peers = tuple(QEMU_KINDS)
        yield Target(what + "seconds, against QEMU's best", "seconds", OURS_DIRECT, Bound("ratio", "<=", 1), peers=peers)
        for name in (CONVERT, NBDCOPY_LOCAL, NBDCOPY_NBDKIT, DD):
            yield Target(what + f"seconds, against {name}", "seconds", OURS_DIRECT, Bound("ratio", "<=", 1), peers=(name,))
        yield Target(what + "CPU s per GiB, against QEMU's least", "cpu_s_per_gib", OURS_DIRECT, Bound("ratio", "<=", 1),
                     peers=peers)

    return Case(
        name=f"files-{where}",
        title=f"{size_text(size)} of random data from file to file, {where}, target preallocated",
        contestants=[checked(contestant) for contestant in contestants(ours, pair, sparse=False)],
        charts=[Chart("seconds", "seconds"), Chart("cpu_s_per_gib", "CPU s per GiB"), Chart("mb_per_s", "MB/s", drawn=False)],
        targets=list(targets()),
        before=prepare,
        after=pair.remove,
    )


def sparse(ours: Blkmirror, folder: pathlib.Path, where: str, data: int, length: int) -> Case:
    """A thin file stays thin, and takes time by its data. The target is a new hole each time, and said to be zero."""
    pair, short = Pair(folder), Pair(folder / "short")

    def prepare() -> None:
        short.folder.mkdir()
        scatter(pair.source, data, length)
        scatter(short.source, data, length // 8)

    def clean() -> None:
        pair.remove()
        short.remove()
        short.folder.rmdir()

    def checked(contestant: Contestant, files: Pair) -> Contestant:
        def run() -> Sample:
            files.target.unlink(missing_ok=True)
            with files.target.open("wb") as file:
                file.truncate(files.source.stat().st_size)
            forget(files)
            cost = contestant.run()
            if contestant.name not in pair.verified and not same(files.source, files.target):
                raise Failed("the copy differs from the source")
            pair.verified.add(contestant.name)
            allocated = [path.stat().st_blocks * 512 for path in (files.target, files.source)]
            return {"seconds": cost["seconds"], "cpu_s": cost["cpu_s"], "allocated_x": allocated[0] / allocated[1]}
        return Contestant(contestant.name, run, contestant.needs, contestant.ours)

    own_short = dataclasses.replace(contestants(ours, short, sparse=True)[0], name=OURS_SHORT)
    title = f"{size_text(data)} of data in 64 KiB pieces over {size_text(length)}, {where}"
    peers = (*QEMU_KINDS, CONVERT_ZERO, NBDCOPY_LOCAL, NBDCOPY_NBDKIT, CP)
    return Case(
        name=f"sparse-{where}",
        title=title,
        contestants=[*(checked(contestant, pair) for contestant in contestants(ours, pair, sparse=True)),
                     checked(own_short, short)],
        charts=[Chart("seconds", "seconds"), Chart("cpu_s", "CPU s", drawn=False),
                Chart("allocated_x", "allocated, target / source", drawn=False)],
        targets=[
            Target(f"{title}: allocated on the target, by the source's", "allocated_x", OURS_DIRECT,
                   Bound("figure", "<=", 1.01), peers=peers),
            Target(f"{title}: seconds, against the same data over an eighth of the length", "seconds", OURS_DIRECT,
                   Bound("ratio", "<=", 1.25), peers=(OURS_SHORT,)),
            Target(f"{title}: seconds, against the best peer", "seconds", OURS_DIRECT, Bound("ratio", "<=", 1), peers=peers),
        ],
        before=prepare,
        after=clean,
    )
