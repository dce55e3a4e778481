"""A job in an event loop: it is polled there, on the loop's thread, for as long as somebody waits for it.

Whoever waits holds a :class:`Lease`. The first makes the job's :class:`Driver`, all share it, and the last to leave ends it: then the
loop knows nothing of the job any more. The driver polls when the job's descriptor is readable, and when it is time. Where there is
no descriptor, or the loop can't watch one, the job's wake hook calls into the loop instead.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING, Callable, List, Optional

from .errors import MirrorError
from .events import Event
from .info import JobInfo

if TYPE_CHECKING:
    from .job import Job

# As `PollState` has them.
_BUSY, _CONCLUDED = 1, 2


class Driver:
    """What polls a job in a loop."""

    def __init__(self, job: "Job", loop: asyncio.AbstractEventLoop) -> None:
        self.job, self.loop, self.thread = job, loop, threading.get_ident()
        self.leases: List[Lease] = []
        self._soon: Optional[asyncio.Handle] = None
        self._descriptor = self._watch()

    @staticmethod
    def of(job: "Job") -> "Driver":
        """The job's driver, in the running loop."""
        loop, driver = asyncio.get_running_loop(), job._driver
        if driver is not None and driver.loop.is_closed():
            driver.stop()
            driver = None
        if driver is None:
            job._check_started()
            driver = job._driver = Driver(job, loop)
        elif driver.loop is not loop:
            raise RuntimeError("the job is driven by another event loop: await it there")
        return driver

    def _watch(self) -> Optional[int]:
        # A duplicate: the job may be freed, and its own number be somebody else's, before the loop forgets it.
        try:
            descriptor = os.dup(self.job.fileno())
        except MirrorError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
        else:
            try:
                self.loop.add_reader(descriptor, self.step)
                return descriptor
            except NotImplementedError:
                os.close(descriptor)
        self.job._hooks.listener = self.step_from_anywhere
        return None

    def step_soon(self) -> None:
        """Polls in the loop's next turn."""
        if self._soon is None or isinstance(self._soon, asyncio.TimerHandle):
            self._forget()
            self._soon = self.loop.call_soon(self.step)

    def step_from_anywhere(self) -> None:
        """The same from any thread."""
        try:
            self.loop.call_soon_threadsafe(self.step)
        except RuntimeError:  # The loop is closed, and with it goes whoever waited.
            pass

    def step(self) -> None:
        """Polls once, tells who waits, and arranges for the next time."""
        self._forget()
        if not self.leases:
            return
        try:
            state, wake_at = self.job._poll(None)
        except BaseException as error:  # The library's own; whoever waits is told, and may ask again.
            self._fail(error)
            return
        raised = self.job._take_raised()
        if raised is not None:
            self._fail(raised)
        over = state == _CONCLUDED
        for lease in self.leases:
            lease.tell(over)
        if not over:
            self._arrange(state == _BUSY, wake_at)

    def _arrange(self, busy: bool, wake_at: Optional[int]) -> None:
        if busy:
            self._soon = self.loop.call_soon(self.step)
        elif wake_at is not None:
            left = max(0, wake_at - self.job._lib.clock_ns()) / 1e9
            self._soon = self.loop.call_later(left, self.step)

    def _fail(self, error: BaseException) -> None:
        for lease in self.leases:
            lease.fail(error)

    def _forget(self) -> None:
        soon, self._soon = self._soon, None
        if soon is not None:
            soon.cancel()

    def stop(self) -> None:
        """The loop is rid of the job. On the loop's thread, or when the loop is closed."""
        self._forget()
        self.job._driver = None
        self.job._hooks.listener = None
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self.loop.remove_reader(descriptor)
            os.close(descriptor)


class Lease:
    """Somebody who needs the job to be driven, and now and then waits for something."""

    def __init__(self, job: "Job") -> None:
        self.driver = Driver.of(job)
        self.driver.leases.append(self)
        self._future: "Optional[asyncio.Future[None]]" = None
        self._reached: Callable[[bool], bool] = _never
        self._error: Optional[BaseException] = None
        self.driver.step_soon()

    async def wait(self, reached: Callable[[bool], bool]) -> None:
        """Until ``reached``, which is told whether the job is over, says so after a poll; or raises what came up meanwhile."""
        if self._future is not None:
            raise RuntimeError("two tasks wait for the next event of one iterator: give each its own")
        error, self._error = self._error, None
        if error is not None:
            raise error
        self._future, self._reached = self.driver.loop.create_future(), reached
        self.driver.step_soon()
        try:
            await self._future
        finally:
            # Not kept: it may know whoever holds this lease, who then would never go.
            self._future, self._reached = None, _never

    def tell(self, over: bool) -> None:
        """The job was polled."""
        if self._future is not None and not self._future.done() and self._reached(over):
            self._future.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Something was raised: whoever waits gets it, or waits next."""
        if isinstance(error, StopIteration):  # A future takes none.
            error = RuntimeError("a callback raised StopIteration")
        if self._future is not None and not self._future.done():
            self._future.set_exception(error)
        elif self._error is None:
            self._error = error

    def leave(self) -> None:
        """The job need not be driven any more on this one's account. On the loop's thread; a second time is harmless."""
        if self in self.driver.leases:
            self.driver.leases.remove(self)
            if not self.driver.leases:
                self.driver.stop()


def _never(_: bool) -> bool:
    return False


async def wait_for(job: "Job", reached: Callable[[JobInfo], bool]) -> JobInfo:
    """Drives the job until ``reached`` says so of it, or it is over."""
    lease = Lease(job)
    try:
        await lease.wait(lambda over: over or reached(job.info))
        return job.info
    finally:
        lease.leave()


class Events:
    """The events of a job, as ``async for`` wants them. While there is this, the job is driven."""

    def __init__(self, job: "Job") -> None:
        self._job, self._lease, self._over = job, Lease(job), False
        self._event: Optional[Event] = None

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Event:
        while True:
            # Kept by the object, so that it isn't lost if the task is cancelled at this very moment.
            event, self._event = self._event or self._job.next_event(), None
            if event is not None:
                return event
            if self._over:
                self._lease.leave()
                raise StopAsyncIteration
            await self._lease.wait(self._reached)

    def _reached(self, over: bool) -> bool:
        self._over = over
        self._event = self._job.next_event()
        return over or self._event is not None

    def __del__(self) -> None:
        lease: Optional[Lease] = getattr(self, "_lease", None)
        if lease is None:
            return
        if threading.get_ident() == lease.driver.thread or lease.driver.loop.is_closed():
            lease.leave()
        else:
            lease.driver.loop.call_soon_threadsafe(lease.leave)
