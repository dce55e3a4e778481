"""The Python package, over the real library: the shared one, or the WebAssembly module."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import os
import re
import tempfile
import threading
import unittest
import weakref
from pathlib import Path

from backend import CHECKOUT, WASM, b, lib, needs_files
from blkmirror import _abi

MIB = 1 << 20


class Bytes(b.Device):
    """A device in Python over a bytearray."""

    def __init__(self, data: bytearray, limits: b.Limits = b.Limits()) -> None:
        self.data, self.closed, self.fail = data, 0, None
        super().__init__(len(data), limits)

    def read(self, request, offset, buffers):
        if self.fail:
            raise self.fail
        for view in buffers:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, request, offset, buffers, fua):
        if self.fail:
            raise self.fail
        for view in buffers:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def on_close(self):
        self.closed += 1


class Later(Bytes):
    """Completes from another thread, and has room for two requests."""

    def __init__(self, data):
        self.lock, self.out, self.again = threading.Lock(), 0, 0
        super().__init__(data)

    def _later(self, request, act):
        with self.lock:
            if self.out == 2:
                self.again += 1
                return b.Answer.AGAIN
            self.out += 1

        def work():
            act()
            with self.lock:
                self.out -= 1
            request.complete()

        threading.Timer(0.0005, work).start()
        return b.Answer.PENDING

    def read(self, request, offset, buffers):
        return self._later(request, lambda: Bytes.read(self, request, offset, buffers))

    def write(self, request, offset, buffers, fua):
        return self._later(request, lambda: Bytes.write(self, request, offset, buffers, fua))


class Reaped(Bytes):
    """Completes what it took when it is polled."""

    def __init__(self, data, limits=b.Limits()):
        self.taken = []
        super().__init__(data, limits)

    def read(self, request, offset, buffers):
        self.taken.append((request, lambda: Bytes.read(self, request, offset, buffers)))
        return b.Answer.PENDING

    def write(self, request, offset, buffers, fua):
        self.taken.append((request, lambda: Bytes.write(self, request, offset, buffers, fua)))
        return b.Answer.PENDING

    def on_poll(self):
        taken, self.taken = self.taken, []
        for request, act in taken:
            act()
            request.complete()


def layouts(header, pointer):
    """The offsets of all fields of the header's structures and their sizes, as C lays them out with such pointers."""
    sizes = {"uint64_t": 8, "uint32_t": 4, "int": 4, "bool": 1, "char": 1, "size_t": pointer}
    sizes = {name: (size, size) for name, size in sizes.items()}
    found = {}
    for body, name in re.findall(r"^typedef struct \{\n(.*?)^\} (mirror_\w+);", header, re.M | re.S):
        body = re.sub(r"//.*", "", body)
        offset, widest, fields = 0, 1, []
        for declared in filter(None, (" ".join(part.split()) for part in body.split(";"))):
            function, plain = re.search(r"\(\*(\w+)\)", declared), re.match(r"(?:const )?(\w+) (\**)(\w+)(?:\[(\d+)\])?$", declared)
            if function or plain[2]:
                field, (size, alignment), count = (function or plain)[1 if function else 3], (pointer, pointer), 1
            else:
                field, (size, alignment), count = plain[3], sizes[plain[1]], int(plain[4] or 1)
            offset = -(-offset // alignment) * alignment
            fields.append((field, offset))
            offset, widest = offset + size * count, max(widest, alignment)
        total = -(-offset // widest) * widest
        sizes[name], found[name] = (total, widest), (fields, total)
    return found


def pattern(length):
    return bytearray(os.urandom(4096) * (length // 4096 + 1))[:length]


def mirror(disk, target, **options):
    """A whole mirror, with the switch; the events."""
    with b.Job(disk, target, **options) as job:
        job.start()
        job.run(until="ready", timeout=60)
        job.complete()
        info = job.run(timeout=60)
        assert info.result == 0, info
        assert info.status is b.Status.NULL, info
        return list(job.events())


class WholeMirrors(unittest.TestCase):
    def test_memory(self):
        with b.MemoryDevice(MIB) as source, b.MemoryDevice(MIB) as target, b.Filter(source) as disk:
            data = pattern(MIB)
            disk.write(0, data)
            events = mirror(disk, target)
            self.assertTrue(disk.is_on(target))
            self.assertEqual(disk.read(0, MIB), data)
            self.assertEqual(
                [event.status for event in events if isinstance(event, b.StatusEvent)],
                [b.Status.CREATED, b.Status.RUNNING, b.Status.READY, b.Status.WAITING, b.Status.PENDING,
                 b.Status.CONCLUDED, b.Status.NULL],
            )

    def test_buffers_of_larger_items_are_moved_whole(self):
        # The length of a view counts its items, of which each may have several bytes.
        words = array.array("I", range(0x01020304, 0x01020304 + 512))
        with b.MemoryDevice(65536) as disk, b.Filter(disk) as guest:
            guest.write(4096, memoryview(words))
            self.assertEqual(guest.read(4096, 2048), words.tobytes())
            self.assertEqual(guest.read(4096 + 2048, 2048), bytes(2048))
            back = array.array("I", bytes(2048))
            guest.readinto_async(4096, memoryview(back)).result()
            self.assertEqual(back, words)
            del back[:]
            guest.write(0, b"")
            guest.readinto_async(0, bytearray()).result()
            with self.assertRaises(TypeError):
                guest.write(0, memoryview(words)[::2])
            with self.assertRaises(TypeError):
                guest.readinto_async(0, memoryview(bytes(16)))
            self.assertEqual(guest.read(0, 512), bytes(512))

    @needs_files
    def test_files_with_holes(self):
        with tempfile.TemporaryDirectory() as folder:
            old, new = Path(folder) / "old", Path(folder) / "new"
            with open(old, "wb") as file:
                file.truncate(64 * MIB)
                file.seek(7 * MIB)
                file.write(b"data" * 1000)
            with b.FileDevice(old) as source, b.FileDevice(new, create=64 * MIB) as target, b.Filter(source) as disk:
                mirror(disk, target)
                hole, data = b.ExtentFlags.ZERO, b.ExtentFlags.DATA | b.ExtentFlags.ALLOCATED
                found = disk.extents(MIB, 20 * MIB)
                self.assertEqual([flags for _, flags in found], [hole, data, hole])
                self.assertEqual((found[0][0], sum(length for length, _ in found)), (6 * MIB, 20 * MIB))
                disk.write(100, b"after the switch")
                disk.flush()
            content = new.read_bytes()
            self.assertEqual(content[7 * MIB : 7 * MIB + 4000], b"data" * 1000)
            self.assertEqual(content[100:116], b"after the switch")
            self.assertLess(os.stat(new).st_blocks * 512, MIB, "holes stay holes")

    def test_null(self):
        with b.NullDevice(1 << 30) as source, b.NullDevice(1 << 30) as target, b.Filter(source) as disk:
            mirror(disk, target, detect_zeroes=False)

    def test_python_devices(self):
        data, copy = pattern(MIB), bytearray(MIB)
        with Bytes(data) as source, Bytes(copy) as target, b.Filter(source) as disk:
            mirror(disk, target, max_io=65536)
            self.assertEqual(copy, data)
            disk.write(5, b"new")
            self.assertEqual((bytes(copy[5:8]), bytes(data[5:8]) == b"new"), (b"new", False))
        gc.collect()
        self.assertEqual((source.closed, target.closed), (1, 1))

    def test_devices_that_complete_later_from_other_threads(self):
        data, copy = pattern(MIB), bytearray(MIB)
        with Later(data) as source, Later(copy) as target, b.Filter(source) as disk:
            with b.Job(disk, target, max_io=16384, max_in_flight=8) as job:
                job.start()
                job.run(until="ready", timeout=60)
                self.assertEqual(copy, data)
                self.assertGreater(source.again + target.again, 0)

    def test_guests_that_write_all_the_while_lose_nothing(self):
        for mode in b.CopyMode:
            with self.subTest(mode=mode), b.MemoryDevice(4 * MIB) as source, b.MemoryDevice(4 * MIB) as target:
                with b.Filter(source) as disk, b.Job(disk, target, copy_mode=mode, speed=16 * MIB) as job:
                    disk.write(0, pattern(4 * MIB))
                    last, stop = [{}, {}], threading.Event()

                    def guest(number):
                        count = 0
                        while not stop.is_set():
                            count += 1
                            block = (count * 7 % 512) * 2 + number
                            stamp = (number << 32 | count).to_bytes(8, "little") * 64
                            disk.write(block * 4096, stamp)
                            last[number][block] = stamp

                    guests = [threading.Thread(target=guest, args=(number,)) for number in (0, 1)]
                    for thread in guests:
                        thread.start()
                    try:
                        job.start()
                        job.run(until="ready", timeout=60)
                        job.complete()
                        self.assertEqual(job.run(timeout=60).result, 0)
                        self.assertTrue(disk.is_on(target))
                    finally:
                        stop.set()
                        for thread in guests:
                            thread.join()
                    self.assertGreater(len(last[0]) + len(last[1]), 100)
                    for blocks in last:
                        for block, stamp in blocks.items():
                            self.assertEqual(disk.read(block * 4096, 512), stamp)


class Failures(unittest.TestCase):
    def test_each_bad_option_is_named(self):
        with b.MemoryDevice(MIB) as source, b.MemoryDevice(MIB) as target, b.Filter(source) as disk:
            for option, value in [("granularity", 3000), ("buf_size", 1 << 40), ("max_in_flight", 5000),
                                  ("max_io", 7), ("id", "1st"), ("sync", 99), ("copy_mode", 9), ("on_target_error", 77)]:
                with self.subTest(option=option), self.assertRaises(b.MirrorError) as caught:
                    b.Job(disk, target, **{option: value})
                self.assertEqual(caught.exception.errno, errno.EINVAL)
                self.assertIn(option, str(caught.exception))
            b.Job(disk, target).close()

    @needs_files
    def test_files_on_threads(self):
        with tempfile.TemporaryDirectory() as folder:
            old, new = Path(folder) / "old", Path(folder) / "new"
            content = pattern(MIB)
            old.write_bytes(content)
            for threads in (True, False):
                with b.FileDevice(old, threads=threads) as source, b.FileDevice(new, create=MIB, threads=threads) as target:
                    self.assertIn(source.engine, ("threads",) if threads else ("threads", "io_uring"))
                    self.assertEqual(source.engine, target.engine)
                    with b.Filter(source) as disk, b.Job(disk, target) as job:
                        job.start()
                        job.run(until="ready", timeout=60)
                        self.assertEqual(disk.read(0, MIB), content)
                self.assertEqual(new.read_bytes(), content)
                new.unlink()
        with b.MemoryDevice(MIB) as memory:
            self.assertIsNone(memory.engine)

    @needs_files
    def test_files_that_make_no_sense(self):
        with tempfile.TemporaryDirectory() as folder:
            for path, code in [(Path(folder) / "missing", errno.ENOENT), (folder, errno.EINVAL)]:
                with self.assertRaises(b.MirrorError) as caught:
                    b.FileDevice(path)
                self.assertEqual(caught.exception.errno, code)
                self.assertIn(str(path), str(caught.exception))
            path = Path(folder) / "disk"
            with b.FileDevice(path, create=MIB) as one, b.FileDevice(path) as two, b.Filter(one) as disk:
                self.assertTrue(one.same(two))
                with self.assertRaises(b.MirrorError) as caught:
                    b.Job(disk, two)
                self.assertIn("is the source itself", str(caught.exception))

    def test_verbs_in_the_wrong_state(self):
        with b.MemoryDevice(MIB) as source, b.MemoryDevice(MIB) as target, b.Filter(source) as disk:
            with b.Job(disk, target, id="verbs") as job:
                for verb in (job.complete, job.finalize, job.dismiss, job.resume):
                    with self.assertRaises(b.MirrorError) as caught:
                        verb()
                    self.assertEqual(caught.exception.errno, errno.EPERM)
                self.assertIn("Job 'verbs'", str(caught.exception))

    def test_an_exception_in_a_callback_is_an_error_and_is_raised_again(self):
        for failure, code in [(ValueError("a defect"), errno.EIO), (OSError(errno.ENOSPC, "full"), errno.ENOSPC)]:
            with Bytes(pattern(MIB)) as source, Bytes(bytearray(MIB)) as target, b.Filter(source) as disk:
                target.fail = failure
                with b.Job(disk, target) as job:
                    job.start()
                    with self.assertRaises(type(failure)) as caught:
                        job.run(timeout=60)
                    self.assertIs(caught.exception, failure)
                    target.take_raised()
                    while True:
                        try:
                            info = job.run(timeout=60)
                            break
                        except type(failure):
                            pass
                    self.assertEqual(info.result, -code)
                source.fail = ValueError("the guest's")
                with self.assertRaises(b.MirrorError) as caught:
                    disk.read(0, 512)
                self.assertEqual(caught.exception.errno, errno.EIO)

    def test_a_prepare_hook_that_raises_keeps_the_disk_where_it_is(self):
        told = []

        def prepare(info):
            told.append(info)
            raise OSError(errno.EACCES, "not now")

        with b.MemoryDevice(MIB) as source, b.MemoryDevice(MIB) as target, b.Filter(source) as disk:
            with b.Job(disk, target, prepare=prepare, backing_mode=b.BackingMode.LEAVE) as job:
                job.start()
                job.run(until="ready", timeout=60)
                job.complete()
                with self.assertRaises(OSError):
                    job.run(timeout=60)
                self.assertEqual(job.run(timeout=60).result, -errno.EACCES)
            self.assertEqual(told, [b.PrepareInfo(b.Sync.FULL, b.BackingMode.LEAVE)])
            self.assertTrue(disk.is_on(source))

    def test_after_close_everything_is_a_value_error(self):
        source = b.MemoryDevice(MIB)
        disk = b.Filter(source)
        target = b.MemoryDevice(MIB)
        job = b.Job(disk, target)
        for thing in (job, disk, target, source):
            thing.close()
            thing.close()
        for use in (lambda: job.poll(), lambda: disk.read(0, 1), lambda: source.length, lambda: b.Filter(target)):
            with self.assertRaises(ValueError):
                use()


class Forgetful(Bytes):
    """Loses the last byte of each write, and says that everything is zero."""

    def write(self, request, offset, buffers, fua):
        kept = self.data[offset + sum(len(view) for view in buffers) - 1]
        Bytes.write(self, request, offset, buffers, fua)
        self.data[offset + sum(len(view) for view in buffers) - 1] = kept


class Liar(Bytes):
    """Says that everything is a hole."""

    def extents(self, offset, length):
        return [(length, b.ExtentFlags.ZERO)]


class Checks(unittest.TestCase):
    LENGTH = 256 * 1024 + 5

    def test_honest_devices_conform(self):
        zero = b.Limits(flags=b.DeviceFlags.READS_ZERO)
        devices = [b.MemoryDevice(MIB), Bytes(bytearray(self.LENGTH), zero), Reaped(bytearray(self.LENGTH))]
        if not WASM:
            # A module lets no thread in while another is in the check.
            devices.append(Later(bytearray(self.LENGTH)))
        for device in devices:
            with self.subTest(device=type(device).__name__), device:
                self.assertEqual([str(finding) for finding in device.check(destroy=True, timeout=60)], [])

    def test_each_broken_rule_is_named(self):
        for make, rule, operation in [(Forgetful, "write-stores", b.Operation.READ),
                                      (Liar, "extents-truthful", b.Operation.EXTENTS)]:
            with self.subTest(rule=rule), make(bytearray(self.LENGTH)) as device:
                findings = device.check(destroy=True, seed=3)
                self.assertEqual({finding.rule for finding in findings}, {rule})
                first = findings[0]
                self.assertEqual(first.operation, operation)
                self.assertLessEqual(first.offset + first.length, self.LENGTH)
                self.assertIn(first.asked, str(first))
                self.assertTrue(first.spec.startswith("D-") and first.text and first.expected and first.came)

    def test_an_exception_of_a_callback_is_a_failure_and_kept(self):
        with Bytes(bytearray(self.LENGTH)) as device:
            device.fail = OSError(errno.ENOSPC, "full")
            findings = device.check(destroy=True)
            self.assertEqual({finding.rule for finding in findings}, {"succeeds"})
            self.assertIn("ENOSPC", findings[0].came)
            self.assertIs(device.take_raised(), device.fail)

    def test_nothing_is_destroyed_unasked(self):
        with Bytes(pattern(MIB)) as device:
            before = bytes(device.data)
            with self.assertRaises(b.MirrorError) as caught:
                device.check()
            self.assertEqual(caught.exception.errno, errno.EINVAL)
            with b.Filter(device), self.assertRaises(b.MirrorError) as caught:
                device.check(destroy=True)
            self.assertEqual(caught.exception.errno, errno.EBUSY)
            self.assertEqual(bytes(device.data), before)


class Details(unittest.TestCase):
    def test_pause_speed_change_and_cancel(self):
        with b.MemoryDevice(4 * MIB) as source, b.MemoryDevice(4 * MIB) as target, b.Filter(source) as disk:
            disk.write(0, pattern(4 * MIB))
            with b.Job(disk, target, speed=100_000, auto_dismiss=False) as job:
                job.start()
                job.poll()
                job.pause()
                for _ in range(5):
                    job.poll()
                self.assertIs(job.info.status, b.Status.PAUSED)
                job.resume()
                job.set_speed(0)
                job.change(b.CopyMode.WRITE_BLOCKING)
                info = job.run(until="ready", timeout=60)
                self.assertTrue(info.actively_synced)
                self.assertIs(info.copy_mode, b.CopyMode.WRITE_BLOCKING)
                job.cancel()
                self.assertEqual(job.run(timeout=60).result, 0)
                job.dismiss()
                self.assertIn(b.CompletedEvent(0), list(job.events()))

    def test_zero_discard_and_requests_that_make_no_sense(self):
        with b.MemoryDevice(MIB) as source, b.Filter(source) as disk:
            disk.write(0, b"x" * 8192)
            disk.zero(0, 4096)
            disk.discard(4096, 4096)
            self.assertEqual(disk.read(0, 8192), bytes(8192))
            for offset, length in [(MIB, 1), (MIB - 1, 2), (1 << 63, 1 << 63)]:
                with self.assertRaises(b.MirrorError):
                    disk.zero(offset, length)

    def test_structures_are_as_in_c(self):
        size = ctypes.sizeof(lib.abi.JobOptions)
        with lib.new(lib.abi.JobOptions) as options:
            options.value.struct_size = 0
            self.assertEqual(lib.mirror_job_options_init(options.address, size), 0)
            self.assertEqual(options.value.struct_size, size)
        header = (CHECKOUT / "include" / "blkmirror.h").read_text()
        # All of them: what the header has and Python can't reach is missing here.
        declared = set(re.findall(r"^\w[\w ]*[ *](mirror_\w+)\(", header, re.M))
        self.assertEqual(declared, set(_abi.FUNCTIONS))
        names = {"mirror_iovec": "Iovec", "mirror_extent": "Extent", "mirror_device_ops": "DeviceOps",
                 "mirror_device_limits": "DeviceLimits", "mirror_check_options": "CheckOptions",
                 "mirror_check_finding": "CheckFinding", "mirror_prepare_info": "PrepareInfo",
                 "mirror_job_options": "JobOptions", "mirror_counter": "Counter", "mirror_job_info": "JobInfo",
                 "mirror_event": "Event"}
        laid_out = layouts(header, ctypes.sizeof(lib.abi.word))
        self.assertEqual(set(laid_out), set(names))
        for name, structure in ((name, getattr(lib.abi, of)) for name, of in names.items()):
            found = [(field, getattr(structure, field).offset) for field, *_ in structure._fields_]
            self.assertEqual((found, ctypes.sizeof(structure)), laid_out[name], name)

    def test_a_callback_of_a_future_can_not_wait_for_a_request(self):
        class Queued(Bytes):
            def write(self, request, offset, buffers, fua):
                super().write(request, offset, buffers, fua)
                requests.append(request)
                return b.Answer.PENDING

        requests, raised = [], []

        def wait(_):
            for call in (lambda: quick.write(0, b"x"), lambda: quick.read(0, 1), lambda: quick.zero(0, 1),
                         lambda: quick.discard(0, 1), quick.flush):
                try:
                    call()
                except RuntimeError as error:
                    raised.append(str(error))

        with Queued(bytearray(512)) as slow, b.Filter(slow) as disk, b.MemoryDevice(512) as memory:
            with b.Filter(memory) as quick:
                future = disk.write_async(0, b"later")
                future.add_done_callback(wait)
                requests.pop().complete()
                self.assertEqual(len(raised), 5)
                self.assertIn("use write_async", raised[0])
                quick.write(0, b"x")

    def test_nothing_is_left_of_jobs_that_are_gone(self):
        gone = []
        for _ in range(200):
            with Bytes(pattern(8192)) as source, Bytes(bytearray(8192)) as target, b.Filter(source) as disk:
                with b.Job(disk, target) as job:
                    job.start()
                    job.run(until="ready", timeout=60)
                    gone += [weakref.ref(job), weakref.ref(source), weakref.ref(target)]
        del job, source, target, disk
        gc.collect()
        self.assertEqual([ref for ref in gone if ref() is not None], [])
        self.assertEqual(lib.kept, 0)


if __name__ == "__main__":
    unittest.main()
