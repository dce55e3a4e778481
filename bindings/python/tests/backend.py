"""What the tests test: ``b``, the package over the shared library, or with ``BLKMIRROR_BACKEND=wasm`` over the WebAssembly module.

``lib`` is the library underneath. What the module doesn't have is marked here, and asserted to be refused in words.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, TypeVar, cast

CHECKOUT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(CHECKOUT / "bindings" / "python" / "src"))

__all__ = ["CHECKOUT", "WASM", "b", "lib", "module_path", "needs_files", "over_module"]

import blkmirror  # noqa: E402
from blkmirror import _ffi  # noqa: E402

WASM = os.environ.get("BLKMIRROR_BACKEND", "native") == "wasm"


def module_path() -> Path:
    """Where the WebAssembly module is: ``BLKMIRROR_WASM``, or where `make wasm` puts it."""
    built = Path(os.environ.get("CARGO_TARGET_DIR", str(CHECKOUT / "target"))) / "wasm"
    return Path(os.environ.get("BLKMIRROR_WASM", str(built / "blkmirror.wasm")))


def over_module() -> Any:
    """The package with its devices in an instance of the module."""
    from blkmirror.wasm import Module

    module = Module(module_path())
    inside = ("Device", "FileDevice", "MemoryDevice", "NullDevice", "set_log")
    names = {name: getattr(blkmirror, name) for name in blkmirror.__all__}
    return SimpleNamespace(**{**names, **{name: getattr(module, name) for name in inside}})


if TYPE_CHECKING:
    import blkmirror as b
else:
    b = over_module() if WASM else blkmirror

lib = b.MemoryDevice._lib if WASM else _ffi.lib

T = TypeVar("T", bound=Callable[..., None])


def needs_files(test: T) -> T:
    """A test of files, which the module has none of: it says so."""

    @functools.wraps(test)
    def refused(self: Any) -> None:
        with self.assertRaises(b.MirrorError) as caught:
            b.FileDevice("any")
        self.assertEqual(caught.exception.errno, errno.EOPNOTSUPP)
        self.assertIn("built without file devices", str(caught.exception))

    return cast(T, refused) if WASM else test
