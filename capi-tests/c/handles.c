/* A handle of another type, a freed one, and what is none are refused. */
#include "disk.h"

int main(void) {
    disk *d = disk_new(65536, INLINE, 0), *t = disk_new(65536, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_info snapshot = {.struct_size = sizeof snapshot};
    uint64_t number;
    ok(mirror_filter_new(d->device, &filter));
    ok(mirror_job_new(filter, t->device, NULL, &job));

    err(EINVAL, "the mirror_filter handle is a mirror_device", mirror_filter_mark_dirty((mirror_filter *)d->device, 0, 1));
    err(EINVAL, "the mirror_job handle is a mirror_filter", mirror_job_start((mirror_job *)filter));
    err(EINVAL, "the mirror_device handle is a mirror_job", mirror_device_kick((mirror_device *)job));
    err(EINVAL, "the mirror_device handle is a mirror_filter", mirror_filter_new((mirror_device *)filter, &filter));
    err(EINVAL, "the mirror_job handle is a mirror_device", mirror_job_free((mirror_job *)d->device));
    mirror_filter_free((mirror_filter *)d->device); /* logged and otherwise nothing */
    mirror_device_free((mirror_device *)filter);
    ok(mirror_device_refused(d->device, &number));
    ok(mirror_filter_length(filter, &number));
    uint64_t words[8] = {0};
    err(EINVAL, "points to no handle", mirror_job_start((mirror_job *)words));
    err(EINVAL, "points to no handle", mirror_job_start((mirror_job *)((char *)words + 3)));

    ok(mirror_job_free(job));
    err(EINVAL, "the mirror_job handle was freed", mirror_job_query(job, &snapshot));
    err(EINVAL, "was freed", mirror_job_poll(job, 1, &number));
    err(EINVAL, "was freed", mirror_job_free(job));
    mirror_filter_free(filter);
    err(EINVAL, "the mirror_filter handle was freed", mirror_filter_length(filter, &number));
    mirror_filter_free(filter);
    mirror_device_free(d->device);
    err(EINVAL, "the mirror_device handle was freed", mirror_device_complete(d->device, 1, 0));
    err(EINVAL, "was freed", mirror_filter_new(d->device, &filter));
    mirror_device_free(d->device);
    eq(d->closed, 1);

    /* Also after hundreds of others were made and freed. */
    for (int i = 0; i < 500; i++) {
        mirror_device *other;
        ok(mirror_device_new_memory(0, &other));
        check(other != d->device);
        mirror_device_free(other);
    }
    err(EINVAL, "was freed", mirror_device_kick(d->device));
    free(d->bytes);
    free(d);
    disk_free(t);
    return done();
}
