"""Signals while the library is called: what a handler raises must not be raised in a callback, where it would be lost."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Undisturbed:
    """Puts ``SIGINT`` off until the end, on the main thread, which is where Python handles it.

    ctypes gives what a callback answers no value if an exception leaves it, and before a callback's first line one can.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._came = False

    def __enter__(self) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler) and getattr(handler, "__func__", None) is not Undisturbed._put_off:
                signal.signal(signal.SIGINT, self._put_off)
                self._handler = handler

    def _put_off(self, *_: object) -> None:
        self._came = True

    def __exit__(self, *_: object) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._came:
                signal.raise_signal(signal.SIGINT)
