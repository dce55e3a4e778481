"""The C API as data: one declaration for each of ``include/blkmirror.h``, for pointers of any width.

Types of arguments and results are letters: ``p`` a pointer or a ``size_t``, ``i`` an ``int``, ``u`` a ``uint32_t``, ``q`` a
``uint64_t``, ``b`` a ``bool``, ``v`` nothing. A function is its result and its arguments. Function pointers in structures are
words like any pointer: what makes them is the library's business.
"""

from __future__ import annotations

import ctypes as c
from typing import Any, Dict, Set, Tuple

from .errors import whole

NEVER = 2**64 - 1
DONE, PENDING, AGAIN = 0, 1, 2
FUA, MAY_UNMAP, WRITE_STABLE = 1, 2, 4

Signature = Tuple[str, str]

# What the library calls. The first argument is always the host's opaque pointer.
CALLBACKS: Dict[str, Signature] = {
    "read": ("i", "pqqqpp"),
    "write": ("i", "pqqqppu"),
    "zero": ("i", "pqqqu"),
    "range": ("i", "pqqq"),
    "flush": ("i", "pq"),
    "truncate": ("i", "pqq"),
    "hook": ("v", "p"),
    "reap": ("i", "p"),
    "copy": ("i", "pqpqq"),
    "clock": ("q", "p"),
    "prepare": ("i", "pp"),
    "tell": ("v", "pi"),
    "log": ("v", "pup"),
    "found": ("v", "pp"),
}

# What is called.
FUNCTIONS: Dict[str, Signature] = {
    "mirror_version": ("u", ""),
    "mirror_version_string": ("p", ""),
    "mirror_clock_ns": ("q", ""),
    "mirror_last_error": ("p", ""),
    "mirror_set_log": ("i", "ppup"),
    "mirror_device_new": ("i", "pppp"),
    "mirror_device_open_file": ("i", "puqp"),
    "mirror_device_new_memory": ("i", "qp"),
    "mirror_device_new_null": ("i", "qup"),
    "mirror_device_complete": ("i", "pqi"),
    "mirror_device_extent": ("i", "pqqu"),
    "mirror_device_kick": ("i", "p"),
    "mirror_device_query": ("i", "pp"),
    "mirror_device_refused": ("i", "pp"),
    "mirror_device_engine": ("i", "pp"),
    "mirror_device_same": ("i", "pp"),
    "mirror_device_check": ("i", "pppp"),
    "mirror_device_free": ("v", "p"),
    "mirror_filter_new": ("i", "pp"),
    "mirror_filter_new_aligned": ("i", "pup"),
    "mirror_filter_read": ("i", "pqppupp"),
    "mirror_filter_write": ("i", "pqppupp"),
    "mirror_filter_zero": ("i", "pqqupp"),
    "mirror_filter_discard": ("i", "pqqpp"),
    "mirror_filter_flush": ("i", "ppp"),
    "mirror_filter_extents": ("i", "pqqppppp"),
    "mirror_filter_begin": ("i", "puqqp"),
    "mirror_filter_end": ("i", "pqi"),
    "mirror_filter_set_opened": ("i", "pppp"),
    "mirror_filter_mark_dirty": ("i", "pqq"),
    "mirror_filter_device": ("i", "pp"),
    "mirror_filter_length": ("i", "pp"),
    "mirror_filter_free": ("v", "p"),
    "mirror_job_options_init": ("i", "pp"),
    "mirror_job_new": ("i", "pppp"),
    "mirror_job_start": ("i", "p"),
    "mirror_job_poll": ("i", "pqp"),
    "mirror_job_fd": ("i", "p"),
    "mirror_job_pause": ("i", "p"),
    "mirror_job_resume": ("i", "p"),
    "mirror_job_drain_begin": ("i", "p"),
    "mirror_job_drain_end": ("i", "p"),
    "mirror_job_complete": ("i", "p"),
    "mirror_job_finalize": ("i", "p"),
    "mirror_job_dismiss": ("i", "p"),
    "mirror_job_cancel": ("i", "pb"),
    "mirror_job_set_speed": ("i", "pq"),
    "mirror_job_change": ("i", "pu"),
    "mirror_job_query": ("i", "pp"),
    "mirror_status_name": ("p", "u"),
    "mirror_event_name": ("p", "u"),
    "mirror_operation_name": ("p", "u"),
    "mirror_job_next_event": ("i", "pp"),
    "mirror_job_free": ("i", "p"),
}


