/* SPEC I-4, I-5, O-5: which zeroes the host's device is asked for, and with which flags. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, DATA = 256 * 1024 };

static int unmapping, keeping;

static void note(disk *d, const request *r) {
    (void)d;
    if (r->op == MIRROR_OP_ZERO) {
        unmapping += (r->flags & MIRROR_MAY_UNMAP) != 0;
        keeping += (r->flags & MIRROR_MAY_UNMAP) == 0;
        eq(r->flags & ~(uint32_t)MIRROR_MAY_UNMAP, 0);
    }
}

/* Only the first DATA bytes hold data; the rest is a hole, or zeroes that were written. */
static int extents(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    disk *d = opaque;
    if (offset < DATA) {
        uint64_t data = DATA - offset < length ? DATA - offset : length;
        ok(mirror_device_extent(d->device, token, data, MIRROR_EXTENT_DATA | MIRROR_EXTENT_ALLOCATED));
        offset += data, length -= data;
    }
    if (length > 0)
        ok(mirror_device_extent(d->device, token, length, MIRROR_EXTENT_ZERO));
    return MIRROR_DONE;
}

typedef struct { int zeroes, unmapping; uint64_t written, skipped; } seen;

static seen mirror(bool tells_extents, uint32_t limits, uint32_t set, uint32_t clear) {
    mirror_device_ops ops = disk_ops();
    ops.extents = tells_extents ? extents : NULL;
    disk *source = disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, INLINE, 0);
    disk *target = disk_new_with(disk_ops(), (mirror_device_limits){.length = LENGTH, .flags = limits}, INLINE, 0);
    memset(source->bytes, 0x42, DATA);
    if (!(set & MIRROR_JOB_TARGET_IS_ZERO) && !(limits & MIRROR_LIMIT_READS_ZERO))
        memset(target->bytes, 0xdd, LENGTH);
    target->on_request = note;
    unmapping = keeping = 0;
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.max_io = 65536;
    o.flags = (o.flags | set) & ~clear;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    mirror_job_info i = info(job);
    eq(i.zeroes.ops, unmapping + keeping);
    eq(i.done, i.total);
    seen s = {unmapping + keeping, unmapping, i.writes.bytes, i.skipped_zeroes};
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
    return s;
}

int main(void) {
    /* Nothing is known: the zeroes are found in what was read, and sent as zeroes that may deallocate. */
    seen s = mirror(false, 0, 0, 0);
    eq(s.written, DATA);
    check(s.zeroes > 0 && s.unmapping == s.zeroes);
    /* Not looked for, they are written. */
    s = mirror(false, 0, 0, MIRROR_JOB_DETECT_ZEROES);
    eq(s.written, LENGTH);
    eq(s.zeroes, 0);
    /* Without leave to deallocate. */
    s = mirror(false, 0, 0, MIRROR_JOB_UNMAP);
    eq(s.written, DATA);
    check(s.zeroes > 0 && s.unmapping == 0);
    /* The source tells: they aren't even read. */
    s = mirror(true, 0, 0, MIRROR_JOB_DETECT_ZEROES);
    eq(s.written, DATA);
    check(s.zeroes > 0 && s.unmapping == s.zeroes);
    s = mirror(true, 0, 0, MIRROR_JOB_UNMAP);
    check(s.zeroes > 0 && s.unmapping == 0);
    /* The target is zero, as the caller or the device says: none is sent. */
    s = mirror(true, 0, MIRROR_JOB_TARGET_IS_ZERO, 0);
    eq(s.written, DATA);
    eq(s.zeroes, 0);
    s = mirror(true, MIRROR_LIMIT_READS_ZERO, 0, 0);
    eq(s.zeroes, 0);
    s = mirror(false, 0, MIRROR_JOB_TARGET_IS_ZERO, 0);
    eq(s.zeroes, 0);
    eq(s.skipped, LENGTH - DATA);
    /* Zeroing is cheap: the whole target is zeroed first, in one go, unless it must not be deallocated. */
    s = mirror(true, MIRROR_LIMIT_CHEAP_ZERO, 0, 0);
    eq(s.zeroes, 1);
    eq(s.unmapping, 1);
    eq(s.written, DATA);
    s = mirror(true, MIRROR_LIMIT_CHEAP_ZERO, 0, MIRROR_JOB_UNMAP);
    check(s.zeroes > 0 && s.unmapping == 0);
    return done();
}
