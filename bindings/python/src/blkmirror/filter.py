"""The filter: the live disk that a guest's I/O goes through."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Callable, Generator, Generic, List, Optional, Sequence, Tuple, TypeVar

from . import _abi
from ._ffi import lib
from ._buffers import bytes_of, is_constant, new_bytes
from ._library import Cell, Loan
from ._signals import Undisturbed
from .device import BaseDevice, ExtentFlags
from .errors import MirrorError, errno_of, whole
from .events import Operation

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Filter", "Outcome"]

T = TypeVar("T")

Stretch = Tuple[int, ExtentFlags]

_thread = threading.local()


class Outcome(Future[T]):
    """What becomes of a request: :meth:`result` waits for it, and ``await`` does in ``asyncio``.

    A request can't be called back: :meth:`cancel` answers ``False``, and a task that is cancelled while it awaits one leaves it
    under way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self).__await__()


class _Waiting(Generic[T]):
    """A request that is under way: who waits for it, the memory that it has until then, and what is answered."""

    def __init__(self, memory: Sequence[Loan], answer: Callable[[], T]) -> None:
        self.outcome: "Outcome[T]" = Outcome()
        self.memory, self.answer = memory, answer

    def end(self, error: Optional[BaseException]) -> None:
        """It is done, or failed with this exception."""
        try:
            if error is None:
                for part in self.memory:
                    part.fetch()
            # Before anybody is told: the buffers are whoever's they were.
            self.release()
        except BaseException as failure:  # Nothing may leave a callback, and whoever waits has to be told.
            error = failure
        _thread.telling = True
        try:
            if error is None:
                self.outcome.set_result(self.answer())
            else:
                self.outcome.set_exception(error)
        finally:
            _thread.telling = False

    def release(self) -> None:
        """The memory is not used any more."""
        for part in self.memory:
            part.close()


def _tell(waiting: "_Waiting[Any]", result: int) -> None:
    waiting.end(MirrorError(-result, os.strerror(-result)) if result else None)


