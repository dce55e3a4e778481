"""Jobs: copying a filter's device to another, keeping the two equal, and switching over."""

from __future__ import annotations

import ctypes as c
import select
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Callable, Iterator, List, NamedTuple, Optional

from . import _ffi
from ._ffi import lib
from .device import BaseDevice, Device
from .errors import check, errno_of
from .filter import Filter

__all__ = [
    "Action",
    "BackingMode",
    "CopyMode",
    "Counter",
    "ErrorPolicy",
    "Event",
    "EventType",
    "Info",
    "IoStatus",
    "Job",
    "Kind",
    "Operation",
    "Poll",
    "PollState",
    "PrepareInfo",
    "Side",
    "Status",
    "Sync",
]


class Kind(IntEnum):
    """What a job is for."""

    MIRROR = 0
    COMMIT_ACTIVE = 1


class Sync(IntEnum):
    """What is copied."""

    FULL = 0
    TOP = 1
    NONE = 2


class CopyMode(IntEnum):
    """How guest writes reach the target."""

    BACKGROUND = 0
    WRITE_BLOCKING = 1


class ErrorPolicy(IntEnum):
    """What to do about a failed request."""

    REPORT = 0
    IGNORE = 1
    STOP = 2
    ENOSPC = 3
    AUTO = 4


class BackingMode(IntEnum):
    """Which backing the target gets at the switch."""

    SOURCE_CHAIN = 0
    OPEN = 1
    LEAVE = 2


class Status(IntEnum):
    """Where a job is in its life."""

    CREATED = 1
    RUNNING = 2
    PAUSED = 3
    READY = 4
    STANDBY = 5
    WAITING = 6
    PENDING = 7
    ABORTING = 8
    CONCLUDED = 9
    NULL = 10


class IoStatus(IntEnum):
    """Whether an error has stopped the job."""

    OK = 0
    FAILED = 1
    NOSPACE = 2


class EventType(IntEnum):
    """What happened."""

    STATUS = 1
    READY = 2
    PENDING = 3
    ERROR = 4
    COMPLETED = 5
    CANCELLED = 6


class Operation(IntEnum):
    """Kinds of requests; 0 where an event names none."""

    NONE = 0
    READ = 1
    WRITE = 2
    ZERO = 3
    DISCARD = 4
    FLUSH = 5
    EXTENTS = 6
    TRUNCATE = 7


class Side(IntEnum):
    """Which device."""

    NONE = 0
    SOURCE = 1
    TARGET = 2


class Action(IntEnum):
    """What was done about an error."""

    NONE = 0
    REPORT = 1
    IGNORE = 2
    STOP = 3


class PollState(IntEnum):
    """Whether a job wants to be polled again."""

    IDLE = 0
    BUSY = 1
    CONCLUDED = 2


class Poll(NamedTuple):
    """The answer to :meth:`Job.poll`: the state, and when to poll an idle job though nothing has happened."""

    state: PollState
    wake_at: Optional[int]


class Counter(NamedTuple):
    """Operations of one kind: how many, the bytes of those done well, how many failed."""

    ops: int
    bytes: int
    errors: int


class PrepareInfo(NamedTuple):
    """What the prepare hook is told."""

    sync: Sync
    backing_mode: BackingMode


@dataclass(frozen=True)
class Event:
    """Something that happened to a job; fields that its type doesn't name are 0."""

    type: EventType
    status: Optional[Status]
    result: int
    operation: Operation
    side: Side
    action: Action
    offset: int
    length: int


@dataclass(frozen=True)
class Info:
    """A snapshot of a job. Sizes are bytes, rates bytes per second; ``eta_ns`` is ``None`` for never."""

    id: str
    message: str
    kind: Kind
    status: Status
    copy_mode: CopyMode
    io_status: IoStatus
    busy: bool
    paused: bool
    ready: bool
    actively_synced: bool
    result: int
    speed: int
    done: int
    total: int
    dirty: int
    prepared: int
    in_flight_bytes: int
    in_flight_ops: int
    guests: int
    passes: int
    reads: Counter
    writes: Counter
    zeroes: Counter
    discards: Counter
    flushes: Counter
    active: Counter
    skipped_zeroes: int
    guest_writes: int
    errors: int
    events_dropped: int
    dirty_rate: int
    copy_rate: int
    eta_ns: Optional[int]
    granularity: int


