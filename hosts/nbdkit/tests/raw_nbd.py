"""As much of an NBD client as it takes to leave in the middle of a request, which no library offers."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

WRITE = 1
MAGIC = 0x25609513


class RawClient:
    """A connection in the transmission phase."""

    def __init__(self, path: Path, timeout: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(str(path))
        assert self.read(16) == b"NBDMAGICIHAVEOPT"
        self.read(2)
        # Fixed newstyle, no zeroes; the empty export, by the option that can't be refused.
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        (self.length,) = struct.unpack(">Q", self.read(8))
        self.read(2)

    def read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            assert more, "the server has hung up"
            data += more
        return data

    def begin_write(self, offset: int, length: int, first: bytes) -> None:
        """Announces a write of `length` bytes and sends the first of them."""
        self.socket.sendall(struct.pack(">IHHQQI", MAGIC, 0, WRITE, 7, offset, length) + first)

    def close(self) -> None:
        self.socket.close()
