"""Whose memory moves: buffers are lent, not copied, held while a request has them, and given back exactly once."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import importlib
import mmap
import os
import resource
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

# Over the module buffers are copied, so this is about the shared library alone.
import blkmirror as b  # noqa: E402
from blkmirror import _buffers  # noqa: E402
from blkmirror._ffi import lib  # noqa: E402

numpy: Any = None
try:
    numpy = importlib.import_module("numpy")  # So that who checks the types needs none.
except ImportError:
    if os.environ.get("BLKMIRROR_REQUIRE_ALL"):
        raise

MIB = 1 << 20


def address_of(buffer: Any, writable: bool = False) -> int:
    """Where the bytes of a buffer are."""
    export = _buffers.Export(buffer, writable)
    try:
        return export.address
    finally:
        export.close()


class Seen(b.Device):
    """Tells where the memory of each request is, and keeps the requests if it is told to."""

    def __init__(self, length: int) -> None:
        self.data, self.seen, self.keeps = bytearray(length), [(0, 0)][:0], False
        self.kept: List[Tuple[b.Request, Callable[[], None]]] = []
        super().__init__(length)

    def take(self, request: b.Request, buffers: List[memoryview], act: Callable[[], None]) -> Optional[b.Answer]:
        self.seen += [(address_of(view), len(view)) for view in buffers]
        if self.keeps:
            self.kept.append((request, act))
            return b.Answer.PENDING
        act()
        return None

    def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> Optional[b.Answer]:
        def act() -> None:
            at = offset
            for view in buffers:
                view[:] = self.data[at : at + len(view)]
                at += len(view)

        return self.take(request, buffers, act)

    def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> Optional[b.Answer]:
        def act() -> None:
            at = offset
            for view in buffers:
                self.data[at : at + len(view)] = view
                at += len(view)

        return self.take(request, buffers, act)

    def end(self) -> None:
        for request, act in self.kept:
            act()
            request.complete()
        self.kept.clear()


def buffers(length: int) -> List[Tuple[str, Any]]:
    """A writable buffer of each kind that there is, of this many bytes."""
    anonymous = mmap.mmap(-1, length)
    kinds = [
        ("bytearray", bytearray(length)),
        ("memoryview", memoryview(bytearray(length))),
        ("memoryview of words", memoryview(bytearray(length)).cast("I")),
        ("memoryview of two dimensions", memoryview(bytearray(length)).cast("B", [4, length // 4])),
        ("a slice", memoryview(bytearray(length + 7))[7:]),
        ("array", array.array("Q", bytes(length))),
        ("mmap", anonymous),
        ("ctypes", (ctypes.c_uint16 * (length // 2))()),
        ("ctypes, big-endian", (ctypes.c_uint32.__ctype_be__ * (length // 4))()),
    ]
    if numpy is not None:
        kinds += [
            ("numpy", numpy.zeros(length, "u1")),
            ("numpy, big-endian, two dimensions", numpy.zeros((4, length // 16), ">f4")),
            ("numpy, records", numpy.zeros(length // 16, [("key", "<u4"), ("value", "<f8"), ("rest", "S4")])),
            ("numpy, times", numpy.zeros(length // 8, "u8").view("M8[ns]")),
        ]
    return kinds


class NoCopies(unittest.TestCase):
    def setUp(self) -> None:
        self.device = Seen(MIB)
        self.disk = b.Filter(self.device)
        self.addCleanup(self.device.close)
        self.addCleanup(self.disk.close)

    def test_the_device_sees_the_memory_of_the_guests_buffer(self) -> None:
        for name, buffer in buffers(65536):
            with self.subTest(kind=name):
                at = address_of(buffer, writable=True)
                ctypes.memset(at, 0xA5, 65536)
                for write in (self.disk.write, lambda *args: self.disk.write_async(*args).result()):
                    self.device.seen.clear()
                    self.device.data[:65536] = bytes(65536)
                    write(0, buffer)
                    self.assertEqual(self.device.seen, [(at, 65536)])
                    self.assertEqual(self.device.data[:65536], b"\xa5" * 65536)
                self.device.data[:65536] = bytes(range(256)) * 256
                for read in (self.disk.readinto, lambda *args: self.disk.readinto_async(*args).result()):
                    self.device.seen.clear()
                    ctypes.memset(at, 0, 65536)
                    read(0, buffer)
                    self.assertEqual(self.device.seen, [(at, 65536)])
                    self.assertEqual(ctypes.string_at(at, 65536), bytes(range(256)) * 256)

    def test_what_is_only_to_be_read_can_be_written_to_the_disk(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"mapped" * 1000)
            file.flush()
            mapped = mmap.mmap(file.fileno(), 6000, access=mmap.ACCESS_READ)
            fixed: List[Any] = [b"constant" * 512, memoryview(b"constant" * 512), mapped, memoryview(bytearray(b"fixed")).toreadonly()]
            if numpy is not None:
                fixed.append(numpy.frombuffer(b"constant" * 512, "<u8"))
                fixed.append(numpy.frombuffer(b"constant" * 512, [("a", ">u4"), ("b", "S4")]))
            for buffer in fixed:
                self.device.seen.clear()
                self.disk.write(0, buffer)
                self.assertEqual(self.device.seen, [(address_of(buffer), memoryview(buffer).nbytes)])
                self.assertEqual(self.device.data[: memoryview(buffer).nbytes], bytes(buffer))
                with self.assertRaisesRegex(TypeError, "read-only: it must be writable"):
                    self.disk.readinto(0, buffer)
            mapped.close()

    def test_a_read_is_done_right_into_the_bytes_that_it_gives(self) -> None:
        self.device.data[4096:8192] = os.urandom(4096)
        for read in (self.disk.read, lambda *args: self.disk.read_async(*args).result()):
            self.device.seen.clear()
            content = read(4096, 4096)
            self.assertIs(type(content), bytes)
            self.assertEqual(content, self.device.data[4096:8192])
            self.assertEqual(self.device.seen, [(address_of(content), 4096)])
            self.assertEqual(hash(content), hash(bytes(self.device.data[4096:8192])), "it was not asked for too early")
        self.assertEqual(self.disk.read(0, 0), b"")
        one = self.disk.read(4096, 1)
        self.assertEqual(one, bytes(self.device.data[4096:4097]))
        self.assertEqual(bytes([one[0]]), one, "the interpreter's own bytes of one byte are what they were")

    def test_a_gibibyte_that_is_mapped_costs_no_gibibyte(self) -> None:
        length = 1 << 30
        with tempfile.TemporaryFile() as file, b.NullDevice(length) as null, b.Filter(null) as disk:
            file.truncate(length)
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            disk.write(0, mapped)
            # In KiB, or bytes where it is larger still.
            self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 64 * 1024)
            mapped.close()

    def test_bytes_are_lent_to_both_sides_and_what_may_change_is_copied_for_them(self) -> None:
        changing: List[Any] = [bytearray(4096), memoryview(bytearray(4096)).toreadonly(), array.array("I", bytes(4096))]
        with b.MemoryDevice(MIB) as target, b.Job(self.disk, target, copy_mode=b.CopyMode.WRITE_BLOCKING, inline=True) as job:
            job.start()
            job.run(until="ready", timeout=60)

            def copies(buffer: Any, stable: bool) -> int:
                before = job.info
                self.disk.write(0, buffer, stable=stable)
                after = job.info
                self.assertEqual(after.active.ops, before.active.ops + 1)
                return after.bounce_copies - before.bounce_copies

            for constant in (bytes(4096), memoryview(bytes(4096)), memoryview(bytes(8192)).cast("I")[:1024]):
                self.assertEqual(copies(constant, False), 0)
            for buffer in changing:
                self.assertEqual(copies(buffer, False), 1)
                self.assertEqual(copies(buffer, True), 0)


class Held(unittest.TestCase):
    """While a request has a buffer nobody can take it away; afterwards it is whoever's it was."""

    def setUp(self) -> None:
        self.device = Seen(MIB)
        self.disk = b.Filter(self.device)
        self.device.keeps = True
        self.addCleanup(self.device.close)
        self.addCleanup(self.device.end)
        self.addCleanup(self.disk.close)

    def requests(self, buffer: Any) -> List[Callable[[], "b.Outcome[None]"]]:
        return [lambda: self.disk.write_async(0, buffer), lambda: self.disk.readinto_async(0, buffer)]

    def test_a_buffer_can_not_be_resized_before_it_is_done_and_can_be_then(self) -> None:
        growing, words = bytearray(4096), array.array("I", bytes(4096))
        kinds: List[Tuple[Any, Callable[[], None]]] = [
            (growing, lambda: growing.extend(b"more")),
            (words, lambda: words.append(1)),
        ]
        for buffer, grow in kinds:
            for request in self.requests(buffer):
                outcome = request()
                self.assertFalse(outcome.done())
                with self.assertRaises(BufferError):
                    grow()
                self.device.end()
                outcome.result(0)
                grow()

    def test_a_mapping_can_not_be_closed_before_it_is_done_and_can_be_then(self) -> None:
        for number in range(2):
            mapped = mmap.mmap(-1, 4096)
            outcome = self.requests(mapped)[number]()
            with self.assertRaises(BufferError):
                mapped.close()
            self.device.end()
            outcome.result(0)
            mapped.close()

    def test_a_buffer_lives_until_it_is_done_though_nobody_else_has_it(self) -> None:
        outcome = self.disk.write_async(0, bytearray(b"kept" * 1024))
        lost = self.disk.readinto_async(0, bytearray(4096))
        content = self.disk.read_async(0, 4096)
        gc.collect()
        bytearray(b"else" * 1024), bytearray(b"else" * 1024)
        self.device.end()
        outcome.result(0), lost.result(0)
        self.assertEqual(self.device.data[:4096], b"kept" * 1024)
        self.assertEqual(content.result(0), b"kept" * 1024)

    def test_a_buffer_is_free_when_whoever_waits_is_told(self) -> None:
        grown: List[int] = []
        for number in range(2):
            buffer = bytearray(4096)

            def grow(_: Any, buffer: bytearray = buffer) -> None:
                buffer.extend(b"!")
                grown.append(len(buffer))

            outcome = self.requests(buffer)[number]()
            outcome.add_done_callback(grow)
            self.device.end()
        self.assertEqual(grown, [4097, 4097])

    def test_it_is_given_back_exactly_once(self) -> None:
        for buffer in (b"x" * 4096, bytearray(4096)):
            before = sys.getrefcount(buffer)
            for _ in range(100):
                outcome = self.disk.write_async(0, buffer)
                self.assertGreater(sys.getrefcount(buffer), before)
                self.device.end()
                outcome.result(0)
                del outcome
            self.assertEqual(sys.getrefcount(buffer), before)
        export = _buffers.Export(bytearray(8), True)
        export.close()
        export.close()
        with self.assertRaises(BufferError):
            _buffers.Export(b"fixed", True)

    def test_a_request_that_is_refused_or_fails_gives_it_back(self) -> None:
        buffer, kept = bytearray(4096), lib.kept
        for request in (self.disk.write_async, self.disk.readinto_async):
            with self.assertRaises(b.MirrorError) as caught:
                request(MIB, buffer)
            self.assertEqual(caught.exception.errno, errno.ERANGE)
            self.assertEqual(lib.kept, kept)
            buffer.extend(b"!")
        outcome = self.disk.write_async(0, buffer)
        self.device.kept.pop()[0].complete(OSError(errno.ENOSPC, "full"))
        with self.assertRaises(b.MirrorError) as caught:
            outcome.result(0)
        self.assertEqual(caught.exception.errno, errno.ENOSPC)
        buffer.extend(b"!")
        self.disk.close()
        with self.assertRaises(ValueError):
            self.disk.write_async(0, buffer)
        buffer.extend(b"!")

    def test_a_request_can_not_be_called_back(self) -> None:
        buffer = bytearray(4096)
        outcome = self.disk.write_async(0, buffer)
        self.assertFalse(outcome.cancel())
        self.device.end()
        self.assertIsNone(outcome.result(0))


