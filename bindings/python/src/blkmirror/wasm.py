"""The library as a WebAssembly module, in a sandbox of wasmtime's (``pip install blkmirror[wasm]``).

The classes are the same; only what is made first, a device, is made in a module::

    module = Module("blkmirror.wasm", memory_limit=64 << 20)
    with module.MemoryDevice(1 << 20) as old, module.bind(Mine)(...) as new:
        with Filter(old) as disk, Job(disk, new) as job:
            job.start()
            job.run(until="ready")

What the module has not is an operating system: there are no files (:class:`blkmirror.FileDevice` is refused with
``EOPNOTSUPP``) and a job has no descriptor (:meth:`blkmirror.Job.fileno` too, and ``run`` waits for the wake hook instead). The
time that ``poll`` isn't told is Python's ``time.monotonic_ns``.

Memory: buffers of guests are copied into the module's memory and out of it. The buffers that a device in Python gets are the
module's memory itself, as good for as long as natively.

Threads: calls from any thread, of which one at a time is let into a module; the callbacks of a device run inside such a call.
So a callback that waits for another thread, which waits to be let in, waits for ever.

A module that fails inside (:class:`ModuleLost`) takes the filters and jobs in it along, but not the devices in Python.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Type, TypeVar, Union

from .device import BaseDevice, Device, FileDevice, MemoryDevice, NullDevice
from .filter import Filter
from .job import Job
from .log import LogLevel, Sink, send_log

try:
    from ._wasmtime import ModuleLost, Wasmtime
except ImportError as error:
    raise ImportError("blkmirror.wasm needs wasmtime 45 or later: pip install 'blkmirror[wasm]'") from error

__all__ = ["Module", "ModuleLost"]

D = TypeVar("D", bound=BaseDevice)


class Module:
    """An instance of ``blkmirror.wasm``, named by its path, or its bytes. Close it, or use it in a ``with`` statement.

    ``memory_limit``: most bytes of memory that it may have. ``fuel``: how much one call may do, in wasmtime's unit, about an
    instruction each; a call that wants more loses the module.

    A module is compiled once, however many instances are made of it.
    """

    Device: Type[Device]
    """:class:`blkmirror.Device`, bound to this instance; so are the others."""
    FileDevice: Type[FileDevice]
    MemoryDevice: Type[MemoryDevice]
    NullDevice: Type[NullDevice]
    Filter = Filter
    """:class:`blkmirror.Filter` itself: it is where its device is."""
    Job = Job
    """:class:`blkmirror.Job` itself: it is where its filter is."""

    def __init__(
        self,
        source: "Union[str, os.PathLike[str], bytes]",
        *,
        memory_limit: Optional[int] = None,
        fuel: Optional[int] = None,
    ) -> None:
        code = source if isinstance(source, bytes) else Path(source).read_bytes()
        self._lib = Wasmtime(code, memory_limit, fuel)
        self.Device, self.FileDevice = self.bind(Device), self.bind(FileDevice)
        self.MemoryDevice, self.NullDevice = self.bind(MemoryDevice), self.bind(NullDevice)

    def bind(self, device: Type[D]) -> Type[D]:
        """A class like this one, whose devices are in this instance."""
        inside: Type[D] = type(device.__name__, (device,), {"_lib": self._lib, "__doc__": device.__doc__})
        return inside

    def set_log(self, sink: Optional[Sink], level: LogLevel = LogLevel.WARN) -> None:
        """:func:`blkmirror.set_log` for this instance, which has a sink of its own."""
        send_log(self._lib, sink, level)

    @property
    def version(self) -> str:
        """The version of the library inside."""
        return self._lib.text(self._lib.mirror_version_string())

    @property
    def memory(self) -> int:
        """Bytes of memory that it has now. It never has fewer than before."""
        return self._lib.memory_bytes()

    def close(self) -> None:
        """Ends the instance with all that is in it. A second time is harmless."""
        self._lib.lose("it was closed")

    def __enter__(self) -> "Module":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
