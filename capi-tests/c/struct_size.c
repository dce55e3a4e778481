/* SPEC O-6: structures of other sizes: too small is refused, larger is taken while what is unknown is zero. */
#include "disk.h"

typedef struct { mirror_job_options known; uint64_t newer[4]; } newer_options;
typedef struct { mirror_device_ops known; void *newer[2]; } newer_ops;
typedef struct { mirror_job_info known; uint64_t newer[4]; } newer_info;

int main(void) {
    disk *d = disk_new(65536, INLINE, 0), *t = disk_new(65536, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job = NULL;
    mirror_device *device = NULL;
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = 4096};
    ok(mirror_filter_new(d->device, &filter));

    newer_options o;
    memset(&o, 0xee, sizeof o);
    ok(mirror_job_options_init(&o.known, sizeof o));
    eq(o.known.struct_size, sizeof o);
    eq(o.newer[3], 0); /* what this library doesn't know is zero */
    o.newer[2] = 1;
    err(EINVAL, "newer field", mirror_job_new(filter, t->device, &o.known, &job));
    o.newer[2] = 0;
    ok(mirror_job_new(filter, t->device, &o.known, &job));
    o.known.struct_size = 8;
    err(EINVAL, "mirror_job_options.struct_size 8: must be sizeof", mirror_job_new(filter, t->device, &o.known, &job));
    o.known.struct_size = 0;
    err(EINVAL, "mirror_job_options.struct_size 0", mirror_job_new(filter, t->device, &o.known, &job));
    o.known.struct_size = SIZE_MAX;
    err(EINVAL, "mirror_job_options.struct_size", mirror_job_new(filter, t->device, &o.known, &job));
    err(EINVAL, "struct_size 16", mirror_job_options_init(&o.known, 16));

    newer_ops ops = {.known = disk_ops()};
    ops.known.close = NULL;
    ops.known.struct_size = sizeof ops;
    ok(mirror_device_new(&ops.known, &limits, NULL, &device));
    mirror_device_free(device);
    ops.newer[0] = &ops;
    err(EINVAL, "mirror_device_ops byte", mirror_device_new(&ops.known, &limits, NULL, &device));
    ops.known.struct_size = offsetof(mirror_device_ops, close);
    err(EINVAL, "mirror_device_ops.struct_size", mirror_device_new(&ops.known, &limits, NULL, &device));
    ops.known.struct_size = sizeof ops.known;
    limits.struct_size = sizeof limits - 1;
    err(EINVAL, "mirror_device_limits.struct_size", mirror_device_new(&ops.known, &limits, NULL, &device));
    err(EINVAL, "mirror_device_limits.struct_size", mirror_device_query(d->device, &limits));

    newer_info seen;
    memset(&seen, 0xee, sizeof seen);
    seen.known.struct_size = sizeof seen;
    ok(mirror_job_query(job, &seen.known));
    eq(seen.known.struct_size, sizeof seen);
    eq(seen.known.status, MIRROR_STATUS_CREATED);
    eq(seen.newer[0], 0);
    /* A host of the first version is told what that had, and nothing is written beyond it. */
    mirror_job_info older;
    memset(&older, 0xee, sizeof older);
    older.struct_size = offsetof(mirror_job_info, bounce_copies);
    ok(mirror_job_query(job, &older));
    eq(older.granularity, 4096);
    eq(older.bounce_copies, 0xeeeeeeeeeeeeeeeeull);
    mirror_job_info small = {.struct_size = 100};
    err(EINVAL, "mirror_job_info.struct_size 100", mirror_job_query(job, &small));
    mirror_event event = {.struct_size = 4, .type = 77};
    err(EINVAL, "mirror_event.struct_size 4", mirror_job_next_event(job, &event));
    eq(event.type, 77);

    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(d);
    disk_free(t);
    return done();
}
