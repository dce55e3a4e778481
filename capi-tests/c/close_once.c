/* Each opaque pointer's hook is told exactly once, also when the call that took the pointer fails. */
#include "disk.h"

static int closed;
static void note(void *opaque) { closed++, ++*(int *)opaque; }
static void nothing(void *opaque) { (void)opaque; }
static void nowhere(void *opaque, uint32_t level, const char *text) { (void)opaque, (void)level, (void)text; }

static void failing_device(mirror_device_ops ops, const mirror_device_limits *limits, mirror_device **out, int expected) {
    disk d = {.closed = 0};
    check(mirror_device_new(&ops, limits, &d, out) < 0);
    eq(d.closed, expected);
}

int main(void) {
    mirror_device_limits limits = {.struct_size = sizeof limits, .length = 4096}, odd = limits;
    mirror_device_ops ops = disk_ops();
    mirror_device *device = NULL;
    odd.request_alignment = 3;
    failing_device(ops, &odd, &device, 1);
    failing_device(ops, NULL, &device, 1);
    failing_device(ops, &limits, NULL, 1);
    ops.read = NULL; /* SPEC D-1: it is required */
    failing_device(ops, &limits, &device, 1);
    ops.struct_size = 4; /* nothing of it can be read */
    failing_device(ops, &limits, &device, 0);
    check(device == NULL);

    /* A device is closed when the last who uses it is gone. */
    disk *d = disk_new(65536, INLINE, 1), *t = disk_new(65536, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job = NULL;
    mirror_job_options o = options();
    int hook = 0;
    o.opaque = &hook, o.closed = note, o.wake = nothing;
    ok(mirror_filter_new(d->device, &filter));
    o.granularity = 3000;
    err(EINVAL, "granularity", mirror_job_new(filter, t->device, &o, &job));
    eq(hook, 1);
    o.granularity = 0;
    err(EINVAL, "NULL", mirror_job_new(NULL, t->device, &o, &job));
    eq(hook, 2);
    err(EINVAL, "NULL", mirror_job_new(filter, t->device, &o, NULL));
    eq(hook, 3);
    ok(mirror_job_new(filter, t->device, &o, &job));
    ok(mirror_job_start(job));
    mirror_device_free(d->device);
    mirror_device_free(t->device);
    mirror_filter_free(filter);
    eq(d->closed + t->closed, 0);
    drive(job, MIRROR_STATUS_READY);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    check(memcmp(d->bytes, t->bytes, 65536) == 0);
    eq(hook, 3);
    ok(mirror_job_free(job));
    eq(hook, 4);
    eq(d->closed, 1);
    eq(t->closed, 1);

    /* The hook of a filter, and the log sink. */
    int first = 0, second = 0, third = 0;
    ok(mirror_device_new_memory(4096, &device));
    ok(mirror_filter_new(device, &filter));
    mirror_device_free(device);
    ok(mirror_filter_set_opened(filter, nothing, &first, note));
    eq(first, 0);
    ok(mirror_filter_set_opened(filter, nothing, &second, note));
    eq(first, 1);
    check(mirror_filter_set_opened(NULL, nothing, &third, note) < 0);
    eq(third, 1);
    mirror_filter_free(filter);
    eq(second, 1);
    first = second = third = 0;
    ok(mirror_set_log(nowhere, &first, MIRROR_LOG_WARN, note));
    check(mirror_set_log(nowhere, &second, 99, note) < 0);
    eq(second, 1);
    eq(first, 0);
    ok(mirror_set_log(NULL, &third, MIRROR_LOG_OFF, note));
    eq(first, 1);
    eq(third, 1);
    eq(closed, 4 + 3 + 3);
    free(d->bytes), free(d), free(t->bytes), free(t);
    return done();
}
