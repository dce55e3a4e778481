"""An instance of the WebAssembly module, in a sandbox of wasmtime's.

Its memory never moves, because wasmtime sets the address space for all of it aside: so the buffers of a request are good for
as long as natively. It is an instance for one thread at a time, so each call holds a lock, and callbacks run under it.
"""

from __future__ import annotations

import ctypes as c
import errno
import functools
import operator
import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Tuple

import wasmtime  # type: ignore[import-not-found,unused-ignore]

from ._abi import CALLBACKS, FUNCTIONS, Abi
from ._library import Cell, Library, Loan
from .errors import MirrorError

if not hasattr(wasmtime.Config, "memory_may_move"):
    raise ImportError("this wasmtime can't keep memory from moving")


class ModuleLost(RuntimeError):
    """The WebAssembly module has failed inside, or was closed, and what was in it is lost: its filters and its jobs.

    Devices in Python are whole, with all that was written to them; :meth:`blkmirror.Device.on_close` has been called.
    """


# What an integer of WebAssembly, which has no sign of its own, is as each type.
_MASKS = {"p": 0xFFFF_FFFF, "u": 0xFFFF_FFFF, "q": 0xFFFF_FFFF_FFFF_FFFF, "b": 1, "i": -1, "v": 0}

# What the module has besides the C API.
_TABLE = "__indirect_function_table"
_ALLOC, _FREE = "mirror_wasm_alloc", "mirror_wasm_free"
_ALLOCATOR = {_ALLOC: ("p", "pp"), _FREE: ("v", "ppp")}
# Without which nothing can be called at all.
_REQUIRED = (*_ALLOCATOR, "mirror_last_error")

# As much as any C type needs, and what `malloc` gives natively.
_ALIGNMENT = 16

# Blocks up to this size are kept for the next who wants one, which saves two calls: never more than were in use at a time.
_MOST_POOLED = 65536


