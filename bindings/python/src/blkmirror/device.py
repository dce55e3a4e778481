"""Devices: what a mirror copies from and to."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Any, Callable, Iterable, Optional, Sequence, Tuple, TypeVar, Union

from . import _abi
from ._ffi import lib
from ._library import Library
from .errors import errno_of, terminated, whole
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

    PENDING = _abi.PENDING
    """``request.complete()`` will be called later, from any thread."""
    AGAIN = _abi.AGAIN
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

    # Where devices of this class are made. Filters and jobs are made where their devices are.
    _lib: Library = lib

    def __init__(self) -> None:
        self._handle: Optional[int] = None

    @staticmethod
    def _of(lib: Library) -> "BaseDevice":
        """A device of this library that has no handle yet."""
        device = BaseDevice()
        device._lib = lib
        return device

    @property
    def handle(self) -> int:
        """The C handle. ``ValueError`` after close."""
        if self._handle is None:
            raise ValueError("the device is closed")
        return self._handle

    def _limits(self) -> Any:
        with self._lib.new(self._lib.abi.DeviceLimits) as limits:
            self._lib.check(self._lib.mirror_device_query(self.handle, limits.address))
            return type(limits.value).from_buffer_copy(limits.value)

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
        with self._lib.new(self._lib.abi.u64) as count:
            self._lib.check(self._lib.mirror_device_refused(self.handle, count.address))
            return int(count.value)

    @property
    def engine(self) -> Optional[str]:
        """What carries out the requests, if there is a choice: of a file ``"io_uring"`` or ``"threads"``."""
        with self._lib.new(self._lib.abi.word) as word:
            self._lib.check(self._lib.mirror_device_engine(self.handle, word.address))
            return self._lib.text(word.value) if word.value else None

    def same(self, other: "BaseDevice") -> bool:
        """Whether the two are the same storage."""
        if other._lib is not self._lib:
            return False
        return bool(self._lib.check(self._lib.mirror_device_same(self.handle, other.handle)))

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
        lib = self._lib
        number = lib.keep((lib, findings))
        try:
            with lib.new(lib.abi.CheckOptions) as options:
                options.value.flags = 1 if destroy else 0
                options.value.seed, options.value.max_bytes = seed, max_bytes
                options.value.timeout_ns = max(1, int(timeout * 1e9))
                found = lib.callback("found", _found)
                lib.check(lib.mirror_device_check(self.handle, options.address, found, number))
        finally:
            lib.let_go(number)
        return findings

    def close(self) -> None:
        """Frees the handle. A second time is harmless."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.mirror_device_free(handle)

    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError("a %s can be neither copied nor pickled: it is a handle of this process" % type(self).__name__)

    def __enter__(self: "D") -> "D":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

    def _take(self, call: Callable[..., int], *arguments: int) -> None:
        with self._lib.new(self._lib.abi.word) as out:
            self._lib.check(call(*arguments, out.address))
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
        name = self._lib.lend_copy(memoryview(terminated(os.fsencode(path), "path %r" % (path,))))
        try:
            self._take(self._lib.mirror_device_open_file, name.address, flags, whole(create or 0, "create"))
        finally:
            name.close()


class MemoryDevice(BaseDevice):
    """Bytes in memory, all zero at first."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._take(self._lib.mirror_device_new_memory, whole(length, "length"))


class NullDevice(BaseDevice):
    """Succeeds at everything and does nothing."""

    def __init__(self, length: int, *, read_zeroes: bool = False, unallocated: bool = False) -> None:
        super().__init__()
        self._take(self._lib.mirror_device_new_null, whole(length, "length"), (1 if read_zeroes else 0) | (2 if unallocated else 0))


class Request:
    """A request that a :class:`Device` answered with :attr:`Answer.PENDING`."""

    def __init__(self, device: "Device", token: int, buffers: "Sequence[memoryview]" = ()) -> None:
        self._device, self._buffers = device, buffers
        self.token = token

    def complete(self, error: Optional[BaseException] = None) -> None:
        """It is done, or failed with this exception. From any thread, exactly once."""
        self._release()
        lib = self._device._lib
        lib.check(lib.mirror_device_complete(self._device.handle, self.token, -errno_of(error) if error is not None else 0))

    def _release(self) -> None:
        """Who uses a buffer from now on is told, by Python: its memory may be somebody else's."""
        for view in self._buffers:
            try:
                view.release()
            except BufferError:  # What was made of it, such as an array, goes on seeing the memory.
                pass


