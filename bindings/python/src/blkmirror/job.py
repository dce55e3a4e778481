"""Jobs: copying a filter's device to another, keeping the two equal, and switching over."""

from __future__ import annotations

import ctypes as c
import errno
import select
import threading
import time
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, AsyncIterator, Callable, Iterator, List, NamedTuple, Optional, Union

from . import _abi, _asyncio
from ._library import Library
from ._signals import Undisturbed
from .device import BaseDevice, Device, devices_under
from .errors import MirrorError, errno_of, terminated, whole
from ._progress import INTERVAL, Progress, display
from .events import Event, Status, read_event
from .filter import Filter
from .info import JobInfo, read_info
from .options import BackingMode, CopyMode, ErrorPolicy, Kind, PrepareInfo, Sync

__all__ = ["Job", "Poll", "PollState"]


_LONGEST = 3600.0
"""Seconds of one sleep at most."""


class PollState(IntEnum):
    """Whether a job wants to be polled again."""

    IDLE = 0
    """Not before :attr:`Poll.wake_at`, or until it wakes its host."""
    BUSY = 1
    """At once."""
    CONCLUDED = 2
    """Never: it is over, and has left its filter and its devices."""


class Poll(NamedTuple):
    """The answer to :meth:`Job.poll`: the state, and when to poll an idle job though nothing has happened."""

    state: PollState
    wake_at: Optional[int]


