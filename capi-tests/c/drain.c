/* SPEC L-3: a drain is a pause of the host's own; it nests, and the user's resume doesn't lift it. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, LATER, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.id = "drained", o.max_io = 65536, o.max_in_flight = 8;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    err(EPERM, "Job 'drained' is not drained", mirror_job_drain_end(job));
    ok(mirror_job_start(job));
    while (target->queued < 3)
        step(job);

    ok(mirror_job_drain_begin(job));
    ok(mirror_job_drain_begin(job));
    eq(info(job).status, MIRROR_STATUS_RUNNING); /* until what is in flight is done */
    check(info(job).paused);
    while (disk_finish(target, 0))
        step(job);
    eq(info(job).status, MIRROR_STATUS_PAUSED);
    eq(info(job).in_flight_ops, 0);
    int requests = source->count[MIRROR_OP_READ];
    err(EPERM, "is not paused", mirror_job_resume(job)); /* it isn't the user's */
    ok(mirror_job_pause(job));
    ok(mirror_job_drain_end(job));
    ok(mirror_job_resume(job));
    guest_write(filter, 0, 7, 4096);
    for (int i = 0; i < 20; i++)
        step(job);
    eq(info(job).status, MIRROR_STATUS_PAUSED);
    eq(source->count[MIRROR_OP_READ], requests);
    eq(target->queued, 0);

    ok(mirror_job_drain_end(job));
    err(EPERM, "is not drained", mirror_job_drain_end(job));
    while (info(job).status != MIRROR_STATUS_READY)
        step(job), disk_finish(target, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);

    /* It never shows itself running in between. */
    mirror_event event = {.struct_size = sizeof event};
    int running = 0;
    while (ok(mirror_job_next_event(job, &event)) == 1)
        running += event.type == MIRROR_EVENT_STATUS && event.status == MIRROR_STATUS_RUNNING;
    eq(running, 2);

    /* Drained, it can be cancelled. */
    ok(mirror_job_drain_begin(job));
    step(job);
    eq(info(job).status, MIRROR_STATUS_STANDBY);
    ok(mirror_job_cancel(job, true));
    drive(job, MIRROR_STATUS_NULL);
    eq(info(job).result, -ECANCELED);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
    return done();
}
