"""What is wrong is refused with a clear word, and the guest goes on."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import unittest

from support import MIB, PATIENCE, PLUGIN, Case, Control, Guest, Server, not_tested, wait_until

LENGTH = 8 * MIB


class Parameters(Case):
    def test_each_wrong_one_is_named(self) -> None:
        source = "source=%s" % self.image("source", LENGTH)
        self.image("target", LENGTH)
        self.image("short", LENGTH - 512)
        self.image("long", LENGTH + 512)
        (self.folder / "file").write_text("in the way")
        for parameters, complaint in [
            ([], "source=FILE is missing"),
            (["source="], "source=: is empty"),
            ([source, source], "source: is given twice"),
            ([source, "control="], "control=: is empty"),
            (["source=missing"], "source %s/missing: No such file or directory" % self.folder),
            (["source=%s" % self.folder], "Is a directory"),
            (["source=/dev/null"], "/dev/null: "),
            ([source, "colour=blue"], "colour: there is no such parameter"),
            ([source, "readonly=maybe"], "readonly=maybe: must be on or off"),
            ([source, "speed=1M"], "speed=: is about a job, and target=FILE is missing"),
            ([source, "target=target", "speed=fast"], "speed=fast: must be a whole number"),
            ([source, "target=target", "speed=99999999999P"], "does not fit in 64 bits"),
            ([source, "target=target", "max-in-flight=5G"], "does not fit in 32 bits"),
            ([source, "target=target", "max-in-flight=5000"], "max_in_flight 5000"),
            ([source, "target=target", "granularity=3000"], "granularity 3000: must be a power of two"),
            ([source, "target=target", "copy-mode=sideways"],
             "copy-mode=sideways: must be background or write-blocking"),
            ([source, "target=target", "sync=half"], "sync=half: must be full, top or none"),
            ([source, "target=target", "on-target-error=cry"], "must be report, ignore, stop or enospc"),
            ([source, "target=missing"], "target %s/missing: No such file or directory" % self.folder),
            ([source, "target=%s" % self.folder], "target %s: Is a directory" % self.folder),
            ([source, "target=short"], "it has %d bytes and the disk %d" % (LENGTH - 512, LENGTH)),
            ([source, "target=long"], "it has %d bytes and the disk %d" % (LENGTH + 512, LENGTH)),
            ([source, "target=source"], "target %s/source: another program uses it" % self.folder),
            ([source, "control=file"], "control %s/file: exists and is no socket" % self.folder),
            ([source, "control=missing/socket"], "No such file or directory"),
            ([source, "control=%s" % ("x" * 120)], "the path of a socket has at most 107 bytes"),
        ]:
            with self.subTest(parameters):
                said = self.refused(*parameters)
                self.assertIn(complaint, said)
        said = subprocess.run(["nbdkit", "-U", "-", PLUGIN, source], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=PATIENCE).stdout
        self.assertIn("control=SOCKET is missing", said)
        self.assertEqual((self.folder / "file").read_text(), "in the way")
        self.assertFalse((self.folder / "missing").exists())

    def test_a_source_and_a_target_that_are_in_use(self) -> None:
        source, target = self.image("source", LENGTH), self.image("target", LENGTH)
        server = self.server("source=%s" % source)
        self.assertIn("source %s: another program uses it" % source, self.refused("source=%s" % source))
        other = self.server("source=%s" % target)
        answer = server.control().ask("start target=%s" % target)
        self.assertEqual((answer["errno"], answer["error"]), ("EBUSY", "target %s: another program uses it" % target))
        other.stop()
        server.control().ok("start target=%s" % target)
        self.assertIn("another program uses it", self.refused("source=%s" % target))
        # After the switch it is the old one that is free, and the new one that isn't.
        server.complete()
        self.server("source=%s" % source).stop()
        self.assertIn("another program uses it", self.refused("source=%s" % target))
        if shutil.which("qemu-io"):
            said = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", str(target)], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, timeout=PATIENCE)
            self.assertNotEqual(said.returncode, 0)
            self.assertIn('Failed to get "write" lock', said.stdout)
        server.stop()

    def test_a_file_that_qemu_has(self) -> None:
        if shutil.which("qemu-io") is None:
            raise not_tested(self.id(), "qemu-io is missing (scripts/host-packages lists what to install)")
        source = self.image("source", LENGTH)
        qemu = self.process(["qemu-io", "-f", "raw", str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert qemu.stdout
        self.assertEqual(qemu.stdout.read(9), b"qemu-io> ")
        self.assertIn("another program uses it", self.refused("source=%s" % source))
        qemu.communicate(b"quit\n", timeout=PATIENCE)
        self.server("source=%s" % source).stop()

    def test_what_can_only_be_read(self) -> None:
        source, target = self.image("source", LENGTH, b"text"), self.image("target", LENGTH)
        user = None
        if os.getuid() == 0:
            # To root nothing is forbidden.
            user = 65534
            os.chmod(self.folder, 0o777)
        source.chmod(0o444)
        target.chmod(0o444)
        self.assertIn("source %s: Permission denied (it is to be read and written)" % source,
                      self.refused("source=%s" % source, user=user))
        server = self.server("source=%s" % source, "readonly=on", user=user)
        self.assertTrue(server.query()["disk"]["read_only"])
        answer = server.control().ask("start target=%s" % target)
        self.assertEqual(answer["errno"], "EACCES")
        self.assertEqual(answer["error"], "target %s: Permission denied (it is to be read and written)" % target)
        said = subprocess.run(["nbdinfo", server.uri], stdout=subprocess.PIPE, text=True, timeout=PATIENCE).stdout
        self.assertIn("is_read_only: true", said)
        server.stop()

    def test_a_missing_target_is_made_when_asked_for(self) -> None:
        source = self.image("source", LENGTH, b"text")
        server = self.server("source=%s" % source, "target=new", "create=on", "auto-complete=on")
        server.until("concluded")
        self.assertEqual(server.disk(), self.folder / "new")
        self.equal(source, self.folder / "new")
        server.stop()
        self.assertIn("granularity 3: must be", self.refused("source=%s" % source, "target=other", "create=on",
                                                             "granularity=3"))


class Sockets(Case):
    def test_a_stale_one_is_replaced_and_one_that_answers_is_not(self) -> None:
        source = self.image("source", LENGTH)
        path = self.folder / "control"
        server = self.server("source=%s" % source, control=path)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        said = self.refused("source=%s" % self.image("other", LENGTH), control=path)
        self.assertIn("control %s: another server answers there" % path, said)
        self.assertIsNone(server.job())
        server.process.kill()
        server.process.wait()
        self.assertTrue(path.exists())
        again = self.server("source=%s" % source, control=path)
        self.assertEqual(again.disk(), source)
        again.stop()
        self.assertFalse(path.exists())

    def test_one_that_has_taken_its_place_is_left_alone(self) -> None:
        server = self.server("source=%s" % self.image("source", LENGTH))
        server.control_path.unlink()
        other = socket.socket(socket.AF_UNIX)
        self.addCleanup(other.close)
        other.bind(str(server.control_path))
        server.stop()
        self.assertTrue(server.control_path.exists())

    def test_two_servers_at_once_don_t_both_have_it(self) -> None:
        path = self.folder / "control"
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        servers = [Server(self, n, ["source=%s" % self.image("source-%d" % n, LENGTH)], control=path) for n in range(6)]
        self.servers = len(servers)
        ended = wait_until("all but one give up", lambda: [s for s in servers if s.process.poll() is not None][4:]
                           and [s for s in servers if s.process.poll() is not None])
        self.assertEqual(len(ended), 5)
        for server in ended:
            self.assertIn("another server answers there", server.log.read_text())
        (left,) = [server for server in servers if server not in ended]
        left.wait()
        left.stop()


class Lines(Case):
    """What comes over the control socket."""

    def setUp(self) -> None:
        super().setUp()
        self.source, self.target = self.image("source", LENGTH, b"text"), self.image("target", LENGTH)
        self.live = self.server("source=%s" % self.source)

    def refusal(self, line: bytes) -> str:
        control = self.live.control()
        control.send(line)
        answer = control.line()
        assert answer is not None
        self.assertEqual((answer["ok"], answer["errno"]), (False, "EINVAL"), answer)
        # The connection is as good as before.
        control.ok("query")
        return str(answer["error"])

    def test_garbage(self) -> None:
        self.image("short", LENGTH - 512)
        for line, complaint in [
            (b"\n", "the line is empty"),
            (b"   \r\n", "the line is empty"),
            (b"frobnicate\n", "'frobnicate' is no command: it must be query, start,"),
            (b"\xff\xfe\x80\n", "'\ufffd\ufffd\ufffd' is no command"),
            ("\u00fc\"\t\\\\\n".encode(), "'\u00fc\"\t\\' is no command"),
            (b"a" * 8000 + b"\n", "'%s' is no command" % ("a" * 64)),
            (b"query\0\n", "the line has a zero byte"),
            (b"query\\\n", "the line ends with a backslash"),
            (b"query now\n", "it is: query"),
            (b"cancel gently\n", "must be `cancel` or `cancel force`"),
            (b"set-speed\n", "it is: set-speed SIZE"),
            (b"set-speed -1\n", "speed=-1: must be a whole number"),
            (b"change\n", "it is: change background|write-blocking"),
            (b"change mind\n", "copy-mode=mind: must be background or write-blocking"),
            (b"start\n", "it is: start target=FILE"),
            (b"start target\n", "target: must be NAME=VALUE"),
            (b"start speed=1\n", "target=FILE is missing"),
            (b"start target=\n", "target=: is empty"),
            (b"start target=here\n", "target=here: must be an absolute path"),
            (b"start target=%s\n" % str(self.folder / "short").encode(), "they must be equally long"),
            (b"start target=%s granularity=7\n" % str(self.target).encode(), "granularity 7: must be a power of two"),
        ]:
            with self.subTest(line[:40]):
                self.assertIn(complaint, self.refusal(line))
        for words, errno in [("start colour=blue", "ENOENT"), (" ".join(["start"] + ["a=b"] * 40), "E2BIG"),
                             ("pause", "ENOENT"), ("resume", "ENOENT"), ("complete", "ENOENT"), ("cancel", "ENOENT"),
                             ("set-speed 1M", "ENOENT"), ("change background", "ENOENT"),
                             ("start target=/missing/file", "ENOENT"), ("start target=%s" % self.source, "EBUSY")]:
            with self.subTest(words[:40]):
                self.assertEqual(self.live.control().ask(words)["errno"], errno)
        self.assertIsNone(self.live.job())

    def test_a_line_that_doesn_t_end(self) -> None:
        control = self.live.control()
        control.send(b"x" * 8191)
        other = self.live.control()
        other.ok("query")
        control.send(b"x")
        answer = control.line()
        assert answer is not None
        self.assertEqual((answer["ok"], answer["errno"]), (False, "E2BIG"))
        self.assertIsNone(control.line(), "the server has hung up")
        other.ok("query")
        # The longest that there may be.
        longest = self.live.control()
        longest.send(b"y" * 8191 + b"\n")
        answer = longest.line()
        assert answer is not None
        self.assertEqual(answer["errno"], "EINVAL")

    def test_lines_in_pieces_and_many_at_a_time(self) -> None:
        control = self.live.control()
        for piece in (b"qu", b"er", b"y\nque", b"ry\n"):
            control.send(piece)
        for _ in range(2):
            answer = control.line()
            assert answer is not None and answer["ok"]
        control.send(b"query\n" * 100 + b"foo\n")
        for _ in range(100):
            answer = control.line()
            assert answer is not None and answer["ok"]
        answer = control.line()
        assert answer is not None and not answer["ok"]

    def test_a_client_that_sends_all_and_then_only_listens(self) -> None:
        control = self.live.control()
        control.send(b"events\nstart target=%s auto-complete=on\nquery" % str(self.target).encode())
        control.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(control.line(), {"ok": True})
        self.assertEqual(control.line(), {"ok": True})
        told = []
        while not told or told[-1].get("status") != "concluded":
            line = control.line()
            assert line is not None, told
            told.append(line)
        statuses = [line["status"] for line in told if line["event"] == "status"]
        self.assertEqual(statuses, ["created", "running", "ready", "waiting", "pending", "concluded"])
        self.assertEqual([line["event"] for line in told if line["event"] != "status"], ["ready", "completed"])
        self.assertEqual({line["job"] for line in told}, {"job-1"})

    def test_a_client_that_doesn_t_read_disturbs_nobody(self) -> None:
        guest = Guest(self, self.live, 0, LENGTH)
        deaf = [self.live.control() for _ in range(3)]
        lines = b"events\nquery\nfoo\n"
        sent = [0 for _ in deaf]
        for n, control in enumerate(deaf):
            control.socket.setblocking(False)
            # As much as goes into its socket, and the server takes: events, and answers that nobody reads.
            while sent[n] < 4 * MIB:
                try:
                    sent[n] += control.socket.send((lines * 100)[sent[n] % len(lines) :])
                except BlockingIOError:
                    break
            self.assertLess(sent[n], 4 * MIB, "the server doesn't read what it has no room to answer")
        control = self.live.control()
        for _ in range(20):
            control.ok("start target=%s auto-complete=on" % self.target)
            guest.goes_on(5)
            self.live.until("concluded")
            self.source, self.target = self.target, self.source
        guest.goes_on()
        self.assertEqual(guest.finish(), self.live.disk().read_bytes())
        # Whoever reads in the end finds whole lines, and is told that something is missing.
        deaf[0].socket.settimeout(PATIENCE)
        deaf[0].socket.shutdown(socket.SHUT_WR)
        whole, rest = divmod(sent[0], len(lines))
        answers, lost = whole * 3 + lines[:rest].count(b"\n"), 0
        while answers > 0 or lost == 0:
            line = deaf[0].line()
            assert line is not None
            answers -= "ok" in line
            lost += line["count"] if line.get("event") == "lost" else 0
        # From here on it misses nothing.
        control.ok("start target=%s auto-complete=on" % self.target)
        told = []
        while not told or told[-1].get("status") != "concluded":
            line = deaf[0].line()
            assert line is not None
            told.append(line)
        self.assertEqual({line.get("job") for line in told}, {"job-21"})
        self.assertIn({"event": "completed", "job": "job-21", "result": 0}, told)

    def test_many_clients(self) -> None:
        clients = []
        for _ in range(32):
            clients.append(self.live.control())
            clients[-1].ok("query")
        one_more = self.live.control()
        self.assertEqual(one_more.line(), {"ok": False, "errno": "EBUSY",
                                           "error": "32 clients are connected: try again later"})
        clients.pop().close()

        def let_in() -> bool:
            control = Control(self.live.control_path)
            try:
                control.send(b"query\n")
                answer = control.line()
            finally:
                control.close()
            return answer is not None and answer["ok"]

        wait_until("there is room again", let_in)

    def test_two_masters(self) -> None:
        first, second = self.live.control(), self.live.control()
        other = self.image("other", LENGTH)
        first.ok("start target=%s speed=64K" % self.target)
        answer = second.ask("start target=%s" % other)
        self.assertEqual((answer["errno"], answer["error"]), ("EBUSY", "job-1 runs: complete or cancel it first"))
        # But both may drive the one that runs.
        second.ok("pause")
        self.live.until("paused")
        self.assertIn("cannot accept", first.ask("complete")["error"])
        first.ok("resume")
        second.ok("cancel force")
        job = self.live.until("concluded")
        self.assertLess(job["result"], 0)
        self.assertEqual(self.live.disk(), self.source)
        first.ok("start target=%s" % other)
        self.live.complete()
        self.assertEqual(self.live.disk(), other)


if __name__ == "__main__":
    unittest.main()
