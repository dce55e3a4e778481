"""Real clients write while a job runs and across the switch, and nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios
import unittest
from typing import Any, Dict

from support import CLI, MIB, PATIENCE, Case, Guest, Server, needs, wait_until

LENGTH = 32 * MIB
MODES = ("background", "write-blocking")


class Nbdsh(Case):
    """Two guests with a connection each, on their halves of the disk."""

    def across(self, mode: str) -> None:
        source = self.image("source", LENGTH, b"before")
        target = self.image("target", LENGTH)
        server = self.server("source=%s" % source)
        guests = [Guest(self, server, at, at + LENGTH // 2, seed) for seed, at in enumerate((0, LENGTH // 2))]
        for guest in guests:
            guest.goes_on()
        control = server.control()
        control.ok("start target=%s copy-mode=%s" % (target, mode))
        for guest in guests:
            guest.goes_on()
        self.assertEqual(server.query()["disk"], dict(server.query()["disk"], file=str(source), connections=2))
        job = server.complete()
        self.assertGreater(job["guest_writes"], 0)
        if mode == "write-blocking":
            self.assertGreater(job["carried_writes"], 0)
        self.assertEqual(server.disk(), target)
        for guest in guests:
            guest.goes_on()
        # And back, with a change of mode on the way.
        control.ok("start target=%s copy-mode=%s" % (source, mode))
        control.ok("change %s" % MODES[mode == MODES[0]])
        for guest in guests:
            guest.goes_on()
        server.complete()
        self.assertEqual(server.disk(), source)
        for guest in guests:
            guest.goes_on()
        # A third, which leaves a copy behind.
        control.ok("start target=%s copy-mode=%s" % (target, mode))
        models = b"".join(guest.finish() for guest in guests)
        server.until("ready")
        control.ok("cancel")
        self.assertEqual(server.until("concluded")["result"], 0)
        self.assertEqual(server.disk(), source)
        self.equal(source, target)
        self.assertTrue(source.read_bytes() == models, "what the guests wrote is what there is")
        server.stop()

    def test_background(self) -> None:
        self.across("background")

    def test_write_blocking(self) -> None:
        self.across("write-blocking")


class QemuIo(Case):
    @needs("qemu-io", "qemu-img")
    def test_one_connection_across_the_switch(self) -> None:
        source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
        expected = self.image("expected", LENGTH, b"before")
        server = self.server("source=%s" % source)
        client = self.process(["qemu-io", "-f", "raw", "-t", "none", server.uri], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)

        def until_prompt() -> str:
            assert client.stdout
            said = b""
            while not said.endswith(b"qemu-io> "):
                more = client.stdout.read(4096)
                self.assertTrue(more, "qemu-io has ended: %r" % said)
                said += more
            return said.decode()

        def run(command: str) -> None:
            assert client.stdin
            client.stdin.write(command.encode() + b"\n")
            self.assertNotRegex(until_prompt(), "failed|rror", command)

        until_prompt()

        def model(offset: int, data: bytes) -> None:
            with open(expected, "r+b") as file:
                file.seek(offset)
                file.write(data)

        def work(byte: int) -> None:
            run("write -P %d 1000 70000" % byte)
            run("aio_write -P %d 4M 3M" % (byte + 1))
            run("aio_flush")
            run("write -f -P %d 9M 64k" % (byte + 2))
            run("write -z -u 5M 1M")
            run("write -z 6M 4k")
            run("flush")
            run("read -P %d 1000 70000" % byte)
            run("read -P %d 4M 1M" % (byte + 1))
            run("read -P 0 5M 1M")
            run("read -P %d 9M 64k" % (byte + 2))
            model(1000, bytes([byte]) * 70000)
            model(4 * MIB, bytes([byte + 1]) * (3 * MIB))
            model(9 * MIB, bytes([byte + 2]) * 65536)
            model(5 * MIB, bytes(MIB))
            model(6 * MIB, bytes(4096))

        work(10)
        server.control().ok("start target=%s speed=16M" % target)
        work(20)
        server.control().ok("set-speed 0")
        server.until("ready")
        work(30)
        server.complete()
        self.equal(target, expected)
        work(40)
        # Trimmed and written, so that it is known what is there.
        run("discard 16M 1M")
        run("write -P 7 16M 1M")
        model(16 * MIB, b"\x07" * MIB)
        client.communicate(b"quit\n", timeout=PATIENCE)
        self.assertEqual(client.returncode, 0)
        self.equal(target, expected)
        server.stop()


class Nbdcopy(Case):
    @needs("nbdcopy", "qemu-img")
    def test_an_image_that_is_copied_in_while_a_job_runs(self) -> None:
        image = self.image("image", LENGTH, b"an image that comes in over four connections")
        for mode in MODES:
            source, target = self.image("source", LENGTH), self.image("target", LENGTH)
            server = self.server("source=%s" % source)
            server.control().ok("start target=%s copy-mode=%s" % (target, mode))
            subprocess.run(["nbdcopy", "--connections=4", "--flush", str(image), server.uri], check=True, timeout=PATIENCE)
            server.complete()
            self.equal(target, image)
            # And out, of the new disk.
            out = self.folder / "out"
            subprocess.run(["nbdcopy", server.uri, str(out)], check=True, timeout=PATIENCE)
            self.equal(out, image)
            server.stop()


class Fio(Case):
    """fio writes each block once, at a limited rate, and reads all again to verify it. If the switch comes too late it is
    tried again with a slower fio."""

    def fio(self, server: Server, iops: int) -> "subprocess.Popen[Any]":
        return self.process(
            ["fio", "--name=guest", "--ioengine=nbd", "--uri=%s" % server.uri, "--rw=randwrite", "--bs=4k",
             "--size=%d" % LENGTH, "--iodepth=8", "--rate_iops=,%d" % iops, "--verify=crc32c", "--verify_fatal=1",
             "--fsync=64", "--do_verify=1", "--output-format=json"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder)

    def across(self, mode: str, iops: int) -> bool:
        source, target = self.image("source", LENGTH, b"before"), self.image("target", LENGTH)
        server = self.server("source=%s" % source)
        fio = self.fio(server, iops)
        wait_until("fio is connected", lambda: server.query()["disk"]["connections"] or fio.poll() is not None)
        server.control().ok("start target=%s copy-mode=%s" % (target, mode))
        wait_until("fio writes", lambda: server.job()["guest_writes"] > 100 or fio.poll() is not None)
        server.complete()
        in_time = fio.poll() is None
        said, _ = fio.communicate(timeout=PATIENCE)
        self.assertEqual(fio.returncode, 0, said)
        report: Dict[str, Any] = json.loads(said[said.index("{") :])["jobs"][0]
        self.assertEqual(report["error"], 0)
        self.assertEqual(report["write"]["total_ios"], LENGTH // 4096)
        self.assertEqual(report["read"]["total_ios"], LENGTH // 4096, "what was written was read again")
        # And a copy that is made when nobody writes is equal to the disk.
        server.control().ok("start target=%s" % source)
        server.until("ready")
        server.control().ok("cancel")
        server.until("concluded")
        self.equal(source, target)
        server.stop()
        return in_time

    def tried(self, mode: str) -> None:
        for iops in (3000, 1000, 400):
            if self.across(mode, iops):
                return
        self.fail("the job is never faster than fio")

    @needs("fio", "qemu-img")
    def test_background(self) -> None:
        self.tried("background")

    @needs("fio", "qemu-img")
    def test_write_blocking(self) -> None:
        self.tried("write-blocking")


class Ctl(Case):
    """`blkmirror ctl` against a real server."""

    def ctl(self, server: Server, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([CLI, "ctl", str(server.control_path), *words], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=PATIENCE, cwd=self.folder)

    def test_a_job_from_start_to_end(self) -> None:
        source, target = self.image("source", LENGTH, b"before"), self.image("a b\\c", LENGTH)
        server = self.server("source=%s" % source)
        self.assertEqual(json.loads(self.ctl(server, "query").stdout)["job"], None)
        said = self.ctl(server, "watch")
        self.assertEqual((said.returncode, said.stderr), (1, "blkmirror: no job runs, and none did\n"))
        said = self.ctl(server, "start", "target=%s" % target.name, "speed=1M")
        self.assertEqual((said.returncode, said.stdout, said.stderr), (0, '{"ok":true}\n', ""))
        watch = self.process([CLI, "ctl", str(server.control_path), "watch"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        events = self.process([CLI, "ctl", str(server.control_path), "events"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        assert watch.stdout and events.stdout
        self.assertEqual(json.loads(events.stdout.readline()), {"ok": True})
        line = watch.stdout.readline()
        while line == "job-1 running: 0 bytes of 0 bytes\n":
            # It looks before the job has seen what there is to copy.
            line = watch.stdout.readline()
        self.assertRegex(line, r"^job-1 running: .* of 32 MiB")
        said = self.ctl(server, "complete")
        self.assertEqual((said.returncode, said.stdout), (1, ""))
        self.assertIn("in state 'running' cannot accept command verb 'complete'", said.stderr)
        self.assertEqual(self.ctl(server, "set-speed", "0").returncode, 0)
        server.until("ready")
        self.assertEqual(self.ctl(server, "complete").returncode, 0)
        said_at_last, complaint = watch.communicate(timeout=PATIENCE)
        self.assertEqual((watch.returncode, complaint), (0, ""))
        self.assertEqual(said_at_last.splitlines()[-1], "job-1 completed: the disk is %s now" % target)
        told = []
        while not told or told[-1].get("event") != "completed":
            told.append(json.loads(events.stdout.readline()))
        self.assertEqual(told[-1], {"event": "completed", "job": "job-1", "result": 0})
        self.equal(source, target)
        said = self.ctl(server, "watch")
        self.assertEqual((said.returncode, said.stdout), (0, "job-1 completed: the disk is %s now\n" % target))
        server.stop()
        self.assertIn("the server has gone", events.communicate(timeout=PATIENCE)[1])
        self.assertEqual(events.returncode, 1)
        said = self.ctl(server, "query")
        self.assertEqual(said.returncode, 1)
        self.assertIn("No such file", said.stderr)


    def test_a_bar_on_a_terminal(self) -> None:
        server = self.server("source=%s" % self.image("source", LENGTH, b"before"))
        target = self.image("target", LENGTH)
        server.control().ok("start target=%s speed=4M" % target)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        watch = self.process([CLI, "ctl", str(server.control_path), "watch"], stdout=subprocess.PIPE, stderr=theirs,
                             text=True, env=dict(os.environ, TERM="xterm"))
        os.close(theirs)
        shown = b""
        while b"job-1 running" not in shown or b"of 32.00 MiB" not in shown:
            shown += os.read(ours, 4096)
        server.control().ok("set-speed 0")
        server.complete()
        self.assertEqual(watch.communicate(timeout=PATIENCE)[0], "job-1 completed: the disk is %s now\n" % target)
        os.close(ours)
        server.stop()


if __name__ == "__main__":
    unittest.main()
