"""Devices: what a mirror copies from and to."""

from __future__ import annotations

import ctypes as c
import os
import threading
from enum import Enum, IntFlag
from typing import Any, Callable, Iterable, Optional, Tuple, Union

from . import _ffi
from ._ffi import lib
from .errors import check, errno_of

__all__ = ["Answer", "BaseDevice", "Device", "ExtentFlags", "FileDevice", "MemoryDevice", "NullDevice", "Request"]


class ExtentFlags(IntFlag):
    """What a stretch of a device holds."""

    DATA = 1
    ZERO = 2
    ALLOCATED = 4


class Answer(Enum):
    """What a callback of a :class:`Device` can answer besides ``None``, which means that it is done."""

    PENDING = _ffi.PENDING
    """``request.complete()`` will be called later, from any thread."""
    AGAIN = _ffi.AGAIN
    """No room: to be offered again after something has completed, or :meth:`Device.kick`."""


class BaseDevice:
    """A handle to a device. Close it, or use it in a ``with`` statement; a job that uses the device keeps it."""

    def __init__(self) -> None:
        self._handle: Optional[int] = None

    @property
    def handle(self) -> int:
        """The C handle. ``ValueError`` after close."""
        if self._handle is None:
            raise ValueError("the device is closed")
        return self._handle

    def _limits(self) -> _ffi.DeviceLimits:
        limits = _ffi.DeviceLimits()
        limits.struct_size = c.sizeof(limits)
        check(lib.mirror_device_query(self.handle, c.byref(limits)))
        return limits

    @property
    def length(self) -> int:
        """Bytes."""
        return int(self._limits().length)

    def same(self, other: "BaseDevice") -> bool:
        """Whether the two are the same storage."""
        return bool(check(lib.mirror_device_same(self.handle, other.handle)))

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.mirror_device_free(handle)

    def __enter__(self) -> "BaseDevice":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and lib is not None:
            self.close()

    def _take(self, call: Callable[..., int], *arguments: Any) -> None:
        out = c.c_void_p()
        check(call(*arguments, c.byref(out)))
        self._handle = out.value


class FileDevice(BaseDevice):
    """A regular file or a block device. ``create``: make a missing file, and give an empty one this length."""

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        direct: bool = False,
        read_only: bool = False,
        create: Optional[int] = None,
    ) -> None:
        super().__init__()
        flags = (1 if read_only else 0) | (2 if direct else 0) | (4 if create is not None else 0)
        self._take(lib.mirror_device_open_file, os.fsencode(path), flags, create or 0)


