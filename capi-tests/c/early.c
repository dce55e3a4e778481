/* SPEC D-2: a completion inside the callback, before that answers PENDING, is a completion. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

int main(void) {
    disk *source = disk_new(LENGTH, EARLY, 3), *target = disk_new(LENGTH, EARLY, 0);
    mirror_filter *filter;
    mirror_job *job;
    uint64_t refused = 1;
    ok(mirror_filter_new(source->device, &filter));
    guest_write(filter, 512, 9, 512);
    ok(mirror_job_new(filter, target->device, NULL, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_device_refused(source->device, &refused));
    eq(refused, 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
    return done();
}
