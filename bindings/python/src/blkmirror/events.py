"""What happens to a job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Optional, Union

from ._library import Library
from .errors import MirrorError

__all__ = [
    "Action",
    "CancelledEvent",
    "CompletedEvent",
    "ErrorEvent",
    "Event",
    "Operation",
    "PendingEvent",
    "ReadyEvent",
    "Side",
    "Status",
    "StatusEvent",
]


class Status(IntEnum):
    """Where a job is in its life."""

    CREATED = 1
    """Made, not started."""
    RUNNING = 2
    """Copying."""
    PAUSED = 3
    """Paused before it was ready."""
    READY = 4
    """Source and target are equal but for what is written now."""
    STANDBY = 5
    """Paused after it was ready."""
    WAITING = 6
    """Done with its work."""
    PENDING = 7
    """Waits for ``finalize``; guest requests wait too."""
    ABORTING = 8
    """Ending without success."""
    CONCLUDED = 9
    """Over; waits for ``dismiss``."""
    NULL = 10
    """Over and dismissed."""


class Operation(IntEnum):
    """Kinds of requests."""

    READ = 1
    WRITE = 2
    ZERO = 3
    DISCARD = 4
    FLUSH = 5
    EXTENTS = 6
    TRUNCATE = 7


class Side(IntEnum):
    """Which device."""

    SOURCE = 1
    TARGET = 2


class Action(IntEnum):
    """What was done about an error."""

    REPORT = 1
    """The job ends with it."""
    IGNORE = 2
    """It will be tried again."""
    STOP = 3
    """The job is paused."""


@dataclass(frozen=True)
class StatusEvent:
    """The job is in another state."""

    status: Status


@dataclass(frozen=True)
class ReadyEvent:
    """Source and target are equal for the first time."""


@dataclass(frozen=True)
class PendingEvent:
    """The job waits for ``finalize``."""


@dataclass(frozen=True)
class ErrorEvent:
    """A request failed: what was asked for, of which device, where (in bytes), how, and what is done about it."""

    operation: Operation
    side: Side
    action: Action
    offset: int
    length: int
    errno: int

    def __str__(self) -> str:
        return "%s of the %s at offset %d length %d failed: %s (%s)" % (
            self.operation.name.lower(),
            self.side.name.lower(),
            self.offset,
            self.length,
            os.strerror(self.errno),
            self.action.name.lower(),
        )


@dataclass(frozen=True)
class CompletedEvent:
    """The job is over, well if ``errno`` is 0."""

    errno: int

    @property
    def error(self) -> Optional[MirrorError]:
        """The failure, or ``None``."""
        return MirrorError(self.errno, os.strerror(self.errno)) if self.errno else None


@dataclass(frozen=True)
class CancelledEvent:
    """The job was cancelled and is over."""


Event = Union[StatusEvent, ReadyEvent, PendingEvent, ErrorEvent, CompletedEvent, CancelledEvent]


def read_event(lib: Library, job: int) -> Optional[Event]:
    """The oldest event of the job with this handle that was not read."""
    with lib.new(lib.abi.Event) as told:
        if lib.check(lib.mirror_job_next_event(job, told.address)) == 0:
            return None
        return _event(told.value)


def _event(told: Any) -> Event:
    if told.type == 1:
        return StatusEvent(Status(told.status))
    if told.type == 2:
        return ReadyEvent()
    if told.type == 3:
        return PendingEvent()
    if told.type == 4:
        return ErrorEvent(
            operation=Operation(told.operation),
            side=Side(told.side),
            action=Action(told.action),
            offset=told.offset,
            length=told.length,
            errno=-told.result,
        )
    if told.type == 5:
        return CompletedEvent(-told.result)
    return CancelledEvent()
