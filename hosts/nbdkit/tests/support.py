"""What the tests share: a server in a folder of its own, its control socket, and the clients that are to be had here."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parents[2]
PLUGIN = os.environ.get("BLKMIRROR_PLUGIN", str(TESTS.parent / "build" / "nbdkit-blkmirror-plugin.so"))
CLI = os.environ.get("BLKMIRROR_CLI", str(ROOT / "target" / "debug" / "blkmirror"))
MIB = 1 << 20
# Nothing takes as long, also where two cores do the work of twenty.
PATIENCE = float(os.environ.get("BLKMIRROR_PATIENCE", "60"))
# Something that must be there isn't: set it where that is a failure.
STRICT = os.environ.get("BLKMIRROR_REQUIRE_TOOLS", "") not in ("", "0")

_missing: Dict[str, str] = {}


def not_tested(what: str, why: str) -> unittest.SkipTest:
    """Says loudly what could not be tested."""
    message = "NOT TESTED: %s: %s" % (what, why)
    if message not in _missing:
        _missing[message] = what
        print("\n%s" % message, file=sys.stderr, flush=True)
    if STRICT:
        raise AssertionError(message)
    return unittest.SkipTest(message)


def needs(*tools: str) -> Callable[[Any], Any]:
    """For tests of which these programs are a part."""

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        def run(self: unittest.TestCase) -> None:
            for tool in tools:
                if shutil.which(tool) is None:
                    raise not_tested(self.id(), "%s is missing (scripts/host-packages lists what to install)" % tool)
                if tool == "fio" and "nbd" not in output(["fio", "--enghelp"]):
                    raise not_tested(self.id(), "fio has no nbd engine")
            test(self)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return wrap


def output(command: List[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE).stdout


def wait_until(what: str, condition: Callable[[], Any]) -> Any:
    """Waits until the condition holds, and answers what it said."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.005)
    raise AssertionError("never: %s" % what)


