"""Buffers of Python objects as memory: where their bytes are, and that they stay there while the library uses them."""

from __future__ import annotations

import ctypes as c
import re
from typing import TYPE_CHECKING, Any, Optional, Tuple

from ._library import Loan

if TYPE_CHECKING:
    from typing_extensions import Buffer


class _PyBuffer(c.Structure):
    """CPython's ``Py_buffer``."""

    _fields_ = [
        ("buf", c.c_void_p),
        ("obj", c.c_void_p),
        ("len", c.c_ssize_t),
        ("itemsize", c.c_ssize_t),
        ("readonly", c.c_int),
        ("ndim", c.c_int),
        ("format", c.c_void_p),
        ("shape", c.c_void_p),
        ("strides", c.c_void_p),
        ("suboffsets", c.c_void_p),
        ("internal", c.c_void_p),
    ]


# ctypes' own `from_buffer` refuses memory that is only to be read.
_get_buffer = c.PYFUNCTYPE(c.c_int, c.py_object, c.POINTER(_PyBuffer), c.c_int)(("PyObject_GetBuffer", c.pythonapi))
_release_buffer = c.PYFUNCTYPE(None, c.POINTER(_PyBuffer))(("PyBuffer_Release", c.pythonapi))
_new_bytes = c.PYFUNCTYPE(c.py_object, c.c_void_p, c.c_ssize_t)(("PyBytes_FromStringAndSize", c.pythonapi))
_address_of_bytes = c.PYFUNCTYPE(c.c_void_p, c.py_object)(("PyBytes_AsString", c.pythonapi))

_SIMPLE, _WRITABLE = 0, 1


class Export(Loan):
    """Memory that its owner keeps where it is, and as long as it is, until this is closed: Python's export of a buffer."""

    def __init__(self, buffer: "Buffer", writable: bool) -> None:
        self._buffer: Optional[_PyBuffer] = None
        told = _PyBuffer()
        _get_buffer(buffer, c.byref(told), _WRITABLE if writable else _SIMPLE)
        self._buffer = told
        self.address, self.length = told.buf or 0, told.len

    def close(self) -> None:
        told, self._buffer = self._buffer, None
        if told is not None:
            _release_buffer(c.byref(told))

    def __del__(self) -> None:
        self.close()


def bytes_of(buffer: "Buffer", writable: bool) -> memoryview:
    """The bytes of a buffer, of whatever items it is made, without a copy; to be released.

    ``TypeError`` unless they lie one after the other, and can be written if they are to be.
    """
    try:
        items = memoryview(buffer)
    except ValueError:  # Items that Python has no letter for, such as numpy's times, which may have objects beside them.
        if getattr(getattr(buffer, "dtype", None), "hasobject", True):
            raise TypeError("the buffer's items can't be told from references to Python objects: give it as bytes") from None
        return _exported(buffer, writable)
    with items:
        if not items.c_contiguous:
            raise TypeError(
                "the buffer's bytes don't lie one after the other: it must be C-contiguous, as numpy.ascontiguousarray makes it"
            )
        if writable and items.readonly:
            raise TypeError("the buffer is read-only: it must be writable, as a bytearray is")
        if "O" in re.sub(":[^:]*:", "", items.format):  # Names of fields are between colons.
            raise TypeError("the buffer holds references to Python objects: its bytes mean nothing outside of this process")
        if items.nbytes == 0:  # An empty view can't be cast.
            return memoryview(bytearray())
        try:
            return items.cast("B")
        except (NotImplementedError, TypeError, ValueError):  # Items that memoryview can't take apart.
            return _exported(buffer, writable)


def _exported(buffer: "Buffer", writable: bool) -> memoryview:
    export = Export(buffer, writable)
    view = _view(export.address, export.length, export)
    return view if writable else view.toreadonly()


def is_constant(view: memoryview) -> bool:
    """Whether nobody can change these bytes, whatever the view itself allows."""
    return isinstance(view.obj, bytes)


def new_bytes(length: int) -> Tuple[bytes, memoryview]:
    """A ``bytes`` object to be filled through the view, before anybody else sees it."""
    if length == 0:
        return b"", memoryview(bytearray())
    # Zeroes, so that no read shows what was in this memory before. There is one `bytes(1)` for everybody, though.
    content: bytes = bytes(length) if length > 1 else _new_bytes(None, length)
    return content, _view(_address_of_bytes(content), length, content)


def _view(address: int, length: int, owner: object) -> memoryview:
    """These bytes, which the owner has until the view is released."""
    array: Any = (c.c_uint8 * length).from_address(address)
    array.owner = owner
    return memoryview(array).cast("B")
