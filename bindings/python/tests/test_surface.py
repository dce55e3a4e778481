"""All of the mirror through Python, as a host with types writes it: ``make types`` checks this file too."""

from __future__ import annotations

import errno
import gc
import threading
import unittest
from typing import Callable, Iterator, List, Optional, Tuple, Type

from backend import b, lib

MIB = 1 << 20
CLUSTER = 65536


class Layer(b.Device):
    """A layer in clusters over another, that tells what is its own; a base is a layer over nothing."""

    def __init__(
        self, length: int, backing: Optional["Layer"] = None, flags: b.DeviceFlags = b.DeviceFlags.NONE
    ) -> None:
        self.clusters: dict[int, bytearray] = {}
        self.backing = backing
        self.bytes = length
        self.zeroes: List[Tuple[int, int, bool]] = []
        super().__init__(length, b.Limits(cluster_size=CLUSTER, flags=flags))

    def content(self, cluster: int) -> bytes:
        """What a read of a cluster finds."""
        own = self.clusters.get(cluster)
        if own is not None:
            return bytes(own)
        return self.backing.content(cluster) if self.backing else bytes(CLUSTER)

    def all(self) -> bytes:
        """What a read of everything finds."""
        return b"".join(self.content(n) for n in range(-(-self.bytes // CLUSTER)))[: self.bytes]

    def own(self, cluster: int) -> bytearray:
        """The cluster in this layer, copied up if it isn't there."""
        return self.clusters.setdefault(cluster, bytearray(self.content(cluster)))

    def has_data(self, cluster: int) -> bool:
        """Whether any layer holds it."""
        return cluster in self.clusters or (self.backing is not None and self.backing.has_data(cluster))

    def parts(self, offset: int, length: int) -> Iterator[Tuple[int, int, int]]:
        """A range as clusters, and the parts within them."""
        while length > 0:
            cluster, at = divmod(offset, CLUSTER)
            size = min(length, CLUSTER - at)
            yield cluster, at, size
            offset, length = offset + size, length - size

    def read(self, request: b.Request, offset: int, buffers: List[memoryview]) -> None:
        for view in buffers:
            place = 0
            for cluster, at, size in self.parts(offset, len(view)):
                view[place : place + size] = self.content(cluster)[at : at + size]
                place += size
            offset += len(view)

    def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> None:
        for view in buffers:
            place = 0
            for cluster, at, size in self.parts(offset, len(view)):
                self.own(cluster)[at : at + size] = view[place : place + size]
                place += size
            offset += len(view)

    def zero(self, request: b.Request, offset: int, length: int, may_unmap: bool) -> None:
        self.zeroes.append((offset, length, may_unmap))
        for cluster, at, size in self.parts(offset, length):
            self.own(cluster)[at : at + size] = bytes(size)

    def extents(self, offset: int, length: int) -> Iterator[Tuple[int, b.ExtentFlags]]:
        for cluster, _, size in self.parts(offset, length):
            if cluster in self.clusters:
                yield size, b.ExtentFlags.DATA | b.ExtentFlags.ALLOCATED
            else:
                yield size, b.ExtentFlags.DATA if self.has_data(cluster) else b.ExtentFlags.ZERO

    def truncate(self, request: b.Request, length: int) -> None:
        self.bytes = length


def fill(layer: Layer, seed: int, *clusters: int) -> None:
    for cluster in clusters:
        layer.clusters[cluster] = bytearray((cluster * 7 + seed) % 251 + 1 for _ in range(1)) * CLUSTER


class Layers(unittest.TestCase):
    def test_the_top_is_copied_and_the_hook_attaches_the_base(self) -> None:
        base = Layer(20 * CLUSTER)
        fill(base, 1, *range(20))
        for mode in b.CopyMode:
            with self.subTest(mode=mode), Layer(20 * CLUSTER, base) as top:
                with Layer(20 * CLUSTER, flags=b.DeviceFlags.UNATTACHED_BACKING) as copy, b.Filter(top) as disk:
                    fill(top, 100, 3, 4, 11)
                    told: List[b.PrepareInfo] = []

                    def attach(info: b.PrepareInfo) -> None:
                        told.append(info)
                        copy.backing = base

                    with b.Job(disk, copy, sync=b.Sync.TOP, copy_mode=mode, prepare=attach, auto_complete=True) as job:
                        disk.write(7 * CLUSTER + 100, b"part of a cluster")
                        job.start()
                        self.assertIsNone(job.run(timeout=60).error)
                    self.assertEqual(told, [b.PrepareInfo(b.Sync.TOP, b.BackingMode.SOURCE_CHAIN)])
                    self.assertEqual(sorted(copy.clusters), [3, 4, 7, 11])
                    self.assertTrue(copy.all() == top.all())
                    self.assertTrue(disk.is_on(copy))
        base.close()

    def test_a_layer_is_committed_into_a_shorter_base(self) -> None:
        with Layer(5 * CLUSTER, flags=b.DeviceFlags.CHEAP_ZERO) as base, Layer(9 * CLUSTER, base) as top:
            fill(base, 1, 0, 1, 2, 3, 4)
            fill(top, 50, 2, 8)
            before = top.all()
            with b.Filter(top) as disk, b.Job(disk, base, kind=b.Kind.COMMIT_ACTIVE) as job:
                job.start()
                job.run(until="ready", timeout=60)
                self.assertEqual((base.bytes, base.length), (9 * CLUSTER, 9 * CLUSTER))
                with self.assertRaises(b.MirrorError) as caught:
                    job.change(b.CopyMode.WRITE_BLOCKING)
                self.assertEqual(caught.exception.errno, errno.EOPNOTSUPP)
                job.complete()
                info = job.run(timeout=60)
                self.assertEqual((info.result, info.kind), (0, b.Kind.COMMIT_ACTIVE))
                self.assertTrue(base.all() == before)
                self.assertTrue(disk.is_on(base))

    def test_zeroes_are_asked_for_as_the_options_say(self) -> None:
        def mirror(unmap: bool = True, detect_zeroes: bool = True, target_is_zero: bool = False) -> Layer:
            with Layer(8 * CLUSTER) as source, b.Filter(source) as disk:
                target = Layer(8 * CLUSTER)
                fill(source, 1, 0)
                source.clusters[5] = bytearray(CLUSTER)  # zeroes that were written
                if not target_is_zero:
                    fill(target, 9, *range(8))
                with b.Job(
                    disk,
                    target,
                    max_io=CLUSTER,
                    unmap=unmap,
                    detect_zeroes=detect_zeroes,
                    target_is_zero=target_is_zero,
                ) as job:
                    job.start()
                    job.run(until="ready", timeout=60)
                self.assertTrue(target.all() == source.all())
                target.close()
                return target

        zeroed = sum(length for _, length, may_unmap in mirror().zeroes if may_unmap)
        self.assertEqual(zeroed, 7 * CLUSTER)
        self.assertTrue(all(not may_unmap for _, _, may_unmap in mirror(unmap=False).zeroes))
        self.assertEqual(sum(length for _, length, _ in mirror(detect_zeroes=False).zeroes), 6 * CLUSTER)
        self.assertEqual(mirror(target_is_zero=True).zeroes, [])


class Verbs(unittest.TestCase):
    def setUp(self) -> None:
        self.source, self.target = b.MemoryDevice(4 * MIB), b.MemoryDevice(4 * MIB)
        self.disk = b.Filter(self.source)
        self.disk.write(0, bytes(range(1, 256)) * (4 * MIB // 255) + b"\1" * (4 * MIB % 255))
        self.addCleanup(self.source.close)
        self.addCleanup(self.target.close)
        self.addCleanup(self.disk.close)

    def test_a_drain_nests_and_a_resume_does_not_lift_it(self) -> None:
        with b.Job(self.disk, self.target, speed=100_000) as job:
            job.start()
            job.poll()
            with job.drain():
                with job.drain():
                    pass
                job.poll()
                self.assertIs(job.info.status, b.Status.PAUSED)
                with self.assertRaises(b.MirrorError):
                    job.resume()
            self.assertIs(job.info.status, b.Status.RUNNING)
            with self.assertRaises(b.MirrorError) as caught:
                job.drain_end()
            self.assertIn("is not drained", str(caught.exception))
            with self.assertRaises(KeyError), job.drain():
                raise KeyError
            self.assertFalse(job.info.paused)

    def test_finish_by_hand(self) -> None:
        with b.Job(self.disk, self.target, auto_finalize=False, auto_dismiss=False) as job:
            job.start()
            job.run(until="ready", timeout=60)
            job.complete()
            events: List[b.Event] = []
            while b.PendingEvent() not in events:
                job.poll()
                events += job.events()
            waits = self.disk.write_async(0, b"after")
            ticket = self.disk.begin(b.Operation.READ, 0, 512)
            self.assertIsNone(ticket)
            opened = threading.Event()
            self.disk.set_opened(opened.set)
            job.poll()
            self.assertFalse(waits.done() or opened.is_set())
            job.finalize()
            self.assertEqual(job.run(timeout=60).status, b.Status.CONCLUDED)
            waits.result(60)
            self.assertTrue(opened.is_set())
            job.dismiss()
            self.assertEqual(
                list(job.events()),
                [b.CompletedEvent(0), b.StatusEvent(b.Status.CONCLUDED), b.StatusEvent(b.Status.NULL)],
            )
            with self.disk.device as now:
                self.assertTrue(now.same(self.target))

    def test_cancel_softly_and_by_force(self) -> None:
        for force, event, result in [(False, b.CompletedEvent(0), 0), (True, b.CancelledEvent(), -errno.ECANCELED)]:
            with b.Job(self.disk, self.target) as job:
                job.start()
                job.run(until="ready", timeout=60)
                job.cancel(force=force)
                info = job.run(timeout=60)
                self.assertEqual(info.result, result)
                self.assertEqual(info.error is not None, force)
                self.assertIn(event, list(job.events()))
            self.assertTrue(self.disk.is_on(self.source))

    def test_another_filter_is_replaced(self) -> None:
        with b.MemoryDevice(4 * MIB) as other, b.Filter(other) as replaced:
            with b.Job(self.disk, self.target, replaces=replaced) as job:
                job.start()
                job.run(until="ready", timeout=60)
                job.complete()
                self.assertEqual(job.run(timeout=60).result, 0)
            self.assertTrue(replaced.is_on(self.target) and self.disk.is_on(self.source))
            self.assertEqual(replaced.read(0, 4 * MIB), self.disk.read(0, 4 * MIB))
        with b.MemoryDevice(MIB) as short, b.Filter(short) as replaced, self.assertRaises(b.MirrorError) as caught:
            with b.MemoryDevice(4 * MIB) as target:
                b.Job(self.disk, target, replaces=replaced)
        self.assertIn("replaces: ", str(caught.exception))

    def test_a_host_with_an_io_path_of_its_own(self) -> None:
        with b.Job(self.disk, self.target) as job:
            ticket = self.disk.begin(b.Operation.WRITE, 4096, 4096)
            assert ticket is not None
            self.assertEqual(job.info.dirty, 0)
            self.disk.end(ticket, OSError(errno.EIO, "it may have changed something"))
            self.assertEqual(job.info.dirty, 4096)
            self.disk.mark_dirty(MIB, 1)
            self.assertEqual(job.info.dirty, 8192)
            with self.assertRaises(b.MirrorError) as caught:
                job.change(b.CopyMode.WRITE_BLOCKING)
            self.assertEqual(caught.exception.errno, errno.EOPNOTSUPP)

    def test_an_inline_job_is_run_like_any_other(self) -> None:
        stop = threading.Event()

        def guest() -> None:
            while not stop.is_set():
                self.disk.write(8192, b"x" * 4096)

        for _ in range(10):
            stop.clear()
            writer = threading.Thread(target=guest)
            with b.Job(self.disk, self.target, inline=True, copy_mode=b.CopyMode.WRITE_BLOCKING) as job:
                writer.start()
                try:
                    job.start()
                    info = job.run(until="ready", timeout=60)
                    self.assertTrue(info.ready)
                    job.cancel()
                    self.assertEqual(job.run(timeout=60).result, 0)
                finally:
                    stop.set()
                    writer.join()

    def test_the_snapshot_has_it_all(self) -> None:
        woken = threading.Event()
        with b.Job(
            self.disk,
            self.target,
            id="told",
            wake=woken.set,
            granularity=8192,
            speed=123_456_789,
            max_io=MIB,
            pass_interval_ns=1,
            guest_first_io=4096,
            guest_first_in_flight=1,
            copy_offload=False,
            clock=lambda: 1,
        ) as job:
            job.start()
            self.assertTrue(woken.is_set())
            job.run(until="ready", timeout=60)
            job.change(b.CopyMode.WRITE_BLOCKING)
            write = self.disk.write_async(0, b"y" * 8192)
            while not write.done() or not job.info.actively_synced:
                job.poll()
            info = job.info
        self.assertEqual((info.id, info.message, info.granularity), ("told", "", 8192))
        self.assertEqual((info.kind, info.status), (b.Kind.MIRROR, b.Status.READY))
        self.assertEqual((info.copy_mode, info.io_status), (b.CopyMode.WRITE_BLOCKING, b.IoStatus.OK))
        self.assertEqual((info.speed, info.dirty, info.guest_writes, info.errors), (123_456_789, 0, 1, 0))
        self.assertEqual(info.done, info.total)
        self.assertEqual(info.eta_ns, 0)
        self.assertGreaterEqual(info.reads.bytes, 4 * MIB)
        self.assertEqual((info.writes.errors, info.active.errors, info.events_dropped), (0, 0, 0))
        self.assertTrue(info.ready and info.actively_synced and not info.paused)


class Callbacks(unittest.TestCase):
    """Whatever a callback raises becomes its answer, and is raised again from poll."""

    def job_that_raises(
        self, where: str, error: BaseException, side: b.Side
    ) -> Tuple[List[BaseException], b.JobInfo, List[b.Event]]:
        """Mirrors with a device of which one callback raises; what poll raised."""
        fails = True

        def raising(*_: object) -> None:
            if fails:
                raise error

        # The class has the callback, so that the device tells the library that there is one.
        broken: Type[Layer] = type("Broken", (Layer,), {where: raising})
        length = 4 * CLUSTER
        commit = where == "truncate"
        source = broken(length) if side is b.Side.SOURCE else Layer(length)
        target = broken(length - CLUSTER * commit) if side is b.Side.TARGET else Layer(length)
        fill(source, 1, 0, 2)
        raised: List[BaseException] = []
        kind = b.Kind.COMMIT_ACTIVE if commit else b.Kind.MIRROR
        with source, target, b.Filter(source) as disk:
            with b.Job(disk, target, kind=kind, auto_complete=True) as job:
                job.start()
                info = job.info
                for _ in range(1000):
                    try:
                        if job.run(timeout=60):
                            break
                    except (OSError, ValueError) as told:
                        raised.append(told)
                        if where == "on_poll":
                            fails = False
                info, events = job.info, list(job.events())
        return raised, info, events

    def test_of_each_request(self) -> None:
        failures: List[Tuple[BaseException, int]] = [
            (ValueError("a defect"), errno.EIO),
            (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        ]
        rows = [
            ("read", b.Side.SOURCE, b.Operation.READ),
            ("write", b.Side.TARGET, b.Operation.WRITE),
            ("zero", b.Side.TARGET, b.Operation.ZERO),
            ("flush", b.Side.TARGET, b.Operation.FLUSH),
            ("truncate", b.Side.TARGET, b.Operation.TRUNCATE),
        ]
        for where, side, operation in rows:
            for failure, number in failures:
                with self.subTest(where=where, failure=failure):
                    raised, info, events = self.job_that_raises(where, failure, side)
                    self.assertTrue(raised and all(error is failure for error in raised))
                    self.assertEqual(info.result, -number)
                    errors = [event for event in events if isinstance(event, b.ErrorEvent)]
                    self.assertEqual((errors[0].operation, errors[0].side), (operation, side))
                    self.assertEqual((errors[0].errno, errors[0].action), (number, b.Action.REPORT))
                    self.assertIn("%s of the %s at offset" % (where, side.name.lower()), str(errors[0]))
                    self.assertIn(b.CompletedEvent(number), events)

    def test_of_extents_which_then_count_as_data(self) -> None:
        failure = ValueError("a defect")
        raised, info, events = self.job_that_raises("extents", failure, b.Side.SOURCE)
        self.assertTrue(raised and raised[0] is failure)
        self.assertEqual(info.result, 0)
        errors = [event for event in events if isinstance(event, b.ErrorEvent)]
        self.assertEqual((errors[0].operation, errors[0].action), (b.Operation.EXTENTS, b.Action.IGNORE))

    def test_of_poll_and_cancel_and_close(self) -> None:
        failure = ValueError("a defect")
        raised, info, _ = self.job_that_raises("on_poll", failure, b.Side.TARGET)
        self.assertTrue(raised and raised[0] is failure)
        self.assertEqual(info.result, 0)

        class Cancelled(Layer):
            def on_cancel(self) -> None:
                raise failure

            def on_close(self) -> None:
                raise failure

        with Cancelled(MIB) as target, b.MemoryDevice(MIB) as source, b.Filter(source) as disk:
            with b.Job(disk, target) as job:
                job.start()
                job.cancel(force=True)
                with self.assertRaises(ValueError) as caught:
                    job.run(timeout=60)
                self.assertIs(caught.exception, failure)
                self.assertEqual(job.run(timeout=60).result, -errno.ECANCELED)
        gc.collect()
        self.assertIs(target.take_raised(), failure)

    def test_of_discard(self) -> None:
        class Discards(Layer):
            def discard(self, request: b.Request, offset: int, length: int) -> None:
                raise OSError(errno.EPROTO, "no")

        with Discards(MIB) as source, b.Filter(source) as disk, self.assertRaises(b.MirrorError) as caught:
            disk.discard(0, CLUSTER)
        self.assertEqual(caught.exception.errno, errno.EPROTO)

    def test_of_hooks(self) -> None:
        failure = OSError(errno.EACCES, "not now")

        def refuse(info: b.PrepareInfo) -> None:
            raise failure

        def broken() -> None:
            raise failure

        with b.MemoryDevice(MIB) as source, b.MemoryDevice(MIB) as target, b.Filter(source) as disk:
            disk.set_opened(broken)
            raised: List[BaseException] = []
            with b.Job(disk, target, prepare=refuse, wake=broken, auto_finalize=False) as job:
                job.start()

                def drive(until: Callable[[], bool]) -> None:
                    for _ in range(1000):
                        if until():
                            return
                        try:
                            job.poll()
                        except OSError as error:
                            raised.append(error)

                drive(lambda: job.info.ready)
                self.assertGreaterEqual(len(raised), 1, "of wake")
                job.complete()
                drive(lambda: job.info.status is b.Status.PENDING)
                self.assertIsNone(disk.begin(b.Operation.WRITE, 0, 512))
                raised.clear()
                job.finalize()
                drive(lambda: job.info.status is b.Status.NULL)
                drive(lambda: len(raised) >= 3)
                self.assertTrue(all(error is failure for error in raised))
                self.assertEqual(job.info.result, -errno.EACCES)
                self.assertIn("the prepare hook refused", job.info.message)
            self.assertTrue(disk.is_on(source))


class Devices(unittest.TestCase):
    def test_limits_and_flags_are_told_and_kept(self) -> None:
        class Strict(Layer):
            longest = 0

            def __init__(self) -> None:
                self.clusters = {}
                self.backing = None
                self.bytes, self.zeroes = MIB, []
                limits = b.Limits(
                    request_alignment=512,
                    memory_alignment=4096,
                    max_iov=1,
                    flags=b.DeviceFlags.READS_ZERO | b.DeviceFlags.CHEAP_ZERO | b.DeviceFlags.DISCARD_ZEROES,
                    max_transfer=16384,
                    max_zero=CLUSTER,
                    max_discard=CLUSTER,
                    zero_alignment=4096,
                    discard_alignment=8192,
                    cluster_size=CLUSTER,
                )
                b.Device.__init__(self, MIB, limits)

            def write(self, request: b.Request, offset: int, buffers: List[memoryview], fua: bool) -> None:
                assert len(buffers) == 1 and offset % 512 == 0
                self.longest = max(self.longest, sum(len(view) for view in buffers))
                super().write(request, offset, buffers, fua)

        with Strict() as target, Layer(MIB) as source, b.Filter(source, alignment=512) as disk:
            self.assertEqual((target.limits.max_transfer, target.limits.memory_alignment), (16384, 4096))
            self.assertEqual((target.limits.zero_alignment, target.limits.discard_alignment), (4096, 8192))
            self.assertIn(b.DeviceFlags.READS_ZERO, target.limits.flags)
            self.assertNotIn(b.DeviceFlags.READ_ONLY, target.limits.flags)
            fill(source, 1, 0, 9)
            with b.Job(disk, target, auto_complete=True) as job:
                job.start()
                self.assertEqual(job.run(timeout=60).result, 0)
            self.assertTrue(target.all() == source.all())
            self.assertLessEqual(target.longest, 16384)
        with Layer(MIB, flags=b.DeviceFlags.READ_ONLY) as fixed, b.MemoryDevice(MIB) as source_2:
            with b.Filter(source_2) as disk, self.assertRaises(b.MirrorError) as caught:
                b.Job(disk, fixed)
            self.assertEqual(caught.exception.errno, errno.EROFS)

    def test_completions_that_are_refused_are_counted(self) -> None:
        class Late(Layer):
            def flush(self, request: b.Request) -> Optional[b.Answer]:
                request.complete()
                with self_test.assertRaises(b.MirrorError) as caught:
                    request.complete()
                self_test.assertEqual(caught.exception.errno, errno.ENOENT)
                return b.Answer.PENDING

        self_test = self
        with Late(MIB) as device, b.Filter(device) as disk:
            disk.flush()
            self.assertEqual(device.refused, 1)

    def test_messages_can_be_read(self) -> None:
        told: List[Tuple[b.LogLevel, str]] = []
        b.set_log(lambda level, text: told.append((level, text)), b.LogLevel.WARN)
        try:
            with Layer(MIB) as device:
                with self.assertRaises(b.MirrorError):
                    b.Request(device, 12345).complete()
        finally:
            b.set_log(None)
        self.assertEqual([level for level, _ in told], [b.LogLevel.WARN])
        self.assertIn("12345" if "12345" in told[0][1] else "0x3039", told[0][1])
        self.assertEqual(lib.kept, 0)


if __name__ == "__main__":
    unittest.main()
