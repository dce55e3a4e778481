"""QEMU's storage daemon: its mirror job, driven over QMP, with fio as the guest that writes through an NBD export."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .measure import Failed, Sample

Message = dict[str, Any]
NEEDS = ("qemu-storage-daemon",)
NEEDS_GUEST = ("qemu-storage-daemon", "fio")

START_S = 10
ANSWER_S = 120
MIRROR_S = 900


class Daemon:
    """One qemu-storage-daemon. Use `daemon()`, which ends it."""

    def __init__(self, arguments: Sequence[str], cpu: int | None, folder: str) -> None:
        self.folder = pathlib.Path(folder)
        self.nbd_socket = self.folder / "nbd"
        monitor = self.folder / "qmp"
        chardev = f"socket,path={monitor},server=on,wait=off,id=monitor"
        pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
        command = [*pin, "qemu-storage-daemon", "--chardev", chardev, "--monitor", "chardev=monitor", *arguments]
        self.said = (self.folder / "said").open("w+b")
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said)
        self.events: deque[Message] = deque()
        self.rest = b""
        self.exports = False
        try:
            self.socket = self.connect(monitor)
            # Behind a full disk it can take long.
            if self.read(ANSWER_S) is None:
                raise Failed("qemu-storage-daemon does not greet: " + self.last_words())
            self.command("qmp_capabilities")
        except BaseException:
            self.end()
            raise

    def connect(self, path: pathlib.Path) -> socket.socket:
        deadline = time.monotonic() + START_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed("qemu-storage-daemon did not start: " + self.last_words()) from None
                time.sleep(0.01)

    def last_words(self) -> str:
        self.said.seek(0)
        return self.said.read().decode(errors="replace").strip()[-300:]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(START_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.said.close()

    def read(self, seconds: float) -> Message | None:
        """The next message, or None if none comes in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            more = self.socket.recv(65536)
            if not more:
                raise Failed("qemu-storage-daemon went away: " + self.last_words())
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        message: Message = json.loads(line)
        return message

    def command(self, name: str, arguments: Message | None = None) -> Any:
        self.socket.sendall(json.dumps({"execute": name, "arguments": arguments or {}}).encode() + b"\n")
        while True:
            message = self.read(ANSWER_S)
            if message is None:
                raise Failed(f"{name}: no answer")
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise Failed(f"{name}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_for(self, wanted: Callable[[Message], bool], seconds: float) -> Message | None:
        """The first such event; what came before it is dropped."""
        deadline = time.monotonic() + seconds
        while True:
            while self.events:
                event = self.events.popleft()
                if wanted(event):
                    return event
            message = self.read(max(0.0, deadline - time.monotonic()))
            if message is None:
                return None
            self.events.append(message)

    def add(self, *nodes: Message) -> None:
        for node in nodes:
            self.command("blockdev-add", node)

    def export(self, node: str) -> str:
        """Serves a node over NBD. What a client connects to."""
        if not self.exports:
            address = {"type": "unix", "data": {"path": str(self.nbd_socket)}}
            self.command("nbd-server-start", {"addr": address, "max-connections": 0})
            self.exports = True
        export = {"type": "nbd", "id": f"export-{node}", "node-name": node, "name": node, "writable": True}
        self.command("block-export-add", export)
        return f"nbd+unix:///{node}?socket={self.nbd_socket}"

    def mirror(self, **options: Any) -> None:
        """Starts a mirror job from node `source` to node `target`."""
        named = {name.replace("_", "-"): value for name, value in options.items()}
        self.command("blockdev-mirror", {"job-id": "job", "device": "source", "target": "target", **named})

    def wait_status(self, statuses: set[str], seconds: float) -> float | None:
        """When the job came to one of these, by the daemon's clock; None if it did not in time."""

        def changed(event: Message) -> bool:
            return event["event"] == "JOB_STATUS_CHANGE" and event["data"]["status"] in statuses | {"concluded"}

        event = self.wait_for(changed, seconds)
        if event is not None and event["data"]["status"] not in statuses:
            raise Failed("the mirror ended before it was ready")
        return moment(event) if event else None

    def wait_done(self, seconds: float) -> float:
        ends = {"BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED"}
        event = self.wait_for(lambda event: event["event"] in ends, seconds)
        if event is None or "error" in event["data"]:
            raise Failed("the mirror failed" if event else "the mirror did not end in time")
        return moment(event)

    def cpu_s(self) -> float:
        """Of all threads, those that have ended too."""
        # The clock of another process: clock_getcpuclockid(3).
        return time.clock_gettime_ns((~self.process.pid << 3) | 2) / 1e9


def moment(event: Message) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6


@contextlib.contextmanager
def daemon(*arguments: str, cpu: int | None = None) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        running = Daemon(arguments, cpu, folder)
        try:
            yield running
        finally:
            running.socket.close()
            running.end()


# Nodes, as blockdev-add takes them.


def null(name: str, size: int, latency_ns: int = 0) -> list[Message]:
    return [{"driver": "null-co", "node-name": name, "size": size, "read-zeroes": False, "latency-ns": latency_ns}]


def null_with_data(name: str, size: int) -> list[Message]:
    """Null-co alone is told as zeroes, of which a mirror reads nothing. A quorum of one tells them as data, and is the
    cheapest filter that does (`blkdebug` with a failing block status costs 2.5 times as much in all)."""
    quorum = {"driver": "quorum", "node-name": name, "children": [f"{name}-null"], "vote-threshold": 1}
    return [*null(f"{name}-null", size), {**quorum, "read-pattern": "fifo"}]


def file(name: str, path: pathlib.Path, aio: str, direct: bool, unmap: bool = False) -> Message:
    cache = {"direct": direct, "no-flush": False}
    discard = "unmap" if unmap else "ignore"
    return {"driver": "file", "node-name": name, "filename": str(path), "aio": aio, "cache": cache, "discard": discard}


def copy_all(running: Daemon, **options: Any) -> Sample:
    """A mirror from its start to ready, of nodes `source` and `target`."""
    cpu, began = running.cpu_s(), time.time()
    running.mirror(sync="full", **options)
    ready = running.wait_status({"ready"}, MIRROR_S)
    used = running.cpu_s() - cpu
    if ready is None:
        raise Failed("the mirror was not ready in time")
    running.command("job-cancel", {"id": "job"})
    running.wait_done(MIRROR_S)
    return {"seconds": ready - began, "cpu_s": used}


def copy_every_second(running: Daemon, chunk: int, count: int) -> Sample:
    """A mirror that has every second of its chunks to copy, from when it may to its completion.

    The guest dirties them while the job is paused. Seconds, processor time and chunks, as the job counted them."""
    address = running.export("source")
    running.mirror(sync="none", granularity=chunk)
    running.wait_status({"ready"}, START_S)
    running.command("job-pause", {"id": "job"})
    running.wait_status({"standby"}, START_S)
    fio(address, [f"--rw=write:{chunk}", f"--bs={chunk}", "--iodepth=32", f"--size={2 * chunk * count}",
                  f"--io_size={chunk * count}"])
    bitmaps = (b for node in running.command("query-named-block-nodes", {"flat": True})
               for b in node.get("dirty-bitmaps", []))
    dirty = max((bitmap["count"] for bitmap in bitmaps), default=0)
    if not count * 0.99 <= dirty / chunk <= count:
        raise Failed(f"{dirty} bytes are dirty where {chunk * count} were written")
    cpu, began = running.cpu_s(), time.time()
    running.command("job-resume", {"id": "job"})
    running.wait_status({"ready"}, START_S)
    running.command("job-complete", {"id": "job"})
    done = running.wait_done(MIRROR_S)
    return {"seconds": done - began, "cpu_s": running.cpu_s() - cpu, "chunks": dirty / chunk}


def fio(address: str, options: Sequence[str], cpu: int | None = None) -> Message:
    """A guest. What fio tells of its writes."""
    return collect(fio_start(address, options, cpu))


def fio_start(address: str, options: Sequence[str], cpu: int | None = None) -> subprocess.Popen[str]:
    pin = ["taskset", "-c", str(cpu)] if cpu is not None else []
    command = [*pin, "fio", "--name=guest", "--ioengine=nbd", f"--uri={address}", "--output-format=json",
               "--norandommap=1", "--randrepeat=0", "--percentile_list=50:99", *options]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "LC_ALL": "C"})


def collect(guest: subprocess.Popen[str], interrupted: bool = False) -> Message:
    said, complaints = guest.communicate()
    start = said.find("{")
    if (guest.returncode != 0 and not interrupted) or start < 0:
        raise Failed(f"fio: {(complaints or said).strip()[-300:]}")
    told: Message = json.loads(said[start:])["jobs"][0]["write"]
    return told


def guest_figures(told: Message) -> Sample:
    percentiles = told["clat_ns"].get("percentile", {})
    return {"iops": float(told["iops"]), "bytes_per_s": float(told["bw_bytes"]),
            "p50_ms": percentiles.get("50.000000", 0) / 1e6, "p99_ms": percentiles.get("99.000000", 0) / 1e6}
