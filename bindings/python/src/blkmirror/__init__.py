"""blkmirror: live block-device mirroring.

A mirror copies a live disk to another device, keeps the two equal while a guest goes on writing, and switches over::

    with FileDevice("old.img") as old, FileDevice("new.img", create=old.length) as new:
        with Filter(old) as disk, Job(disk, new) as job:
            job.start()
            job.run(until="ready")
            job.complete()
            job.run().check()

A :class:`Device` is where bytes are, a :class:`Filter` the live disk that guests use, a :class:`Job` copies one to the other. Errors are
:class:`MirrorError`.
"""

from typing import TYPE_CHECKING

from . import device, errors, events, filter, info, job, log, options
from ._ffi import lib as _lib
from .device import *  # noqa: F401,F403
from .errors import MirrorError
from .events import *  # noqa: F401,F403
from .filter import *  # noqa: F401,F403
from .info import *  # noqa: F401,F403
from .job import *  # noqa: F401,F403
from .log import *  # noqa: F401,F403
from .options import *  # noqa: F401,F403

__all__ = [
    "MirrorError",
    *device.__all__,
    *events.__all__,
    *filter.__all__,
    *info.__all__,
    *job.__all__,
    *log.__all__,
    *options.__all__,
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        # The shared library is loaded when it is first needed: :mod:`blkmirror.wasm` does without.
        if name == "__version__":
            return _lib.text(_lib.mirror_version_string())
        raise AttributeError("module 'blkmirror' has no attribute %r" % (name,))