class Wasmtime(Library):
    """One instance of the module with this code."""

    def __init__(self, code: bytes, memory_limit: Optional[int], fuel: Optional[int]) -> None:
        super().__init__(Abi(c.c_uint32, c.LittleEndianStructure))
        try:
            engine, module = _compile(code, fuel is not None)
        except wasmtime.WasmtimeError as error:
            raise ValueError("it is no WebAssembly module: %s" % _last_line(error)) from error
        self._store: Any = wasmtime.Store(engine)
        if memory_limit is not None:
            self._store.set_limits(memory_size=memory_limit)
        self._fuel = fuel
        self._lock = threading.RLock()
        self._depth = 0
        self._lost: Optional[BaseException] = None
        self._texts = threading.local()
        self._pool: Dict[int, List[int]] = {}
        self._garbage: Deque[Tuple[int, int]] = deque()
        self._refuel()
        try:
            exports = wasmtime.Instance(self._store, module, []).exports(self._store)
        except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
            raise ValueError("the module is none of blkmirror's: %s" % _last_line(error)) from error
        self._exports: Dict[str, Any] = {name: exports[name] for name in exports}
        self._check_exports()
        self._all = memoryview(b"")
        self._map()

    def _check_exports(self) -> None:
        for name, (result, arguments) in {**FUNCTIONS, **_ALLOCATOR}.items():
            export = self._exports.get(name)
            if export is None and name not in _REQUIRED:
                continue
            if not isinstance(export, wasmtime.Func):
                raise ValueError("the module has no function %s: it is none of blkmirror's" % name)
            type = export.type(self._store)
            if type.params != _value_types(arguments) or type.results != _value_types(result):
                raise ValueError("the module's %s takes other arguments: it is of another version" % name)
        for name, kind in (("memory", wasmtime.Memory), (_TABLE, wasmtime.Table)):
            if not isinstance(self._exports.get(name), kind):
                raise ValueError("the module exports no %s: it is none of blkmirror's" % name)

    # Calls.

    def function(self, name: str) -> Callable[..., int]:
        export, result = self._exports.get(name), FUNCTIONS[name][0]
        mask = _MASKS[result]

        def call(*arguments: int) -> int:
            if self._lost is not None and name.endswith("_free"):
                # There is nothing left to free.
                return 0
            if export is None and self._lost is None:
                self._texts.last = "%s: the WebAssembly module has no such function" % name
                return -errno.ENOSYS
            # What is no number is found out here, where it does no harm.
            return self._enter(export, tuple(map(operator.index, arguments)), mask, result == "i")

        return call

    def _enter(self, export: Any, arguments: "Tuple[int, ...]", mask: int, fails: bool) -> int:
        with self._inside():
            answer = (self._run(export, arguments) or 0) & mask
            if fails and answer < 0:
                # The module knows no threads: what it says is told on this one.
                self._texts.last = self.text(self._run(self._exports["mirror_last_error"], ()) & _MASKS["p"])
            return answer

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Where the module and its store may be used, by one thread at a time."""
        outermost = False
        try:
            with self._lock:
                outermost = self._depth == 0
                self._check_whole()
                yield
        except BaseException:
            if outermost and self._lost is not None:
                self._let_all_go()
            raise

    def _run(self, export: Any, arguments: "Tuple[int, ...]") -> Any:
        """A call, from inside."""
        if self._depth == 0:
            self._refuel()
        self._depth += 1
        try:
            return export(self._store, *arguments)
        except Exception as error:
            # A trap; or what has torn through the module, out of a callback, is one.
            self._lost = self._lost or error
        except BaseException as error:
            self._lost = self._lost or error
            raise
        finally:
            self._depth -= 1
        self._check_whole()

    def _refuel(self) -> None:
        if self._fuel is not None:
            self._store.set_fuel(self._fuel)

    def _check_whole(self) -> None:
        if self._lost is not None:
            raise ModuleLost(self._epitaph()) from self._lost

    def _epitaph(self) -> str:
        assert self._lost is not None
        return "the WebAssembly module is lost: %s" % _last_line(self._lost)

    def _let_all_go(self) -> None:
        lost = ModuleLost(self._epitaph())
        while True:
            try:
                _, (_, on_lost) = self._kept.popitem()
            except KeyError:  # That was all.
                break
            if on_lost is not None:
                on_lost(lost)
        with self._lock:
            if self._depth == 0:
                # Whoever has a view of the memory keeps it.
                self._exports, self._store, self._all = {}, None, memoryview(b"")

    def lose(self, reason: str) -> None:
        """Ends the instance; what is called later says the reason."""
        with self._lock:
            if self._lost is None:
                self._lost = RuntimeError(reason)
        self._let_all_go()

    def last_error(self) -> str:
        return getattr(self._texts, "last", "")

    def clock_ns(self) -> int:
        return time.monotonic_ns()

    # Memory.

    def _map(self) -> None:
        with self._inside():
            memory: wasmtime.Memory = self._exports["memory"]
            length, base = memory.data_len(self._store), memory.data_ptr(self._store)
            array: Any = (c.c_uint8 * length).from_address(c.addressof(base.contents))
            array.store = self._store
            self._all = memoryview(array).cast("B")

    def memory_bytes(self) -> int:
        """How much memory it has."""
        self._map()
        return len(self._all)

    def _memory(self, address: int, length: int) -> memoryview:
        """These bytes. The module grows, and can't be trusted with what lies beyond it."""
        if address + length > len(self._all):
            self._map()
            if address + length > len(self._all):
                raise IndexError("%d bytes at %d are beyond the module's memory" % (length, address))
        return self._all[address : address + length]

    def _allocate(self, length: int) -> int:
        pool = self._pool.get(length)
        if pool:
            try:
                return pool.pop()
            except IndexError:  # A collection of garbage, or another thread, was faster.
                pass
        with self._inside():
            while self._garbage:
                self._run(self._exports[_FREE], (*self._garbage.pop(), _ALIGNMENT))
            address = int(self._run(self._exports[_ALLOC], (length, _ALIGNMENT))) & _MASKS["p"]
        if address == 0:
            raise MirrorError(errno.ENOMEM, "the WebAssembly module has no room for %d bytes" % length)
        return address

    def _give_back(self, address: int, length: int) -> None:
        if length <= _MOST_POOLED:
            self._pool.setdefault(length, []).append(address)
        else:
            self._garbage.append((address, length))

    def new(self, type: Any, count: int = 1) -> Cell:
        cell = _Values(self, type, count)
        if type in self.abi.sized:
            cell.value.struct_size = c.sizeof(type)
        return cell

    def at(self, type: Any, address: int) -> Any:
        return type.from_buffer(self._memory(address, c.sizeof(type)))

    def text(self, address: int) -> str:
        found, step = b"", 256
        while address and b"\0" not in found:
            at = address + len(found)
            found += bytes(self._memory(at, min(step, max(1, len(self._all) - at))))
        return found.split(b"\0")[0].decode("utf-8", "replace")

    def lend(self, view: memoryview) -> Loan:
        if view.readonly:
            raise TypeError("the buffer is read-only")
        return _Copy(self, view)

    def lend_copy(self, view: memoryview) -> Loan:
        copy = _Copy(self, view.toreadonly())
        copy.memory[:] = view
        return copy

    def views(self, iov: int, count: int) -> "List[memoryview]":
        parts = (self.abi.Iovec * count).from_buffer(self._memory(iov, c.sizeof(self.abi.Iovec) * count))
        return [self._memory(part.base, part.len) for part in parts]

    # Callbacks.

    def export(self, kind: str, call: Callable[..., Any]) -> int:
        result, arguments = CALLBACKS[kind]
        masks, me = [_MASKS[letter] for letter in arguments], weakref.ref(self)

        def enter(*values: int) -> Any:
            lib = me()
            # What was called from in here may have lost the module, whose calls must not go on.
            if lib is not None:
                lib._check_whole()
            answer = call(*(value & mask for value, mask in zip(values, masks)))
            if lib is not None:
                lib._check_whole()
            return answer

        with self._inside():
            type = wasmtime.FuncType(_value_types(arguments), _value_types(result))
            table: wasmtime.Table = self._exports[_TABLE]
            return int(table.grow(self._store, 1, wasmtime.Func(self._store, type, enter)))


