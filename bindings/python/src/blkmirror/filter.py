"""The filter: the live disk that a guest's I/O goes through."""

from __future__ import annotations

import ctypes as c
import itertools
import os
import threading
from concurrent.futures import Future
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from . import _ffi
from ._ffi import lib
from .device import BaseDevice, ExtentFlags
from .errors import MirrorError, check, errno_of
from .events import Operation

__all__ = ["Filter"]

Bytes = Union[bytes, bytearray, memoryview]

_waiting: Dict[int, Tuple["Future[int]", Any]] = {}
_numbers = itertools.count(1)
_lock = threading.Lock()
_thread = threading.local()


def _tell(number: int, result: int) -> None:
    with _lock:
        future, _ = _waiting.pop(number)
    _thread.telling = True
    try:
        if result == 0:
            future.set_result(0)
        else:
            future.set_exception(MirrorError(-result, os.strerror(-result)))
    finally:
        _thread.telling = False


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


_told = _ffi.TELL(_tell)


# The opened hooks that the library may still call.
_opened: Dict[int, Any] = {}
_on_closed = _ffi.HOOK(lambda number: _opened.pop(number, None) and None)


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
        out = c.c_void_p()
        check(lib.mirror_filter_new_aligned(source.handle, alignment, c.byref(out)))
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
        length = c.c_uint64()
        check(lib.mirror_filter_length(self.handle, c.byref(length)))
        return length.value

    @property
    def device(self) -> BaseDevice:
        """A new handle to the device that guest requests go to now: close it."""
        device = BaseDevice()
        device._take(lib.mirror_filter_device, self.handle)
        return device

    def is_on(self, device: BaseDevice) -> bool:
        """Whether guest requests go to this device now."""
        with self.device as now:
            return now.same(device)

    def _submit(self, call: Callable[..., int], *arguments: Any, keep: Any = None) -> "Future[int]":
        future: "Future[int]" = Future()
        number = next(_numbers)
        with _lock:
            _waiting[number] = (future, keep)
        answer = call(self.handle, *arguments, _told, c.c_void_p(number))
        if answer < 0:
            with _lock:
                _waiting.pop(number, None)
        check(answer)
        return future

    def readinto_async(self, offset: int, buffer: Union[bytearray, memoryview]) -> "Future[int]":
        """Fills the buffer from ``offset`` on. The buffer must not be resized before the future is done."""
        view = _bytes_of(buffer)
        memory = (c.c_uint8 * len(view)).from_buffer(view)
        iov = _ffi.Iovec(c.addressof(memory), len(view))
        return self._submit(lib.mirror_filter_read, offset, c.byref(iov), 1, 0, keep=(memory, iov))

    def write_async(self, offset: int, data: Bytes, *, fua: bool = False) -> "Future[int]":
        """Writes the data from ``offset`` on; it is copied at once, so the caller may change it afterwards."""
        view = _bytes_of(data)
        memory = (c.c_uint8 * len(view)).from_buffer_copy(view)
        iov = _ffi.Iovec(c.addressof(memory), len(view))
        flags = _ffi.WRITE_STABLE | (_ffi.FUA if fua else 0)
        return self._submit(lib.mirror_filter_write, offset, c.byref(iov), 1, flags, keep=(memory, iov))

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
        flags = (_ffi.MAY_UNMAP if may_unmap else 0) | (_ffi.FUA if fua else 0)
        return self._submit(lib.mirror_filter_zero, offset, length, flags)

    def discard_async(self, offset: int, length: int) -> "Future[int]":
        """The range's content is no longer needed."""
        return self._submit(lib.mirror_filter_discard, offset, length)

    def flush_async(self) -> "Future[int]":
        """Makes durable what is done."""
        return self._submit(lib.mirror_filter_flush)

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
        room, found = 64, []
        while length > 0:
            extents, count = (_ffi.Extent * room)(), c.c_size_t()
            arguments = (offset, length, extents, room, c.byref(count))
            self._submit(lib.mirror_filter_extents, *arguments, keep=(extents, count)).result()
            for extent in extents[: count.value]:
                found.append((extent.length, ExtentFlags(extent.flags)))
                offset, length = offset + extent.length, length - extent.length
        return found

    def begin(self, operation: Operation, offset: int = 0, length: int = 0) -> Optional[int]:
        """Announces a request that the host carries out by itself, on :attr:`device`; the ticket is for :meth:`end`.

        ``None`` while the disk is being switched: try again when the hook of :meth:`set_opened` is called.
        """
        ticket = c.c_uint64()
        answer = check(lib.mirror_filter_begin(self.handle, operation, offset, length, c.byref(ticket)))
        return None if answer == _ffi.AGAIN else ticket.value

    def end(self, ticket: int, error: Optional[BaseException] = None) -> None:
        """The request of this ticket is done, or failed with this exception; before the guest is told."""
        check(lib.mirror_filter_end(self.handle, ticket, -errno_of(error) if error else 0))

    def set_opened(self, hook: Optional[Callable[[], None]]) -> None:
        """What is called, from any thread, when :meth:`begin` is worth trying again after it answered ``None``.

        What it raises is raised again from the next :meth:`blkmirror.Job.poll` of the filter's job.
        """
        if hook is None:
            check(lib.mirror_filter_set_opened(self.handle, _ffi.HOOK(), None, _ffi.HOOK()))
            return
        wanted, raised = hook, self._raised

        def on_opened(_: int) -> None:
            try:
                wanted()
            except BaseException as error:  # Nothing may leave a callback.
                raised.append(error)

        kept = _ffi.HOOK(on_opened)
        _opened[id(kept)] = kept
        check(lib.mirror_filter_set_opened(self.handle, kept, id(kept), _on_closed))

    def take_raised(self) -> Optional[BaseException]:
        """The first exception of the opened hook that was not raised yet."""
        return self._raised.pop(0) if self._raised else None

    def mark_dirty(self, offset: int, length: int) -> None:
        """The range was written behind the filter's back."""
        check(lib.mirror_filter_mark_dirty(self.handle, offset, length))

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.mirror_filter_free(handle)

    def __enter__(self) -> "Filter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and lib is not None:
            self.close()
