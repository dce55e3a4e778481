"""Clients, masters and servers that die in the middle, and targets that fill up: the source stays whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import unittest

from raw_nbd import RawClient
from support import MIB, PATIENCE, Case, Guest, Server, not_tested, wait_until

LENGTH = 32 * MIB
MODES = ("background", "write-blocking")


class Deaths(Case):
    def test_a_client_that_leaves_in_the_middle_of_a_write(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
                server = self.server("source=%s" % source)
                guest = Guest(self, server, 0, LENGTH // 2)
                server.control().ok("start target=%s copy-mode=%s" % (target, mode))
                for _ in range(8):
                    client = RawClient(server.socket, PATIENCE)
                    self.assertEqual(client.length, LENGTH)
                    client.begin_write(LENGTH // 2, 4 * MIB, b"x" * 1_000_000)
                    client.close()
                    guest.goes_on(5)
                server.complete()
                client = RawClient(server.socket, PATIENCE)
                client.begin_write(LENGTH // 2, 4 * MIB, b"x" * 3_000_000)
                client.close()
                guest.goes_on()
                expected = guest.finish()
                wait_until("they are gone", lambda: server.query()["disk"]["connections"] == 0)
                # What didn't come as a whole wasn't written.
                before = self.folder / "source-before"
                before.write_bytes((b"before" * (LENGTH // 6 + 1))[:LENGTH])
                self.assertEqual(target.read_bytes(), expected + before.read_bytes()[LENGTH // 2 :])
                server.stop()

    def test_a_client_that_is_killed(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
                server = self.server("source=%s" % source)
                victim, other = Guest(self, server, 0, LENGTH // 2), Guest(self, server, LENGTH // 2, LENGTH, 2)
                server.control().ok("start target=%s copy-mode=%s speed=8M" % (target, mode))
                victim.goes_on()
                victim.process.send_signal(signal.SIGKILL)
                other.goes_on()
                server.control().ok("set-speed 0")
                server.until("ready")
                expected = other.finish()
                wait_until("nobody is left", lambda: server.query()["disk"]["connections"] == 0)
                server.control().ok("cancel")
                server.until("concluded")
                self.equal(source, target)
                self.assertEqual(source.read_bytes()[LENGTH // 2 :], expected)
                server.stop()

    def test_a_master_that_is_killed(self) -> None:
        source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
        server = self.server("source=%s" % source)
        guest = Guest(self, server, 0, LENGTH)
        script = ("import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(%r); s.sendall(b'events\\nstart target=%s "
                  "speed=2M\\nque'); print(s.recv(99), flush=True); sys.stdin.read()" % (str(server.control_path), target))
        master = self.process(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert master.stdout
        self.assertIn(b'{"ok":true}', master.stdout.readline())
        server.until("running")
        master.send_signal(signal.SIGKILL)
        guest.goes_on()
        # The job is the server's, and anybody may go on with it.
        server.control().ok("set-speed 0")
        server.complete()
        guest.goes_on()
        self.assertEqual(guest.finish(), target.read_bytes())
        server.stop()

    def test_a_server_that_is_killed(self) -> None:
        # What was acknowledged is in the page cache: the death of a process doesn't take it away.
        for mode in MODES:
            with self.subTest(mode):
                source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
                server = self.server("source=%s" % source)
                first = Guest(self, server, 0, LENGTH // 2)
                first.goes_on()
                expected = first.finish()
                server.control().ok("start target=%s copy-mode=%s speed=8M" % (target, mode))
                second = Guest(self, server, LENGTH // 2, LENGTH, 2)
                second.goes_on()
                server.process.kill()
                server.process.wait()
                second.process.wait(PATIENCE)
                self.assertNotEqual(second.process.returncode, 0)
                self.assertEqual(source.read_bytes()[: LENGTH // 2], expected)
                # It starts again with the same words, and mirrors what there is.
                again = self.server("source=%s" % source, control=server.control_path)
                guest = Guest(self, again, 0, LENGTH, 3)
                again.control().ok("start target=%s copy-mode=%s" % (target, mode))
                guest.goes_on()
                again.complete()
                guest.goes_on()
                self.assertEqual(guest.finish(), target.read_bytes())
                again.stop()

    def test_a_server_that_is_told_to_end_in_the_middle(self) -> None:
        for mode in MODES:
            with self.subTest(mode):
                source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
                server = self.server("source=%s" % source)
                guest = Guest(self, server, 0, LENGTH)
                guest.goes_on()
                expected = guest.finish()
                server.control().ok("start target=%s copy-mode=%s speed=1M" % (target, mode))
                server.until("running")
                server.stop()
                self.assertEqual(source.read_bytes(), expected)
                self.assertFalse(server.control_path.exists())


class FullTargets(Case):
    """The guest is never told of a target's trouble."""

    def full(self, server: Server, target: str, errno: str, end: int = LENGTH) -> None:
        for mode in MODES:
            with self.subTest(mode):
                guest = Guest(self, server, 0, end)
                events = server.control()
                events.ok("events")
                server.control().ok("start target=%s copy-mode=%s" % (target, mode))
                guest.goes_on()
                job = server.until("concluded")
                self.assertLess(job["result"], 0)
                self.assertIn("(%s)" % errno, job["message"])
                self.assertIn("write of the target at offset", job["message"])
                guest.goes_on()
                expected = guest.finish()
                self.assertEqual(server.disk(), self.folder / "source")
                self.assertTrue((self.folder / "source").read_bytes()[:end] == expected)
                told = [events.line() for _ in range(4)]
                while not told[-1] or told[-1].get("status") != "concluded":
                    told.append(events.line())
                errors = [line for line in told if line and line["event"] == "error"]
                self.assertEqual({(line["errno"], line["side"], line["action"]) for line in errors},
                                 {(errno, "target", "report")})

    def test_a_limit_on_a_file_s_size(self) -> None:
        """It stands in for a full disk where nothing can be mounted: `EFBIG` for `ENOSPC`. The guest keeps below it."""
        source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
        server = self.server("source=%s" % source, file_limit=LENGTH // 2)
        self.full(server, str(target), "EFBIG", LENGTH // 4)
        server.stop()

    def mount(self) -> Server:
        """A server that sees a small disk at `small`, in a name space of its own."""
        if os.getuid() != 0 or shutil.which("unshare") is None:
            raise not_tested(self.id(), "a full disk takes root and unshare")
        source, small = self.image("source", LENGTH, b"before"), self.folder / "small"
        small.mkdir()
        script = 'mount -t tmpfs -o size=4m tmpfs "$0" && truncate -s %d "$0/target" && exec "$@"' % LENGTH
        tried = subprocess.run(["unshare", "--mount", "sh", "-c", script, str(small), "true"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
        if tried.returncode != 0:
            raise not_tested(self.id(), "nothing can be mounted here: %s" % tried.stdout.strip())
        return self.server("source=%s" % source, wrap=["unshare", "--mount", "sh", "-c", script, str(small)])

    def test_a_full_disk(self) -> None:
        server = self.mount()
        self.full(server, str(self.folder / "small" / "target"), "ENOSPC")
        server.stop()

    def test_a_full_disk_that_is_made_larger(self) -> None:
        if shutil.which("nsenter") is None:
            raise not_tested(self.id(), "nsenter is missing")
        server = self.mount()
        target = self.folder / "small" / "target"
        guest = Guest(self, server, 0, LENGTH)
        server.control().ok("start target=%s on-target-error=enospc" % target)
        job = server.until("paused")
        self.assertEqual((job["io_status"], job["result"]), ("nospace", 0))
        guest.goes_on()
        subprocess.run(["nsenter", "--target", str(server.process.pid), "--mount", "mount", "-o", "remount,size=64m",
                        str(self.folder / "small")], check=True, timeout=PATIENCE)
        server.control().ok("resume")
        server.complete()
        self.assertEqual(server.disk(), target)
        guest.goes_on()
        expected = guest.finish()
        seen = subprocess.run(["nsenter", "--target", str(server.process.pid), "--mount", "cat", str(target)],
                              check=True, stdout=subprocess.PIPE, timeout=PATIENCE).stdout
        self.assertTrue(seen == expected)
        server.stop()


if __name__ == "__main__":
    unittest.main()
