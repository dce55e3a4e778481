/* SPEC D-2: what a device has no room for is offered again, in order, not lost and not spun on. */
#include "disk.h"

enum { LENGTH = 2 * 1024 * 1024 };

static uint64_t offered[64];
static size_t offers;

static void note(disk *d, const request *r) {
    (void)d;
    offered[offers++ % 64] = r->offset;
}

static void guest_requests_keep_their_order(void) {
    disk *d = disk_new(LENGTH, LATER, 0);
    mirror_filter *filter;
    ok(mirror_filter_new(d->device, &filter));
    d->depth = 1;
    d->on_request = note;
    uint8_t bytes[512] = {1};
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome outcomes[6] = {{0, 0}};
    for (int i = 0; i < 6; i++)
        ok(mirror_filter_write(filter, (uint64_t)i * 512, &iov, 1, 0, tell, &outcomes[i]));
    for (int i = 0; i < 6; i++) {
        eq(d->queue[0].offset, i * 512);
        check(disk_finish(d, 0));
        eq(told(&outcomes[i]), 1);
        eq(outcomes[i].result, 0);
    }
    eq(d->queued, 0);
    check(d->again >= 5);
    check(offers <= 6 * 4);

    /* Nothing is out whose completion would bring it up again: the device says so. */
    outcome kicked = {0, 1};
    d->answer = INLINE;
    d->fail_op = MIRROR_OP_WRITE, d->fail = MIRROR_AGAIN, d->failures = 2; /* it is offered once more before it is left to wait */
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &kicked));
    eq(told(&kicked), 0);
    ok(mirror_device_kick(d->device));
    eq(told(&kicked), 1);
    eq(kicked.result, 0);
    mirror_filter_free(filter);
    disk_free(d);
}

static void a_job_gets_by_with_a_queue_of_one(size_t depth) {
    disk *source = disk_new(LENGTH, LATER, 4), *target = disk_new(LENGTH, LATER, 0);
    source->depth = target->depth = depth;
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.max_io = 16384;
    o.flags |= MIRROR_JOB_AUTO_COMPLETE;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    int steps = 0;
    while (info(job).status != MIRROR_STATUS_NULL) {
        check(steps++ < 20000);
        step(job);
        disk_finish(source, 0);
        disk_finish(target, 0);
    }
    eq(info(job).result, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    check(source->again > 0);
    check(source->again < 4 * LENGTH / 16384);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source);
    disk_free(target);
}

int main(void) {
    guest_requests_keep_their_order();
    a_job_gets_by_with_a_queue_of_one(1);
    a_job_gets_by_with_a_queue_of_one(2);
    return done();
}
