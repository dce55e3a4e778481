"""Jobs in loops: for, async for, await; and what is left of them when nobody waits any more."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sys
import threading
import unittest
import weakref
from typing import Any, Awaitable, Callable, Coroutine, Iterator, List, Optional, Tuple, Type

from backend import WASM, b

MIB = 1 << 20
LIFE = [
    b.Status.CREATED, b.Status.RUNNING, b.Status.READY, b.Status.WAITING, b.Status.PENDING, b.Status.CONCLUDED, b.Status.NULL,
]  # fmt: skip


class Ram(b.Device):
    """A device in Python; its writes fail, or are kept, if it is told so."""

    def __init__(self, length: int = MIB) -> None:
        self.data = bytearray(length)
        self.fails: Optional[BaseException] = None
        self.keeps = False
        self.kept: List[b.Request] = []
        super().__init__(length)

    def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> None:
        for view in buffers:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> Optional[b.Answer]:
        if self.fails is not None:
            raise self.fails
        for view in buffers:
            self.data[offset : offset + len(view)] = view
            offset += len(view)
        if self.keeps:
            self.kept.append(request)
            return b.Answer.PENDING
        return None

    def end(self) -> None:
        self.keeps, kept, self.kept = False, self.kept, []
        for request in kept:
            request.complete()


class Loop(asyncio.SelectorEventLoop):
    """Tells what it still watches."""

    watches = True

    def __init__(self) -> None:
        super().__init__()
        self.readers: List[Any] = []
        self.removed_by: List[int] = []

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        if not self.watches:
            raise NotImplementedError
        self.readers.append(fd)
        super().add_reader(fd, callback, *args)

    def remove_reader(self, fd: Any) -> bool:
        self.readers.remove(fd)
        self.removed_by.append(threading.get_ident())
        return super().remove_reader(fd)


class Blind(Loop):
    """Can't watch descriptors, as Windows' loops can't."""

    watches = False


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/dev/fd"))