class MemoryDevice(BaseDevice):
    """Bytes in memory, all zero at first."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._take(lib.mirror_device_new_memory, length)


class NullDevice(BaseDevice):
    """Succeeds at everything and does nothing."""

    def __init__(self, length: int, *, read_zeroes: bool = False, unallocated: bool = False) -> None:
        super().__init__()
        self._take(lib.mirror_device_new_null, length, (1 if read_zeroes else 0) | (2 if unallocated else 0))


class Request:
    """A request that a :class:`Device` answered with :attr:`Answer.PENDING`."""

    def __init__(self, device: "Device", token: int) -> None:
        self._device = device
        self.token = token

    def complete(self, error: Optional[BaseException] = None) -> None:
        """It is done, or failed with this exception. From any thread, exactly once."""
        check(lib.mirror_device_complete(self._device.handle, self.token, -errno_of(error) if error else 0))


class Device(BaseDevice):
    """A device in Python: subclass it and override :meth:`read`, :meth:`write`, and whichever of ``zero``, ``discard``,
    ``flush``, ``extents`` and ``truncate`` there is.

    Callbacks run on whichever thread has a request, several at once. An exception fails the request (with its ``errno``
    if it is an ``OSError``, else ``EIO``) and is raised again from the next :meth:`blkmirror.Job.poll` of a job that uses
    the device.

    The memory that ``read`` fills and ``write`` is given is the library's: don't keep it beyond the request.
    """

    def __init__(
        self,
        length: int,
        *,
        request_alignment: int = 1,
        max_transfer: int = 0,
        cluster_size: int = 0,
        read_only: bool = False,
        reads_zero: bool = False,
        discard_zeroes: bool = False,
        cheap_zero: bool = False,
    ) -> None:
        super().__init__()
        self._raised: list[BaseException] = []
        self._lock = threading.Lock()
        limits = _ffi.DeviceLimits()
        limits.struct_size = c.sizeof(limits)
        limits.length = length
        limits.request_alignment = request_alignment
        limits.max_transfer = max_transfer
        limits.cluster_size = cluster_size
        limits.flags = (
            (1 if read_only else 0)
            | (2 if cheap_zero else 0)
            | (4 if reads_zero else 0)
            | (8 if discard_zeroes else 0)
        )
        self._ops = self._make_ops()
        # The library's pointer back here; `close` takes it away again.
        _KEPT[id(self._ops)] = self._ops
        self._take(lib.mirror_device_new, c.byref(self._ops), c.byref(limits), c.c_void_p(id(self._ops)))

    # What a subclass overrides.

    def read(self, request: Request, offset: int, buffers: "list[memoryview]") -> Optional[Answer]:
        """Fill the buffers, in order, from ``offset`` on."""
        raise NotImplementedError

    def write(self, request: Request, offset: int, buffers: "list[memoryview]", fua: bool) -> Optional[Answer]:
        """Write the buffers, in order, from ``offset`` on."""
        raise NotImplementedError

    def zero(self, request: Request, offset: int, length: int, may_unmap: bool) -> Optional[Answer]:
        """Make the range read as zero."""
        raise NotImplementedError

    def discard(self, request: Request, offset: int, length: int) -> Optional[Answer]:
        """The range's content is no longer needed."""
        raise NotImplementedError

    def flush(self, request: Request) -> Optional[Answer]:
        """Make what is done durable."""
        raise NotImplementedError

    def extents(self, offset: int, length: int) -> Iterable[Tuple[int, ExtentFlags]]:
        """What the range holds: lengths and flags, in order."""
        raise NotImplementedError

    def truncate(self, request: Request, length: int) -> Optional[Answer]:
        """Change the device's length."""
        raise NotImplementedError

    def on_close(self) -> None:
        """The library doesn't use the device any more."""

    def kick(self) -> None:
        """There may be room after :attr:`Answer.AGAIN`."""
        check(lib.mirror_device_kick(self.handle))

    def take_raised(self) -> Optional[BaseException]:
        """The first exception of a callback that was not raised yet."""
        with self._lock:
            return self._raised.pop(0) if self._raised else None

    def _guard(self, call: Callable[[], Optional[Answer]]) -> int:
        try:
            answer = call()
            return _ffi.DONE if answer is None else int(answer.value)
        except BaseException as error:  # Nothing may leave a callback.
            with self._lock:
                if len(self._raised) < 16:
                    self._raised.append(error)
            return -errno_of(error)

    def _tell_extents(self, token: int, offset: int, length: int) -> None:
        for stretch, flags in self.extents(offset, length):
            if lib.mirror_device_extent(self.handle, token, stretch, int(flags)) != 0:
                break

    def _make_ops(self) -> _ffi.DeviceOps:
        def has(name: str) -> bool:
            return getattr(type(self), name) is not getattr(Device, name)

        def close(opaque: int) -> None:
            _KEPT.pop(opaque, None)
            self._guard(lambda: self.on_close())

        ops = _ffi.DeviceOps()
        ops.struct_size = c.sizeof(ops)
        ops.read = _ffi.READ(
            lambda _, token, offset, length, iov, count: self._guard(
                lambda: self.read(Request(self, token), offset, _views(iov, count))
            )
        )
        ops.write = _ffi.WRITE(
            lambda _, token, offset, length, iov, count, flags: self._guard(
                lambda: self.write(Request(self, token), offset, _views(iov, count), bool(flags & _ffi.FUA))
            )
        )
        if has("zero"):
            ops.zero = _ffi.ZERO(
                lambda _, token, offset, length, flags: self._guard(
                    lambda: self.zero(Request(self, token), offset, length, bool(flags & _ffi.MAY_UNMAP))
                )
            )
        if has("discard"):
            ops.discard = _ffi.RANGE(
                lambda _, token, offset, length: self._guard(
                    lambda: self.discard(Request(self, token), offset, length)
                )
            )
        if has("flush"):
            ops.flush = _ffi.FLUSH(lambda _, token: self._guard(lambda: self.flush(Request(self, token))))
        if has("extents"):
            ops.extents = _ffi.RANGE(
                lambda _, token, offset, length: self._guard(lambda: self._tell_extents(token, offset, length))
            )
        if has("truncate"):
            ops.truncate = _ffi.TRUNCATE(
                lambda _, token, length: self._guard(lambda: self.truncate(Request(self, token), length))
            )
        ops.close = _ffi.HOOK(close)
        return ops


# The callbacks of each device that the library may still call.
_KEPT: "dict[int, _ffi.DeviceOps]" = {}


def _views(iov: int, count: int) -> "list[memoryview]":
    """The buffers of a request, without a copy."""
    parts = c.cast(iov, c.POINTER(_ffi.Iovec))
    return [
        memoryview((c.c_uint8 * parts[index].len).from_address(parts[index].base)).cast("B") for index in range(count)
    ]