class Job:
    """Copies ``filter``'s device to ``target``. Use it in a ``with`` statement, or close it.

    Options that are not given have the library's defaults; 0 stands for the default of a size or a number.
    ``wake`` is called, from any thread, when :meth:`poll` is worth calling. ``prepare`` is called before the filter is
    switched; an exception in it keeps the filter where it is, and is raised again from :meth:`poll`.
    """

    def __init__(
        self,
        filter: Filter,
        target: BaseDevice,
        *,
        id: Optional[str] = None,
        kind: Kind = Kind.MIRROR,
        sync: Sync = Sync.FULL,
        copy_mode: CopyMode = CopyMode.BACKGROUND,
        backing_mode: BackingMode = BackingMode.SOURCE_CHAIN,
        on_source_error: ErrorPolicy = ErrorPolicy.REPORT,
        on_target_error: ErrorPolicy = ErrorPolicy.REPORT,
        granularity: int = 0,
        buf_size: int = 0,
        max_in_flight: int = 0,
        max_io: int = 0,
        speed: int = 0,
        pass_interval_ns: Optional[int] = None,
        unmap: bool = True,
        target_is_zero: bool = False,
        detect_zeroes: bool = True,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
        auto_complete: bool = False,
        inline: bool = False,
        replaces: Optional[Filter] = None,
        wake: Optional[Callable[[], None]] = None,
        prepare: Optional[Callable[[PrepareInfo], None]] = None,
        devices: Iterator[Device] = iter(()),
    ) -> None:
        self._handle: Optional[int] = None
        self._raised: List[BaseException] = []
        self._devices = [device for device in (target, *devices) if isinstance(device, Device)]
        options = _ffi.JobOptions()
        check(lib.mirror_job_options_init(c.byref(options), c.sizeof(options)))
        if id is not None:
            options.id = id.encode()
        options.kind, options.sync, options.copy_mode = kind, sync, copy_mode
        options.backing_mode = backing_mode
        options.on_source_error, options.on_target_error = on_source_error, on_target_error
        options.granularity, options.buf_size = granularity, buf_size
        options.max_in_flight, options.max_io, options.speed = max_in_flight, max_io, speed
        if pass_interval_ns is not None:
            options.pass_interval_ns = pass_interval_ns
        wanted = (unmap, target_is_zero, detect_zeroes, auto_finalize, auto_dismiss, auto_complete, inline)
        options.flags = sum(1 << bit for bit, on in enumerate(wanted) if on)
        if replaces is not None:
            options.replaces = replaces.handle
        raised = self._raised

        def on_wake(_: int) -> None:
            if wake is not None:
                try:
                    wake()
                except BaseException as error:  # Nothing may leave a callback.
                    raised.append(error)

        def on_prepare(_: int, told: int) -> int:
            if prepare is None:
                return 0
            info = _ffi.PrepareInfo.from_address(told)
            try:
                prepare(PrepareInfo(Sync(info.sync), BackingMode(info.backing_mode)))
                return 0
            except BaseException as error:  # Nothing may leave a callback.
                raised.append(error)
                return -errno_of(error)

        self._hooks = (_ffi.HOOK(on_wake), _ffi.PREPARE(on_prepare))
        options.wake, options.prepare = self._hooks
        out = c.c_void_p()
        check(lib.mirror_job_new(filter.handle, target.handle, c.byref(options), c.byref(out)))
        self._handle = out.value

    @property
    def handle(self) -> int:
        """The C handle. ``ValueError`` after close."""
        if self._handle is None:
            raise ValueError("the job is closed")
        return self._handle

    def start(self) -> None:
        """Begins; the work is done by :meth:`poll`."""
        check(lib.mirror_job_start(self.handle))

    def poll(self, now: Optional[int] = None) -> Poll:
        """Does what can be done now, in bounded time. From one thread at a time."""
        wake_at = c.c_uint64()
        at = lib.mirror_clock_ns() if now is None else now
        state = check(lib.mirror_job_poll(self.handle, at, c.byref(wake_at)))
        self._raise_what_callbacks_raised()
        return Poll(PollState(state), None if wake_at.value == _ffi.NEVER else wake_at.value)

    def _raise_what_callbacks_raised(self) -> None:
        if self._raised:
            raise self._raised.pop(0)
        for device in self._devices:
            error = device.take_raised()
            if error is not None:
                raise error

    def fileno(self) -> int:
        """A descriptor that is readable when the job is worth polling (Linux)."""
        return check(lib.mirror_job_fd(self.handle))

    def run(self, until: str = "concluded", timeout: Optional[float] = None) -> Info:
        """Polls, and sleeps in between, until the job is ``"ready"`` or ``"concluded"``.

        ``TimeoutError`` after so many seconds; the job that fails is told by :attr:`info`, whose ``result`` is not 0.
        """
        if until not in ("ready", "concluded"):
            raise ValueError("until: must be 'ready' or 'concluded', not %r" % (until,))
        end = None if timeout is None else time.monotonic() + timeout
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        while True:
            poll = self.poll()
            info = self.info
            if poll.state is PollState.CONCLUDED or (until == "ready" and info.ready):
                return info
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("the job is not %s after %s seconds: it is %s" % (until, timeout, info.status.name))
            if poll.state is PollState.IDLE:
                waits = [] if left is None else [left * 1000]
                if poll.wake_at is not None:
                    waits.append(max(0, poll.wake_at - lib.mirror_clock_ns()) / 1e6)
                poller.poll(min(waits) + 1 if waits else None)

    def pause(self) -> None:
        """Stops copying; what is in flight is finished."""
        check(lib.mirror_job_pause(self.handle))

    def resume(self) -> None:
        """Goes on copying."""
        check(lib.mirror_job_resume(self.handle))

    def complete(self) -> None:
        """Finishes and switches the filter to the target."""
        check(lib.mirror_job_complete(self.handle))

    def cancel(self, force: bool = False) -> None:
        """Ends without switching; after ready and without ``force`` the target is a copy of that instant."""
        check(lib.mirror_job_cancel(self.handle, force))

    def finalize(self) -> None:
        """Goes on from pending."""
        check(lib.mirror_job_finalize(self.handle))

    def dismiss(self) -> None:
        """Forgets a concluded job."""
        check(lib.mirror_job_dismiss(self.handle))

    def set_speed(self, bytes_per_second: int) -> None:
        """Changes the rate limit; 0 is none."""
        check(lib.mirror_job_set_speed(self.handle, bytes_per_second))

    def change(self, copy_mode: CopyMode) -> None:
        """Changes how guest writes reach the target."""
        check(lib.mirror_job_change(self.handle, copy_mode))

    @property
    def info(self) -> Info:
        """What can be known about the job."""
        told = _ffi.JobInfo()
        told.struct_size = c.sizeof(told)
        check(lib.mirror_job_query(self.handle, c.byref(told)))

        def counter(of: _ffi.Counter) -> Counter:
            return Counter(of.ops, of.bytes, of.errors)

        return Info(
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
            flushes=counter(told.flushes),
            active=counter(told.active),
            skipped_zeroes=told.skipped_zeroes,
            guest_writes=told.guest_writes,
            errors=told.errors,
            events_dropped=told.events_dropped,
            dirty_rate=told.dirty_rate,
            copy_rate=told.copy_rate,
            eta_ns=None if told.eta_ns == _ffi.NEVER else told.eta_ns,
            granularity=told.granularity,
        )

    def events(self) -> Iterator[Event]:
        """The events that were not read, oldest first."""
        while True:
            told = _ffi.Event()
            told.struct_size = c.sizeof(told)
            if check(lib.mirror_job_next_event(self.handle, c.byref(told))) == 0:
                return
            yield Event(
                type=EventType(told.type),
                status=Status(told.status) if told.status else None,
                result=told.result,
                operation=Operation(told.operation),
                side=Side(told.side),
                action=Action(told.action),
                offset=told.offset,
                length=told.length,
            )

    def close(self) -> None:
        """Frees the job in any state. A second time is harmless. ``EBUSY`` while a poll of it is running."""
        if self._handle is not None:
            check(lib.mirror_job_free(self._handle))
            self._handle = None

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and lib is not None:
            try:
                self.close()
            except OSError:
                pass
