"""The shared library: where it is, and how ctypes calls it."""

from __future__ import annotations

import ctypes as c
import ctypes.util
import os
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

from ._abi import CALLBACKS, FUNCTIONS, Abi
from ._buffers import Export
from ._library import Cell, Library, Loan

# As wide as a pointer, and, unlike ``c_void_p``, a number when it is NULL.
_TYPES: "dict[str, Any]" = {
    "v": None,
    "b": c.c_bool,
    "i": c.c_int,
    "u": c.c_uint32,
    "q": c.c_uint64,
    "p": c.c_size_t,
}


def _candidates() -> Iterator[str]:
    """Where the shared library may be: named, in the package, in a checkout's build folder, on the system."""
    named = os.environ.get("BLKMIRROR_LIBRARY")
    if named:
        yield named
        return
    name = "libblkmirror.dylib" if sys.platform == "darwin" else "libblkmirror.so"
    here = Path(__file__).resolve().parent
    yield str(here / name)
    if len(here.parents) > 3:
        target = Path(os.environ.get("CARGO_TARGET_DIR", str(here.parents[3] / "target")))
        for profile in ("release", "debug"):
            yield str(target / profile / name)
    found = ctypes.util.find_library("blkmirror")
    if found:
        yield found


def _load() -> c.CDLL:
    tried = []
    for path in _candidates():
        tried.append(path)
        if os.sep not in path or os.path.exists(path):
            library = c.CDLL(path)
            for name, (result, arguments) in FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = _TYPES[result], [_TYPES[letter] for letter in arguments]
            return library
    raise ImportError(
        "the blkmirror shared library was not found: run `cargo build --release` in a checkout, or name it in "
        "BLKMIRROR_LIBRARY (looked at " + ", ".join(tried) + ")"
    )


class _Value(Cell):
    def __init__(self, value: Any) -> None:
        self._value, self.address = value, c.addressof(value)

    def __getitem__(self, index: int) -> Any:
        return self._value if isinstance(self._value, c.Structure) else self._value.value


class _Values(Cell):
    def __init__(self, type: Any, count: int) -> None:
        self._values = (type * count)()
        self.address = c.addressof(self._values)

    def __getitem__(self, index: int) -> Any:
        return self._values[index]


class Native(Library):
    """The shared library in this process. It is loaded when it is first called."""

    def __init__(self) -> None:
        super().__init__(Abi(c.c_size_t))
        self._loaded: Optional[c.CDLL] = None
        self._exported: List[Any] = []

    def function(self, name: str) -> Callable[..., int]:
        if self._loaded is None:
            self._loaded = _load()
        function: Callable[..., int] = getattr(self._loaded, name)
        return function

    def last_error(self) -> str:
        return self.text(self.mirror_last_error())

    def clock_ns(self) -> int:
        return self.mirror_clock_ns()

    def new(self, type: Any, count: int = 1) -> Cell:
        if count > 1:
            return _Values(type, count)
        value = type()
        if type in self.abi.sized:
            value.struct_size = c.sizeof(type)
        return _Value(value)

    def at(self, type: Any, address: int) -> Any:
        return type.from_address(address)

    def text(self, address: int) -> str:
        return c.string_at(address).decode("utf-8", "replace") if address else ""

    def lend(self, view: memoryview) -> Loan:
        return Export(view, writable=True)

    def lend_data(self, view: memoryview) -> Loan:
        return Export(view, writable=False)

    def lend_copy(self, view: memoryview) -> Loan:
        return Export(bytes(view), writable=False)

    def views(self, iov: int, count: int) -> "List[memoryview]":
        parts = (self.abi.Iovec * count).from_address(iov)
        return [memoryview((c.c_uint8 * part.len).from_address(part.base)).cast("B") for part in parts]

    def export(self, kind: str, call: Callable[..., Any]) -> int:
        result, arguments = CALLBACKS[kind]
        function = c.CFUNCTYPE(_TYPES[result], *(_TYPES[letter] for letter in arguments))(call)
        self._exported.append(function)
        return c.cast(function, c.c_void_p).value or 0


lib = Native()


def _after_fork() -> None:
    # Its threads and the rings of its files are the parent's; a child that used them would do harm there, or wait for ever.
    if lib._loaded is not None:
        for name in FUNCTIONS:
            setattr(lib, name, _gone if name.endswith("_free") else _forked)
        lib._kept.clear()


def _gone(_: int) -> int:
    return 0


def _forked(*_: int) -> int:
    raise RuntimeError("blkmirror was used before this process was forked: use it in one of the two, or multiprocessing's 'spawn'")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
