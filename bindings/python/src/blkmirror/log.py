"""The library's messages."""

from __future__ import annotations

from enum import IntEnum
from typing import Callable, Optional, Tuple

from ._ffi import lib
from ._library import Library

__all__ = ["LogLevel", "set_log"]


class LogLevel(IntEnum):
    """How important a message is."""

    OFF = 0
    ERROR = 1
    """What should never happen."""
    WARN = 2
    """Mistakes of the host and failures of devices."""
    INFO = 3
    """The life of jobs."""
    DEBUG = 4
    """For whoever looks for a fault."""
    TRACE = 5
    """Everything."""


Sink = Callable[[LogLevel, str], None]


def set_log(sink: Optional[Sink], level: LogLevel = LogLevel.WARN) -> None:
    """Sends the library's messages of this level and the more important ones to ``sink``; ``None`` sends them nowhere.

    There is one sink in a process. It is called from whichever thread has something to say, several at once. What it
    raises is lost.
    """
    send_log(lib, sink, level)


def send_log(lib: Library, sink: Optional[Sink], level: LogLevel) -> None:
    """The same, for a library that is given."""
    if sink is None:
        lib.check(lib.mirror_set_log(0, 0, LogLevel.OFF, 0))
        return
    message, closed = lib.callback("log", _message), lib.farewell("hook", _closed)
    lib.check(lib.mirror_set_log(message, lib.keep((lib, sink)), level, closed))


def _message(place: Tuple[Library, Sink], level: int, text: int) -> None:
    lib, sink = place
    try:
        sink(LogLevel(level), lib.text(text))
    except BaseException:  # Nothing may leave a callback, and there is nobody to tell.
        pass


def _closed(_: Tuple[Library, Sink]) -> None:
    pass
