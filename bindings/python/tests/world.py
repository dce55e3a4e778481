"""Plays a scenario of ``scenarios.json`` through the Python package: devices in Python, time that only steps let pass.

What comes of it is a transcript: every request that a device gets, in order, what guests are told, each answer of the job, its
events and its counters, and the bytes at the end. Two runs of a scenario give the same transcript, wherever the library runs.

On the way it is held against what must be true: no acknowledged write is lost, the two sides are equal when the disk is
switched, and a copy that was asked for by a soft cancel is one.
"""

from __future__ import annotations

import hashlib
import re
import struct
from contextlib import closing
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from backend import CHECKOUT  # noqa: F401  (it says where the package is)
from blkmirror._buffers import Export
from scenarios import Scenario, Step

BLOCK = 4096
# Turns until a job that is pushed on must be over.
PATIENCE = 20_000


class Storage:
    """What a device holds: blocks of its own, over those of a backing."""

    def __init__(self, length: int, backing: "Optional[Storage]" = None) -> None:
        self.bytes, self.own, self.backing = bytearray(length), set(), backing  # type: bytearray, set[int], Optional[Storage]

    def read(self, offset: int, length: int) -> bytes:
        """What a read of this range finds; zeroes beyond the end."""
        found = bytearray()
        while length > 0:
            block, at = divmod(offset, BLOCK)
            size = min(length, BLOCK - at)
            if block in self.own:
                part = bytes(self.bytes[offset : offset + size])
            else:
                part = self.backing.read(offset, size) if self.backing else b""
            found += part.ljust(size, b"\0")
            offset, length = offset + size, length - size
        return bytes(found)

    def write(self, offset: int, data: bytes) -> None:
        """Changes this range; what its blocks hold besides is copied up."""
        for block in range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)):
            if block not in self.own:
                start, end = block * BLOCK, min((block + 1) * BLOCK, len(self.bytes))
                self.bytes[start:end] = self.read(start, end - start)
                self.own.add(block)
        self.bytes[offset : offset + len(data)] = data

    def resize(self, length: int) -> None:
        """Grows it with zeroes, or cuts it."""
        self.bytes = self.bytes[:length].ljust(length, b"\0")

    def has_data(self, block: int) -> bool:
        """Whether any layer holds this block."""
        return block in self.own or (self.backing is not None and self.backing.has_data(block))