class Device(BaseDevice):
    """A device in Python: subclass it and override :meth:`read`, :meth:`write`, and whichever of ``zero``, ``discard``,
    ``flush``, ``extents``, ``truncate``, ``copy``, ``on_cancel`` and ``on_poll`` there is.

    Callbacks run on whichever thread has a request, several at once. An exception fails the request (with its ``errno``
    if it is an ``OSError``, else ``EIO``) and is raised again from the next :meth:`blkmirror.Job.poll` of a job that uses
    the device.

    The memory that ``read`` fills and ``write`` is given is the library's, or the guest's own. It is the request's until that is
    done; then the views are released, and using one is a ``ValueError``. What was made of a view, a slice or a numpy array, can't be
    released: **don't use it beyond the request**, for its memory may be gone.
    """

    def __init__(self, length: int, limits: Limits = Limits()) -> None:
        super().__init__()
        self.__raised: list[BaseException] = []
        self.__lock = threading.Lock()
        lib = self._lib
        with lib.new(lib.abi.DeviceOps) as ops, lib.new(lib.abi.DeviceLimits) as told:
            self._fill_ops(ops.value)
            told.value.length = length
            told.value.request_alignment = limits.request_alignment
            told.value.memory_alignment = limits.memory_alignment
            told.value.max_iov = limits.max_iov
            told.value.flags = limits.flags
            told.value.max_transfer = limits.max_transfer
            told.value.max_zero = limits.max_zero
            told.value.max_discard = limits.max_discard
            told.value.zero_alignment = limits.zero_alignment
            told.value.discard_alignment = limits.discard_alignment
            told.value.cluster_size = limits.cluster_size
            # The library's pointer back here; `_close` takes it away again.
            number = lib.keep(self, lambda _: self._tell_closed())
            self._take(lib.mirror_device_new, ops.address, told.address, number)
        _LIVE[id(self)] = self

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

    def copy(self, request: Request, source: "Device", offset: int, length: int) -> Optional[Answer]:
        """Take the range over from another device in Python that overrides this too, without buffers.

        What fails is copied through buffers; after ``EOPNOTSUPP``, ``EXDEV`` or ``ENOSYS`` all the rest of the job is.
        """
        raise NotImplementedError

    def on_cancel(self) -> None:
        """A job that uses the device is being cancelled: hurry what is in flight."""

    def on_poll(self) -> None:
        """Reap completions, for a device without a thread of its own: called at the start of each ``Job.poll``."""

    def on_close(self) -> None:
        """The library doesn't use the device any more."""

    def kick(self) -> None:
        """There may be room after :attr:`Answer.AGAIN`."""
        self._lib.check(self._lib.mirror_device_kick(self.handle))

    def take_raised(self) -> Optional[BaseException]:
        """The first exception of a callback that was not raised yet."""
        with self.__lock:
            return self.__raised.pop(0) if self.__raised else None

    def _guard(self, call: Callable[[], Optional[Answer]], request: Optional[Request] = None) -> int:
        answer: Optional[Answer] = None
        try:
            answer = call()
            return _abi.DONE if answer is None else int(answer.value)
        except BaseException as error:  # Nothing may leave a callback.
            with self.__lock:
                if len(self.__raised) < 16:
                    self.__raised.append(error)
            return -errno_of(error)
        finally:
            if request is not None and answer is not Answer.PENDING:
                request._release()

    def _tell_extents(self, token: int, offset: int, length: int) -> None:
        for stretch, flags in self.extents(offset, length):
            if self._lib.mirror_device_extent(self.handle, token, stretch, int(flags)) != 0:
                break

    def _tell_closed(self) -> None:
        self._guard(self.on_close)

    def _fill_ops(self, ops: Any) -> None:
        lib = self._lib
        for field, kind, name, function in _CALLBACKS:
            if name in ("read", "write") or getattr(type(self), name) is not getattr(Device, name):
                setattr(ops, field, lib.callback(kind, function))
        ops.close = lib.farewell("hook", _close)


