"""The filter: the live disk that a guest's I/O goes through."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import Callable, List, Optional, Sequence, Tuple, Union

from . import _abi
from ._library import Cell, Loan
from .device import BaseDevice, ExtentFlags
from .errors import MirrorError, errno_of
from .events import Operation

__all__ = ["Filter"]

Bytes = Union[bytes, bytearray, memoryview]

_thread = threading.local()


class _Waiting:
    """A request that is under way: who waits for it, and the memory that it has until then."""

    def __init__(self, memory: Sequence[Loan]) -> None:
        self.future: "Future[int]" = Future()
        self.memory = memory

    def end(self, error: Optional[BaseException]) -> None:
        """It is done, or failed with this exception."""
        if error is None:
            for part in self.memory:
                part.fetch()
        self.release()
        _thread.telling = True
        try:
            if error is None:
                self.future.set_result(0)
            else:
                self.future.set_exception(error)
        finally:
            _thread.telling = False

    def release(self) -> None:
        """The memory is not used any more."""
        for part in self.memory:
            part.close()


def _tell(waiting: _Waiting, result: int) -> None:
    waiting.end(MirrorError(-result, os.strerror(-result)) if result else None)


def _bytes_of(buffer: Bytes) -> memoryview:
    """Its bytes, of whatever items it is made. ``TypeError`` unless they lie one after the other."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise TypeError("the buffer is not contiguous")
    # An empty view can't be cast.
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _check_may_wait() -> None:
    """What is done on this thread is told once the callback that runs has returned: it would wait for itself."""
    if getattr(_thread, "telling", False):
        raise RuntimeError("a callback of a future can't wait for a request: use write_async or readinto_async")


