"""How failures of the library reach Python."""

from __future__ import annotations

import errno as _errno

from ._ffi import lib


class MirrorError(OSError):
    """A call of the library failed: ``errno`` says how, the text says what was wrong and what would be right."""


def check(answer: int) -> int:
    """Returns an answer of the library, or raises what it says."""
    if answer < 0:
        text = lib.mirror_last_error()
        raise MirrorError(-answer, text.decode("utf-8", "replace") if text else "")
    return answer


def errno_of(error: BaseException) -> int:
    """The positive errno for an exception from a callback: an ``OSError``'s own, else ``EIO``."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _errno.EIO