class Abi:
    """The structures, for one width of pointers: ``word`` is the ctypes integer as wide as a pointer.

    ``base`` is their base class, which decides the order of bytes.
    """

    def __init__(self, word: Any, base: Any = c.Structure) -> None:
        # Those that begin with their size.
        self.sized: Set[Any] = set()

        u32, u64, i32 = c.c_uint32, c.c_uint64, c.c_int32

        def structure(name: str, **fields: Any) -> Any:
            bits = {field: 8 * c.sizeof(of) for field, of in fields.items() if of in (u32, u64, word)}

            def put(self: Any, field: str, value: Any) -> None:
                base.__setattr__(self, field, whole(value, field, bits[field]) if field in bits else value)

            made = type(name, (base,), {"_fields_": list(fields.items()), "__setattr__": put})
            if "struct_size" in fields:
                self.sized.add(made)
            return made

        self.word, self.u64 = word, u64

        self.Iovec = structure("Iovec", base=word, len=word)
        self.Extent = structure("Extent", length=u64, flags=u32, reserved=u32)
        self.DeviceOps = structure(
            "DeviceOps",
            struct_size=word,
            read=word,
            write=word,
            zero=word,
            discard=word,
            flush=word,
            extents=word,
            truncate=word,
            cancel=word,
            poll=word,
            close=word,
            copy=word,
        )
        self.DeviceLimits = structure(
            "DeviceLimits",
            struct_size=word,
            length=u64,
            request_alignment=u32,
            memory_alignment=u32,
            max_iov=u32,
            flags=u32,
            max_transfer=u64,
            max_zero=u64,
            max_discard=u64,
            zero_alignment=u64,
            discard_alignment=u64,
            cluster_size=u64,
        )
        self.CheckOptions = structure(
            "CheckOptions", struct_size=word, flags=u32, reserved=u32, seed=u64, max_bytes=u64, timeout_ns=u64
        )
        self.CheckFinding = structure(
            "CheckFinding",
            struct_size=word,
            rule=word,
            spec=word,
            text=word,
            asked=word,
            expected=word,
            came=word,
            line=word,
            operation=u32,
            flags=u32,
            offset=u64,
            length=u64,
        )
        self.PrepareInfo = structure("PrepareInfo", struct_size=word, sync=u32, backing_mode=u32)
        self.JobOptions = structure(
            "JobOptions",
            struct_size=word,
            id=word,
            kind=u32,
            sync=u32,
            copy_mode=u32,
            backing_mode=u32,
            on_source_error=u32,
            on_target_error=u32,
            flags=u32,
            max_in_flight=u32,
            granularity=u64,
            buf_size=u64,
            max_io=u64,
            speed=u64,
            pass_interval_ns=u64,
            guest_first_io=u64,
            guest_first_in_flight=u32,
            reserved=u32,
            replaces=word,
            wake=word,
            prepare=word,
            clock=word,
            opaque=word,
            closed=word,
        )
        counter = self.Counter = structure("Counter", ops=u64, bytes=u64, errors=u64)
        self.JobInfo = structure(
            "JobInfo",
            struct_size=word,
            id=c.c_char * 128,
            message=c.c_char * 256,
            kind=u32,
            status=u32,
            copy_mode=u32,
            io_status=u32,
            busy=c.c_bool,
            paused=c.c_bool,
            ready=c.c_bool,
            actively_synced=c.c_bool,
            result=i32,
            speed=u64,
            done=u64,
            total=u64,
            dirty=u64,
            prepared=u64,
            in_flight_bytes=u64,
            in_flight_ops=u32,
            guests=u32,
            passes=u64,
            reads=counter,
            writes=counter,
            zeroes=counter,
            discards=counter,
            flushes=counter,
            active=counter,
            skipped_zeroes=u64,
            guest_writes=u64,
            errors=u64,
            events_dropped=u64,
            dirty_rate=u64,
            copy_rate=u64,
            eta_ns=u64,
            granularity=u64,
            bounce_copies=u64,
            copies=counter,
        )
        self.Event = structure(
            "Event",
            struct_size=word,
            type=u32,
            status=u32,
            result=i32,
            operation=u32,
            side=u32,
            action=u32,
            offset=u64,
            length=u64,
        )