class Case(unittest.TestCase):
    """A disk of one mebibyte of data on a device in Python, and a target like it."""

    def setUp(self) -> None:
        self.source, self.target = Ram(), Ram()
        self.source.data[:] = bytes(range(1, 129)) * (MIB // 128)
        self.disk = b.Filter(self.source)
        for thing in (self.source, self.target, self.disk):
            self.addCleanup(thing.close)

    def job(self, disk: Optional[b.Filter] = None, target: Optional[Ram] = None, **options: Any) -> b.Job:
        """A job that has been started."""
        job = b.Job(disk or self.disk, target or self.target, **options)
        self.addCleanup(job.close)
        if not WASM:
            job.fileno()  # The library makes it when it is first asked.
        job.start()
        return job

    def again(self) -> None:
        """All of it anew."""
        for thing in (self.source, self.target, self.disk):
            thing.close()
        self.setUp()

    def in_loop(self, main: Coroutine[Any, Any, Any], kind: Type[Loop] = Loop) -> Any:
        """Runs it to its end, and nothing is left in the loop then."""
        before = descriptors()
        loop = kind()
        try:
            return loop.run_until_complete(asyncio.wait_for(main, 60))
        finally:
            gc.collect()
            self.assertEqual(loop.readers, [])
            loop.close()
            self.assertLessEqual(descriptors(), before)


def statuses(events: List[b.Event]) -> List[b.Status]:
    return [event.status for event in events if isinstance(event, b.StatusEvent)]


class Iteration(Case):
    def test_for_gives_all_events_and_ends_with_the_job(self) -> None:
        job, events = self.job(), []
        for event in job:
            events.append(event)
            if isinstance(event, b.ReadyEvent):
                job.complete()
        self.assertEqual(statuses(events), LIFE)
        self.assertIn(b.CompletedEvent(0), events)
        self.assertTrue(self.disk.is_on(self.target))
        self.assertEqual(list(job), [], "it is over, and everything was read")

    def test_for_can_be_left_and_taken_up_again(self) -> None:
        job, events = self.job(), []
        for event in job:
            events.append(event)
            if isinstance(event, b.ReadyEvent):
                break
        job.complete()
        events += job
        self.assertEqual(statuses(events), LIFE)

    def test_who_has_left_for_may_wait_for_who_drives_the_job_now(self) -> None:
        job = self.job(copy_mode=b.CopyMode.WRITE_BLOCKING)
        for event in job:
            if isinstance(event, b.ReadyEvent):
                break
        thread = threading.Thread(target=job.run)
        thread.start()
        self.disk.write(0, b"seen")
        self.assertEqual(self.target.data[:4], b"seen")
        job.cancel()
        thread.join()

    def test_for_raises_what_callbacks_raise(self) -> None:
        self.target.fails = ValueError("a defect")
        job, events = self.job(on_target_error=b.ErrorPolicy.STOP), [b.ReadyEvent()][:0]
        with self.assertRaises(ValueError) as caught:
            for event in job:
                pass
        self.assertIs(caught.exception, self.target.fails)
        self.target.fails = None
        while self.target.take_raised():
            pass
        job.resume()
        for event in job:
            if isinstance(event, b.ReadyEvent):
                job.cancel()
        self.assertEqual(job.info.result, 0)

    def test_who_drives_the_job_is_told_that_it_would_wait_for_itself(self) -> None:
        job, refused, done = self.job(copy_mode=b.CopyMode.WRITE_BLOCKING, auto_finalize=False), [""][:0], [""][:0]

        def each(disk: b.Filter) -> None:
            calls: List[Tuple[str, Callable[[], object]]] = [
                ("write", lambda: disk.write(0, b"x" * 512)),
                ("zero", lambda: disk.zero(0, 512)),
                ("discard", lambda: disk.discard(0, 512)),
                ("flush", disk.flush),
                ("read", lambda: disk.read(0, 512)),
                ("readinto", lambda: disk.readinto(0, bytearray(512))),
                ("extents", lambda: disk.extents(0, 512)),
            ]
            refused.clear()
            done.clear()
            for name, call in calls:
                try:
                    call()
                    done.append(name)
                except RuntimeError as error:
                    self.assertIn("this thread drives the job", str(error))
                    refused.append(name)

        for event in job:
            if isinstance(event, b.ReadyEvent):
                for mode in b.CopyMode:
                    job.change(mode)
                    each(self.disk)
                    self.assertEqual((refused, done), (["write", "zero", "discard", "flush"], ["read", "readinto", "extents"]))
                job.change(b.CopyMode.BACKGROUND)
                job.poll()
                each(self.disk)
                self.assertEqual((refused, len(done)), ([], 7))
                job.complete()
            elif isinstance(event, b.PendingEvent):
                each(self.disk)
                self.assertEqual((len(refused), done), (7, []), "the gate is closed")
                job.finalize()
        each(self.disk)
        self.assertEqual(refused, [])

    def test_a_job_that_was_not_started_is_not_waited_for(self) -> None:
        async def ready(job: b.Job) -> None:
            await job.ready()

        with b.Job(self.disk, self.target) as job:
            calls: List[Callable[[], object]] = [lambda: list(job), job.run, lambda: self.in_loop(ready(job))]
            for call in calls:
                with self.assertRaisesRegex(RuntimeError, "call start.. first"):
                    call()
            job.start()
            self.assertTrue(job.run(until="ready", timeout=60).ready)


class Asyncio(Case):
    def test_a_whole_mirror(self) -> None:
        async def main(job: b.Job) -> b.JobInfo:
            info = await job.ready()
            self.assertTrue(info.ready)
            self.assertTrue((await job.ready()).ready, "it still is")
            self.assertEqual(self.source.data, self.target.data)
            await self.disk.write_async(512, b"seen")
            job.complete()
            return await job.concluded()

        for kind in (Loop, Blind):
            self.again()
            info = self.in_loop(main(self.job()), kind)
            self.assertEqual((info.status, info.result), (b.Status.NULL, 0))
            self.assertTrue(self.disk.is_on(self.target))
            self.assertEqual(self.target.data[512:516], b"seen")

    def test_async_for_gives_all_events_and_ends_with_the_job(self) -> None:
        async def main(job: b.Job) -> List[b.Event]:
            events = []
            async for event in job:
                events.append(event)
                if isinstance(event, b.ReadyEvent):
                    job.complete()
            self.assertEqual([event async for event in job], [], "it is over, and everything was read")
            return events

        events = self.in_loop(main(self.job()))
        self.assertEqual(statuses(events), LIFE)
        self.assertIn(b.CompletedEvent(0), events)

    def test_the_job_is_driven_while_the_body_of_async_for_waits(self) -> None:
        async def main(job: b.Job) -> None:
            async for event in job:
                if isinstance(event, b.ReadyEvent):
                    for block in range(64):
                        await self.disk.write_async(block * 4096, bytes([block]) * 4096)
                    self.assertEqual(self.target.data[63 * 4096 : 64 * 4096], b"\x3f" * 4096)
                    with self.assertRaisesRegex(RuntimeError, "await write_async"):
                        self.disk.write(0, b"x")
                    job.cancel()
            self.disk.write(0, b"x")

        self.in_loop(main(self.job(copy_mode=b.CopyMode.WRITE_BLOCKING)))

    def test_a_thread_may_wait_while_the_loop_drives(self) -> None:
        async def main(job: b.Job) -> None:
            driving = asyncio.ensure_future(job.concluded())
            await job.ready()
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self.disk.write, 4096, b"from a thread")
            job.cancel()
            self.assertEqual((await driving).result, 0)

        self.in_loop(main(self.job(copy_mode=b.CopyMode.WRITE_BLOCKING)))
        self.assertEqual(self.target.data[4096:4109], b"from a thread")

    def test_many_wait_for_one_job(self) -> None:
        async def main(job: b.Job) -> None:
            waiting = [asyncio.ensure_future(job.ready()) for _ in range(3)]
            waiting += [asyncio.ensure_future(job.concluded()) for _ in range(3)]
            await waiting[0]
            job.complete()
            infos = await asyncio.gather(*waiting)
            self.assertTrue(all(info.ready for info in infos))
            self.assertEqual([info.status for info in infos[3:]], [b.Status.NULL] * 3)

        self.in_loop(main(self.job()))

    def test_many_jobs_in_one_loop(self) -> None:
        async def main(jobs: List[b.Job]) -> None:
            await asyncio.gather(*(job.ready() for job in jobs))
            for job in jobs:
                job.complete()
            infos = await asyncio.gather(*(job.concluded() for job in jobs))
            self.assertEqual([info.result for info in infos], [0] * len(jobs))

        jobs, sources = [], []
        for number in range(5):
            source, target = Ram(), Ram()
            source.data[:] = bytes([number + 1]) * MIB
            disk = b.Filter(source)
            for thing in (source, target, disk):
                self.addCleanup(thing.close)
            jobs.append(self.job(disk, target))
            sources.append((source, target))
        self.in_loop(main(jobs))
        for source, target in sources:
            self.assertEqual(source.data, target.data)

    def test_the_loop_comes_by_between_two_polls_and_when_time_has_come(self) -> None:
        async def main(job: b.Job) -> None:
            turns, waiting = 0, asyncio.ensure_future(job.ready())
            while not waiting.done():
                turns += 1
                await asyncio.sleep(0)
            self.assertGreater(turns, 10)
            job.cancel()
            await job.concluded()

        # Slices of a rate, between which nothing but the clock wakes the job.
        self.in_loop(main(self.job(speed=4 * MIB, max_io=16384)))
        self.disk.close()
        self.disk = b.Filter(self.source)
        self.in_loop(main(self.job(max_in_flight=1, max_io=512)))

    def test_nothing_but_the_clock(self) -> None:
        async def main(job: b.Job) -> None:
            await job.ready()

        self.in_loop(main(self.job(speed=4 * MIB, max_io=16384)))

    def test_devices_that_complete_on_other_threads_wake_the_loop(self) -> None:
        async def main(job: b.Job) -> None:
            waiting = asyncio.ensure_future(job.ready())
            while not self.target.kept:
                await asyncio.sleep(0.001)
            thread = threading.Thread(target=self.target.end)
            thread.start()
            await waiting
            thread.join()

        for kind in (Loop, Blind):
            self.target.keeps = True
            with self.job() as job:
                self.in_loop(main(job), kind)


