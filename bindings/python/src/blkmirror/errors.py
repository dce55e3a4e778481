"""How failures of the library reach Python."""

from __future__ import annotations

import errno as _errno
from operator import index
from typing import Any, Dict, SupportsIndex, Tuple, Type

__all__ = ["MirrorError", "errno_of"]


class MirrorError(OSError):
    """A call of the library failed: ``errno`` says how, the text says what was wrong and what would be right.

    It is also what Python makes of its ``errno``: one of ``ENOENT`` is a ``FileNotFoundError``, one of ``EACCES`` a ``PermissionError``.
    """

    def __new__(cls, number: int, text: str) -> "MirrorError":
        return super().__new__(_of_kind(type(OSError(number, text))) if cls is MirrorError else cls, number, text)

    def __reduce__(self) -> "Tuple[Type[MirrorError], Tuple[Any, ...]]":
        return MirrorError, self.args


_kinds: "Dict[Type[OSError], Type[MirrorError]]" = {OSError: MirrorError}


def _of_kind(kind: Type[OSError]) -> Type[MirrorError]:
    """A ``MirrorError`` that is an error of this kind too."""
    made = _kinds.get(kind)
    if made is None:
        names = {"__module__": __name__, "__doc__": MirrorError.__doc__}
        made = _kinds.setdefault(kind, type("MirrorError", (MirrorError, kind), names))
    return made


def whole(number: "SupportsIndex", what: str, bits: int = 64) -> int:
    """A number as the library takes it: ctypes would cut off what doesn't fit, so that 2**64 were 0."""
    told = index(number)
    if not 0 <= told < 1 << bits:
        raise MirrorError(_errno.EINVAL, "%s %d: must be from 0 to 2**%d - 1" % (what, told, bits))
    return told


def terminated(text: bytes, what: str) -> bytes:
    """A text as the library takes it, which would end it at a null byte."""
    if b"\0" in text:
        raise ValueError(what + ": has a null byte in it")
    return text + b"\0"


def errno_of(error: BaseException) -> int:
    """The positive errno for an exception from a callback: an ``OSError``'s own, else ``EIO``."""
    if isinstance(error, OSError) and isinstance(error.errno, int) and 0 < error.errno < 4096:
        return error.errno
    return _errno.EIO