class Refused(unittest.TestCase):
    def test_what_is_no_buffer_or_lies_apart_is_refused_with_a_word(self) -> None:
        apart: List[Any] = [memoryview(bytearray(64))[::2]]
        if numpy is not None:
            apart += [numpy.zeros((8, 8), "u1").T[:, :3], numpy.asfortranarray(numpy.zeros((8, 8), ">u4")), numpy.zeros(64, ">u4")[::2]]
        with b.MemoryDevice(MIB) as device, b.Filter(device) as disk:
            for call in (disk.write, disk.write_async, disk.readinto, disk.readinto_async):
                for buffer in apart:
                    with self.assertRaisesRegex(TypeError, "must be C-contiguous"):
                        call(0, buffer)
                wrong: Any
                for wrong in ("text", 5, None, [1, 2]):
                    with self.assertRaisesRegex(TypeError, "bytes-like"):
                        call(0, wrong)
            if numpy is not None:
                for objects in (numpy.array([object()]), numpy.zeros(2, [("Object", "u4"), ("b", "O")])):
                    with self.assertRaisesRegex(TypeError, "references to Python objects"):
                        disk.readinto(0, objects)
                disk.readinto(0, numpy.zeros(2, [("Object", "u4"), ("b", "f4")]))
                fixed = numpy.zeros(8, "M8[ns]")
                fixed.flags.writeable = False
                disk.write(0, fixed)
                for odd in (fixed, numpy.zeros((4, 4), "M8[ns]")[:, :2]):
                    with self.assertRaises(ValueError):
                        disk.readinto(0, odd)


