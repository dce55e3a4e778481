"""How far a job is, for people: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Callable, Optional, TextIO, Union

from .events import Status
from .info import JobInfo

Progress = Union[bool, Callable[[JobInfo], object]]

INTERVAL = 0.1
"""Seconds between two looks at a job."""

_STATES = {
    Status.CREATED: "not started",
    Status.PAUSED: "paused",
    Status.READY: "ready",
    Status.STANDBY: "ready, paused",
    Status.WAITING: "switching over",
    Status.PENDING: "waits to be finalized",
    Status.ABORTING: "ending",
}


class Display:
    """Shows snapshots of a job, not more often than it helps."""

    def __init__(self, show: Callable[[JobInfo], object], finish: Callable[[], None] = lambda: None) -> None:
        self._show, self.finish = show, finish
        self._next = 0.0

    def show(self, info: JobInfo, last: bool) -> None:
        """What the job is like now; the last time is always shown."""
        now = time.monotonic()
        if last or now >= self._next:
            self._next = now + INTERVAL
            self._show(info)


def display(progress: Progress) -> Optional[Display]:
    """What ``progress=`` asks for."""
    if callable(progress):
        return Display(progress)
    if not progress or sys.stderr is None:
        return None
    if sys.stderr.isatty():
        bar = Bar(sys.stderr)
        return Display(bar.show, bar.finish)
    return Display(Lines(sys.stderr).show)


class Bar:
    """A line that is written over and over."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._drawn = stream, False

    def show(self, info: JobInfo) -> None:
        """Draws it anew."""
        columns = shutil.get_terminal_size().columns
        left, right = "%s %3d%% " % (info.id, percent(info)), " " + describe(info)
        room = min(40, columns - 1 - len(left) - len(right) - 2)
        filled = room * percent(info) // 100
        bar = "[%s%s]" % ("#" * filled, "." * (room - filled)) if room >= 5 else ""
        self._stream.write("\r%s\x1b[K" % (left + bar + right)[: columns - 1])
        self._stream.flush()
        self._drawn = True

    def finish(self) -> None:
        """What is written next has a line of its own."""
        if self._drawn:
            self._stream.write("\n")
            self._stream.flush()


class Lines:
    """A line at each tenth of the way, and when the job's state changes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._shown = stream, (-1, "")

    def show(self, info: JobInfo) -> None:
        """A line, if there is something new."""
        tenth, state = percent(info) // 10, info.status.name
        if (tenth, state) != self._shown:
            self._shown = tenth, state
            self._stream.write("%s %3d%% %s\n" % (info.id, percent(info), describe(info)))
            self._stream.flush()


def percent(info: JobInfo) -> int:
    """How much of what is to be copied is copied: 100 only if all of it is."""
    if info.total == 0:
        return 100 if info.ready or info.status >= Status.CONCLUDED else 0
    return 100 * info.done // info.total


def describe(info: JobInfo) -> str:
    """The rest, in words."""
    if info.status >= Status.CONCLUDED:
        return "failed: %s" % info.message if info.result else "done, %s" % in_bytes(info.done)
    parts = ["%s of %s" % (in_bytes(info.done), in_bytes(info.total)), in_bytes(info.copy_rate) + "/s"]
    if info.status in _STATES:
        parts.append(_STATES[info.status])
    elif info.eta_ns is None:
        parts.append("the guest writes faster than it is copied")
    else:
        parts.append(in_time(info.eta_ns) + " left")
    return "  ".join(parts)


def in_bytes(count: float) -> str:
    """A number of bytes, with a unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return ("%d %s" if unit == "B" else "%.1f %s") % (count, unit)
        count /= 1024
    return "%.1f TiB" % count


def in_time(ns: int) -> str:
    """A duration, in hours, minutes and seconds; a second that has begun counts."""
    minutes, seconds = divmod(-(-ns // 1_000_000_000), 60)
    hours, minutes = divmod(minutes, 60)
    return "%d:%02d:%02d" % (hours, minutes, seconds) if hours else "%d:%02d" % (minutes, seconds)
