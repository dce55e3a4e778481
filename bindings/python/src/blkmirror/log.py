"""The library's messages."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Callable, Dict, Optional

from . import _ffi
from ._ffi import lib
from .errors import check

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


# The sinks that the library may still call, by their numbers.
_sinks: Dict[int, Any] = {}


def _closed(number: int) -> None:
    _sinks.pop(number, None)


_on_closed = _ffi.HOOK(_closed)


def set_log(sink: Optional[Callable[[LogLevel, str], None]], level: LogLevel = LogLevel.WARN) -> None:
    """Sends the library's messages of this level and the more important ones to ``sink``; ``None`` sends them nowhere.

    There is one sink in a process. It is called from whichever thread has something to say, several at once. What it
    raises is lost.
    """
    if sink is None:
        check(lib.mirror_set_log(_ffi.LOG(), None, LogLevel.OFF, _ffi.HOOK()))
        return
    wanted = sink

    def on_message(_: int, of: int, text: bytes) -> None:
        try:
            wanted(LogLevel(of), text.decode("utf-8", "replace"))
        except BaseException:  # Nothing may leave a callback, and there is nobody to tell.
            pass

    hook = _ffi.LOG(on_message)
    number = id(hook)
    _sinks[number] = hook
    check(lib.mirror_set_log(hook, number, level, _on_closed))
