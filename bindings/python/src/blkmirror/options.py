"""What a job can be asked to do."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["BackingMode", "CopyMode", "ErrorPolicy", "Kind", "PrepareInfo", "Sync"]


class Kind(IntEnum):
    """What a job is for."""

    MIRROR = 0
    """The target becomes an equal of the source."""
    COMMIT_ACTIVE = 1
    """The target is the base of the source's chain, into which what lies above is merged down."""


class Sync(IntEnum):
    """What is copied."""

    FULL = 0
    """Everything; for a commit the same as :attr:`TOP`."""
    TOP = 1
    """What is allocated above the base, as the source's ``extents`` tell it."""
    NONE = 2
    """What is written from now on."""


class CopyMode(IntEnum):
    """How guest writes reach the target."""

    BACKGROUND = 0
    """They are marked, and copied later."""
    WRITE_BLOCKING = 1
    """They are carried to the target before the guest sees them done."""


class ErrorPolicy(IntEnum):
    """What to do about a failed request."""

    REPORT = 0
    """The job ends with the error."""
    IGNORE = 1
    """It is tried again later."""
    STOP = 2
    """The job pauses itself until it is resumed."""
    ENOSPC = 3
    """Stop if the device is full, else report."""
    AUTO = 4
    """The same as :attr:`ENOSPC`."""


class BackingMode(IntEnum):
    """Which backing the target gets at the switch; it is handed to the ``prepare`` hook, which attaches it."""

    SOURCE_CHAIN = 0
    """What follows from ``sync``: FULL none, TOP the source's, NONE the source itself."""
    OPEN = 1
    """What the target's image names."""
    LEAVE = 2
    """Untouched."""


class PrepareInfo(NamedTuple):
    """What the prepare hook is told."""

    sync: Sync
    backing_mode: BackingMode
