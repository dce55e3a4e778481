"""What a program does by mistake: none of it loses a write, ends the process, or is done to another place without a word."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import unittest
from typing import Any, Callable, List, cast

from backend import CHECKOUT, WASM, b, lib, needs_files


class Plain(b.Device):
    """A disk in Python. ``on_write`` is called first of all."""

    def __init__(self, length: int = 1 << 16) -> None:
        self.data = bytearray(length)
        self.on_write: Callable[[], None] = lambda: None
        super().__init__(length)

    def read(self, request: Any, offset: int, buffers: List[memoryview]) -> None:
        for view in buffers:
            view[:] = self.data[offset:offset + len(view)]
            offset += len(view)

    def write(self, request: Any, offset: int, buffers: List[memoryview], fua: bool) -> None:
        self.on_write()
        for view in buffers:
            self.data[offset:offset + len(view)] = view
            offset += len(view)


class Numbers(unittest.TestCase):
    def test_a_number_that_does_not_fit_is_refused_and_not_cut(self) -> None:
        with b.MemoryDevice(1 << 16) as disk, b.MemoryDevice(1 << 16) as target, b.Filter(disk) as guest:
            guest.write(0, b"first")
            for call in (
                lambda: guest.write(2**64, b"LOST!"),
                lambda: guest.write(8 - 2**64, b"LOST!"),
                lambda: guest.zero(0, 2**64 + 4096),
                lambda: guest.discard(2**64, 4096),
                lambda: guest.mark_dirty(2**64, 1),
                lambda: guest.read(0, -1),
                lambda: guest.extents(-5, -1),
                lambda: b.MemoryDevice(2**64 + 4096),
                lambda: b.NullDevice(-1),
                lambda: b.Device(-1),
                lambda: b.Job(guest, target, speed=-1),
                lambda: b.Job(guest, target, granularity=2**64 + 4096),
                lambda: b.Job(guest, target, max_in_flight=2**32 + 3),
            ):
                with self.assertRaises(b.MirrorError) as refused:
                    call()
                self.assertIn(refused.exception.errno, (errno.EINVAL, errno.ERANGE))
            self.assertEqual(guest.read(0, 5), b"first")

    def test_what_is_no_number_is_refused_and_locks_nothing(self) -> None:
        with b.MemoryDevice(1 << 16) as disk, b.Filter(disk) as guest:
            data, wrong = bytearray(512), cast(Any, "0")
            before = len(lib._kept)
            for _ in range(10):
                with self.assertRaises(TypeError):
                    guest.write(wrong, data)
            self.assertEqual(len(lib._kept), before)
            data.append(1)


class Handles(unittest.TestCase):
    def test_a_handle_is_neither_copied_nor_pickled(self) -> None:
        with b.MemoryDevice(1 << 16) as disk, b.MemoryDevice(1 << 16) as target, b.Filter(disk) as guest:
            with b.Job(guest, target) as job:
                for thing in (disk, guest, job):
                    for second in (copy.copy, copy.deepcopy, pickle.dumps):
                        with self.assertRaises(TypeError):
                            second(thing)

    @needs_files
    def test_a_path_with_a_null_byte_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            b.FileDevice("nowhere.img\0/elsewhere")

    def test_an_id_with_a_null_byte_is_refused(self) -> None:
        with b.MemoryDevice(1 << 16) as disk, b.MemoryDevice(1 << 16) as target, b.Filter(disk) as guest:
            with self.assertRaises(ValueError):
                b.Job(guest, target, id="a\0b")
            with b.Job(guest, target, id="a") as job:
                self.assertEqual(job.info.id, "a")

    def test_a_device_of_ones_own_may_have_any_attributes(self) -> None:
        class Busy(Plain):
            def __init__(self) -> None:
                super().__init__()
                self._closed, self._lock, self._raised = False, None, None
                self.told = 0

            def on_close(self) -> None:
                self.told += 1

        disk = Busy()
        disk.on_write = lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
        with b.Filter(disk) as guest:
            with self.assertRaises(b.MirrorError) as failed:
                guest.write(0, bytes(512))
        self.assertEqual(failed.exception.errno, errno.ENOSPC)
        disk.close()
        self.assertEqual(disk.told, 1)


class Callbacks(unittest.TestCase):
    def test_an_errno_that_is_none_is_an_error_all_the_same(self) -> None:
        for number in (2**32, 1 << 40, -1, 0, "ENOSPC"):
            disk = Plain()

            def fail(number: Any = number) -> None:
                raise OSError(number, "made up")

            disk.on_write = fail
            with b.Filter(disk) as guest, self.assertRaises(b.MirrorError) as failed:
                guest.write_async(0, bytes(512)).result(timeout=20)
            self.assertEqual(failed.exception.errno, errno.EIO, number)
            disk.close()

    def test_a_device_can_not_change_what_a_guest_writes(self) -> None:
        class Meddling(Plain):
            def write(self, request: Any, offset: int, buffers: List[memoryview], fua: bool) -> None:
                buffers[0][:4] = b"XXXX"

        constant = b"four" * 128
        with Meddling() as disk, b.Filter(disk) as guest:
            with self.assertRaises(b.MirrorError):
                guest.write(0, constant)
        self.assertEqual(constant[:4], b"four")

    @unittest.skipUnless(hasattr(signal, "raise_signal"), "signals of this system can't be raised")
    def test_an_interrupt_in_a_callback_loses_no_write(self) -> None:
        # What the handler raises must not come out of the callback, where nobody can see it.
        # A process that was started in the background ignores the signal; this one is not to.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        source, target = Plain(), Plain()
        source.data[:] = bytes(range(256)) * 256
        target.on_write = lambda: signal.raise_signal(signal.SIGINT)
        interrupts = 0
        with source, target, b.Filter(source) as guest, b.Job(guest, target, granularity=4096, max_io=4096) as job:
            job.start()
            while not job.info.ready:
                try:
                    job.poll()
                except KeyboardInterrupt:
                    interrupts += 1
            self.assertIsNone(job.info.error)
        self.assertGreater(interrupts, 0)
        self.assertEqual(source.data, target.data)


@unittest.skipIf(WASM or not hasattr(os, "fork"), "the module has no threads to lose in a fork")
class Forked(unittest.TestCase):
    def test_a_child_is_told_and_the_parent_goes_on(self) -> None:
        program = """
import os, sys
import blkmirror as b
with b.FileDevice(sys.argv[1], create=1 << 20) as disk, b.Filter(disk) as guest:
    guest.write(0, b"before")
    child = os.fork()
    if child == 0:
        try:
            guest.write(0, b"of the child")
        except RuntimeError:
            sys.exit(7)
        sys.exit(8)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 7
    guest.write(512, b"after")
    assert guest.read(512, 5) == b"after" and guest.read(0, 6) == b"before"
print("whole")
"""
        paths = [str(CHECKOUT / "bindings" / "python" / "src"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-c", program, os.path.join(folder, "disk.img")], env=environment, timeout=60,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, "whole\n"))


if __name__ == "__main__":
    unittest.main()
