"""The programs that take part: which are here, which versions, and what a run of one costs."""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence

from .measure import Failed, Sample

GIB = 1 << 30

# Debian's packages, by program.
PACKAGES = {
    "qemu-storage-daemon": "qemu-system-common or qemu-utils",
    "qemu-img": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "nbdkit": "nbdkit",
    "fio": "fio",
    "dd": "coreutils",
    "cp": "coreutils",
    "taskset": "util-linux",
}
VERSION_OPTION = "--version"


def missing(needs: Iterable[str]) -> list[str]:
    return [name for name in needs if shutil.which(name) is None]


def versions() -> dict[str, str]:
    """The first line that each program says of itself."""
    found = {}
    for name in PACKAGES:
        if shutil.which(name) is not None:
            said = subprocess.run([name, VERSION_OPTION], capture_output=True, text=True, check=False).stdout
            found[name] = said.splitlines()[0] if said else "?"
    return found


def machine() -> str:
    """In a line: processor, memory, system."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    return f"{os.cpu_count()} processors ({model}), {memory:.0f} GiB, {platform.system()} {release}"


def timed(command: Sequence[str | os.PathLike[str]], timeout: float = 900) -> Sample:
    """Seconds, and processor time of the program and of those that it has started and waited for."""
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        status, usage = wait(child, began + timeout)
        seconds = time.monotonic() - began
        if status != 0:
            said.seek(0)
            raise Failed(f"{command[0]}: status {status}: {said.read().decode(errors='replace').strip()[-300:]}")
    return {"seconds": seconds, "cpu_s": usage}


def wait(child: subprocess.Popen[bytes], deadline: float) -> tuple[int, float]:
    """Its exit status and processor seconds. It is ended if it takes too long."""
    pause = 0.0005
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode, usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            child.kill()
            deadline = float("inf")
        time.sleep(pause)


def forget(path: pathlib.Path) -> None:
    """Writes a file to the disk and takes it out of the page cache. Programs stay there: those that are started anew for each
    copy are not to be read from the disk for it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_text(size: int) -> str:
    """In whole units, as far as it goes: `64 KiB`, `4 GiB`."""
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0 and size:
            return f"{size // unit} {name}"
    return f"{size} bytes"