class _Extents(Loan):
    """Room for the answer to a question for extents."""

    def __init__(self, extents: Cell, count: Cell) -> None:
        self._extents, self._count = extents, count
        self.told: List[Tuple[int, ExtentFlags]] = []

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

    Requests that return a future are done when it is; the others wait. Who waits must not be the thread that polls
    the job: in write-blocking mode, or while the disk is being switched, they would wait for each other. Nor can a callback
    of a future wait: ``RuntimeError``.

    ``alignment``: guests keep to its multiples, where the source itself asks for less; choose the target's.
    """

    def __init__(self, source: BaseDevice, *, alignment: int = 1) -> None:
        self._handle: Optional[int] = None
        self._raised: List[BaseException] = []
        self._lib = source._lib
        with self._lib.new(self._lib.abi.word) as out:
            self._lib.check(self._lib.mirror_filter_new_aligned(source.handle, alignment, out.address))
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

    def _submit(
        self, call: Callable[..., int], *arguments: int, memory: Sequence[Loan] = ()
    ) -> "Future[int]":
        lib, handle, waiting = self._lib, self.handle, _Waiting(memory)
        number = lib.keep(waiting, waiting.end)
        answer = call(handle, *arguments, lib.farewell("tell", _tell), number)
        if answer < 0:
            lib.let_go(number)
            waiting.release()
        lib.check(answer)
        return waiting.future

    def _transfer(self, call: Callable[..., int], offset: int, loan: Loan, flags: int) -> "Future[int]":
        with self._lib.new(self._lib.abi.Iovec) as iov:
            iov.value.base, iov.value.len = loan.address, loan.length
            return self._submit(call, offset, iov.address, 1, flags, memory=[loan])

    def readinto_async(self, offset: int, buffer: Union[bytearray, memoryview]) -> "Future[int]":
        """Fills the buffer from ``offset`` on. The buffer must not be resized before the future is done."""
        return self._transfer(self._lib.mirror_filter_read, offset, self._lib.lend(_bytes_of(buffer)), 0)

    def write_async(self, offset: int, data: Bytes, *, fua: bool = False) -> "Future[int]":
        """Writes the data from ``offset`` on; it is copied at once, so the caller may change it afterwards."""
        flags = _abi.WRITE_STABLE | (_abi.FUA if fua else 0)
        return self._transfer(self._lib.mirror_filter_write, offset, self._lib.lend_copy(_bytes_of(data)), flags)

    def read(self, offset: int, length: int) -> bytes:
        """Reads and waits."""
        _check_may_wait()
        buffer = bytearray(length)
        self.readinto_async(offset, buffer).result()
        return bytes(buffer)

    def write(self, offset: int, data: Bytes, *, fua: bool = False) -> None:
        """Writes and waits."""
        _check_may_wait()
        self.write_async(offset, data, fua=fua).result()

    def zero_async(self, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False) -> "Future[int]":
        """Makes the range read as zero."""
        flags = (_abi.MAY_UNMAP if may_unmap else 0) | (_abi.FUA if fua else 0)
        return self._submit(self._lib.mirror_filter_zero, offset, length, flags)

    def discard_async(self, offset: int, length: int) -> "Future[int]":
        """The range's content is no longer needed."""
        return self._submit(self._lib.mirror_filter_discard, offset, length)

    def flush_async(self) -> "Future[int]":
        """Makes durable what is done."""
        return self._submit(self._lib.mirror_filter_flush)

    def zero(self, offset: int, length: int, *, may_unmap: bool = False, fua: bool = False) -> None:
        """Makes the range read as zero, and waits."""
        _check_may_wait()
        self.zero_async(offset, length, may_unmap=may_unmap, fua=fua).result()

    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer needed. Waits."""
        _check_may_wait()
        self.discard_async(offset, length).result()

    def flush(self) -> None:
        """Makes durable what is done, and waits."""
        _check_may_wait()
        self.flush_async().result()

    def extents(self, offset: int, length: int) -> List[Tuple[int, ExtentFlags]]:
        """What the range holds: lengths and what is there, one after the other. Waits."""
        _check_may_wait()
        room, found, lib = 64, [], self._lib
        while length > 0:
            extents, count = lib.new(lib.abi.Extent, room), lib.new(lib.abi.word)
            arguments = (offset, length, extents.address, room, count.address)
            answer = _Extents(extents, count)
            self._submit(lib.mirror_filter_extents, *arguments, memory=[answer]).result()
            for part, flags in answer.told:
                found.append((part, flags))
                offset, length = offset + part, length - part
        return found

    def begin(self, operation: Operation, offset: int = 0, length: int = 0) -> Optional[int]:
        """Announces a request that the host carries out by itself, on :attr:`device`; the ticket is for :meth:`end`.

        ``None`` while the disk is being switched: try again when the hook of :meth:`set_opened` is called.
        """
        lib = self._lib
        with lib.new(lib.abi.u64) as ticket:
            answer = lib.check(lib.mirror_filter_begin(self.handle, operation, offset, length, ticket.address))
            return None if answer == _abi.AGAIN else int(ticket.value)

    def end(self, ticket: int, error: Optional[BaseException] = None) -> None:
        """The request of this ticket is done, or failed with this exception; before the guest is told."""
        self._lib.check(self._lib.mirror_filter_end(self.handle, ticket, -errno_of(error) if error else 0))

    def set_opened(self, hook: Optional[Callable[[], None]]) -> None:
        """What is called, from any thread, when :meth:`begin` is worth trying again after it answered ``None``.

        What it raises is raised again from the next :meth:`blkmirror.Job.poll` of the filter's job.
        """
        lib, handle = self._lib, self.handle
        if hook is None:
            lib.check(lib.mirror_filter_set_opened(handle, 0, 0, 0))
            return
        opened, closed = lib.callback("hook", _on_opened), lib.farewell("hook", _on_closed)
        lib.check(lib.mirror_filter_set_opened(handle, opened, lib.keep(_Opened(hook, self._raised)), closed))

    def take_raised(self) -> Optional[BaseException]:
        """The first exception of the opened hook that was not raised yet."""
        return self._raised.pop(0) if self._raised else None

    def mark_dirty(self, offset: int, length: int) -> None:
        """The range was written behind the filter's back."""
        self._lib.check(self._lib.mirror_filter_mark_dirty(self.handle, offset, length))

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.mirror_filter_free(handle)

    def __enter__(self) -> "Filter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()