class Endings(Case):
    """Whoever stops to wait leaves nothing behind, and the job as it is."""

    def test_a_task_is_cancelled(self) -> None:
        async def main(job: b.Job) -> None:
            before = list(asyncio.get_running_loop().readers)  # type: ignore[attr-defined]
            tasks = [asyncio.ensure_future(job.ready()), asyncio.ensure_future(job.concluded())]
            while not self.target.kept:
                await asyncio.sleep(0)
            self.assertEqual(len(asyncio.get_running_loop().readers), len(before) + (not WASM))  # type: ignore[attr-defined]
            tasks[0].cancel()
            await asyncio.sleep(0)
            self.assertTrue(tasks[0].cancelled())
            self.target.end()
            await asyncio.wait_for(job.ready(), 60)
            self.assertFalse(tasks[1].done())
            tasks[1].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.assertEqual(asyncio.get_running_loop().readers, before)  # type: ignore[attr-defined]

        self.target.keeps = True
        job = self.job()
        self.in_loop(main(job))
        self.assertIsNone(job._driver)
        job.complete()
        self.assertEqual(job.run(timeout=60).result, 0)

    def test_time_is_up(self) -> None:
        async def main(job: b.Job) -> None:
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(job.ready(), 0.01)

        self.target.keeps = True
        job = self.job()
        self.in_loop(main(job))
        self.target.end()
        self.assertTrue(job.run(until="ready", timeout=60).ready)

    def test_async_for_is_left(self) -> None:
        async def by_break(job: b.Job) -> None:
            async for event in job:
                if isinstance(event, b.ReadyEvent):
                    break
            self.assertIsNone(job._driver)

        async def by_raising(job: b.Job) -> None:
            with self.assertRaises(KeyError):
                async for event in job:
                    raise KeyError
            self.assertIsNone(job._driver)

        async def on_another_thread(job: b.Job) -> None:
            iterator = [job.__aiter__()]
            await iterator[0].__anext__()
            thread = threading.Thread(target=iterator.clear)
            thread.start()
            thread.join()
            for _ in range(10):
                await asyncio.sleep(0)
            self.assertIsNone(job._driver)
            removed_by = asyncio.get_running_loop().removed_by  # type: ignore[attr-defined]
            self.assertEqual(removed_by, [] if WASM else [threading.get_ident()])

        async def with_the_loop(job: b.Job, kept: List[Any]) -> None:
            kept.append(job.__aiter__())
            await kept[0].__anext__()

        for way in (by_break, by_raising, on_another_thread):
            with self.subTest(way=way.__name__), self.job() as job:
                self.in_loop(way(job))
                job.cancel()
                self.assertEqual(job.run(timeout=60).status, b.Status.NULL)
        with self.job() as job:
            kept: List[Any] = []
            before = descriptors()
            loop = Loop()
            loop.run_until_complete(with_the_loop(job, kept))
            loop.close()
            self.in_loop(by_break(job))
            kept.clear()
            self.assertEqual((loop.readers, descriptors()), ([], before))

    def test_no_event_is_lost_by_tasks_that_are_cancelled(self) -> None:
        async def main(job: b.Job) -> List[b.Event]:
            events: List[b.Event] = []
            iterator, count = job.__aiter__(), 0
            while True:
                count += 1
                task = asyncio.ensure_future(iterator.__anext__())
                for _ in range(count % 4):
                    await asyncio.sleep(0)
                task.cancel()
                try:
                    event = await task
                except asyncio.CancelledError:
                    continue
                except StopAsyncIteration:
                    return events
                events.append(event)
                if isinstance(event, b.ReadyEvent):
                    job.complete()

        self.assertEqual(statuses(self.in_loop(main(self.job()))), LIFE)

    def test_the_job_is_closed(self) -> None:
        async def main(job: b.Job) -> None:
            waits: List[Awaitable[Any]] = [
                asyncio.ensure_future(job.ready()), asyncio.ensure_future(job.concluded()),
                asyncio.ensure_future(job.__aiter__().__anext__()),
            ]  # fmt: skip
            await waits[2]
            iterator = job.__aiter__()
            while not self.target.kept:
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            job.close()
            for wait in (*waits[:2], iterator.__anext__()):
                with self.assertRaisesRegex(ValueError, "the job is closed"):
                    await wait

        for kind in (Loop, Blind):
            self.target.keeps = True
            self.in_loop(main(self.job()), kind)
            self.target.end()

    def test_nothing_is_left_of_a_job_that_is_gone(self) -> None:
        async def main(gone: "List[weakref.ref[Any]]") -> None:
            for _ in range(20):
                with b.Job(self.disk, self.target, auto_complete=False) as job:
                    job.start()
                    await job.ready()
                    async for event in job:
                        break
                    gone.append(weakref.ref(job))

        gone: "List[weakref.ref[Any]]" = []
        self.in_loop(main(gone))
        self.assertEqual([job for job in gone if job() is not None], [])

    def test_one_loop_at_a_time(self) -> None:
        async def one(job: b.Job, driven: threading.Event, tried: threading.Event) -> None:
            waiting = asyncio.ensure_future(job.concluded())
            while not self.target.kept:
                await asyncio.sleep(0)
            driven.set()
            await asyncio.get_running_loop().run_in_executor(None, tried.wait, 60)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

        async def other(job: b.Job) -> None:
            with self.assertRaisesRegex(RuntimeError, "driven by another event loop"):
                await job.concluded()

        self.target.keeps = True
        job, driven, tried = self.job(), threading.Event(), threading.Event()
        first = Loop()
        thread = threading.Thread(target=lambda: first.run_until_complete(one(job, driven, tried)))
        thread.start()
        try:
            self.assertTrue(driven.wait(60))
            second = Loop()
            second.run_until_complete(other(job))
            second.close()
        finally:
            tried.set()
            thread.join()
            self.assertEqual(first.readers, [])
            first.close()
            self.target.end()


