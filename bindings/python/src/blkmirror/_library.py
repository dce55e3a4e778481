"""The library as the classes of this package use it, wherever it runs: as a shared library, or as a WebAssembly module."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any, Callable, Dict, List, Optional, Tuple

from ._abi import Abi
from .errors import MirrorError


class Cell(ABC):
    """Room for one value, or several one after the other, in the library's memory, until it is closed."""

    address: int

    @abstractmethod
    def __getitem__(self, index: int) -> Any:
        """The value of this number: a number, or a structure that shares the memory."""

    @property
    def value(self) -> Any:
        """The first value."""
        return self[0]

    def close(self) -> None:
        """Gives the room back."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Loan(ABC):
    """A buffer of Python's that the library may use, until it is closed."""

    address: int
    length: int

    def fetch(self) -> None:
        """What the library has put there is in Python's buffer after this."""

    def close(self) -> None:
        """The library doesn't use it any more."""


class Library(ABC):
    """One instance of the library. Its functions are attributes, which take and answer whole numbers only.

    Pointers are addresses in the library's own memory; :meth:`new`, :meth:`lend`, :meth:`at` and :meth:`views` lead there.

    What is called back is found by its opaque pointer: a number that :meth:`keep` gives for a thing. There is one callback
    for each function of this package, whatever number of things there are, so that nothing has to be freed from inside
    itself.
    """

    def __init__(self, abi: Abi) -> None:
        self.abi = abi
        self._numbers = itertools.count(1)
        self._kept: Dict[int, Tuple[Any, Optional[Callable[[BaseException], None]]]] = {}
        self._callbacks: Dict[Tuple[str, Callable[..., Any]], int] = {}

    # Calls.

    @abstractmethod
    def function(self, name: str) -> Callable[..., int]:
        """The function of this name."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("mirror_"):
            raise AttributeError(name)
        function = self.function(name)
        setattr(self, name, function)
        return function

    @abstractmethod
    def last_error(self) -> str:
        """Why this thread's last call failed."""

    @abstractmethod
    def clock_ns(self) -> int:
        """The time that jobs are polled with, if nobody else tells them."""

    def check(self, answer: int) -> int:
        """Returns an answer of the library, or raises what it says."""
        if answer < 0:
            raise MirrorError(-answer, self.last_error())
        return answer

    # Memory.

    @abstractmethod
    def new(self, type: Any, count: int = 1) -> Cell:
        """Zeroes for as many values of this ctypes type. A structure that tells its size does."""

    @abstractmethod
    def at(self, type: Any, address: int) -> Any:
        """A structure of the library's, which shares its memory."""

    @abstractmethod
    def text(self, address: int) -> str:
        """A text of the library's."""

    @abstractmethod
    def lend(self, view: memoryview) -> Loan:
        """Bytes that the library may fill."""

    def lend_data(self, view: memoryview) -> Loan:
        """Bytes that the library may read; a copy, if it can't get at them."""
        return self.lend_copy(view)

    @abstractmethod
    def lend_copy(self, view: memoryview) -> Loan:
        """A copy of bytes that the library may read."""

    @abstractmethod
    def views(self, iov: int, count: int) -> "List[memoryview]":
        """The buffers of a request, without a copy."""

    # Callbacks.

    def keep(self, thing: Any, on_lost: Optional[Callable[[BaseException], None]] = None) -> int:
        """The opaque pointer that stands for a thing. ``on_lost``: whom to tell if the library is lost, with all in it."""
        while True:
            number = next(self._numbers) & 0xFFFF_FFFF
            # Those of long ago may be in use still.
            if number and number not in self._kept:
                self._kept[number] = thing, on_lost
                return number

    def let_go(self, number: int) -> Any:
        """The thing that this number stood for; ``None`` if there is none."""
        thing, _ = self._kept.pop(number, (None, None))
        return thing

    def thing(self, number: int) -> Any:
        """The thing that this number stands for."""
        return self._kept[number][0]

    @property
    def kept(self) -> int:
        """How many things the library may still call."""
        return len(self._kept)

    def callback(self, kind: str, function: Callable[..., Any]) -> int:
        """A pointer to a function, which gets the thing in the opaque pointer's place."""
        return self._callbacks.get((kind, function)) or self._export(kind, function, dict.__getitem__)

    def farewell(self, kind: str, function: Callable[..., Any]) -> int:
        """A pointer to a function that is called last of all for its thing."""
        return self._callbacks.get((kind, function)) or self._export(kind, function, dict.pop)

    def _export(self, kind: str, function: Callable[..., Any], find: Callable[..., Any]) -> int:
        kept = self._kept

        def call(number: int, *arguments: int) -> Any:
            return function(find(kept, number)[0], *arguments)

        # Two threads may make two; the one that isn't kept here is as good.
        return self._callbacks.setdefault((kind, function), self.export(kind, call))

    @abstractmethod
    def export(self, kind: str, call: Callable[..., Any]) -> int:
        """A pointer, good for as long as the library is, to a Python function of this kind of callback.

        The function doesn't know the library, so that that can go.
        """
