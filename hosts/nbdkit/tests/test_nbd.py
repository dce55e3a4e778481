"""What NBD asks of a server: extents, zeroes, trims, flushes, several connections, and what is out of bounds."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import unittest
from typing import Any

from support import MIB, PATIENCE, PLUGIN, Case, Control, Server, needs, wait_until

LENGTH = 16 * MIB
K = 1024


class Nbd(Case):
    def run_in_nbdsh(self, server: Server, code: str) -> Any:
        """Runs a script with `h`, a handle that asks for block status, and answers what it leaves in `answer`."""
        code = textwrap.dedent(code) + "\nimport json; print(json.dumps(answer))"
        said = subprocess.run(["nbdsh", "--base-allocation", "-u", server.uri, "-c", code], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
                              env=dict(os.environ, PATH="/usr/bin:" + os.environ["PATH"]))
        self.assertEqual(said.returncode, 0, said.stdout)
        return json.loads(said.stdout)

    MAP = """
        def extents(offset, length):
            found = []
            while length > 0:
                before = len(found)
                def tell(context, at, entries, error):
                    found.extend(list(pair) for pair in zip(entries[::2], entries[1::2]))
                h.block_status(length, offset, tell)
                told = sum(pair[0] for pair in found[before:])
                offset, length = offset + told, length - told
            joined = []
            for size, kind in found:
                if joined and joined[-1][1] == kind:
                    joined[-1][0] += size
                else:
                    joined.append([size, kind])
            return joined
    """

    @needs("nbdsh")
    def test_extents_are_those_of_the_file_that_is_the_disk(self) -> None:
        source, target = self.image("source", LENGTH), self.image("target", LENGTH)
        with open(source, "r+b") as file:
            for place in (1, 3):
                file.seek(place * MIB)
                file.write(b"d" * MIB)
        server = self.server("source=%s" % source)
        data, hole = 0, 3
        told = [[MIB, hole], [MIB, data], [MIB, hole], [MIB, data], [LENGTH - 4 * MIB, hole]]
        script = textwrap.dedent(self.MAP) + "answer = extents(0, %d)" % LENGTH
        self.assertEqual(self.run_in_nbdsh(server, script), told)
        script = textwrap.dedent(self.MAP) + "answer = extents(%d, %d)" % (MIB + 4096, MIB)
        self.assertEqual(self.run_in_nbdsh(server, script), [[MIB - 4096, data], [4096, hole]])
        # A client that wants one extent gets one.
        script = """
            import nbd
            answer = []
            h.block_status(%d, 0, lambda name, at, entries, error: answer.extend(entries), nbd.CMD_FLAG_REQ_ONE)
        """ % LENGTH
        self.assertEqual(self.run_in_nbdsh(server, script), [MIB, hole])
        # The target is as thin, and it is asked after the switch.
        server.control().ok("start target=%s" % target)
        server.complete()
        with open(source, "r+b") as file:
            file.write(b"x" * LENGTH)
        script = textwrap.dedent(self.MAP) + "answer = extents(0, %d)" % LENGTH
        self.assertEqual(self.run_in_nbdsh(server, script), told)
        server.stop()

    @needs("nbdsh")
    def test_many_extents(self) -> None:
        source = self.image("source", LENGTH)
        with open(source, "r+b") as file:
            for place in range(0, LENGTH, 64 * K):
                file.seek(place)
                file.write(b"d" * (32 * K))
        server = self.server("source=%s" % source)
        script = textwrap.dedent(self.MAP) + "answer = extents(0, %d)" % LENGTH
        self.assertEqual(self.run_in_nbdsh(server, script), [[32 * K, 0], [32 * K, 3]] * (LENGTH // (64 * K)))
        server.stop()

    @needs("nbdsh")
    def test_zeroes_and_trims_make_holes_where_they_may(self) -> None:
        for job in (False, True):
            with self.subTest(job=job):
                source, target = self.image("source", LENGTH, b"data"), self.image("target", LENGTH)
                server = self.server("source=%s" % source)
                if job:
                    server.control().ok("start target=%s copy-mode=write-blocking" % target)
                    server.until("ready")
                answer = self.run_in_nbdsh(server, textwrap.dedent(self.MAP) + textwrap.dedent("""
                    import nbd
                    M, K = 1 << 20, 1024
                    h.zero(M, 1 * M)
                    h.trim(M, 3 * M, nbd.CMD_FLAG_FUA)
                    h.zero(M, 5 * M, nbd.CMD_FLAG_FAST_ZERO)
                    h.zero(M, 7 * M, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
                    h.zero(300, 9 * M + 100)
                    try:
                        h.zero(M, 11 * M, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
                        slow = "done"
                    except nbd.Error as error:
                        slow = error.errno
                    h.pwrite(b"f" * 1000, 13 * M + 1, nbd.CMD_FLAG_FUA)
                    h.flush()
                    kinds = [extents(n * M, M) for n in (1, 3, 5)]
                    reads = [bytes(h.pread(M, n * M)) == bytes(M) for n in (1, 5, 7, 11)]
                    answer = [kinds, reads, slow, h.pread(302, 9 * M + 99) == b"a" + bytes(300) + b"d",
                              h.pread(1002, 13 * M) == b"d" + b"f" * 1000 + b"a"]
                """))
                kinds, reads, slow, within, written = answer
                self.assertEqual(kinds, [[[MIB, 3]]] * 3)
                self.assertEqual((reads, slow, within), ([True, True, True, False], "ENOTSUP", True))
                self.assertTrue(written)
                if job:
                    server.until("ready")
                    server.control().ok("cancel")
                    server.until("concluded")
                    self.equal(source, target)
                server.stop()

    @needs("nbdsh")
    def test_several_connections_see_the_same_disk(self) -> None:
        source, target = self.image("source", LENGTH, b"data"), self.image("target", LENGTH)
        server = self.server("source=%s" % source)
        script = """
            import nbd
            others = [nbd.NBD() for _ in range(3)]
            for other in others:
                other.connect_uri(%r)
            everyone = [h] + others
            seen = []
            for round in range(20):
                for n, one in enumerate(everyone):
                    at, data = round * 4096 + n * 512, bytes([round * 4 + n]) * 512
                    one.pwrite(data, at)
                    seen.append(all(other.pread(512, at) == data for other in everyone))
                everyone[round %% 4].flush()
            answer = [all(one.can_multi_conn() for one in everyone), all(seen), len(seen)]
        """ % server.uri
        self.assertEqual(self.run_in_nbdsh(server, script), [True, True, 80])
        server.control().ok("start target=%s copy-mode=write-blocking" % target)
        server.until("ready")
        self.assertEqual(self.run_in_nbdsh(server, script), [True, True, 80])
        server.complete()
        self.assertEqual(self.run_in_nbdsh(server, script), [True, True, 80])
        server.stop()

    @needs("nbdsh", "nbdinfo")
    def test_what_a_client_is_told_and_what_is_out_of_bounds(self) -> None:
        length = LENGTH + 512 - 100
        source, target = self.image("source", length, b"data"), self.image("target", length)
        server = self.server("source=%s" % source)
        info = subprocess.run(["nbdinfo", "--json", server.uri], stdout=subprocess.PIPE, text=True, timeout=PATIENCE,
                              check=True)
        export = json.loads(info.stdout)["exports"][0]
        self.assertEqual({key: export[key] for key in ("export-size", "is_read_only", "can_flush", "can_fua", "can_trim",
                                                       "can_zero", "can_fast_zero", "can_multi_conn", "can_df")},
                         {"export-size": length, "is_read_only": False, "can_flush": True, "can_fua": True,
                          "can_trim": True, "can_zero": True, "can_fast_zero": True, "can_multi_conn": True,
                          "can_df": True})
        script = """
            import nbd
            h.set_strict_mode(0)
            answer = []
            for call in (lambda: h.pread(512, %d), lambda: h.pwrite(b"x" * 512, %d), lambda: h.zero(512, 1 << 60),
                         lambda: h.trim(512, 1 << 62), lambda: h.pread(100, %d)):
                try:
                    call()
                    answer.append("done")
                except nbd.Error as error:
                    answer.append(error.errno)
        """ % (length, length - 511, length - 100)
        self.assertEqual(self.run_in_nbdsh(server, script), ["EINVAL", "ENOSPC", "ENOSPC", "EINVAL", "done"])
        server.control().ok("start target=%s" % target)
        server.complete()
        self.equal(source, target)
        server.stop()

    @needs("nbdsh", "nbdinfo")
    def test_direct_files_ask_for_whole_blocks(self) -> None:
        source, target = self.image("source", LENGTH, b"data"), self.image("target", LENGTH)
        server = self.server("source=%s" % source, "direct=on")
        info = subprocess.run(["nbdinfo", "--json", server.uri], stdout=subprocess.PIPE, text=True, timeout=PATIENCE,
                              check=True)
        self.assertEqual(json.loads(info.stdout)["exports"][0]["block_size_minimum"], 4096)
        script = """
            import nbd
            h.set_strict_mode(0)
            h.pwrite(b"x" * 8192, 4096, nbd.CMD_FLAG_FUA)
            try:
                h.pwrite(b"x" * 512, 512)
                answer = "done"
            except nbd.Error as error:
                answer = error.errno
        """
        self.assertEqual(self.run_in_nbdsh(server, script), "EINVAL")
        server.control().ok("start target=%s direct=on threads=on" % target)
        server.complete()
        self.assertEqual(server.query()["disk"]["engine"], "threads")
        self.assertEqual(self.run_in_nbdsh(server, script), "EINVAL")
        self.equal_but_for_x(target)
        server.stop()

    def equal_but_for_x(self, target: Any) -> None:
        expected = bytearray((b"data" * LENGTH)[:LENGTH])
        expected[4096:12288] = b"x" * 8192
        self.assertTrue(target.read_bytes() == bytes(expected))


class Background(Case):
    @needs("nbdsh")
    def test_a_server_in_the_background(self) -> None:
        """nbdkit forks: what was opened before is opened again, and the job that it was given runs."""
        source, target = self.image("source", LENGTH, b"data"), self.image("target", LENGTH)
        control, pid, nbd = (self.folder / name for name in ("control", "pid", "nbd"))
        subprocess.run(["nbdkit", "-P", str(pid), "-U", str(nbd), PLUGIN, source.name, "target=%s" % target.name,
                        "control=control", "auto-complete=on"], check=True, timeout=PATIENCE, cwd=self.folder)
        # It is the server that writes it, and nbdkit's first process doesn't wait for that.
        wait_until("the server says who it is", lambda: pid.exists() and pid.read_text().endswith("\n"))
        number = int(pid.read_text())
        try:
            client = Control(control)
            self.addCleanup(client.close)
            wait_until("the job is over", lambda: client.ok("query")["job"]["status"] == "concluded")
            self.assertEqual(client.ok("query")["disk"]["file"], str(target))
            self.equal(source, target)
        finally:
            os.kill(number, 15)
        wait_until("it has ended", lambda: not control.exists())
        wait_until("it has ended", lambda: not self.lives(number))

    def lives(self, number: int) -> bool:
        try:
            with open("/proc/%d/stat" % number) as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False


if __name__ == "__main__":
    unittest.main()
