"""How failures of the library reach Python."""

from __future__ import annotations

import errno as _errno


class MirrorError(OSError):
    """A call of the library failed: ``errno`` says how, the text says what was wrong and what would be right."""


def errno_of(error: BaseException) -> int:
    """The positive errno for an exception from a callback: an ``OSError``'s own, else ``EIO``."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _errno.EIO