class Scripted:
    """A device of a scenario: what the callbacks of :func:`scripted` do."""

    def __init__(self, world: "World", name: str, told: Dict[str, Any], backing: Optional[Storage] = None) -> None:
        self.world, self.name, self.told = world, name, told
        self.storage = Storage(told["length"], backing)
        self.faults = {(kind, n): (number, torn) for kind, n, number, torn in told["faults"]}
        self.counts: Dict[str, int] = {}
        self.completed = self.repeated = 0
        self.held: List[Tuple[str, Any, Callable[[], None], Optional[OSError]]] = []
        for offset, length, byte in told["fill"]:
            self.storage.write(offset, bytes([byte]) * length)

    def take(self, kind: str, request: Any, offset: int, length: int, act: Callable[[int], None], note: str = "") -> Any:
        """A request, which ``act`` does as many bytes of as it is told."""
        answers, depth = self.told["answers"], self.told["depth"]
        line = "%s %s %d %d%s" % (self.name, kind, offset, length, note)
        if depth and len(self.held) >= depth:
            self.world.say(line + " again")
            return self.world.package.Answer.AGAIN
        self.counts[kind] = self.counts.get(kind, 0) + 1
        number, torn = self.faults.get((kind, self.counts[kind]), (0, False))
        self.world.say(line + (" fails with %d%s" % (number, " torn" if torn else "") if number else ""))
        error = OSError(number, "a fault of the scenario") if number else None
        done = length if error is None else length // 2 // 512 * 512 if torn else 0
        if answers == "inline":
            act(done)
            if error is not None:
                raise error
            return None
        self.held.append((kind, request, lambda: act(done), error))
        if answers == "early":
            self.complete(1, "last")
        return self.world.package.Answer.PENDING

    def complete(self, count: int, order: str) -> None:
        """Completes as many of those that are held."""
        while count > 0 and self.held:
            kind, request, act, error = self.held.pop(0 if order == "first" else -1)
            act()
            self.world.say("%s completes a %s" % (self.name, kind))
            self.tell(request, error)
            self.completed += 1
            if self.told["repeats"] and self.completed % self.told["repeats"] == 0:
                self.repeated += 1
                self.tell(request, None)
            count -= 1

    def tell(self, request: Any, error: Optional[OSError]) -> None:
        """Reports the outcome of a request."""
        try:
            request.complete(error)
        except self.world.package.MirrorError as refused:
            # Of the words only the token differs from one run to the next.
            self.world.say("%s is refused: %s" % (self.name, re.sub("0x[0-9a-f]+|[0-9]{4,}", "N", str(refused))))

    def look_at(self, buffers: List[memoryview]) -> None:
        """A device is given no buffers but such as it can take."""
        alignment, most = self.told.get("memory_alignment", 1), self.told.get("max_iov", 0)
        if most and len(buffers) > most:
            self.world.wrong = "%s gets %d buffers, and takes %d" % (self.name, len(buffers), most)
        for view in buffers if alignment > 1 else ():
            with closing(Export(view, False)) as at:
                if at.address % alignment:
                    self.world.wrong = "%s gets a buffer at %#x, and wants %d" % (self.name, at.address, alignment)

    def parts(self, offset: int, length: int) -> "List[Tuple[int, Any]]":
        """What ``extents`` tells."""
        kinds, flags = [], self.world.package.ExtentFlags
        self.counts["extents"] = self.counts.get("extents", 0) + 1
        number, _ = self.faults.get(("extents", self.counts["extents"]), (0, False))
        self.world.say("%s extents %d %d%s" % (self.name, offset, length, " fails with %d" % number if number else ""))
        if number:
            raise OSError(number, "a fault of the scenario")
        while length > 0:
            block, at = divmod(offset, BLOCK)
            size = min(length, BLOCK - at)
            if block in self.storage.own:
                kind = flags.DATA | flags.ALLOCATED
            else:
                kind = flags.DATA if self.storage.has_data(block) else flags.ZERO
            kinds.append((size, kind))
            offset, length = offset + size, length - size
        return kinds


def scripted(package: Any, script: Scripted) -> Any:
    """The device of the package that does what the script says."""
    storage = script.storage

    def read(_: Any, request: Any, offset: int, buffers: List[memoryview]) -> Any:
        length = sum(map(len, buffers))
        script.look_at(buffers)

        def act(done: int) -> None:
            data = storage.read(offset, done)
            for view in buffers:
                part, data = data[: len(view)], data[len(view) :]
                view[: len(part)] = part

        return script.take("read", request, offset, length, act, " in %d" % len(buffers))

    def write(_: Any, request: Any, offset: int, buffers: List[memoryview], fua: bool) -> Any:
        length = sum(map(len, buffers))
        script.look_at(buffers)

        def act(done: int) -> None:
            storage.write(offset, b"".join(buffers)[:done])

        note = " in %d %s%s" % (len(buffers), digest(b"".join(buffers)), " fua" if fua else "")
        return script.take("write", request, offset, length, act, note)

    def zero(_: Any, request: Any, offset: int, length: int, may_unmap: bool) -> Any:
        note = " may unmap" if may_unmap else ""
        return script.take("zero", request, offset, length, lambda done: storage.write(offset, bytes(done)), note)

    def discard(_: Any, request: Any, offset: int, length: int) -> Any:
        return script.take("discard", request, offset, length, lambda done: storage.write(offset, bytes(done)))

    def flush(_: Any, request: Any) -> Any:
        return script.take("flush", request, 0, 0, lambda _: None)

    def truncate(_: Any, request: Any, length: int) -> Any:
        return script.take("truncate", request, 0, length, lambda done: storage.resize(length) if done else None)

    def copy(_: Any, request: Any, source: Any, offset: int, length: int) -> Any:
        theirs = source.script.storage
        return script.take("copy", request, offset, length, lambda done: storage.write(offset, theirs.read(offset, done)))

    def extents(_: Any, offset: int, length: int) -> Any:
        return script.parts(offset, length)

    def on_poll(_: Any) -> None:
        script.complete(len(script.held), "first")

    def on_cancel(_: Any) -> None:
        script.world.say("%s is to hurry" % script.name)

    told = script.told
    optional = {"zero": zero, "discard": discard, "flush": flush, "truncate": truncate, "extents": extents, "copy": copy}
    methods: Dict[str, Any] = {"read": read, "write": write, "on_cancel": on_cancel, "script": script}
    methods.update((name, optional[name]) for name in told["supports"])
    if told["answers"] == "polled":
        methods["on_poll"] = on_poll
    limits = package.Limits(
        request_alignment=told["alignment"],
        memory_alignment=told.get("memory_alignment", 1),
        max_iov=told.get("max_iov", 0),
        max_transfer=told["max_transfer"],
        zero_alignment=told["zero_alignment"],
        cluster_size=BLOCK,
        flags=package.DeviceFlags(told["flags"]),
    )
    return type("Scripted", (package.Device,), methods)(told["length"], limits)


