/* A device whose handle is freed answers nothing any more: what it had no room for fails, and nobody waits for ever. */
#include "disk.h"

static int full(void *opaque, uint64_t token, uint64_t offset, uint64_t length, const mirror_iovec *iov, size_t iovcnt) {
    (void)token, (void)offset, (void)length, (void)iov, (void)iovcnt;
    ((disk *)opaque)->again++;
    return MIRROR_AGAIN;
}

static disk *disk_without_room(void) {
    mirror_device_ops ops = disk_ops();
    ops.read = full;
    return disk_new_with(ops, (mirror_device_limits){.length = 65536}, INLINE, 0);
}

static void guests_are_told(void) {
    disk *d = disk_without_room();
    mirror_filter *filter;
    outcome outcomes[3] = {{0, 1}, {0, 1}, {0, 1}};
    uint8_t bytes[512];
    mirror_iovec iov = {bytes, sizeof bytes};
    ok(mirror_filter_new(d->device, &filter));
    for (int i = 0; i < 3; i++)
        ok(mirror_filter_read(filter, 0, &iov, 1, 0, tell, &outcomes[i]));
    check(d->again > 0);
    eq(told(&outcomes[0]), 0);
    mirror_device_free(d->device);
    for (int i = 0; i < 3; i++) {
        eq(told(&outcomes[i]), 1);
        eq(outcomes[i].result, -ECANCELED);
    }
    mirror_filter_free(filter);
    eq(d->closed, 1);
    free(d->bytes), free(d);
}

static void a_job_that_was_freed_lets_go(void) {
    disk *source = disk_without_room(), *target = disk_new(65536, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, NULL, &job));
    ok(mirror_job_start(job));
    step(job);
    check(source->again > 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    mirror_device_free(target->device);
    mirror_device_free(source->device);
    eq(source->closed, 1);
    eq(target->closed, 1);
    free(source->bytes), free(source), free(target->bytes), free(target);
}

int main(void) {
    guests_are_told();
    a_job_that_was_freed_lets_go();
    return done();
}