class OfDevices(unittest.TestCase):
    """The memory that a callback gets is the request's, and Python tells who uses it too long."""

    def test_views_are_released_when_the_request_is_done(self) -> None:
        views: List[memoryview] = []

        class Keeps(Seen):
            fails = False

            def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> Optional[b.Answer]:
                views.extend(buffers)
                if self.fails:
                    raise OSError(errno.EIO, "broken")
                return super().write(request, offset, buffers, fua)

            def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> Optional[b.Answer]:
                views.extend(buffers)
                return super().read(request, offset, buffers)

        def too_late() -> None:
            self.assertTrue(views)
            for view in views:
                with self.assertRaisesRegex(ValueError, "released"):
                    view[0]
            views.clear()

        with Keeps(MIB) as device, b.Filter(device) as disk:
            disk.write(0, b"x" * 4096)
            too_late()
            disk.read(0, 4096)
            too_late()
            device.fails = True
            with self.assertRaises(b.MirrorError):
                disk.write(0, b"x" * 4096)
            too_late()
            device.fails, device.keeps = False, True
            outcome = disk.write_async(0, b"y" * 4096)
            self.assertEqual(views[0][0], ord("y"))
            device.end()
            outcome.result(0)
            too_late()
            self.assertIsNone(device.take_raised() and device.take_raised())

    def test_what_was_made_of_a_view_does_no_harm_to_the_request(self) -> None:
        slices: List[memoryview] = []
        whole = self

        class Slices(Seen):
            def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> Optional[b.Answer]:
                slices.extend(view[:4] for view in buffers)
                # As an array of numpy's does.
                self.export = _buffers.Export(buffers[0], False)
                whole.assertEqual(ctypes.string_at(self.export.address, 4), b"xxxx")
                if offset:
                    raise OSError(errno.ENOSPC, "full")
                return super().write(request, offset, buffers, fua)

        data = b"x" * 4096
        with Slices(MIB) as device, b.Filter(device) as disk:
            disk.write(0, data)
            with self.assertRaises(b.MirrorError) as caught:
                disk.write(4096, data)
            self.assertEqual(caught.exception.errno, errno.ENOSPC)
            # The guest's own memory, which is there as long as `data` is.
            self.assertEqual(bytes(slices[0]), b"xxxx")

    def test_threads_that_hammer_one_disk_leave_nothing_behind(self) -> None:
        with b.MemoryDevice(MIB) as device, b.Filter(device) as disk:
            shared, failures = bytearray(b"s" * 4096), [""][:0]

            def hammer(number: int) -> None:
                mine = bytearray([number]) * 4096
                for _ in range(200):
                    disk.write(number * 4096, mine)
                    disk.write(65536, shared)
                    mine.append(0)
                    del mine[-1]
                    if disk.read(number * 4096, 4096) != mine:
                        failures.append("%d is not what it was" % number)

            threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            shared.append(0)
            self.assertEqual(failures, [])


if __name__ == "__main__":
    unittest.main()