class Oracle:
    """What guests must read: each byte, unless it is being changed, failed to be, or was discarded."""

    def __init__(self, content: bytes) -> None:
        self.bytes, self.known = bytearray(content), bytearray(b"\1") * len(content)
        self.moot = bytearray(len(content))
        self.changing: List[Tuple[int, int]] = []

    def is_changing(self, offset: int, length: int) -> bool:
        return any(offset < at + size and at < offset + length for at, size in self.changing)

    def begin(self, offset: int, length: int) -> None:
        """A guest asks for a change."""
        self.changing.append((offset, length))
        self.known[offset : offset + length] = bytes(length)

    def end(self, offset: int, length: int, data: Optional[bytes]) -> None:
        """It holds this now; ``None``: nobody knows."""
        self.changing.remove((offset, length))
        if data is not None:
            self.bytes[offset : offset + length] = data
            self.known[offset : offset + length] = b"\1" * length
            self.moot[offset : offset + length] = bytes(length)

    def check(self, found: bytes, what: str) -> None:
        """What a guest, or the host, finds is what it must find."""
        for at, (is_known, wanted, byte) in enumerate(zip(self.known, self.bytes, found)):
            assert not is_known or wanted == byte, "%s: byte %d is %d and must be %d" % (what, at, byte, wanted)