class Failures(Case):
    def test_a_job_that_fails_before_it_is_ready_says_why(self) -> None:
        async def main(job: b.Job) -> None:
            with self.assertRaises(OSError) as raised:
                await job.ready()
            self.assertIs(raised.exception, self.target.fails, "what the callback raised comes first")
            while self.target.take_raised():
                pass
            with self.assertRaises(b.MirrorError) as caught:
                await job.ready()
            self.assertEqual(caught.exception.errno, errno.ENOSPC)
            self.assertIn("write", str(caught.exception))
            info = await job.concluded()
            self.assertEqual(info.result, -errno.ENOSPC)

        self.target.fails = OSError(errno.ENOSPC, "full")
        self.in_loop(main(self.job()))

    def test_a_job_that_is_cancelled_before_it_is_ready(self) -> None:
        async def main(job: b.Job) -> None:
            job.cancel(force=True)
            with self.assertRaises(b.MirrorError) as caught:
                await job.ready()
            self.assertEqual(caught.exception.errno, errno.ECANCELED)

        self.in_loop(main(self.job()))

    def test_what_a_callback_raises_is_raised_in_all_that_wait_and_the_job_goes_on(self) -> None:
        async def main(job: b.Job, failure: BaseException, expected: Any) -> None:
            waits: List[Awaitable[Any]] = [asyncio.ensure_future(job.ready()), asyncio.ensure_future(job.concluded())]
            events, seen = job.__aiter__(), []
            for wait in waits:
                with self.assertRaises(expected) as caught:
                    await wait
                if expected is ValueError:
                    self.assertIs(caught.exception, failure)
            with self.assertRaises(expected):
                while True:
                    seen.append(await events.__anext__())
            self.target.fails = None
            while self.target.take_raised():
                pass
            job.resume()
            async for event in job:
                seen.append(event)
                if isinstance(event, b.ReadyEvent):
                    job.complete()
            self.assertEqual(statuses(seen)[-1], b.Status.NULL)

        rows: List[Tuple[BaseException, Any]] = [(ValueError("a defect"), ValueError), (StopIteration(), RuntimeError)]
        for failure, expected in rows:
            self.again()
            self.target.fails = failure
            self.in_loop(main(self.job(on_target_error=b.ErrorPolicy.STOP), failure, expected))
            self.assertTrue(self.disk.is_on(self.target))

    def test_the_job_is_driven_on_though_a_callback_raised_while_nobody_waited(self) -> None:
        async def main(job: b.Job) -> None:
            iterator = job.__aiter__()
            while not job.info.errors:
                await asyncio.sleep(0)
            self.target.fails = None
            while not job.info.ready:
                await asyncio.sleep(0)
            with self.assertRaisesRegex(ValueError, "a defect"):
                while True:
                    await iterator.__anext__()
                    await asyncio.sleep(0)
                    self.assertIsNotNone(iterator)

        for kind in (Loop, Blind):
            self.target.fails = ValueError("a defect")
            with self.job(on_target_error=b.ErrorPolicy.IGNORE) as job:
                self.in_loop(main(job), kind)
            while self.target.take_raised():
                pass

    def test_two_tasks_on_one_iterator_are_refused_and_on_two_are_not(self) -> None:
        async def main(job: b.Job) -> None:
            iterator = job.__aiter__()
            while not self.target.kept:
                await asyncio.sleep(0)
            self.assertEqual(statuses(list(job.events())), LIFE[:2])
            first = asyncio.ensure_future(iterator.__anext__())
            await asyncio.sleep(0)
            with self.assertRaisesRegex(RuntimeError, "give each its own"):
                await iterator.__anext__()
            second = asyncio.ensure_future(job.__aiter__().__anext__())
            self.target.end()
            got = await asyncio.gather(first, second)
            self.assertEqual(len(got), 2)
            self.assertNotEqual(got[0], got[1])

        for kind in (Loop, Blind):
            self.target.keeps = True
            with self.job() as job:
                self.in_loop(main(job), kind)