# The library's callbacks. One serves all devices: a callback must not be freed from inside itself.


def _read(device: Device, token: int, offset: int, length: int, iov: int, count: int) -> int:
    buffers = device._lib.views(iov, count)
    request = Request(device, token, buffers)
    return device._guard(lambda: device.read(request, offset, buffers), request)


def _write(device: Device, token: int, offset: int, length: int, iov: int, count: int, flags: int) -> int:
    # It may be a guest's `bytes`, which nobody may change.
    buffers = [view.toreadonly() for view in device._lib.views(iov, count)]
    request = Request(device, token, buffers)
    return device._guard(lambda: device.write(request, offset, buffers, bool(flags & _abi.FUA)), request)


def _zero(device: Device, token: int, offset: int, length: int, flags: int) -> int:
    may_unmap = bool(flags & _abi.MAY_UNMAP)
    return device._guard(lambda: device.zero(Request(device, token), offset, length, may_unmap))


def _discard(device: Device, token: int, offset: int, length: int) -> int:
    return device._guard(lambda: device.discard(Request(device, token), offset, length))


def _flush(device: Device, token: int) -> int:
    return device._guard(lambda: device.flush(Request(device, token)))


def _extents(device: Device, token: int, offset: int, length: int) -> int:
    return device._guard(lambda: device._tell_extents(token, offset, length))


def _truncate(device: Device, token: int, length: int) -> int:
    return device._guard(lambda: device.truncate(Request(device, token), length))


def _copy(device: Device, token: int, source: int, offset: int, length: int) -> int:
    return device._guard(lambda: device.copy(Request(device, token), device._lib.thing(source), offset, length))


def _cancel(device: Device) -> None:
    device._guard(device.on_cancel)


def _poll(device: Device) -> int:
    return device._guard(device.on_poll)


def _close(device: Device) -> None:
    device._tell_closed()


# The library's name, the kind of callback, the method that it is for, and what is called.
_CALLBACKS: "list[tuple[str, str, str, Callable[..., Any]]]" = [
    ("read", "read", "read", _read),
    ("write", "write", "write", _write),
    ("zero", "zero", "zero", _zero),
    ("discard", "range", "discard", _discard),
    ("flush", "flush", "flush", _flush),
    ("extents", "range", "extents", _extents),
    ("truncate", "truncate", "truncate", _truncate),
    ("copy", "copy", "copy", _copy),
    ("cancel", "hook", "on_cancel", _cancel),
    ("poll", "reap", "on_poll", _poll),
]


def _found(place: "tuple[Library, list[Finding]]", pointer: int) -> None:
    lib, findings = place
    findings.append(_finding(lib, lib.at(lib.abi.CheckFinding, pointer)))


def _finding(lib: Library, shown: Any) -> Finding:
    names = ("rule", "spec", "text", "asked", "expected", "came", "line")
    texts = {name: lib.text(getattr(shown, name)) for name in names}
    operation = Operation(shown.operation) if shown.operation else None
    return Finding(operation=operation, offset=shown.offset, length=shown.length, **texts)


# The devices in Python that somebody still has, for jobs to find those that they use.
_LIVE: "weakref.WeakValueDictionary[int, Device]" = weakref.WeakValueDictionary()


def devices_under(is_source: "Callable[[BaseDevice], bool]", target: BaseDevice) -> "list[Device]":
    """The devices in Python that a job uses, which raise from its poll what their callbacks raised."""

    def is_used(device: Device) -> bool:
        try:
            return is_source(device)
        except (ValueError, OSError):  # It was closed meanwhile, by another thread.
            return False

    used = [device for reference in _LIVE.valuerefs() for device in [reference()] if device is not None and is_used(device)]
    return [*used, target] if isinstance(target, Device) else used