def digest(data: Union[bytes, bytearray]) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def stamped(stamp: int, length: int) -> bytes:
    """A guest's data: no two stamps, and no two places, have the same."""
    return b"".join(struct.pack("<II", stamp & 0xFFFF_FFFF, word) for word in range(length // 8)).ljust(length, b"\0")


class World:
    """A scenario while it is played."""

    def __init__(self, scenario: Scenario, package: Any) -> None:
        self.scenario, self.package = scenario, package
        self.lines: List[str] = []
        self.now, self.wake_at, self.over, self.drains, self.guests = 1, 0, False, 0, 0
        self.prepared = False
        # Where guests have changed something since a soft cancel.
        self.since_cancel: Optional[bytearray] = None
        shape, length = scenario["shape"], scenario["length"]
        self.target = Scripted(self, "target", scenario["target"])
        backing: Optional[Storage] = None
        if shape == "commit":
            backing = self.target.storage
        elif shape in ("top", "overlay"):
            # The base, of which the target holds a copy, or will be over.
            backing = Storage(length)
            backing.write(0, self.target.storage.read(0, length))
            for offset, size, byte in scenario["source"].get("base", []):
                backing.write(offset, bytes([byte]) * size)
        self.source = Scripted(self, "source", scenario["source"], backing)
        if shape == "none":
            self.target.storage.write(0, self.source.storage.read(0, length))
        self.attach = {"overlay": backing, "over-source": self.source.storage}.get(shape)
        self.oracle = Oracle(self.source.storage.read(0, scenario["length"]))

    def say(self, line: str) -> None:
        self.lines.append(line)

    def play(self) -> str:
        """The transcript."""
        b = self.package
        self.say(self.scenario["name"])
        try:
            with scripted(b, self.source) as source, scripted(b, self.target) as target, b.Filter(source) as self.disk, \
                    b.MemoryDevice(self.scenario["length"]) as memory, b.Filter(memory) as self.other:
                self.disk.set_opened(lambda: self.say("opened"))
                self.devices: Tuple[Any, ...] = (source, target)
                self.job: Any = None
                self.make_job()
                for step in self.scenario["steps"]:
                    self.step(step)
                self.wind_down()
                self.finish()
        except AssertionError as wrong:
            tail = "\n  ".join(self.lines[-40:])
            raise AssertionError("%s: %s\n  %s" % (self.scenario["name"], wrong, tail)) from None
        finally:
            # Nothing may be left to call what is gone.
            self.job = self.disk = self.other = None
            self.devices = ()
        return "\n".join(self.lines) + "\n"

    def make_job(self) -> None:
        b, options, shape = self.package, dict(self.scenario["job"]), self.scenario["shape"]
        options.setdefault("id", "scenario")
        options["kind"] = b.Kind.COMMIT_ACTIVE if shape == "commit" else b.Kind.MIRROR
        options["sync"] = {"full": b.Sync.FULL, "none": b.Sync.NONE, "over-source": b.Sync.NONE}.get(shape, b.Sync.TOP)
        if options.get("replaces"):
            options["replaces"] = self.other
        self.prepared, self.over, self.since_cancel = False, False, None
        hooks = {"wake": lambda: self.say("woken"), "prepare": self.prepare, "clock": lambda: self.now}
        try:
            self.job = b.Job(self.disk, self.devices[1], **hooks, **options)
        except b.MirrorError as refused:
            self.say("refused: %s" % refused)

    # Steps.

    def step(self, step: Step) -> None:
        name, *arguments = step
        self.say("- " + " ".join(map(str, step)))
        if name in ("source", "target"):
            (self.source if name == "source" else self.target).complete(*arguments)
        elif name in ("write", "zero", "discard", "flush", "read", "host-write", "mark"):
            self.guest(name, arguments)
        elif name == "pass":
            self.now += arguments[0]
        elif name == "wake":
            self.now = max(self.now, self.wake_at)
            self.poll()
        elif name == "job":
            if self.job is None and self.scenario["shape"] == "full":
                self.make_job()
        elif self.job is None:
            self.say("no job")
        elif name == "poll":
            for _ in range(arguments[0]):
                self.poll()
        elif name == "query":
            self.say(self.counters())
        elif name == "free":
            self.job.close()
            self.job, self.drains = None, 0
        else:
            self.ask(name, arguments)
        self.tell_events()

    def counters(self) -> str:
        told = repr(self.job.info)
        if any(self.scenario[side].get("memory_alignment", 1) > 1 for side in ("source", "target")):
            # Where guests' buffers lie is the host's affair.
            told = re.sub("bounce_copies=[0-9]+", "bounce_copies=any", told)
        return told

    def tell_events(self) -> None:
        if self.job is not None:
            for event in self.job.events():
                self.say(repr(event))

    def poll(self) -> Any:
        if self.job is None:
            return None
        try:
            poll = self.job.poll(self.now)
        except OSError as error:
            # What an inline device raised; there may be more.
            self.say("poll raises %s" % error)
            for device in self.devices:
                while device.take_raised():
                    pass
            return self.package.Poll(self.package.PollState.BUSY, None)
        self.say("poll at %d: %s, %s" % (self.now, poll.state.name, poll.wake_at))
        self.wake_at = poll.wake_at or 0
        self.over = poll.state is self.package.PollState.CONCLUDED
        return poll

    def ask(self, name: str, arguments: List[Any]) -> None:
        """A verb, whatever the state; the answer is told."""
        b, job = self.package, self.job
        verbs: Dict[str, Any] = {
            "drain": job.drain_begin,
            "undrain": job.drain_end,
            "speed": lambda: job.set_speed(arguments[0]),
            "change": lambda: job.change(b.CopyMode(arguments[0])),
            "cancel": lambda: job.cancel(force=arguments[0]),
        }
        try:
            (verbs.get(name) or getattr(job, name))()
        except b.MirrorError as refused:
            self.say("%s: %s" % (name, refused))
            return
        self.say("%s: ok" % name)
        self.drains += {"drain": 1, "undrain": -1}.get(name, 0)
        if name == "cancel" and self.since_cancel is None:
            self.since_cancel = bytearray(self.scenario["length"])
            for offset, length in self.oracle.changing:
                self.since_cancel[offset : offset + length] = b"\1" * length

    def guest(self, name: str, arguments: List[Any]) -> None:
        self.guests += 1
        number = self.guests
        offset, length = arguments[:2] if arguments else (0, 0)
        try:
            if name == "flush":
                self.follow(number, self.disk.flush_async(), lambda error: None)
            elif name == "read":
                buffer = bytearray(length)
                future = self.disk.readinto_async(offset, buffer)
                self.follow(number, future, lambda error: None if error else self.say("guest read %s" % digest(buffer)))
            elif name == "mark":
                self.disk.mark_dirty(offset, length)
            elif self.oracle.is_changing(offset, length) or length == 0:
                self.say("guest %d stands back" % number)
            elif name == "host-write":
                self.host_write(number, offset, length, stamped(arguments[2], length))
            else:
                self.change(number, name, offset, length, arguments[2:])
        except self.package.MirrorError as refused:
            self.say("guest %d is refused: %s" % (number, refused))

    def change(self, number: int, name: str, offset: int, length: int, rest: List[Any]) -> None:
        """A guest's write, zero or discard."""
        disk, data = self.disk, stamped(rest[0], length) if name == "write" else bytes(length)
        submit: Callable[[], Any] = {
            "write": lambda: disk.write_async(offset, data, fua=rest[1]),
            "zero": lambda: disk.zero_async(offset, length, may_unmap=rest[0]),
            "discard": lambda: disk.discard_async(offset, length),
        }[name]

        def end(error: Optional[BaseException]) -> None:
            self.oracle.end(offset, length, None if error or name == "discard" else data)

        self.begin_change(offset, length, name == "discard")
        try:
            future = submit()
        except self.package.MirrorError as refused:
            end(refused)
            raise
        self.follow(number, future, end)

    def begin_change(self, offset: int, length: int, discards: bool) -> None:
        self.oracle.begin(offset, length)
        if discards:
            self.oracle.moot[offset : offset + length] = b"\1" * length
        if self.since_cancel is not None:
            self.since_cancel[offset : offset + length] = b"\1" * length

    def follow(self, number: int, future: Any, end: Callable[[Optional[BaseException]], None]) -> None:
        """Tells the guest when it is done."""

        def done(future: Any) -> None:
            error = future.exception()
            end(error)
            self.say("guest %d: %s" % (number, error or "ok"))

        future.add_done_callback(done)

    def host_write(self, number: int, offset: int, length: int, data: bytes) -> None:
        """The host changes the device that the disk is on by itself."""
        ticket = self.disk.begin(self.package.Operation.WRITE, offset, length)
        if ticket is None:
            self.say("guest %d is turned away" % number)
            return
        self.begin_change(offset, length, False)
        now = self.target if self.disk.is_on(self.devices[1]) else self.source
        now.storage.write(offset, data)
        self.disk.end(ticket)
        self.oracle.end(offset, length, data)
        self.say("guest %d: ok, on the %s" % (number, now.name))

    # What must be true.

    def prepare(self, _: Any) -> None:
        """The moment before the switch: the sides are equal."""
        self.say("prepare")
        self.prepared = True
        if self.attach is not None:
            self.target.storage.backing = self.attach
        self.check_equal("at the switch", self.oracle.moot)

    def check_equal(self, when: str, but: bytearray) -> None:
        length = self.scenario["length"]
        sides = self.source.storage.read(0, length), self.target.storage.read(0, length)
        for at, (differs, ours, theirs) in enumerate(zip(but, *sides)):
            if not differs and ours != theirs:
                # Whoever called may not raise.
                self.say("WRONG")
                self.wrong = "%s byte %d is %d at the source and %d at the target" % (when, at, ours, theirs)
                return

    def check_copy(self, since: bytearray) -> None:
        """After a soft cancel the target is a copy, but for what guests changed since it was asked for."""
        if self.scenario["shape"] == "over-source":
            # What it shows through goes on changing.
            return
        if self.attach is not None:
            self.target.storage.backing = self.attach
        self.check_equal("after the cancel", bytearray(moot | later for moot, later in zip(self.oracle.moot, since)))

    wrong: Optional[str] = None

    def wind_down(self) -> None:
        """What a host does that wants it over: everything is completed, nothing fails any more, the job is pushed on."""
        self.say("- end: %s" % self.scenario["end"])
        for script in (self.source, self.target):
            script.faults, script.told = {}, {**script.told, "depth": 0}
        pushed: Any = None
        for _ in range(PATIENCE):
            idle = not self.source.held and not self.target.held
            self.source.complete(len(self.source.held), "first")
            self.target.complete(len(self.target.held), "first")
            poll = self.poll()
            if self.job is not None:
                info = self.job.info
                if pushed != (info.status, info.paused):
                    pushed = (info.status, info.paused)
                    self.push_on(info)
                    idle = False
            self.tell_events()
            if idle and not self.source.held and not self.target.held:
                if poll is None or self.over:
                    break
                if poll.state is self.package.PollState.IDLE:
                    self.now = max(self.now + 1, poll.wake_at or 0)
        assert self.job is None or self.over, "no end: %r" % (self.job.info,)
        assert not self.oracle.changing, "guests wait for ever: %r" % (self.oracle.changing,)

    def push_on(self, info: Any) -> None:
        status, end = self.package.Status, self.scenario["end"]
        while self.drains > 0:
            self.ask("undrain", [])
        if info.speed:
            self.ask("speed", [0])
        if info.paused:
            self.ask("resume", [])
        if info.status is status.CREATED:
            self.ask("start", [])
        elif end == "force" and info.status in (status.RUNNING, status.READY):
            self.ask("cancel", [True])
        elif info.status is status.READY:
            self.ask("complete" if end == "complete" else "cancel", [False])
        elif info.status is status.PENDING:
            self.ask("finalize", [])
        elif info.status is status.CONCLUDED:
            self.ask("dismiss", [])

    def finish(self) -> None:
        """The last look at everything."""
        on_target = self.disk.is_on(self.devices[1])
        self.say("the disk is on the %s" % ("target" if on_target else "source"))
        if self.job is not None:
            info = self.job.info
            self.say(self.counters())
            if self.other.is_on(self.devices[1]):
                self.say("the other disk is on the target")
            switched = (self.other if self.scenario["job"].get("replaces") else self.disk).is_on(self.devices[1])
            assert switched == (self.prepared and info.result == 0), "switched, or not: %r" % (info,)
            if self.since_cancel is not None and info.result == 0 and not switched:
                self.check_copy(self.since_cancel)
            self.job.close()
        assert self.wrong is None, self.wrong
        now, length = (self.target if on_target else self.source).storage, self.scenario["length"]
        self.oracle.check(now.read(0, length), "the end")
        for script, device in zip((self.source, self.target), self.devices):
            self.say("%s %s" % (script.name, digest(script.storage.read(0, length))))
            assert device.refused == script.repeated, "%d completions are refused" % device.refused


def play(scenario: Scenario, package: Any) -> str:
    """The transcript of a scenario. ``AssertionError`` if something is not as it must be."""
    return World(scenario, package).play()
