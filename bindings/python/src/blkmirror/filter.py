"""The filter: the live disk that a guest's I/O goes through."""

from __future__ import annotations

import ctypes as c
import itertools
import os
import threading
from concurrent.futures import Future
from typing import Any, Callable, Dict, Optional, Tuple, Union

from . import _ffi
from ._ffi import lib
from .device import BaseDevice
from .errors import MirrorError, check

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


def _check_may_wait() -> None:
    """What is done on this thread is told once the callback that runs has returned: it would wait for itself."""
    if getattr(_thread, "telling", False):
        raise RuntimeError("a callback of a future can't wait for a request: use write_async or readinto_async")


_told = _ffi.TELL(_tell)


class Filter:
    """A live disk on a device. Use it in a ``with`` statement, or close it.

    Requests that return a future are done when it is; the others wait. Who waits must not be the thread that polls
    the job: in write-blocking mode, or while the disk is being switched, they would wait for each other. Nor can a callback
    of a future wait: ``RuntimeError``.
    """

    def __init__(self, source: BaseDevice, *, alignment: int = 1) -> None:
        self._handle: Optional[int] = None
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

    def is_on(self, device: BaseDevice) -> bool:
        """Whether guest requests go to this device now."""
        out = c.c_void_p()
        check(lib.mirror_filter_device(self.handle, c.byref(out)))
        try:
            return bool(check(lib.mirror_device_same(out, device.handle)))
        finally:
            lib.mirror_device_free(out)

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
        memory = (c.c_uint8 * len(buffer)).from_buffer(buffer)
        iov = _ffi.Iovec(c.addressof(memory), len(buffer))
        return self._submit(lib.mirror_filter_read, offset, c.byref(iov), 1, 0, keep=(memory, iov))

    def write_async(self, offset: int, data: Bytes, *, fua: bool = False) -> "Future[int]":
        """Writes the data from ``offset`` on; it is copied at once, so the caller may change it afterwards."""
        memory = (c.c_uint8 * len(data)).from_buffer_copy(data)
        iov = _ffi.Iovec(c.addressof(memory), len(data))
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

    def zero(self, offset: int, length: int, *, may_unmap: bool = False) -> None:
        """Makes the range read as zero, and waits."""
        _check_may_wait()
        flags = _ffi.MAY_UNMAP if may_unmap else 0
        self._submit(lib.mirror_filter_zero, offset, length, flags).result()

    def discard(self, offset: int, length: int) -> None:
        """The range's content is no longer needed. Waits."""
        _check_may_wait()
        self._submit(lib.mirror_filter_discard, offset, length).result()

    def flush(self) -> None:
        """Makes durable what is done, and waits."""
        _check_may_wait()
        self._submit(lib.mirror_filter_flush).result()

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
