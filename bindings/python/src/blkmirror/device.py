"""Devices: what a mirror copies from and to."""

from __future__ import annotations

import ctypes as c
import os
import threading
import weakref
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any, Callable, Iterable, Optional, Tuple, TypeVar, Union

from . import _ffi
from ._ffi import lib
from .errors import check, errno_of
from .events import Operation

__all__ = [
    "Answer",
    "BaseDevice",
    "Device",
    "DeviceFlags",
    "ExtentFlags",
    "FileDevice",
    "Finding",
    "Limits",
    "MemoryDevice",
    "NullDevice",
    "Request",
]


class ExtentFlags(IntFlag):
    """What a stretch of a device holds. Neither data nor zero: what no layer holds."""

    NONE = 0
    DATA = 1
    """A read finds data, whichever layer it comes from."""
    ZERO = 2
    """A read finds zeroes."""
    ALLOCATED = 4
    """It comes from this layer, above the base: what a job copies with ``Sync.TOP``."""


class DeviceFlags(IntFlag):
    """What a device promises."""

    NONE = 0
    READ_ONLY = 1
    """It refuses every change."""
    CHEAP_ZERO = 2
    """A zero that may deallocate is much cheaper than writing zeroes."""
    READS_ZERO = 4
    """Every byte reads as zero now."""
    DISCARD_ZEROES = 8
    """A discarded range reads as zero."""
    UNATTACHED_BACKING = 16
    """A backing layer will be attached later, so what is unallocated won't read as zero then."""


@dataclass(frozen=True)
class Limits:
    """What a device is like. 0 is "no limit", "any" or "none". Sizes are bytes."""

    request_alignment: int = 1
    """Offsets and lengths are multiples of this: a power of two up to 65536."""
    memory_alignment: int = 1
    """Buffers begin on multiples of this: a power of two up to 65536."""
    max_iov: int = 0
    """Most buffers in one request."""
    flags: DeviceFlags = DeviceFlags.NONE
    max_transfer: int = 0
    """Most bytes in one read or write, at least 512."""
    max_zero: int = 0
    max_discard: int = 0
    zero_alignment: int = 0
    """Zeroes are worth sending on multiples of this."""
    discard_alignment: int = 0
    cluster_size: int = 0
    """The device's own allocation unit."""


class Answer(Enum):
    """What a callback of a :class:`Device` can answer besides ``None``, which means that it is done."""

    PENDING = _ffi.PENDING
    """``request.complete()`` will be called later, from any thread."""
    AGAIN = _ffi.AGAIN
    """No room: to be offered again after something has completed, or :meth:`Device.kick`."""


D = TypeVar("D", bound="BaseDevice")