class _View(Loan):
    """A view of a buffer that is lent."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def close(self) -> None:
        self._view.release()


@atexit.register
def _settle() -> None:
    """Requests are told before the interpreter goes: a thread that came to tell it later would end the process."""
    wait([thing.outcome for thing, _ in list(lib._kept.values()) if isinstance(thing, _Waiting)], timeout=5)


def _nothing() -> None:
    pass


class _Extents(Loan):
    """Room for the answer to a question for extents."""

    def __init__(self, extents: Cell, count: Cell) -> None:
        self._extents, self._count = extents, count
        self.told: List[Stretch] = []

    def fetch(self) -> None:
        extents = (self._extents[index] for index in range(self._count.value))
        self.told = [(extent.length, ExtentFlags(extent.flags)) for extent in extents]

    def close(self) -> None:
        self._extents.close()
        self._count.close()


class _Opened:
    """The hook for when the gate is open again, and where its exceptions go."""

    def __init__(self, hook: Callable[[], None], raised: List[BaseException]) -> None:
        self.hook, self.raised = hook, raised


def _on_opened(opened: _Opened) -> None:
    try:
        opened.hook()
    except BaseException as error:  # Nothing may leave a callback.
        opened.raised.append(error)


def _on_closed(_: _Opened) -> None:
    pass


class Filter:
    """A live disk on a device. Use it in a ``with`` statement, or close it.

    Requests whose names end in ``_async`` return an :class:`Outcome` at once, which can be awaited; the others wait. Who waits
    must not be the thread that polls the job: in write-blocking mode, or while the disk is being switched, they would wait for
    each other. It is a ``RuntimeError`` where the thread drives the job by an iteration, a progress function or an event loop, and
    in a callback of an outcome.

    Buffers can be any that are C-contiguous: ``bytes``, ``bytearray``, ``memoryview``, ``array``, ``mmap``, numpy's. They are not copied,
    so a request has its buffer until it is done: until then a ``bytearray`` can't be resized, nor an ``mmap`` closed
    (``BufferError``). All bytes of it are moved, of whatever items it is made.

    ``alignment``: guests keep to its multiples, where the source itself asks for less; choose the target's.
    """

    def __init__(self, source: BaseDevice, *, alignment: int = 1) -> None:
        self._handle: Optional[int] = None
        self._raised: List[BaseException] = []
        self._jobs: "Tuple[weakref.ref[Any], ...]" = ()
        self._lib = source._lib
        with self._lib.new(self._lib.abi.word) as out:
            self._lib.check(self._lib.mirror_filter_new_aligned(source.handle, whole(alignment, "alignment", 32), out.address))
            self._handle = out.value

    @property
    def handle(self) -> int:
        """The C handle. ``ValueError`` after close."""
        if self._handle is None:
            raise ValueError("the filter is closed")
        return self._handle

    @property
    def length(self) -> int:
        """Bytes."""
        with self._lib.new(self._lib.abi.u64) as length:
            self._lib.check(self._lib.mirror_filter_length(self.handle, length.address))
            return int(length.value)

    @property
    def device(self) -> BaseDevice:
        """A new handle to the device that guest requests go to now: close it."""
        device = BaseDevice._of(self._lib)
        device._take(self._lib.mirror_filter_device, self.handle)
        return device

    def is_on(self, device: BaseDevice) -> bool:
        """Whether guest requests go to this device now."""
        with self.device as now:
            return now.same(device)

    def _has_job(self, job: Any) -> None:
        """From now on, as long as there is this job. The others are over, or will be refused."""
        self._jobs = *(other for other in self._jobs if other() is not None), weakref.ref(job)

    def _check_may_wait(self, changes: bool) -> None:
        """Nobody waits for itself."""
        if getattr(_thread, "telling", False):
            # What is done on this thread is told once the callback that runs has returned.
            raise RuntimeError("a callback of a future can't wait for a request: use write_async or readinto_async")
        jobs = (reference() for reference in self._jobs)
        if any(job is not None and job._holds_up(changes) for job in jobs):
            raise RuntimeError(
                "this thread drives the job, and the request would wait for that: await write_async and its like, or wait for them "
                "on another thread"
            )

    def _submit(
        self, call: Callable[..., int], *arguments: int, memory: Sequence[Loan] = (), answer: Callable[[], T]
    ) -> "Outcome[T]":
        waiting = _Waiting(memory, answer)
        lib, handle, result = self._lib, self.handle, -1
        with Undisturbed():
            number = lib.keep(waiting, waiting.end)
            try:
                result = call(handle, *arguments, lib.farewell("tell", _tell), number)
            finally:
                if result < 0:  # Refused, or, with an argument of a wrong type, not called at all.
                    lib.let_go(number)
                    waiting.release()
        lib.check(result)
        return waiting.outcome

    def _transfer(
        self, call: Callable[..., int], offset: int, view: memoryview, loan: Loan, flags: int, answer: Callable[[], T]
    ) -> "Outcome[T]":
        with self._lib.new(self._lib.abi.Iovec) as iov:
            iov.value.base, iov.value.len = loan.address, loan.length
            return self._submit(call, whole(offset, "offset"), iov.address, 1, flags, memory=[loan, _View(view)], answer=answer)

    def _fill(self, offset: int, view: memoryview, answer: Callable[[], T]) -> "Outcome[T]":
        return self._transfer(self._lib.mirror_filter_read, offset, view, self._lib.lend(view), 0, answer)

    def readinto_async(self, offset: int, buffer: "Buffer") -> "Outcome[None]":
        """Fills the buffer from ``offset`` on."""
        return self._fill(offset, bytes_of(buffer, writable=True), _nothing)

    def read_async(self, offset: int, length: int) -> "Outcome[bytes]":
        """Reads so many bytes from ``offset`` on."""
        content, view = new_bytes(whole(length, "length", 63))
        return self._fill(offset, view, lambda: content)

    def write_async(self, offset: int, data: "Buffer", *, fua: bool = False, stable: bool = False) -> "Outcome[None]":
        """Writes the data from ``offset`` on. ``fua``: it is durable when it is done.

        The data may be changed before it is done; then either is written. ``stable`` promises that it won't be, which saves a
        copy in write-blocking mode; for ``bytes``, which can't be, it is taken for granted.
        """
        view = bytes_of(data, writable=False)
        flags = (_abi.FUA if fua else 0) | (_abi.WRITE_STABLE if stable or is_constant(view) else 0)
        return self._transfer(self._lib.mirror_filter_write, offset, view, self._lib.lend_data(view), flags, _nothing)

    def read(self, offset: int, length: int) -> bytes:
        """Reads and waits."""
        self._check_may_wait(changes=False)
        return self.read_async(offset, length).result()

    def readinto(self, offset: int, buffer: "Buffer") -> None:
        """Fills the buffer from ``offset`` on, and waits."""
        self._check_may_wait(changes=False)
        self.readinto_async(offset, buffer).result()

    def write(self, offset: int, data: "Buffer", *, fua: bool = False, stable: bool = False) -> None:
        """Writes and waits."""
        self._check_may_wait(changes=True)
        self.write_async(offset, data, fua=fua, stable=stable).result()

    def zero_async(self, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False) -> "Outcome[None]":
        """Makes the range read as zero."""
        flags = (_abi.MAY_UNMAP if may_unmap else 0) | (_abi.FUA if fua else 0)
        return self._submit(self._lib.mirror_filter_zero, whole(offset, "offset"), whole(length, "length"), flags, answer=_nothing)

    def discard_async(self, offset: int, length: int) -> "Outcome[None]":
        """The range's content is no longer needed."""
        return self._submit(self._lib.mirror_filter_discard, whole(offset, "offset"), whole(length, "length"), answer=_nothing)

    def flush_async(self) -> "Outcome[None]":
        """Makes durable what is done."""
        return self._submit(self._lib.mirror_filter_flush, answer=_nothing)

    def zero(self, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False) -> None:
        """Makes the range read as zero, and waits."""
        self._check_may_wait(changes=True)
        self.zero_async(offset, length, may_unmap=may_unmap, fua=fua).result()

    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer needed. Waits."""
        self._check_may_wait(changes=True)
        self.discard_async(offset, length).result()

    def flush(self) -> None:
        """Makes durable what is done, and waits."""
        self._check_may_wait(changes=True)
        self.flush_async().result()

    def extents(self, offset: int, length: int) -> List[Stretch]:
        """What the range holds: lengths and what is there, one after the other. Waits."""
        self._check_may_wait(changes=False)
        return self.extents_async(offset, length).result()

    def extents_async(self, offset: int, length: int) -> "Outcome[List[Stretch]]":
        """What the range holds: lengths and what is there, one after the other."""
        outcome: "Outcome[List[Stretch]]" = Outcome()
        found: List[Stretch] = []
        offset, length = whole(offset, "offset"), whole(length, "length")
        known = 0

        def ask() -> "Outcome[List[Stretch]]":
            lib, room = self._lib, 64
            extents, count = lib.new(lib.abi.Extent, room), lib.new(lib.abi.word)
            answer = _Extents(extents, count)
            arguments = (offset + known, length - known, extents.address, room, count.address)
            return self._submit(lib.mirror_filter_extents, *arguments, memory=[answer], answer=lambda: answer.told)

        def go_on(asked: "Future[List[Stretch]]") -> None:
            nonlocal known
            try:
                while True:
                    told = asked.result()
                    found.extend(told)
                    known += sum(part for part, _ in told)
                    if known >= length:
                        outcome.set_result(found)
                        return
                    asked = ask()
                    if not asked.done():
                        asked.add_done_callback(go_on)
                        return
            except BaseException as error:  # Whoever asked is told, not whoever calls back.
                outcome.set_exception(error)

        if length > 0:
            ask().add_done_callback(go_on)
        else:
            outcome.set_result(found)
        return outcome

    def begin(self, operation: Operation, offset: int = 0, length: int = 0) -> Optional[int]:
        """Announces a request that the host carries out by itself, on :attr:`device`; the ticket is for :meth:`end`.

        ``None`` while the disk is being switched: try again when the hook of :meth:`set_opened` is called.
        """
        lib = self._lib
        with lib.new(lib.abi.u64) as ticket:
            answer = lib.check(lib.mirror_filter_begin(self.handle, operation, whole(offset, "offset"), whole(length, "length"), ticket.address))
            return None if answer == _abi.AGAIN else int(ticket.value)

    def end(self, ticket: int, error: Optional[BaseException] = None) -> None:
        """The request of this ticket is done, or failed with this exception; before the guest is told."""
        self._lib.check(self._lib.mirror_filter_end(self.handle, whole(ticket, "ticket"), -errno_of(error) if error is not None else 0))

    def set_opened(self, hook: Optional[Callable[[], None]]) -> None:
        """What is called, from any thread, when :meth:`begin` is worth trying again after it answered ``None``.

        What it raises is raised again from the next :meth:`blkmirror.Job.poll` of the filter's job.
        """
        lib, handle = self._lib, self.handle
        if hook is None:
            lib.check(lib.mirror_filter_set_opened(handle, 0, 0, 0))
            return
        called, closed, opened = lib.callback("hook", _on_opened), lib.farewell("hook", _on_closed), _Opened(hook, self._raised)
        # To try again is also how to know that the library is lost.
        number = lib.keep(opened, lambda _: _on_opened(opened))
        lib.check(lib.mirror_filter_set_opened(handle, called, number, closed))

    def take_raised(self) -> Optional[BaseException]:
        """The first exception of the opened hook that was not raised yet."""
        return self._raised.pop(0) if self._raised else None

    def mark_dirty(self, offset: int, length: int) -> None:
        """The range was written behind the filter's back."""
        self._lib.check(self._lib.mirror_filter_mark_dirty(self.handle, whole(offset, "offset"), whole(length, "length")))

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.mirror_filter_free(handle)

    def __reduce_ex__(self, _: object) -> Any:
        raise TypeError("a %s can be neither copied nor pickled: it is a handle of this process" % type(self).__name__)

    def __enter__(self) -> "Filter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