@functools.lru_cache(maxsize=4)
def _compile(code: bytes, fuel: bool) -> Tuple[wasmtime.Engine, wasmtime.Module]:
    config = wasmtime.Config()
    config.memory_may_move = False
    config.consume_fuel = fuel
    engine = wasmtime.Engine(config)
    return engine, wasmtime.Module(engine, code)


def _value_types(letters: str) -> "List[wasmtime.ValType]":
    wide, narrow = wasmtime.ValType.i64, wasmtime.ValType.i32
    return [wide() if letter == "q" else narrow() for letter in letters if letter != "v"]


def _last_line(error: BaseException) -> str:
    """What went wrong. What comes before it says where, in the module."""
    return (str(error).strip().splitlines() or [repr(error)])[-1].strip()


class _Block:
    """Bytes in the module's memory. They go back when nobody has them any more: at any time, on any thread."""

    def __init__(self, lib: "Wasmtime", length: int) -> None:
        # Few sizes, so that what is kept fits.
        size = 1 << max(length - 1, 0).bit_length() if length <= _MOST_POOLED else length
        self._back, self._size, self.address = lib._give_back, size, 0
        self.address = lib._allocate(size)

    def close(self) -> None:
        address, self.address = self.address, 0
        if address:
            self._back(address, self._size)

    def __del__(self) -> None:
        self.close()


class _Values(Cell):
    def __init__(self, lib: "Wasmtime", type: Any, count: int) -> None:
        size = c.sizeof(type) * count
        self._block = _Block(lib, size)
        self.address = self._block.address
        self._values = (type * count).from_buffer(lib._memory(self.address, size))
        c.memset(c.addressof(self._values), 0, size)

    def __getitem__(self, index: int) -> Any:
        return self._values[index]

    def close(self) -> None:
        self._block.close()


class _Copy(Loan):
    """A block for a buffer of Python's, which the module can't reach; what it has put there is copied back."""

    def __init__(self, lib: "Wasmtime", view: memoryview) -> None:
        self._block, self._view, self.length = _Block(lib, len(view)), view, len(view)
        self.address = self._block.address
        self.memory = lib._memory(self.address, self.length)

    def fetch(self) -> None:
        if not self._view.readonly:
            self._view[:] = self.memory

    def close(self) -> None:
        self._block.close()