@dataclass(frozen=True)
class Finding:
    """A rule that a device has broken, from :meth:`BaseDevice.check`. As a string it is one line."""

    rule: str
    """The rule's name, such as ``write-stores``."""
    spec: str
    """The rule of the specification that it is part of: ``D-1`` to ``D-6``."""
    text: str
    """What the rule says."""
    asked: str
    """What was asked for."""
    expected: str
    """What was to be expected."""
    came: str
    """What came."""
    operation: Optional[Operation]
    """The kind of the request that broke it; ``None`` if it was none in particular."""
    offset: int
    """Where that begins."""
    length: int
    """Its bytes."""
    line: str
    """All of it."""

    def __str__(self) -> str:
        return self.line


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

    @property
    def limits(self) -> Limits:
        """The limits as they are used: a 0 that meant "no limit" is replaced by the most that is ever sent."""
        told = self._limits()
        return Limits(
            request_alignment=told.request_alignment,
            memory_alignment=told.memory_alignment,
            max_iov=told.max_iov,
            flags=DeviceFlags(told.flags),
            max_transfer=told.max_transfer,
            max_zero=told.max_zero,
            max_discard=told.max_discard,
            zero_alignment=told.zero_alignment,
            discard_alignment=told.discard_alignment,
            cluster_size=told.cluster_size,
        )

    @property
    def refused(self) -> int:
        """Completions that were refused so far: second ones, stale ones, and of requests that never were."""
        count = c.c_uint64()
        check(lib.mirror_device_refused(self.handle, c.byref(count)))
        return count.value

    @property
    def engine(self) -> Optional[str]:
        """What carries out the requests, if there is a choice: of a file ``"io_uring"`` or ``"threads"``."""
        word = c.c_char_p()
        check(lib.mirror_device_engine(self.handle, c.byref(word)))
        return word.value.decode() if word.value is not None else None

    def same(self, other: "BaseDevice") -> bool:
        """Whether the two are the same storage."""
        return bool(check(lib.mirror_device_same(self.handle, other.handle)))

    def check(
        self, *, destroy: bool = False, seed: int = 0, max_bytes: int = 0, timeout: float = 5.0
    ) -> "list[Finding]":
        """Judges the device, which must be a scratch device: **what it holds is lost**, so ``destroy`` must be true.

        It is sent requests as jobs send them, and each rule of a device that it breaks is a :class:`Finding`; no finding
        means that it conforms. What comes first matters most: the rest may be damage from it. ``max_bytes`` of it are
        touched at most (0: 64 MiB); a device that completes nothing for ``timeout`` seconds is told so.

        The exceptions that callbacks of a :class:`Device` raised meanwhile are left to :meth:`Device.take_raised`.
        """
        findings: "list[Finding]" = []

        def found(_: int, pointer: int) -> None:
            shown = c.cast(pointer, c.POINTER(_ffi.CheckFinding)).contents
            findings.append(_finding(shown))

        options = _ffi.CheckOptions()
        options.struct_size = c.sizeof(options)
        options.flags = 1 if destroy else 0
        options.seed, options.max_bytes, options.timeout_ns = seed, max_bytes, max(1, int(timeout * 1e9))
        check(lib.mirror_device_check(self.handle, c.byref(options), _ffi.FOUND(found), None))
        return findings

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.mirror_device_free(handle)

    def __enter__(self: "D") -> "D":
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
    """A regular file or a block device. ``create``: make a missing file, and give an empty one this length.

    ``threads``: leave all work to threads, even where io_uring is to be had.
    """

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        direct: bool = False,
        read_only: bool = False,
        create: Optional[int] = None,
        threads: bool = False,
    ) -> None:
        super().__init__()
        flags = (1 if read_only else 0) | (2 if direct else 0) | (4 if create is not None else 0) | (8 if threads else 0)
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
    ``flush``, ``extents``, ``truncate``, ``on_cancel`` and ``on_poll`` there is.

    Callbacks run on whichever thread has a request, several at once. An exception fails the request (with its ``errno``
    if it is an ``OSError``, else ``EIO``) and is raised again from the next :meth:`blkmirror.Job.poll` of a job that uses
    the device.

    The memory that ``read`` fills and ``write`` is given is the library's: don't keep it beyond the request.
    """

    def __init__(self, length: int, limits: Limits = Limits()) -> None:
        super().__init__()
        self._raised: list[BaseException] = []
        self._lock = threading.Lock()
        told = _ffi.DeviceLimits()
        told.struct_size = c.sizeof(told)
        told.length = length
        told.request_alignment = limits.request_alignment
        told.memory_alignment = limits.memory_alignment
        told.max_iov = limits.max_iov
        told.flags = limits.flags
        told.max_transfer = limits.max_transfer
        told.max_zero = limits.max_zero
        told.max_discard = limits.max_discard
        told.zero_alignment = limits.zero_alignment
        told.discard_alignment = limits.discard_alignment
        told.cluster_size = limits.cluster_size
        self._ops = self._make_ops()
        # The library's pointer back here; `_close` takes it away again.
        _KEPT[id(self._ops)] = self._ops, self._closed
        self._take(lib.mirror_device_new, c.byref(self._ops), c.byref(told), c.c_void_p(id(self._ops)))
        _LIVE.add(self)

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

    def on_cancel(self) -> None:
        """A job that uses the device is being cancelled: hurry what is in flight."""

    def on_poll(self) -> None:
        """Reap completions, for a device without a thread of its own: called at the start of each ``Job.poll``."""

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

    def _closed(self) -> None:
        self._guard(lambda: self.on_close())

    def _make_ops(self) -> _ffi.DeviceOps:
        def has(name: str) -> bool:
            return getattr(type(self), name) is not getattr(Device, name)

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
        if has("on_cancel"):
            ops.cancel = _ffi.HOOK(lambda _: None if self._guard(lambda: self.on_cancel()) else None)
        if has("on_poll"):
            ops.poll = _ffi.REAP(lambda _: self._guard(lambda: self.on_poll()))
        ops.close = _on_close
        return ops


def _finding(shown: _ffi.CheckFinding) -> Finding:
    texts = {
        name: getattr(shown, name).decode("utf-8", "replace")
        for name in ("rule", "spec", "text", "asked", "expected", "came", "line")
    }
    operation = Operation(shown.operation) if shown.operation else None
    return Finding(operation=operation, offset=shown.offset, length=shown.length, **texts)


# The callbacks of each device that the library may still call, and whom to tell when it won't any more.
_KEPT: "dict[int, tuple[_ffi.DeviceOps, Callable[[], None]]]" = {}


def _close(opaque: int) -> None:
    _, closed = _KEPT.pop(opaque)
    closed()


# One for all devices: a callback must not be freed from inside itself.
_on_close = _ffi.HOOK(_close)


# The devices in Python that somebody still has, for jobs to find those that they use.
_LIVE: "weakref.WeakSet[Device]" = weakref.WeakSet()


def devices_under(is_source: "Callable[[BaseDevice], bool]", target: BaseDevice) -> "list[Device]":
    """The devices in Python that a job uses, which raise from its poll what their callbacks raised."""
    used = [device for device in list(_LIVE) if device._handle is not None and is_source(device)]
    return [*used, target] if isinstance(target, Device) else used


def _views(iov: int, count: int) -> "list[memoryview]":
    """The buffers of a request, without a copy."""
    parts = c.cast(iov, c.POINTER(_ffi.Iovec))
    return [
        memoryview((c.c_uint8 * parts[index].len).from_address(parts[index].base)).cast("B") for index in range(count)
    ]
