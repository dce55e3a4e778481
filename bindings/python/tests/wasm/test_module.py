"""What only the WebAssembly module has: a sandbox with limits that can be lost, and memory of its own."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import sys
import threading
import unittest
import weakref
from pathlib import Path
from typing import Any, Callable, List, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backend import module_path  # noqa: E402

import blkmirror as b  # noqa: E402
from blkmirror.wasm import Module, ModuleLost  # noqa: E402

MIB = 1 << 20
LENGTH = 65536


class Bytes(b.Device):
    """A device in Python over a bytearray, which may keep its requests."""

    def __init__(self, data: bytearray) -> None:
        self.data, self.closed, self.held = data, 0, False
        self.requests: List[Callable[[], None]] = []
        self.in_write: Callable[[], None] = lambda: None
        super().__init__(len(data))

    def _do(self, request: b.Request, act: Callable[[], None]) -> Optional[b.Answer]:
        def later() -> None:
            act()
            request.complete()

        if not self.held:
            act()
            return None
        self.requests.append(later)
        return b.Answer.PENDING

    def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> Optional[b.Answer]:
        def act() -> None:
            at = offset
            for view in buffers:
                view[:] = self.data[at : at + len(view)]
                at += len(view)

        return self._do(request, act)

    def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> Optional[b.Answer]:
        self.in_write()

        def act() -> None:
            data = b"".join(buffers)
            self.data[offset : offset + len(data)] = data

        return self._do(request, act)

    def on_close(self) -> None:
        self.closed += 1


def pattern(length: int, seed: int = 1) -> bytearray:
    return bytearray((index * 7 + index // 251 + seed) % 256 for index in range(length))


class Apart(unittest.TestCase):
    def test_each_instance_has_its_own(self) -> None:
        told: List[List[str]] = [[], []]
        with Module(module_path()) as one, Module(module_path()) as two:
            for module, lines in zip((one, two), told):
                module.set_log(lambda _, text, lines=lines: lines.append(text))  # type: ignore[misc]
            with one.MemoryDevice(MIB) as first, two.MemoryDevice(MIB) as second, b.MemoryDevice(MIB) as native:
                # The numbers of their handles may well be the same.
                self.assertFalse(first.same(second) or second.same(first) or first.same(native) or native.same(first))
                for target in (second, native):
                    with b.Filter(first) as disk, self.assertRaisesRegex(ValueError, "of one library"):
                        b.Job(disk, target)
                with b.Filter(first) as disk:
                    self.assertEqual(disk.read(0, 512), bytes(512))
                    # A device that the filter gives is of the same instance.
                    with disk.device as now:
                        self.assertTrue(now.same(first))
            device = one.bind(Bytes)(bytearray(512))
            with self.assertRaises(b.MirrorError):
                b.Request(device, 12345).complete()
            self.assertEqual([len(lines) for lines in told], [1, 0])
            self.assertEqual(one.version, b.__version__)

    def test_what_is_bound_is_the_same_class(self) -> None:
        with Module(module_path()) as module:
            inside = module.bind(Bytes)
            self.assertTrue(issubclass(inside, Bytes) and issubclass(module.Device, b.Device))
            self.assertIs(module.Filter, b.Filter)
            self.assertIs(module.Job, b.Job)
            with inside(bytearray(LENGTH)) as source, Bytes(bytearray(LENGTH)) as outside:
                self.assertFalse(source.same(outside))

    def test_what_is_no_module_of_ours_is_refused(self) -> None:
        import wasmtime  # type: ignore[import-not-found,unused-ignore]

        texts = {
            '(module (import "env" "clock" (func)))': "none of blkmirror's: expected 1 import",
            "(module)": "has no function mirror_last_error",
            '(module (func (export "mirror_version") (result i64) i64.const 1))': "mirror_version takes other arguments",
        }
        for text, words in texts.items():
            with self.assertRaisesRegex(ValueError, words):
                Module(bytes(wasmtime.wat2wasm(text)))
        with self.assertRaisesRegex(ValueError, "no WebAssembly module"):
            Module(b"\x7fELF")
        with self.assertRaises(FileNotFoundError):
            Module("missing.wasm")

    def test_there_is_no_descriptor_and_no_function_that_is_missing(self) -> None:
        with Module(module_path()) as module, module.MemoryDevice(MIB) as source, module.MemoryDevice(MIB) as target:
            with b.Filter(source) as disk, b.Job(disk, target) as job, self.assertRaises(b.MirrorError) as caught:
                job.fileno()
            self.assertEqual(caught.exception.errno, errno.EOPNOTSUPP)
            lib: Any = module._lib
            lib._exports.pop("mirror_device_kick")
            with module.bind(Bytes)(bytearray(512)) as device, self.assertRaises(b.MirrorError) as caught:
                device.kick()
            self.assertEqual(caught.exception.errno, errno.ENOSYS)
            self.assertIn("mirror_device_kick", str(caught.exception))


class Memory(unittest.TestCase):
    def test_buffers_are_good_until_the_request_is_done_though_the_memory_grows(self) -> None:
        with Module(module_path()) as module, module.bind(Bytes)(pattern(LENGTH)) as source:
            source.held = True
            with b.Filter(source) as disk, module.MemoryDevice(64 * MIB) as large, b.Filter(large) as other:
                back, data = bytearray(LENGTH), pattern(LENGTH, 9)
                reading, before = disk.readinto_async(0, back), module.memory
                for offset in range(0, 64 * MIB, MIB):
                    other.write(offset, b"x" * MIB)
                self.assertGreater(module.memory, before + 60 * MIB)
                source.requests.pop()()
                reading.result(0)
                self.assertEqual(back, pattern(LENGTH))
                writing, before = disk.write_async(0, data), module.memory
                data[:] = bytes(LENGTH)
                with module.MemoryDevice(64 * MIB) as more, b.Filter(more) as third:
                    for offset in range(0, 64 * MIB, MIB):
                        third.write(offset, b"x" * MIB)
                self.assertGreater(module.memory, before + 60 * MIB)
                source.requests.pop()()
                writing.result(0)
                self.assertEqual(source.data, pattern(LENGTH, 9))

    def test_a_limit_is_kept_and_told(self) -> None:
        with Module(module_path(), memory_limit=8 * MIB) as module, module.MemoryDevice(64 * MIB) as large:
            with b.Filter(large) as disk, self.assertRaises(b.MirrorError) as caught:
                for offset in range(0, 64 * MIB, MIB):
                    disk.write(offset, b"x" * MIB)
            self.assertEqual(caught.exception.errno, errno.ENOMEM)
            self.assertLessEqual(module.memory, 8 * MIB)
            # It is none the worse for it.
            with module.MemoryDevice(LENGTH) as small, b.Filter(small) as disk:
                disk.write(0, b"y")
                self.assertEqual(disk.read(0, 2), b"y\0")

    def test_addresses_beyond_it_lead_nowhere(self) -> None:
        with Module(module_path()) as module:
            lib: Any = module._lib
            end = module.memory
            self.assertEqual(len(lib._memory(end - 8, 8)), 8)
            for read in (
                lambda: lib._memory(end - 8, 9),
                lambda: lib.at(lib.abi.JobInfo, end - 8),
                lambda: lib.views(end - 4, 1),
                lambda: lib.views(0, 1 << 29),
                lambda: lib.text(end),
            ):
                self.assertRaises(IndexError, read)
            with lib.new(lib.abi.Iovec) as iov:
                end = module.memory
                iov.value.base, iov.value.len = end - 8, 9
                self.assertRaises(IndexError, lib.views, iov.address, 1)
            lib._memory(end - 4, 4)[:] = b"none"
            self.assertRaises(IndexError, lib.text, end - 4)

    def test_nothing_is_left_of_what_is_gone(self) -> None:
        with Module(module_path()) as module:
            lib: Any = module._lib

            def whole_life() -> None:
                with module.bind(Bytes)(pattern(LENGTH)) as source, module.bind(Bytes)(bytearray(LENGTH)) as target:
                    with b.Filter(source) as disk, b.Job(disk, target, wake=lambda: None) as job:
                        disk.write(0, bytes(LENGTH))
                        disk.extents(0, LENGTH)
                        job.start()
                        job.run(until="ready", timeout=60)

            for _ in range(5):
                whole_life()
            gc.collect()
            table = lib._exports["__indirect_function_table"]

            def pooled() -> int:
                return sum(map(len, lib._pool.values()))

            memory, before = module.memory, (table.size(lib._store), pooled(), 0)
            for _ in range(400):
                whole_life()
            gc.collect()
            self.assertEqual((table.size(lib._store), pooled(), lib.kept), before)
            # Its pieces may lie otherwise, but if each life left half a kilobyte there would be more.
            self.assertLess(module.memory - memory, 200_000)

    def test_nothing_is_left_of_an_instance(self) -> None:
        gone: List[Callable[[], object]] = []
        for closes in (True, False, True, False):
            module = Module(module_path())
            with module.bind(Bytes)(bytearray(LENGTH)) as device:
                with b.Filter(device) as disk:
                    disk.write(0, b"x")
                gone += [weakref.ref(module), weakref.ref(module._lib), weakref.ref(device)]
            if closes:
                module.close()
        del module, device, disk
        gc.collect()
        self.assertEqual([thing() for thing in gone], [None] * len(gone))


class Lost(unittest.TestCase):
    """The job needs more fuel in one call than there is."""

    def setUp(self) -> None:
        self.module = Module(module_path(), fuel=2_000_000)
        self.addCleanup(self.module.close)
        self.source = self.module.bind(Bytes)(pattern(LENGTH))
        self.target = self.module.bind(Bytes)(bytearray(LENGTH))
        self.disk = b.Filter(self.source)

    def lose(self) -> None:
        # Buffers that are all zero are looked at byte by byte.
        with self.assertRaisesRegex(ModuleLost, "fuel"):
            with self.module.MemoryDevice(64 * MIB) as large, self.module.MemoryDevice(64 * MIB) as other:
                with b.Filter(large) as disk, b.Job(disk, other, granularity=512) as job:
                    disk.mark_dirty(0, 64 * MIB)
                    job.start()
                    job.run(timeout=60)

    def test_devices_in_python_are_whole_and_all_else_says_so(self) -> None:
        self.disk.write(0, b"acknowledged")
        self.lose()
        uses: List[Callable[[], object]] = [
            lambda: self.disk.read(0, 512),
            lambda: self.disk.length,
            lambda: b.Job(self.disk, self.target),
            lambda: self.module.MemoryDevice(512),
            lambda: self.module.version,
            lambda: self.module.memory,
        ]
        for use in uses:
            with self.assertRaisesRegex(ModuleLost, "the WebAssembly module is lost: .*fuel"):
                use()
        self.assertEqual((self.source.closed, self.target.closed), (1, 1))
        self.assertEqual(bytes(self.source.data), b"acknowledged" + pattern(LENGTH)[12:])
        for thing in (self.disk, self.source, self.target):
            thing.close()
        # What was in it goes on elsewhere.
        with Module(module_path()) as another, another.bind(Bytes)(self.source.data) as again, b.Filter(again) as disk:
            self.assertEqual(disk.read(0, 12), b"acknowledged")

    def test_whoever_waits_is_told(self) -> None:
        self.source.held = True
        waiting = self.disk.write_async(0, b"not yet")
        self.assertFalse(waiting.done())
        self.lose()
        self.assertIsInstance(waiting.exception(0), ModuleLost)
        with self.assertRaises(ModuleLost):
            self.source.requests.pop()()

    def test_whoever_waits_for_a_job_is_woken(self) -> None:
        woken: List[int] = []
        opened: List[int] = []
        self.disk.set_opened(lambda: opened.append(1))
        self.source.held = True
        raised: List[BaseException] = []
        job = b.Job(self.disk, self.target, wake=lambda: woken.append(1))
        job.start()
        while not self.source.requests:
            job.poll()

        def run() -> None:
            try:
                job.run()
            except ModuleLost as lost:
                raised.append(lost)

        runs = threading.Thread(target=run, daemon=True)
        runs.start()
        # It sleeps once it has taken what has woken it before.
        while job._woken.is_set():
            pass
        woken.clear()
        self.lose()
        runs.join(60)
        self.assertEqual(([type(error) for error in raised], woken, opened), ([ModuleLost], [1], [1]))
        job.close()

    def test_tasks_that_await_a_job_or_a_request_are_told(self) -> None:
        async def main() -> List[object]:
            self.source.held = True
            with b.Job(self.disk, self.target) as job:
                job.start()
                tasks = [asyncio.ensure_future(job.ready()), asyncio.ensure_future(job.concluded())]
                while not self.source.requests:
                    await asyncio.sleep(0)
                self.lose()
                return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

        self.assertEqual([type(told) for told in asyncio.run(main())], [ModuleLost, ModuleLost])

    def test_it_is_lost_in_any_call(self) -> None:
        self.source.held = True
        waiting = self.disk.write_async(0, b"not yet")
        lib: Any = self.module._lib
        lib._fuel = 10
        with self.assertRaises(ModuleLost):
            lib.lend(memoryview(bytearray(MIB)))
        self.assertIsInstance(waiting.exception(0), ModuleLost)

    def test_a_call_from_a_callback_takes_those_around_it_along(self) -> None:
        self.source.in_write = self.lose
        with self.assertRaises(ModuleLost):
            self.disk.write(0, b"x")
        self.assertEqual(self.source.closed, 1)

    def test_a_module_that_is_closed_from_a_callback_does_not_go_on(self) -> None:
        # It keeps the request, so that nothing else is called.
        self.source.in_write, self.source.held = self.module.close, True
        with self.assertRaisesRegex(ModuleLost, "it was closed"):
            self.disk.write_async(0, b"x")
        self.assertEqual((self.source.closed, self.target.closed), (1, 1))

    def test_what_tears_through_it_loses_it(self) -> None:
        failure = KeyboardInterrupt("now")

        def interrupted(*_: object) -> int:
            raise failure

        setattr(self.source, "_guard", interrupted)
        waiting: List[Any] = []
        with self.assertRaises(KeyboardInterrupt) as caught:
            waiting.append(self.disk.write_async(0, b"x"))
        self.assertIs(caught.exception, failure)
        with self.assertRaisesRegex(ModuleLost, "lost: now"):
            self.disk.read(0, 1)
        self.assertEqual(self.target.closed, 1)

    def test_arguments_that_are_none_do_no_harm(self) -> None:
        nonsense: Any = "first"
        with self.assertRaises(TypeError):
            self.disk.write(nonsense, b"x")
        self.disk.write(0, b"x")
        self.assertEqual(self.disk.read(0, 1), b"x")

    def test_fuel_is_for_each_call(self) -> None:
        # Together they take several times what one may.
        for _ in range(2000):
            self.disk.write(0, bytes(LENGTH))
            self.assertEqual(self.disk.read(0, 512), bytes(512))

    def test_a_module_that_is_closed_is_lost(self) -> None:
        self.module.close()
        self.module.close()
        with self.assertRaisesRegex(ModuleLost, "it was closed"):
            self.disk.read(0, 512)
        self.assertEqual((self.source.closed, self.target.closed), (1, 1))


class Threads(unittest.TestCase):
    def test_one_at_a_time_is_let_in(self) -> None:
        found: List[int] = []
        with Module(module_path()) as module, module.bind(Bytes)(bytearray(LENGTH)) as source, b.Filter(source) as disk:
            other = threading.Thread(target=lambda: found.append(source.length))

            def in_write() -> None:
                other.start()
                other.join(0.05)
                self.assertTrue(other.is_alive() and not found)
                # This thread is in.
                self.assertEqual(disk.length, LENGTH)

            source.in_write = in_write
            disk.write(0, b"x")
            other.join(60)
            self.assertEqual((found, source.take_raised()), ([LENGTH], None))

    def test_each_thread_is_told_its_own_errors(self) -> None:
        with Module(module_path()) as module, module.MemoryDevice(LENGTH) as source, b.Filter(source) as disk:
            lib: Any = module._lib
            self.assertLess(lib.mirror_filter_mark_dirty(disk.handle, LENGTH, 1), 0)
            thread = threading.Thread(target=lambda: lib.mirror_filter_mark_dirty(0, 0, 1))
            thread.start()
            thread.join()
            self.assertIn("%d" % LENGTH, lib.last_error())

    def test_news_from_another_thread_wake_who_runs_the_job(self) -> None:
        with Module(module_path()) as module, module.bind(Bytes)(pattern(LENGTH)) as source:
            source.held = True
            with module.MemoryDevice(LENGTH) as target, b.Filter(source) as disk, b.Job(disk, target) as job:
                job.start()
                while not source.requests:
                    job.poll()
                while job.poll().state is not b.PollState.IDLE:
                    pass
                job._woken.clear()
                thread = threading.Thread(target=source.requests.pop())
                thread.start()
                thread.join()
                self.assertTrue(job._woken.is_set())
                source.held = False
                self.assertTrue(job.run(until="ready", timeout=60).ready)

    def test_a_check_keeps_others_out_and_so_misses_their_completions(self) -> None:
        threads: List[threading.Thread] = []

        class Later(Bytes):
            def _do(self, request: b.Request, act: Callable[[], None]) -> Optional[b.Answer]:
                def later() -> None:
                    act()
                    request.complete()

                threads.append(threading.Thread(target=later))
                threads[-1].start()
                return b.Answer.PENDING

        with Module(module_path()) as module, module.bind(Later)(bytearray(LENGTH)) as device:
            findings = device.check(destroy=True, timeout=60)
            for thread in threads:
                thread.join()
            self.assertEqual({finding.rule for finding in findings}, {"answers"})
            self.assertIn("not completed", findings[0].came)


class Layout(unittest.TestCase):
    def test_offsets_and_lengths_have_64_bits(self) -> None:
        big = 1 << 62
        with Module(module_path()) as module, module.NullDevice(big) as source, b.Filter(source) as disk:
            self.assertEqual((source.length, disk.length), (big, big))
            disk.zero(big - 4096, 4096)
            disk.mark_dirty((1 << 40) + 512, 512)
            with self.assertRaises(b.MirrorError) as caught:
                disk.zero(big, 512)
            self.assertEqual(caught.exception.errno, errno.ERANGE)
            self.assertIn(str(big), str(caught.exception))

            class Far(b.Device):
                asked: List[object] = []

                def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> None:
                    self.asked.append(offset)

                def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> None:
                    self.asked.append((offset, bytes(buffers[0])))

                def zero(self, request: b.Request, offset: int, length: int, may_unmap: bool) -> None:
                    self.asked.append((offset, length))

            with module.bind(Far)(big) as far, b.Filter(far) as disk:
                disk.zero(big - (1 << 33), 1 << 30)
                disk.write(big - 512, b"far")
                disk.read((1 << 32) + 1, 1)
                self.assertEqual(Far.asked, [(big - (1 << 33), 1 << 30), (big - 512, b"far"), (1 << 32) + 1])
            with module.NullDevice(1 << 40) as large, module.NullDevice(1 << 40) as target, b.Filter(large) as disk:
                with b.Job(disk, target, sync=b.Sync.NONE, speed=1, granularity=MIB, clock=lambda: 1 << 60) as job:
                    job.start()
                    disk.mark_dirty(0, 64 * MIB)
                    wake_at = None
                    for _ in range(20):
                        wake_at = job.poll(1 << 60).wake_at or wake_at
                    self.assertGreater(wake_at or 0, 1 << 60)
            lib: Any = module._lib
            self.assertEqual(ctypes.sizeof(lib.abi.DeviceOps), 48)


if __name__ == "__main__":
    unittest.main()
