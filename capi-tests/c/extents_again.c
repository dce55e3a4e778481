/* SPEC D-2, D-6: what a device tells of extents before it says AGAIN doesn't count; it will tell all when asked again. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, HOLE = 65536 };

static int asked;

static int extents(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    disk *d = opaque;
    eq(offset, 0);
    eq(length, LENGTH);
    eq(ok(mirror_device_extent(d->device, token, HOLE, MIRROR_EXTENT_ZERO)), 0);
    if (++asked <= 2)
        return MIRROR_AGAIN;
    eq(ok(mirror_device_extent(d->device, token, LENGTH - HOLE, MIRROR_EXTENT_DATA | MIRROR_EXTENT_ALLOCATED)), 0);
    return MIRROR_DONE;
}

int main(void) {
    mirror_device_ops ops = disk_ops();
    ops.extents = extents;
    disk *source = disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, INLINE, 1);
    disk *target = disk_new(LENGTH, INLINE, 0);
    memset(source->bytes, 0, HOLE);
    mirror_filter *filter;
    mirror_job *job;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, NULL, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    eq(asked, 3);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
    return done();
}