class Job:
    """Copies ``filter``'s device to ``target``. Use it in a ``with`` statement, or close it.

    Options that are not given have the library's defaults; 0 stands for the default of a size or a number.
    ``replaces`` is another filter, which is switched to the target instead of the job's own.
    ``wake`` is called, from any thread, when :meth:`poll` is worth calling. ``prepare`` is called before the filter is
    switched: it attaches the target's backing; an exception in it keeps the filter where it is and ends the job with its
    ``errno`` (``EIO`` if it has none). ``clock`` tells the time that :meth:`poll` gets; with ``inline`` it is asked, from any
    thread, outside of a poll. What hooks, and callbacks of devices in Python, raise is raised again from
    :meth:`poll`.

    Threads: :meth:`poll` and what drives the job by it (:meth:`run`, iteration, :meth:`ready`, :meth:`concluded`) from one at a time,
    everything else from any.
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
        guest_first_io: Optional[int] = None,
        guest_first_in_flight: Optional[int] = None,
        unmap: bool = True,
        target_is_zero: bool = False,
        detect_zeroes: bool = True,
        auto_finalize: bool = True,
        auto_dismiss: bool = True,
        auto_complete: bool = False,
        inline: bool = False,
        copy_offload: bool = True,
        replaces: Optional[Filter] = None,
        wake: Optional[Callable[[], None]] = None,
        prepare: Optional[Callable[[PrepareInfo], None]] = None,
        clock: Optional[Callable[[], int]] = None,
    ) -> None:
        self._handle: Optional[int] = None
        lib = self._lib = filter._lib
        for other in (target, replaces):
            if other is not None and other._lib is not lib:
                raise ValueError("filter and target must be of one library")
        self._raised: List[BaseException] = []
        # Who drives it: the thread that is in `run` or iterates, and what an event loop does it with.
        self._driving: Optional[int] = None
        self._driver: "Optional[_asyncio.Driver]" = None
        self._inline, self._changing = inline, False
        self._sources: List[Union[Device, Filter]] = [*devices_under(filter.is_on, target), filter]
        wanted = (unmap, target_is_zero, detect_zeroes, auto_finalize, auto_dismiss, auto_complete, inline,
                  copy_offload)
        with lib.new(lib.abi.JobOptions) as told, lib.new(lib.abi.word) as out:
            lib.check(lib.mirror_job_options_init(told.address, c.sizeof(lib.abi.JobOptions)))
            options = told.value
            options.kind, options.sync, options.copy_mode = kind, sync, copy_mode
            options.backing_mode = backing_mode
            options.on_source_error, options.on_target_error = on_source_error, on_target_error
            options.granularity, options.buf_size = granularity, buf_size
            options.max_in_flight, options.max_io, options.speed = max_in_flight, max_io, speed
            if pass_interval_ns is not None:
                options.pass_interval_ns = pass_interval_ns
            if guest_first_io is not None:
                options.guest_first_io = guest_first_io
            if guest_first_in_flight is not None:
                options.guest_first_in_flight = guest_first_in_flight
            options.flags = sum(1 << bit for bit, on in enumerate(wanted) if on)
            if replaces is not None:
                options.replaces = replaces.handle
            name = lib.lend_copy(memoryview(terminated((id or "").encode(), "id %r" % id)))
            if id is not None:
                options.id = name.address
            self._woken = threading.Event()
            hooks = self._hooks = _Hooks(lib, self._raised, self._woken, wake, prepare, clock)
            options.wake, options.prepare = lib.callback("hook", _wake), lib.callback("prepare", _prepare)
            if clock is not None:
                options.clock = lib.callback("clock", _clock)
            options.closed = lib.farewell("hook", _closed)
            handles = filter.handle, target.handle
            # Whoever waits for the job of a library that is lost has to poll it to know.
            options.opaque = lib.keep(hooks, lambda _: _wake(hooks))
            try:
                lib.check(lib.mirror_job_new(*handles, told.address, out.address))
            finally:
                name.close()
            self._handle = out.value
        for disk in (filter, replaces):
            if disk is not None:
                disk._has_job(self)

    @property
    def handle(self) -> int:
        """The C handle. ``ValueError`` after close."""
        if self._handle is None:
            raise ValueError("the job is closed")
        return self._handle

    def start(self) -> None:
        """Begins; the work is done by :meth:`poll`."""
        self._lib.check(self._lib.mirror_job_start(self.handle))

    def poll(self, now: Optional[int] = None) -> Poll:
        """Does what can be done now, in bounded time. From one thread at a time.

        ``now`` is nanoseconds on a clock that doesn't go back; the library's own if it isn't given.
        """
        answer = self._poll(now)
        error = self._take_raised()
        if error is not None:
            raise error
        return answer

    def _poll(self, now: Optional[int]) -> Poll:
        lib = self._lib
        with lib.new(lib.abi.u64) as out:
            at = lib.clock_ns() if now is None else whole(now, "now")
            with Undisturbed():
                state = lib.check(lib.mirror_job_poll(self.handle, at, out.address))
            wake_at = int(out.value)
        self._changing = False
        return Poll(PollState(state), None if wake_at == _abi.NEVER else wake_at)

    def _take_raised(self) -> Optional[BaseException]:
        """The first exception of a callback or a hook that was not raised yet."""
        if self._raised:
            return self._raised.pop(0)
        for source in self._sources:
            error = source.take_raised()
            if error is not None:
                return error
        return None

    def fileno(self) -> int:
        """A descriptor that is readable when the job is worth polling (Linux)."""
        return self._lib.check(self._lib.mirror_job_fd(self.handle))

    def run(
        self, until: str = "concluded", timeout: Optional[float] = None, *, progress: Progress = False
    ) -> JobInfo:
        """Polls, and sleeps in between, until the job is ``"ready"`` or ``"concluded"``; or concluded before it was ready.

        ``TimeoutError`` after so many seconds. A job that fails doesn't raise: :attr:`JobInfo.error` says why.

        ``progress=True`` shows how far it is on ``stderr``: a bar on a terminal, elsewhere a line at each tenth. Or it is a function
        that is called with a :class:`JobInfo` ten times a second, and at the end; what it raises ends the run, not the job.
        """
        if until not in ("ready", "concluded"):
            raise ValueError("until: must be 'ready' or 'concluded', not %r" % (until,))
        end = None if timeout is None else time.monotonic() + timeout
        shown = display(progress)
        try:
            for poll in self._steps(end, INTERVAL if shown else None):
                info = self.info
                reached = poll.state is PollState.CONCLUDED or (until == "ready" and info.ready)
                if shown is not None:
                    shown.show(info, last=reached)
                if reached:
                    break
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError("the job is not %s after %s seconds: it is %s" % (until, timeout, info.status.name))
        finally:
            if shown is not None:
                shown.finish()
        return info

    def _steps(self, end: Optional[float] = None, longest: Optional[float] = None) -> Iterator[Poll]:
        """Polls until the job is concluded, and gives each answer. Sleeps in between if there is nothing to do, but not beyond
        ``end``, nor longer than ``longest``."""
        self._check_started()
        wait, before = self._waiter(), self._driving
        try:
            while True:
                self._driving = threading.get_ident()
                poll = self.poll()
                yield poll
                if poll.state is PollState.CONCLUDED:
                    return
                if poll.state is PollState.IDLE:
                    waits = [] if longest is None else [longest]
                    if end is not None:
                        waits.append(max(0, end - time.monotonic()))
                    if poll.wake_at is not None:
                        waits.append(max(0, poll.wake_at - self._lib.clock_ns()) / 1e9)
                    # Longer than poll(2) can wait is as good as often.
                    wait(min(*waits, _LONGEST) if waits else None)
        finally:
            self._driving = before

    def __iter__(self) -> Iterator[Event]:
        """Drives the job, as :meth:`run` does, and gives its events as they come, until it is concluded and all were read.

        The loop's body may call the job's verbs. :meth:`events` gives what is there, and drives nothing.
        """
        for _ in self._steps():
            yield from self.events()

    def __aiter__(self) -> AsyncIterator[Event]:
        """The same for ``async for``: the job is driven by the event loop, also while the loop's body waits for something else.

        An event is given once: of two iterators each gets some. What callbacks of devices and hooks raise is raised from here.
        """
        return _asyncio.Events(self)

    async def ready(self) -> JobInfo:
        """Drives the job in the running event loop until it is ready. If it ends before that, why is raised: :attr:`JobInfo.error`.

        A job is driven while somebody awaits it, from one loop. So keep a task that does, such as
        ``asyncio.create_task(job.concluded())``, for as long as guests are to be served. Any number of tasks may await one job, and a
        task that is cancelled leaves it as it is. What callbacks of devices and hooks raise is raised in all that wait.

        The loop watches the job's descriptor; where it can't, the job wakes it.
        """
        info = self.info
        if not info.ready:
            info = await _asyncio.wait_for(self, lambda now: now.ready)
        if not info.ready:
            raise info.error or MirrorError(errno.ECANCELED, "the job ended before it was ready")
        return info

    async def concluded(self) -> JobInfo:
        """Drives the job in the running event loop until it is over. As with :meth:`run`, a job that fails doesn't raise."""
        return await _asyncio.wait_for(self, lambda _: False)

    def _check_started(self) -> None:
        if self.info.status is Status.CREATED:
            raise RuntimeError("the job was not started, so nothing would ever happen: call start() first")

    def _holds_up(self, changes: bool) -> bool:
        """Whether a guest's request, if it waited on this thread, would wait for this thread to poll."""
        driver, thread = self._driver, threading.get_ident()
        if self._handle is None or thread not in (self._driving, driver.thread if driver else None):
            return False
        info = self.info
        # A change of the mode is done by the next poll.
        carried = changes and not self._inline and (self._changing or info.copy_mode is CopyMode.WRITE_BLOCKING)
        return info.status in (Status.WAITING, Status.PENDING) or (carried and info.status < Status.ABORTING)

    def _waiter(self) -> Callable[[Optional[float]], object]:
        """What waits until the job is worth polling, or so many seconds: by its descriptor, if there are such things."""
        try:
            descriptor = self.fileno()
        except MirrorError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return self._wait_for_the_hook
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return lambda seconds: poller.poll(None if seconds is None else seconds * 1000 + 1)

    def _wait_for_the_hook(self, seconds: Optional[float]) -> None:
        # News that come after the poll that was for the last ones are for the next.
        self._woken.wait(seconds)
        self._woken.clear()

    def pause(self) -> None:
        """Stops copying; what is in flight is finished."""
        self._lib.check(self._lib.mirror_job_pause(self.handle))

    def resume(self) -> None:
        """Goes on copying, after :meth:`pause` or an error."""
        self._lib.check(self._lib.mirror_job_resume(self.handle))

    def drain_begin(self) -> None:
        """Pauses on top of any other pause, until as many :meth:`drain_end`."""
        self._lib.check(self._lib.mirror_job_drain_begin(self.handle))

    def drain_end(self) -> None:
        """Ends one :meth:`drain_begin`."""
        self._lib.check(self._lib.mirror_job_drain_end(self.handle))

    @contextmanager
    def drain(self) -> Iterator[None]:
        """Within this no background operation is begun; it nests. What is in flight is finished by :meth:`poll`."""
        self.drain_begin()
        try:
            yield
        finally:
            self.drain_end()

    def complete(self) -> None:
        """Finishes and switches the filter to the target."""
        self._lib.check(self._lib.mirror_job_complete(self.handle))

    def cancel(self, force: bool = False) -> None:
        """Ends without switching; after ready and without ``force`` the target is a copy of that instant."""
        self._lib.check(self._lib.mirror_job_cancel(self.handle, force))

    def finalize(self) -> None:
        """Goes on from pending."""
        self._lib.check(self._lib.mirror_job_finalize(self.handle))

    def dismiss(self) -> None:
        """Forgets a concluded job."""
        self._lib.check(self._lib.mirror_job_dismiss(self.handle))

    def set_speed(self, bytes_per_second: int) -> None:
        """Changes the rate limit; 0 is none."""
        self._lib.check(self._lib.mirror_job_set_speed(self.handle, whole(bytes_per_second, "speed")))

    def change(self, copy_mode: CopyMode) -> None:
        """Changes how guest writes reach the target."""
        self._lib.check(self._lib.mirror_job_change(self.handle, copy_mode))
        self._changing = True

    @property
    def info(self) -> JobInfo:
        """What can be known about the job."""
        return read_info(self._lib, self.handle)

    def next_event(self) -> Optional[Event]:
        """The oldest event that was not read."""
        return read_event(self._lib, self.handle)

    def events(self) -> Iterator[Event]:
        """The events that were not read, oldest first."""
        event = self.next_event()
        while event is not None:
            yield event
            event = self.next_event()

    def close(self) -> None:
        """Frees the job in any state. A second time is harmless. ``EBUSY`` while a poll of it is running."""
        if self._handle is not None:
            self._lib.check(self._lib.mirror_job_free(self._handle))
            self._handle = None
            driver = self._driver
            if driver is not None:
                driver.step_from_anywhere()  # Whoever waits learns that it is closed.

    def __reduce_ex__(self, _: object) -> Any:
        raise TypeError("a %s can be neither copied nor pickled: it is a handle of this process" % type(self).__name__)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            try:
                self.close()
            except OSError:
                pass


