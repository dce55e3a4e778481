/* SPEC D-3: a completion that names no open request is refused, counted and harmless. */
#include "disk.h"

static uint64_t token;

static void note(disk *d, const request *r) {
    (void)d;
    token = r->token;
}

int main(void) {
    disk *d = disk_new(65536, LATER, 0);
    d->on_request = note;
    mirror_filter *filter;
    ok(mirror_filter_new(d->device, &filter));
    uint8_t bytes[512] = {1};
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome first = {0, 1}, second = {0, 1}, third = {0, 1};
    const char *text = "no request with this token is out";

    err(ENOENT, text, mirror_device_complete(d->device, 0, 0));
    err(ENOENT, text, mirror_device_complete(d->device, UINT64_MAX, 0));
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &first));
    uint64_t stale = token;
    err(ENOENT, text, mirror_device_complete(d->device, stale ^ (1ull << 30), 0));
    err(ENOENT, text, mirror_device_extent(d->device, stale, 512, MIRROR_EXTENT_DATA));
    eq(told(&first), 0);
    check(disk_finish(d, 0));
    eq(told(&first), 1);
    err(ENOENT, text, mirror_device_complete(d->device, stale, 0));

    /* The next request in the same slot has another name. */
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &second));
    check(token != stale);
    err(ENOENT, text, mirror_device_complete(d->device, stale, -EIO));
    eq(told(&second), 0);
    ok(mirror_device_complete(d->device, token, -ENOSPC));
    eq(told(&second), 1);
    eq(second.result, -ENOSPC);
    err(ENOENT, text, mirror_device_complete(d->device, token, 0));
    eq(told(&second), 1);
    uint64_t refused;
    ok(mirror_device_refused(d->device, &refused));
    eq(refused, 7);

    /* SPEC D-6: nonsense is a failure. */
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &third));
    ok(mirror_device_complete(d->device, token, 5));
    eq(third.result, -EIO);
    mirror_filter_free(filter);
    disk_free(d);
    return done();
}
