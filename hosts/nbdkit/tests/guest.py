"""A guest, run by nbdsh: writes its part of the disk at random and knows what must be there.

It checks what it reads all the while. Each line on its standard input is answered with how many requests it has made; at
the end of the input it flushes, saves what its part must hold, and says "done".
"""

import os
import random
import select
import sys

BEGIN, END = int(os.environ["GUEST_BEGIN"]), int(os.environ["GUEST_END"])
draw = random.Random(int(os.environ["GUEST_SEED"]))
model = bytearray(h.pread(END - BEGIN, BEGIN))  # noqa: F821: nbdsh has the handle
requests = 0


def some_range(longest):
    length = draw.choice([draw.randint(1, 600), 4096, draw.randint(1, longest)])
    if draw.random() < 0.5:
        length = max(512, length // 512 * 512)
        return draw.randrange(0, END - BEGIN - length + 1, 512), length
    return draw.randint(0, END - BEGIN - length), length


def write(nbd):
    at, length = some_range(65536)
    data = bytes([draw.randrange(256)]) * (length // 2) + draw.randbytes(length - length // 2)
    h.pwrite(data, BEGIN + at, nbd.CMD_FLAG_FUA if draw.random() < 0.1 else 0)  # noqa: F821
    model[at : at + length] = data


def zero(nbd):
    at, length = some_range(262144)
    h.zero(length, BEGIN + at, draw.choice([0, nbd.CMD_FLAG_NO_HOLE]))  # noqa: F821
    model[at : at + length] = bytes(length)


def trim(nbd):
    at, length = some_range(262144)
    h.trim(length, BEGIN + at)  # noqa: F821
    # What is there now is anybody's guess, so it is written.
    model[at : at + length] = bytes(length)
    h.pwrite(bytes(length), BEGIN + at)  # noqa: F821


def read(nbd):
    at, length = some_range(65536)
    found = h.pread(length, BEGIN + at)  # noqa: F821
    if found != model[at : at + length]:
        place = next(i for i in range(length) if found[i] != model[at + i])
        sys.exit("request %d: at %d: %d, not %d" % (requests, BEGIN + at + place, found[place], model[at + place]))


def flush(nbd):
    h.flush()  # noqa: F821


def run(nbd):
    global requests
    kinds = [write] * 10 + [read] * 6 + [zero] * 2 + [trim, flush]
    while True:
        draw.choice(kinds)(nbd)
        requests += 1
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                break
            print(requests, flush=True)
    h.flush()  # noqa: F821
    if bytes(model) != h.pread(END - BEGIN, BEGIN):  # noqa: F821
        sys.exit("at the end the disk holds something else")
    with open(os.environ["GUEST_MODEL"], "wb") as file:
        file.write(model)
    print("done", flush=True)


import nbd  # noqa: E402

run(nbd)
