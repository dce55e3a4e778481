/* SPEC C-13: a target takes data over from a source that was made with the same `copy`; what fails is copied through buffers. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, PIECE = 65536 };

static int answer, asked;

static int copy(void *opaque, uint64_t token, void *source, uint64_t offset, uint64_t length) {
    (void)token;
    disk *to = opaque, *from = source;
    asked++;
    if (answer < 0)
        return answer;
    memcpy(to->bytes + offset, from->bytes + offset, length);
    return MIRROR_DONE;
}

static int other_copy(void *opaque, uint64_t token, void *source, uint64_t offset, uint64_t length) {
    return copy(opaque, token, source, offset, length);
}

/* A second handle to the same bytes, with a `copy`. */
static mirror_device *with_copy(disk *d, int (*how)(void *, uint64_t, void *, uint64_t, uint64_t)) {
    mirror_device_ops ops = {.struct_size = sizeof ops, .read = disk_read, .write = disk_write, .copy = how};
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = LENGTH};
    mirror_device *device;
    ok(mirror_device_new(&ops, &limits, d, &device));
    return device;
}

static mirror_job_info mirrored(disk *source, disk *target, mirror_device *from, mirror_device *to, uint32_t without) {
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.max_io = PIECE, o.flags &= ~without;
    memset(target->bytes, 0, LENGTH);
    ok(mirror_filter_new(from, &filter));
    ok(mirror_job_new(filter, to, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    mirror_job_info told = info(job);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    mirror_job_free(job);
    mirror_filter_free(filter);
    return told;
}

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    mirror_device *from = with_copy(source, copy), *to = with_copy(target, copy), *other = with_copy(target, other_copy);

    mirror_job_info told = mirrored(source, target, from, to, 0);
    eq(told.copies.bytes, LENGTH);
    eq(told.copies.errors, 0);
    eq(told.reads.ops, 0);
    eq(asked, (int)told.copies.ops);

    asked = 0;
    told = mirrored(source, target, from, to, MIRROR_JOB_COPY_OFFLOAD);
    eq(told.copies.ops, 0);
    eq(told.writes.bytes, LENGTH);
    told = mirrored(source, target, from, other, 0);
    eq(told.copies.ops, 0);
    told = mirrored(source, target, from, target->device, 0);
    eq(told.copies.ops, 0);
    eq(asked, 0);

    answer = -5; /* EIO: that range, each time */
    told = mirrored(source, target, from, to, 0);
    eq(told.copies.errors, told.copies.ops);
    eq(told.writes.bytes, LENGTH);
    eq(told.errors, 0);
    check(told.copies.ops > 1);

    answer = -95, asked = 0; /* EOPNOTSUPP: those that were under way, no more */
    told = mirrored(source, target, from, to, 0);
    eq(told.writes.bytes, LENGTH);
    check(asked >= 1 && told.copies.ops < LENGTH / PIECE);
    check(strcmp(mirror_operation_name(MIRROR_OP_COPY), "copy") == 0);

    mirror_device_free(from);
    mirror_device_free(to);
    mirror_device_free(other);
    disk_free(source);
    disk_free(target);
    return done();
}
