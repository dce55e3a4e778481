"""All cases, and how large they are."""

from __future__ import annotations

import dataclasses
import pathlib

from . import converge, copy_loop, files, latency, ready
from .measure import Case
from .ours import Blkmirror

MIB, GIB = 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True)
class Settings:
    loop_size: int
    dense_size: int
    sparse_data: int
    sparse_length: int
    latency_data: int
    converge: converge.Conditions
    ready_size: int
    ready_s: float

    @classmethod
    def full(cls, dense_size: int) -> Settings:
        conditions = converge.Conditions(size=256 * MIB, limit_s=20, shares=(1 / 16, 0.5, 0.7, 0.8))
        return cls(loop_size=16 * GIB, dense_size=dense_size, sparse_data=GIB, sparse_length=64 * GIB, latency_data=GIB,
                   converge=conditions, ready_size=GIB, ready_s=5)

    @classmethod
    def quick(cls) -> Settings:
        conditions = converge.Conditions(size=16 * MIB, limit_s=2, shares=(1 / 16, 0.7))
        return cls(loop_size=GIB, dense_size=16 * MIB, sparse_data=4 * MIB, sparse_length=256 * MIB, latency_data=16 * MIB,
                   converge=conditions, ready_size=64 * MIB, ready_s=0.5)


def cases(ours: Blkmirror, settings: Settings, disk: pathlib.Path, tmpfs: pathlib.Path) -> list[Case]:
    return [
        copy_loop.case(ours, settings.loop_size),
        files.dense(ours, tmpfs, "tmpfs", settings.dense_size),
        files.dense(ours, disk, "disk", settings.dense_size),
        files.sparse(ours, tmpfs, "tmpfs", settings.sparse_data, settings.sparse_length),
        latency.case(ours, settings.latency_data),
        converge.case(ours, "background", settings.converge),
        converge.case(ours, "write-blocking", settings.converge),
        ready.case(ours, tmpfs, "tmpfs", settings.ready_size, settings.ready_s),
        ready.case(ours, disk, "disk", settings.ready_size, settings.ready_s),
    ]
