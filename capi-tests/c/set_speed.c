/* SPEC C-9: so many bytes per slice of 100 ms of the host's own time; a new speed counts at once. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, SPEED = 655360 }; /* 64 KiB in a slice */

static uint64_t now = 1000000000;

/* Polls until the job has nothing to do before a later time; that time. */
static uint64_t poll_all(mirror_job *job) {
    uint64_t wake_at = 0;
    for (int i = 0; i < 1000; i++)
        if (ok(mirror_job_poll(job, now, &wake_at)) != MIRROR_POLL_BUSY)
            return wake_at;
    FAIL("it never rests");
}

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.speed = SPEED;
    o.max_io = 16384;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    eq(info(job).speed, SPEED);
    ok(mirror_job_start(job));
    uint64_t before = 0;
    for (int slice = 0; slice < 5; slice++) {
        uint64_t wake_at = poll_all(job);
        mirror_job_info i = info(job);
        check(i.done - before >= 65536 && i.done - before < 65536 + 16384);
        before = i.done;
        check(wake_at > now && wake_at <= now + 100000000);
        poll_all(job); /* asking again brings nothing */
        eq(info(job).done, before);
        now = wake_at;
    }
    /* Guests are not held back by it. */
    guest_write(filter, 0, 0x99, 65536);

    ok(mirror_job_set_speed(job, SPEED * 4));
    eq(info(job).speed, SPEED * 4);
    before = info(job).done;
    poll_all(job);
    check(info(job).done - before >= 3 * 65536);

    ok(mirror_job_set_speed(job, 0));
    eq(info(job).speed, 0);
    poll_all(job);
    while (info(job).status == MIRROR_STATUS_RUNNING)
        now += 50000000, poll_all(job);
    eq(info(job).status, MIRROR_STATUS_READY);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
    return done();
}
