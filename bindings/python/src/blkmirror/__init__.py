"""blkmirror: live block-device mirroring.

A mirror copies a live disk to another device, keeps the two equal while a guest goes on writing, and switches over::

    with FileDevice("old.img") as old, FileDevice("new.img", create=old.length) as new:
        with Filter(old) as disk, Job(disk, new) as job:
            job.start()
            job.run(until="ready")
            job.complete()
            job.run()
"""

from . import device, errors, filter, job
from ._ffi import lib as _lib
from .device import *  # noqa: F401,F403
from .errors import MirrorError
from .filter import *  # noqa: F401,F403
from .job import *  # noqa: F401,F403

__version__ = _lib.mirror_version_string().decode()
__all__ = ["MirrorError", *device.__all__, *filter.__all__, *job.__all__]
