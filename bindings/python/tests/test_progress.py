"""What a job that runs shows: a bar on a terminal, lines elsewhere, or whatever a function makes of it."""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
import time
import unittest
from contextlib import redirect_stderr
from dataclasses import replace
from typing import Any, List, Tuple
from unittest import mock

from backend import b
from blkmirror import _progress

MIB = 1 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> List[str]:
        """What was drawn, one after the other; the last is what is left."""
        drawn = self.getvalue().split("\r")
        assert drawn[0] == ""
        return [line.replace("\x1b[K", "") for line in drawn[1:]]


class Progress(unittest.TestCase):
    def setUp(self) -> None:
        self.source, self.target = b.MemoryDevice(4 * MIB), b.MemoryDevice(4 * MIB)
        self.disk = b.Filter(self.source)
        self.disk.write(0, os.urandom(4 * MIB))
        self.job = b.Job(self.disk, self.target, id="disk0", speed=8 * MIB, max_io=16384)
        for thing in (self.source, self.target, self.disk, self.job):
            self.addCleanup(thing.close)
        self.job.start()

    def test_a_bar_on_a_terminal(self) -> None:
        screen = Terminal()
        with redirect_stderr(screen), mock.patch.object(shutil, "get_terminal_size", return_value=os.terminal_size((100, 24))):
            self.job.run(until="ready", timeout=60, progress=True)
            self.assertTrue(screen.getvalue().endswith("\n"))
            self.assertEqual(screen.getvalue().count("\n"), 1, "it stays in its line")
            self.job.complete()
            self.job.run(timeout=60, progress=True)
        bars = [re.match(r"disk0 +(\d+)% \[(#*)(\.*)\] (.*)", line) for line in screen.lines]
        self.assertGreater(len(bars), 3)
        percents = []
        for bar in bars:
            assert bar is not None
            percents.append(int(bar[1]))
            self.assertEqual(len(bar[2]), (len(bar[2]) + len(bar[3])) * int(bar[1]) // 100)
        self.assertEqual(percents, sorted(percents))
        self.assertLess(percents[0], 100)
        self.assertEqual(percents[-1], 100)
        self.assertTrue(any(re.search(r"\d MiB of 4.0 MiB  \d.*/s  0:0\d left", line) for line in screen.lines), screen.lines)
        self.assertIn("ready", screen.lines[-2])
        self.assertIn("done, 4.0 MiB", screen.lines[-1])
        self.assertTrue(all(len(line.rstrip("\n")) < 100 for line in screen.lines))

    def test_lines_elsewhere(self) -> None:
        log = io.StringIO()
        with redirect_stderr(log):
            self.job.run(until="ready", timeout=60, progress=True)
        lines = log.getvalue().splitlines()
        percents = [int(line.split()[1][:-1]) for line in lines]
        self.assertTrue(all(line.startswith("disk0 ") for line in lines))
        self.assertNotIn("\r", log.getvalue())
        self.assertEqual(percents, sorted(percents))
        self.assertLessEqual(len(lines), 12)
        self.assertEqual(percents[-1], 100)
        self.assertIn("ready", lines[-1])
        log = io.StringIO()
        shown, info = _progress.Lines(log), self.job.info
        for done, status in ((10, info.status), (10, info.status), (19, info.status), (20, info.status), (20, b.Status.STANDBY)):
            shown.show(replace(info, done=done, total=100, status=status))
        self.assertEqual([line.split()[1] for line in log.getvalue().splitlines()], ["10%", "20%", "20%"])

    def test_a_function(self) -> None:
        infos: List[b.JobInfo] = []
        began = time.monotonic()
        info = self.job.run(until="ready", timeout=60, progress=infos.append)
        self.assertEqual(infos[-1], info)
        self.assertGreater(len(infos), 2)
        # Ten a second, however often the job is polled; the first, and the last.
        self.assertLessEqual(len(infos), (time.monotonic() - began) * 10 + 2)
        self.assertLess(infos[0].done, 4 * MIB)

        shown: List[b.JobInfo] = []
        display = _progress.Display(shown.append)
        began = time.monotonic()
        for _ in range(1000):
            display.show(info, last=False)
        self.assertLessEqual(len(shown), (time.monotonic() - began) * 10 + 1)

        class Enough(Exception):
            pass

        def stop(_: b.JobInfo) -> None:
            raise Enough

        self.job.cancel()
        with self.assertRaises(Enough):
            self.job.run(timeout=60, progress=stop)
        self.assertEqual(self.job.run(timeout=60).result, 0)

    def test_a_function_is_called_though_nothing_happens(self) -> None:
        self.job.pause()
        infos: List[b.JobInfo] = []

        def look(info: b.JobInfo) -> None:
            infos.append(info)
            if len(infos) == 3:
                self.job.resume()
                self.job.set_speed(0)

        self.assertTrue(self.job.run(until="ready", timeout=60, progress=look).ready)
        self.assertEqual(infos[2].status, b.Status.PAUSED)

    def test_nothing_is_shown_unasked_or_where_nobody_looks(self) -> None:
        self.job.set_speed(0)
        screen = Terminal()
        with redirect_stderr(screen):
            self.job.run(until="ready", timeout=60)
        self.assertEqual(screen.getvalue(), "")
        with mock.patch.object(sys, "stderr", None):
            self.job.run(until="ready", timeout=60, progress=True)

    def test_a_line_is_ended_whatever_ends_the_run(self) -> None:
        screen = Terminal()
        self.job.set_speed(1024)
        with redirect_stderr(screen), self.assertRaises(TimeoutError):
            self.job.run(timeout=0.01, progress=True)
        self.assertTrue(screen.getvalue().endswith("\n"))

    def test_what_is_said_of_each_state(self) -> None:
        info = replace(self.job.info, done=MIB, total=4 * MIB, copy_rate=1536, eta_ns=3_723_000_000_001)
        rows: List[Tuple[dict[str, Any], str]] = [
            ({}, "1.0 MiB of 4.0 MiB  1.5 KiB/s  1:02:04 left"),
            ({"eta_ns": None}, "1.0 MiB of 4.0 MiB  1.5 KiB/s  the guest writes faster than it is copied"),
            ({"status": b.Status.PAUSED}, "1.0 MiB of 4.0 MiB  1.5 KiB/s  paused"),
            ({"status": b.Status.PENDING}, "1.0 MiB of 4.0 MiB  1.5 KiB/s  waits to be finalized"),
            ({"status": b.Status.NULL, "result": -5, "message": "write failed"}, "failed: write failed"),
            ({"status": b.Status.NULL, "result": 0}, "done, 1.0 MiB"),
            ({"done": 0, "total": 5 << 40, "copy_rate": 0, "eta_ns": 0}, "0 B of 5.0 TiB  0 B/s  0:00 left"),
        ]
        for changed, said in rows:
            self.assertEqual(_progress.describe(replace(info, **changed)), said)
        percents: List[Tuple[dict[str, Any], int]] = [
            ({"done": 0, "total": 0, "ready": False, "status": b.Status.RUNNING}, 0),
            ({"done": 0, "total": 0, "ready": True}, 100),
            ({"done": 999, "total": 1000}, 99),
            ({"done": 1000, "total": 1000}, 100),
        ]
        for changed, percent in percents:
            self.assertEqual(_progress.percent(replace(info, **changed)), percent)

    def test_a_narrow_terminal_gets_what_fits(self) -> None:
        screen = Terminal()
        with mock.patch.object(shutil, "get_terminal_size", return_value=os.terminal_size((20, 24))):
            _progress.Bar(screen).show(replace(self.job.info, done=MIB, total=4 * MIB))
        self.assertEqual(screen.lines, ["disk0  25%  1.0 MiB"])


if __name__ == "__main__":
    unittest.main()
