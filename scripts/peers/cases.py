"""All cases, and how large they are."""

from __future__ import annotations

import dataclasses
import pathlib

from . import copy_loop, files
from .measure import Case
from .ours import Blkmirror

MIB, GIB = 1 << 20, 1 << 30


@dataclasses.dataclass(frozen=True)
class Settings:
    loop_size: int
    dense_size: int
    sparse_data: int
    sparse_length: int

    @classmethod
    def full(cls, dense_size: int) -> Settings:
        return cls(loop_size=32 * GIB, dense_size=dense_size, sparse_data=GIB, sparse_length=64 * GIB)

    @classmethod
    def quick(cls) -> Settings:
        return cls(loop_size=GIB, dense_size=16 * MIB, sparse_data=4 * MIB, sparse_length=256 * MIB)


def cases(ours: Blkmirror, settings: Settings, disk: pathlib.Path, tmpfs: pathlib.Path) -> list[Case]:
    return [
        copy_loop.case(ours, settings.loop_size),
        files.dense(ours, tmpfs, "tmpfs", settings.dense_size),
        files.dense(ours, disk, "disk", settings.dense_size),
        files.sparse(ours, tmpfs, "tmpfs", settings.sparse_data, settings.sparse_length),
    ]