class _Hooks:
    """What the library calls for a job. It doesn't know the job, so that that goes when its last name does."""

    def __init__(
        self,
        lib: Library,
        raised: List[BaseException],
        woken: threading.Event,
        wake: Optional[Callable[[], None]],
        prepare: Optional[Callable[[PrepareInfo], None]],
        clock: Optional[Callable[[], int]],
    ) -> None:
        self.lib, self.raised, self.woken = lib, raised, woken
        self.wake, self.prepare, self.clock = wake, prepare, clock
        self.listener: Optional[Callable[[], None]] = None


def _wake(hooks: _Hooks) -> None:
    hooks.woken.set()
    listener = hooks.listener
    if listener is not None:
        listener()
    if hooks.wake is not None:
        try:
            hooks.wake()
        except BaseException as error:  # Nothing may leave a callback.
            hooks.raised.append(error)


def _prepare(hooks: _Hooks, told: int) -> int:
    if hooks.prepare is None:
        return 0
    info = hooks.lib.at(hooks.lib.abi.PrepareInfo, told)
    try:
        hooks.prepare(PrepareInfo(Sync(info.sync), BackingMode(info.backing_mode)))
        return 0
    except BaseException as error:  # Nothing may leave a callback.
        hooks.raised.append(error)
        return -errno_of(error)


def _clock(hooks: _Hooks) -> int:
    assert hooks.clock is not None
    try:
        return hooks.clock()
    except BaseException as error:  # Nothing may leave a callback. A time that has passed is taken for none.
        hooks.raised.append(error)
        return 0


def _closed(_: _Hooks) -> None:
    pass