class Control:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> Optional[Dict[str, Any]]:
        """The next line; None if there is none any more."""
        line = self.file.readline()
        return json.loads(line) if line else None

    def ask(self, words: str) -> Dict[str, Any]:
        self.send(words.encode() + b"\n")
        answer = self.line()
        assert answer is not None, "no answer to %r" % words
        return answer

    def ok(self, words: str) -> Dict[str, Any]:
        answer = self.ask(words)
        assert answer["ok"] is True, (words, answer)
        return answer

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Case(unittest.TestCase):
    """A test with a folder. Whatever it starts ends with it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="bm-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.servers = 0

    def image(self, name: str, length: int, pattern: bytes = b"") -> Path:
        """A file of this length, filled with a pattern or all hole."""
        path = self.folder / name
        with open(path, "wb") as file:
            if pattern:
                file.write((pattern * (length // len(pattern) + 1))[:length])
            file.truncate(length)
        return path

    def process(self, command: List[str], **options: Any) -> "subprocess.Popen[Any]":
        process = subprocess.Popen(command, **options)
        self.addCleanup(self.end, process)
        return process

    def end(self, process: "subprocess.Popen[Any]") -> None:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def server(self, *parameters: str, **options: Any) -> "Server":
        """A server that answers, with `source=` and whatever else is given; `control=` is added if it is missing."""
        self.servers += 1
        server = Server(self, self.servers, parameters, **options)
        server.wait()
        return server

    def refused(self, *parameters: str, **options: Any) -> str:
        """What a server complains of that doesn't start."""
        self.servers += 1
        server = Server(self, self.servers, parameters, **options)
        server.process.wait(PATIENCE)
        self.assertNotEqual(server.process.returncode, 0, parameters)
        return server.log.read_text()

    def equal(self, one: Path, other: Path) -> None:
        """Both hold the same. Files that a server has are opened all the same."""
        if shutil.which("qemu-img") is None:
            raise not_tested(self.id(), "qemu-img is missing (scripts/host-packages lists what to install)")
        said = subprocess.run(["qemu-img", "compare", "-U", "-f", "raw", "-F", "raw", str(one), str(other)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
        self.assertEqual(said.returncode, 0, said.stdout)
        self.assertIn("Images are identical", said.stdout)


class Server:
    def __init__(self, case: Case, number: int, parameters: Any, control: Optional[Path] = None, user: Optional[int] = None,
                 wrap: Optional[List[str]] = None, file_limit: Optional[int] = None, options: Any = ()) -> None:
        self.case = case
        self.socket = case.folder / ("nbd-%d" % number)
        self.control_path = control or case.folder / ("control-%d" % number)
        self.log = case.folder / ("log-%d" % number)
        arguments = list(parameters)
        if not any(word.startswith("control=") for word in arguments):
            arguments.append("control=%s" % self.control_path)
        command = ["nbdkit", "-f", *options, "-U", str(self.socket), PLUGIN, *arguments]

        def prepare() -> None:
            if file_limit is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
            if user is not None:
                os.setgid(user)
                os.setuid(user)

        with open(self.log, "wb") as log:
            self.process = case.process([*(wrap or []), *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                        cwd=case.folder, preexec_fn=prepare)

    @property
    def uri(self) -> str:
        return "nbd+unix:///?socket=%s" % self.socket

    def wait(self) -> None:
        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError("the server ended: %s" % self.log.read_text())
            try:
                self.control().close()
            except OSError:
                return False
            return self.socket.exists()

        wait_until("the server answers", answers)

    def control(self) -> Control:
        control = Control(self.control_path)
        self.case.addCleanup(control.close)
        return control

    def query(self) -> Dict[str, Any]:
        control = Control(self.control_path)
        try:
            return control.ok("query")
        finally:
            control.close()

    def job(self) -> Dict[str, Any]:
        job: Dict[str, Any] = self.query()["job"]
        return job

    def until(self, *statuses: str) -> Dict[str, Any]:
        """Waits until the job has one of these states."""
        try:
            job: Dict[str, Any] = wait_until("the job is %s" % (statuses,), lambda: self.job_if(*statuses))
        except AssertionError as error:
            raise AssertionError("%s: %s\n%s" % (error, self.query(), self.log.read_text())) from None
        return job

    def job_if(self, *statuses: str) -> Optional[Dict[str, Any]]:
        job = self.job()
        return job if job["status"] in statuses else None

    def disk(self) -> Path:
        return Path(self.query()["disk"]["file"])

    def complete(self) -> Dict[str, Any]:
        """Waits until the job is ready, completes it, and sees that it ends well."""
        self.until("ready")
        control = self.control()
        control.ok("complete")
        job = self.until("concluded")
        self.case.assertEqual((job["result"], job["message"]), (0, ""))
        return job

    def stop(self) -> str:
        """Ends it as a person would; what it has said."""
        self.process.terminate()
        self.case.assertEqual(self.process.wait(PATIENCE), 0, self.log.read_text())
        return self.log.read_text()


class Guest:
    """`guest.py` in nbdsh, on its part of the disk."""

    def __init__(self, case: Case, server: Server, begin: int, end: int, seed: int = 1) -> None:
        if shutil.which("nbdsh") is None:
            raise not_tested(case.id(), "nbdsh is missing (scripts/host-packages lists what to install)")
        self.case, self.begin, self.end = case, begin, end
        self.model_path = case.folder / ("model-%d-%d" % (begin, seed))
        environment = dict(os.environ, GUEST_BEGIN=str(begin), GUEST_END=str(end), GUEST_SEED=str(seed),
                           GUEST_MODEL=str(self.model_path))
        # nbdsh takes the first python3, and libnbd is known to the system's.
        environment["PATH"] = "/usr/bin:" + environment["PATH"]
        self.process = case.process(
            ["nbdsh", "-u", server.uri, "-c", "exec(compile(open(%r).read(), 'guest.py', 'exec'))" % str(TESTS / "guest.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def requests(self) -> int:
        """How many it has made so far."""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("the guest ended: %s" % self.process.stderr.read())
        return int(line)

    def goes_on(self, more: int = 30) -> None:
        """Waits until it has made some more requests, so that they are under way."""
        goal = self.requests() + more
        wait_until("the guest goes on", lambda: self.requests() >= goal)

    def finish(self) -> bytes:
        """Ends it; what its part of the disk must hold."""
        said, errors = self.process.communicate(timeout=PATIENCE)
        self.case.assertEqual((self.process.returncode, said.strip(), errors), (0, "done", ""))
        return self.model_path.read_bytes()
