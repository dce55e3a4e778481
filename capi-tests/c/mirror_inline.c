/* A host that finishes everything at once: the disk is copied, the guest is switched, and writes to the target. */
#include "disk.h"

enum { LENGTH = 3 * 1024 * 1024 + 512 };

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 1), *target = disk_new(LENGTH, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, NULL, &job));
    eq(info(job).status, MIRROR_STATUS_CREATED);
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    eq(info(job).done, LENGTH);
    eq(info(job).total, LENGTH);
    eq(info(job).dirty, 0);

    guest_write(filter, 5000, 0xa5, 10000);
    check(source->bytes[5000] == 0xa5);
    check(info(job).dirty >= 10000);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);

    int writes = source->count[MIRROR_OP_WRITE];
    guest_write(filter, 0, 0x11, 512);
    eq(target->bytes[0], 0x11);
    check(source->bytes[0] != 0x11);
    eq(source->count[MIRROR_OP_WRITE], writes);

    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
    return done();
}