class Requests(Case):
    def test_each_kind_can_be_awaited(self) -> None:
        async def main() -> None:
            await self.disk.write_async(0, b"a" * 4096)
            self.assertEqual(await self.disk.read_async(0, 4096), b"a" * 4096)
            buffer = bytearray(4096)
            await self.disk.readinto_async(0, buffer)
            self.assertEqual(buffer, b"a" * 4096)
            await self.disk.zero_async(0, 1024)
            await self.disk.discard_async(1024, 1024)
            await self.disk.flush_async()
            self.assertEqual((await self.disk.read_async(0, 1024)), bytes(1024))
            self.assertEqual(sum(length for length, _ in await self.disk.extents_async(0, MIB)), MIB)
            with self.assertRaises(b.MirrorError):
                await self.disk.write_async(MIB, b"beyond")
            self.source.fails = OSError(errno.ENOSPC, "full")
            with self.assertRaises(b.MirrorError) as caught:
                await self.disk.write_async(0, b"a")
            self.assertEqual(caught.exception.errno, errno.ENOSPC)
            await asyncio.gather(*(self.disk.read_async(offset, 512) for offset in range(0, MIB, 4096)))

        self.in_loop(main())

    def test_a_task_that_is_cancelled_leaves_its_request_under_way(self) -> None:
        async def main() -> None:
            buffer = bytearray(b"kept" * 128)

            async def write() -> None:
                await self.disk.write_async(0, buffer)

            task = asyncio.ensure_future(write())
            while not self.source.kept:
                await asyncio.sleep(0)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            with self.assertRaises(BufferError):
                buffer.extend(b"!")
            self.source.end()
            await asyncio.sleep(0)
            buffer.extend(b"!")
            self.assertEqual(self.source.data[:512], b"kept" * 128)

        self.source.keeps = True
        self.in_loop(main())

    def test_extents_of_many_parts_come_in_order(self) -> None:
        class Striped(Ram):
            def extents(self, offset: int, length: int) -> Iterator[Tuple[int, b.ExtentFlags]]:
                while length > 0:
                    part = min(32 - offset % 32, length)
                    yield part, b.ExtentFlags.ZERO if offset // 32 % 2 else b.ExtentFlags.DATA
                    offset, length = offset + part, length - part

        async def main(disk: b.Filter) -> List[Tuple[int, b.ExtentFlags]]:
            return await disk.extents_async(0, MIB)

        with Striped() as device, b.Filter(device) as disk:
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(200)
            try:
                found = disk.extents(0, MIB)
            finally:
                sys.setrecursionlimit(limit)
            self.assertEqual([length for length, _ in found], [32] * 32768)
            self.assertEqual([flags for _, flags in found[:3]], [b.ExtentFlags.DATA, b.ExtentFlags.ZERO, b.ExtentFlags.DATA])
            self.assertTrue(self.in_loop(main(disk)) == found)
            self.assertEqual(disk.extents(100, 0), [])
            with self.assertRaises(b.MirrorError):
                disk.extents(MIB, 1)


if __name__ == "__main__":
    unittest.main()
