/* SPEC F-2, L-2: without auto_finalize the job waits, pending, and so does the guest; without auto_dismiss it stays
 * concluded, and its filter is free for another. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

static bool saw(mirror_job *job, uint32_t type) {
    mirror_event event = {.struct_size = sizeof event};
    bool seen = false;
    while (ok(mirror_job_next_event(job, &event)) == 1)
        seen |= event.type == type;
    return seen;
}

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0), *third = disk_new(LENGTH, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job, *next;
    mirror_job_options o = options();
    o.flags &= ~(uint32_t)(MIRROR_JOB_AUTO_FINALIZE | MIRROR_JOB_AUTO_DISMISS);
    o.id = "manual";
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(saw(job, MIRROR_EVENT_READY));
    ok(mirror_job_complete(job));
    ok(mirror_job_complete(job)); /* a second one is harmless */
    drive(job, MIRROR_STATUS_PENDING);
    check(saw(job, MIRROR_EVENT_PENDING));
    err(EPERM, "Job 'manual' in state 'pending' cannot accept command verb 'dismiss'", mirror_job_dismiss(job));

    /* The gate stays closed however often the job is polled. */
    uint8_t byte = 0xc3;
    mirror_iovec one = {&byte, 1};
    outcome write = {0, 1};
    uint64_t ticket = 77;
    ok(mirror_filter_write(filter, 0, &one, 1, 0, tell, &write));
    eq(ok(mirror_filter_begin(filter, MIRROR_OP_READ, 0, 1, &ticket)), MIRROR_AGAIN);
    eq(ticket, 77);
    for (int i = 0; i < 10; i++)
        step(job);
    eq(told(&write), 0);
    eq(info(job).status, MIRROR_STATUS_PENDING);

    ok(mirror_job_finalize(job));
    drive(job, MIRROR_STATUS_CONCLUDED);
    eq(told(&write), 1);
    eq(write.result, 0);
    eq(target->bytes[0], 0xc3);
    check(source->bytes[0] != 0xc3);
    check(saw(job, MIRROR_EVENT_COMPLETED));
    err(EPERM, "Job 'manual' in state 'concluded' cannot accept command verb 'finalize'", mirror_job_finalize(job));
    for (int i = 0; i < 10; i++)
        eq(ok(mirror_job_poll(job, mirror_clock_ns(), NULL)), MIRROR_POLL_CONCLUDED);
    eq(info(job).status, MIRROR_STATUS_CONCLUDED); /* until it is dismissed, its result can be read */
    eq(info(job).result, 0);

    ok(mirror_job_new(filter, third->device, NULL, &next));
    ok(mirror_job_free(next));
    ok(mirror_job_dismiss(job));
    eq(info(job).status, MIRROR_STATUS_NULL);
    err(EPERM, "Job 'manual' in state 'null' cannot accept command verb 'dismiss'", mirror_job_dismiss(job));
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target), disk_free(third);
    return done();
}
