"""The C API as ctypes sees it: one declaration for each of ``include/blkmirror.h``, and nothing else."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any, Iterator

NEVER = 2**64 - 1
DONE, PENDING, AGAIN = 0, 1, 2
FUA, MAY_UNMAP, WRITE_STABLE = 1, 2, 4

READ = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64, c.c_uint64, c.c_void_p, c.c_size_t)
WRITE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64, c.c_uint64, c.c_void_p, c.c_size_t, c.c_uint32)
ZERO = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64, c.c_uint64, c.c_uint32)
RANGE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64, c.c_uint64)
FLUSH = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64)
TRUNCATE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_uint64)
HOOK = c.CFUNCTYPE(None, c.c_void_p)
REAP = c.CFUNCTYPE(c.c_int, c.c_void_p)
COPY = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint64, c.c_void_p, c.c_uint64, c.c_uint64)
CLOCK = c.CFUNCTYPE(c.c_uint64, c.c_void_p)
PREPARE = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p)
TELL = c.CFUNCTYPE(None, c.c_void_p, c.c_int)
LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_uint32, c.c_char_p)
FOUND = c.CFUNCTYPE(None, c.c_void_p, c.c_void_p)


class Iovec(c.Structure):
    _fields_ = [("base", c.c_void_p), ("len", c.c_size_t)]


class Extent(c.Structure):
    _fields_ = [("length", c.c_uint64), ("flags", c.c_uint32), ("reserved", c.c_uint32)]


class DeviceOps(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("read", READ),
        ("write", WRITE),
        ("zero", ZERO),
        ("discard", RANGE),
        ("flush", FLUSH),
        ("extents", RANGE),
        ("truncate", TRUNCATE),
        ("cancel", HOOK),
        ("poll", REAP),
        ("close", HOOK),
        ("copy", COPY),
    ]


class DeviceLimits(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("length", c.c_uint64),
        ("request_alignment", c.c_uint32),
        ("memory_alignment", c.c_uint32),
        ("max_iov", c.c_uint32),
        ("flags", c.c_uint32),
        ("max_transfer", c.c_uint64),
        ("max_zero", c.c_uint64),
        ("max_discard", c.c_uint64),
        ("zero_alignment", c.c_uint64),
        ("discard_alignment", c.c_uint64),
        ("cluster_size", c.c_uint64),
    ]


class CheckOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("flags", c.c_uint32),
        ("reserved", c.c_uint32),
        ("seed", c.c_uint64),
        ("max_bytes", c.c_uint64),
        ("timeout_ns", c.c_uint64),
    ]


class CheckFinding(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("rule", c.c_char_p),
        ("spec", c.c_char_p),
        ("text", c.c_char_p),
        ("asked", c.c_char_p),
        ("expected", c.c_char_p),
        ("came", c.c_char_p),
        ("line", c.c_char_p),
        ("operation", c.c_uint32),
        ("flags", c.c_uint32),
        ("offset", c.c_uint64),
        ("length", c.c_uint64),
    ]


class PrepareInfo(c.Structure):
    _fields_ = [("struct_size", c.c_size_t), ("sync", c.c_uint32), ("backing_mode", c.c_uint32)]


class JobOptions(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("id", c.c_char_p),
        ("kind", c.c_uint32),
        ("sync", c.c_uint32),
        ("copy_mode", c.c_uint32),
        ("backing_mode", c.c_uint32),
        ("on_source_error", c.c_uint32),
        ("on_target_error", c.c_uint32),
        ("flags", c.c_uint32),
        ("max_in_flight", c.c_uint32),
        ("granularity", c.c_uint64),
        ("buf_size", c.c_uint64),
        ("max_io", c.c_uint64),
        ("speed", c.c_uint64),
        ("pass_interval_ns", c.c_uint64),
        ("guest_first_io", c.c_uint64),
        ("guest_first_in_flight", c.c_uint32),
        ("reserved", c.c_uint32),
        ("replaces", c.c_void_p),
        ("wake", HOOK),
        ("prepare", PREPARE),
        ("clock", CLOCK),
        ("opaque", c.c_void_p),
        ("closed", HOOK),
    ]


class Counter(c.Structure):
    _fields_ = [("ops", c.c_uint64), ("bytes", c.c_uint64), ("errors", c.c_uint64)]


class JobInfo(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("id", c.c_char * 128),
        ("message", c.c_char * 256),
        ("kind", c.c_uint32),
        ("status", c.c_uint32),
        ("copy_mode", c.c_uint32),
        ("io_status", c.c_uint32),
        ("busy", c.c_bool),
        ("paused", c.c_bool),
        ("ready", c.c_bool),
        ("actively_synced", c.c_bool),
        ("result", c.c_int),
        ("speed", c.c_uint64),
        ("done", c.c_uint64),
        ("total", c.c_uint64),
        ("dirty", c.c_uint64),
        ("prepared", c.c_uint64),
        ("in_flight_bytes", c.c_uint64),
        ("in_flight_ops", c.c_uint32),
        ("guests", c.c_uint32),
        ("passes", c.c_uint64),
        ("reads", Counter),
        ("writes", Counter),
        ("zeroes", Counter),
        ("discards", Counter),
        ("flushes", Counter),
        ("active", Counter),
        ("skipped_zeroes", c.c_uint64),
        ("guest_writes", c.c_uint64),
        ("errors", c.c_uint64),
        ("events_dropped", c.c_uint64),
        ("dirty_rate", c.c_uint64),
        ("copy_rate", c.c_uint64),
        ("eta_ns", c.c_uint64),
        ("granularity", c.c_uint64),
        ("bounce_copies", c.c_uint64),
        ("copies", Counter),
    ]


class Event(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t),
        ("type", c.c_uint32),
        ("status", c.c_uint32),
        ("result", c.c_int),
        ("operation", c.c_uint32),
        ("side", c.c_uint32),
        ("action", c.c_uint32),
        ("offset", c.c_uint64),
        ("length", c.c_uint64),
    ]


HANDLE, OUT, U64, INT = c.c_void_p, c.POINTER(c.c_void_p), c.c_uint64, c.c_int

FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "mirror_version": (c.c_uint32, []),
    "mirror_version_string": (c.c_char_p, []),
    "mirror_clock_ns": (U64, []),
    "mirror_last_error": (c.c_char_p, []),
    "mirror_set_log": (INT, [LOG, c.c_void_p, c.c_uint32, HOOK]),
    "mirror_device_new": (INT, [c.POINTER(DeviceOps), c.POINTER(DeviceLimits), c.c_void_p, OUT]),
    "mirror_device_open_file": (INT, [c.c_char_p, c.c_uint32, U64, OUT]),
    "mirror_device_new_memory": (INT, [U64, OUT]),
    "mirror_device_new_null": (INT, [U64, c.c_uint32, OUT]),
    "mirror_device_complete": (INT, [HANDLE, U64, INT]),
    "mirror_device_extent": (INT, [HANDLE, U64, U64, c.c_uint32]),
    "mirror_device_kick": (INT, [HANDLE]),
    "mirror_device_query": (INT, [HANDLE, c.POINTER(DeviceLimits)]),
    "mirror_device_refused": (INT, [HANDLE, c.POINTER(U64)]),
    "mirror_device_engine": (INT, [HANDLE, c.POINTER(c.c_char_p)]),
    "mirror_device_same": (INT, [HANDLE, HANDLE]),
    "mirror_device_check": (INT, [HANDLE, c.POINTER(CheckOptions), FOUND, c.c_void_p]),
    "mirror_device_free": (None, [HANDLE]),
    "mirror_filter_new": (INT, [HANDLE, OUT]),
    "mirror_filter_new_aligned": (INT, [HANDLE, c.c_uint32, OUT]),
    "mirror_filter_read": (INT, [HANDLE, U64, c.POINTER(Iovec), c.c_size_t, c.c_uint32, TELL, c.c_void_p]),
    "mirror_filter_write": (INT, [HANDLE, U64, c.POINTER(Iovec), c.c_size_t, c.c_uint32, TELL, c.c_void_p]),
    "mirror_filter_zero": (INT, [HANDLE, U64, U64, c.c_uint32, TELL, c.c_void_p]),
    "mirror_filter_discard": (INT, [HANDLE, U64, U64, TELL, c.c_void_p]),
    "mirror_filter_flush": (INT, [HANDLE, TELL, c.c_void_p]),
    "mirror_filter_extents": (
        INT,
        [HANDLE, U64, U64, c.POINTER(Extent), c.c_size_t, c.POINTER(c.c_size_t), TELL, c.c_void_p],
    ),
    "mirror_filter_begin": (INT, [HANDLE, c.c_uint32, U64, U64, c.POINTER(U64)]),
    "mirror_filter_end": (INT, [HANDLE, U64, INT]),
    "mirror_filter_set_opened": (INT, [HANDLE, HOOK, c.c_void_p, HOOK]),
    "mirror_filter_mark_dirty": (INT, [HANDLE, U64, U64]),
    "mirror_filter_device": (INT, [HANDLE, OUT]),
    "mirror_filter_length": (INT, [HANDLE, c.POINTER(U64)]),
    "mirror_filter_free": (None, [HANDLE]),
    "mirror_job_options_init": (INT, [c.POINTER(JobOptions), c.c_size_t]),
    "mirror_job_new": (INT, [HANDLE, HANDLE, c.POINTER(JobOptions), OUT]),
    "mirror_job_start": (INT, [HANDLE]),
    "mirror_job_poll": (INT, [HANDLE, U64, c.POINTER(U64)]),
    "mirror_job_fd": (INT, [HANDLE]),
    "mirror_job_pause": (INT, [HANDLE]),
    "mirror_job_resume": (INT, [HANDLE]),
    "mirror_job_drain_begin": (INT, [HANDLE]),
    "mirror_job_drain_end": (INT, [HANDLE]),
    "mirror_job_complete": (INT, [HANDLE]),
    "mirror_job_finalize": (INT, [HANDLE]),
    "mirror_job_dismiss": (INT, [HANDLE]),
    "mirror_job_cancel": (INT, [HANDLE, c.c_bool]),
    "mirror_job_set_speed": (INT, [HANDLE, U64]),
    "mirror_job_change": (INT, [HANDLE, c.c_uint32]),
    "mirror_job_query": (INT, [HANDLE, c.POINTER(JobInfo)]),
    "mirror_status_name": (c.c_char_p, [c.c_uint32]),
    "mirror_event_name": (c.c_char_p, [c.c_uint32]),
    "mirror_operation_name": (c.c_char_p, [c.c_uint32]),
    "mirror_job_next_event": (INT, [HANDLE, c.POINTER(Event)]),
    "mirror_job_free": (INT, [HANDLE]),
}


def _candidates() -> Iterator[str]:
    """Where the shared library may be: named, in the package, in a checkout's build folder, on the system."""
    named = os.environ.get("BLKMIRROR_LIBRARY")
    if named:
        yield named
        return
    name = "libblkmirror.dylib" if sys.platform == "darwin" else "libblkmirror.so"
    here = Path(__file__).resolve().parent
    yield str(here / name)
    if len(here.parents) > 3:
        target = Path(os.environ.get("CARGO_TARGET_DIR", str(here.parents[3] / "target")))
        for profile in ("release", "debug"):
            yield str(target / profile / name)
    found = ctypes.util.find_library("blkmirror")
    if found:
        yield found


def _load() -> c.CDLL:
    tried = []
    for path in _candidates():
        tried.append(path)
        if os.sep not in path or os.path.exists(path):
            library = c.CDLL(path)
            for name, (result, arguments) in FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    raise ImportError(
        "the blkmirror shared library was not found: run `cargo build --release` in a checkout, or name it in "
        "BLKMIRROR_LIBRARY (looked at " + ", ".join(tried) + ")"
    )


lib = _load()
