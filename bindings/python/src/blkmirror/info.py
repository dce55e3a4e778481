"""What can be known about a job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, Optional

from . import _abi
from ._library import Library
from .errors import MirrorError
from .events import Status
from .options import CopyMode, Kind

__all__ = ["Counter", "IoStatus", "JobInfo"]


class IoStatus(IntEnum):
    """Whether an error has stopped the job."""

    OK = 0
    FAILED = 1
    """A device failed."""
    NOSPACE = 2
    """The target is full."""


class Counter(NamedTuple):
    """Operations of one kind: how many were done, the bytes of those done well, how many failed."""

    ops: int
    bytes: int
    errors: int


@dataclass(frozen=True)
class JobInfo:
    """A snapshot of a job. Sizes are bytes, rates bytes per second."""

    id: str
    message: str
    """What the result says, for people: empty while the job runs and after success."""
    kind: Kind
    status: Status
    copy_mode: CopyMode
    io_status: IoStatus
    busy: bool
    """Something is in flight, or could be started."""
    paused: bool
    """A pause is asked for; ``status`` says when it has taken hold."""
    ready: bool
    """It has been ready."""
    actively_synced: bool
    """Every guest write is carried, and source and target are equal but for those under way."""
    result: int
    """How the job ended, or will: 0, or a negative errno."""
    speed: int
    """The rate limit, 0 for none."""
    done: int
    """Bytes copied. Never falls."""
    total: int
    """``done`` plus what is dirty or in flight."""
    dirty: int
    """Bytes that differ or may differ."""
    prepared: int
    """Bytes that were zeroed or looked at before the copy began."""
    in_flight_bytes: int
    in_flight_ops: int
    guests: int
    """Carried guest requests in flight or waiting."""
    passes: int
    """Passes over the dirty chunks that have begun."""
    reads: Counter
    writes: Counter
    zeroes: Counter
    discards: Counter
    flushes: Counter
    active: Counter
    """Guest writes, zeroes and discards that were carried to the target."""
    skipped_zeroes: int
    """Bytes of zeroes that were not sent because the target reads zero there."""
    guest_writes: int
    """Guest writes, zeroes and discards that ended while the job had its filter."""
    errors: int
    """Failures that were told."""
    events_dropped: int
    """Events that nobody read in time."""
    dirty_rate: int
    copy_rate: int
    eta_ns: Optional[int]
    """Nanoseconds until nothing is dirty at these rates; ``None`` if the guest is faster."""
    granularity: int
    bounce_copies: int
    """Copies of guest data that were made on the way."""
    copies: Counter
    """Copies that the target made by itself."""

    @property
    def error(self) -> Optional[MirrorError]:
        """Why the job ended, or will end, without success."""
        return MirrorError(-self.result, self.message) if self.result else None

    def check(self) -> "JobInfo":
        """Returns this, or raises :attr:`error`: ``job.run().check()``."""
        if self.error is not None:
            raise self.error
        return self


def read_info(lib: Library, job: int) -> JobInfo:
    """A snapshot of the job with this handle."""
    with lib.new(lib.abi.JobInfo) as told:
        lib.check(lib.mirror_job_query(job, told.address))
        return _info(told.value)


def _info(told: Any) -> JobInfo:
    def counter(of: Any) -> Counter:
        return Counter(of.ops, of.bytes, of.errors)

    return JobInfo(
        id=told.id.decode(),
        message=told.message.decode("utf-8", "replace"),
        kind=Kind(told.kind),
        status=Status(told.status),
        copy_mode=CopyMode(told.copy_mode),
        io_status=IoStatus(told.io_status),
        busy=told.busy,
        paused=told.paused,
        ready=told.ready,
        actively_synced=told.actively_synced,
        result=told.result,
        speed=told.speed,
        done=told.done,
        total=told.total,
        dirty=told.dirty,
        prepared=told.prepared,
        in_flight_bytes=told.in_flight_bytes,
        in_flight_ops=told.in_flight_ops,
        guests=told.guests,
        passes=told.passes,
        reads=counter(told.reads),
        writes=counter(told.writes),
        zeroes=counter(told.zeroes),
        discards=counter(told.discards),
        copies=counter(told.copies),
        flushes=counter(told.flushes),
        active=counter(told.active),
        skipped_zeroes=told.skipped_zeroes,
        guest_writes=told.guest_writes,
        errors=told.errors,
        events_dropped=told.events_dropped,
        dirty_rate=told.dirty_rate,
        copy_rate=told.copy_rate,
        eta_ns=None if told.eta_ns == _abi.NEVER else told.eta_ns,
        granularity=told.granularity,
        bounce_copies=told.bounce_copies,
    )
