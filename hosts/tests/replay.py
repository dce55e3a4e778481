#!/usr/bin/env python3
"""Whether the images of an example hold what they must: replay.py ORIGINAL OLD NEW WRITES

A guest's n-th write fills block 7919 * n, modulo the disk's, with the number n (hosts/examples/guest.h). The new image must
hold the original with all writes, in order; the old one the original with those up to the switch: some, and not all.
"""

import sys

BLOCK = 4096


def content(n: int) -> bytes:
    return n.to_bytes(8, sys.byteorder) * (BLOCK // 8)


def replayed(original: bytes, writes: int) -> bytearray:
    image = bytearray(original)
    blocks = len(image) // BLOCK
    # As many as there are blocks: those before have all been written over.
    for n in range(max(1, writes - blocks + 1), writes + 1):
        at = 7919 * n % blocks * BLOCK
        image[at : at + BLOCK] = content(n)
    return image


def last_write(original: bytes, image: bytes) -> int:
    """The largest number of a write that the image holds."""
    blocks = range(0, len(image), BLOCK)
    changed = [image[at : at + BLOCK] for at in blocks if image[at : at + BLOCK] != original[at : at + BLOCK]]
    return max((int.from_bytes(block[:8], sys.byteorder) for block in changed), default=0)


def main() -> None:
    original, old, new = (open(path, "rb").read() for path in sys.argv[1:4])
    writes = int(sys.argv[4])
    if new != replayed(original, writes):
        sys.exit(f"{sys.argv[3]} is not the original with {writes} writes")
    until = last_write(original, old)
    if not 0 < until < writes:
        sys.exit(f"the old image was written to {until} times of {writes}: no switch in between")
    if old != replayed(original, until):
        sys.exit(f"{sys.argv[2]} is not the original with the {until} writes before the switch")
    print(f"{writes} writes, switched after {until}")


main()
