/* SPEC P-2, P-3: what a snapshot says of a job, through its life. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

static uint64_t now = 5000000000;

static void poll_at(mirror_job *job, uint64_t nanoseconds) {
    now += nanoseconds;
    for (int i = 0; i < 1000 && ok(mirror_job_poll(job, now, NULL)) == MIRROR_POLL_BUSY; i++) {
    }
}

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, LATER, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.id = "told", o.granularity = 8192, o.max_io = 65536, o.max_in_flight = 4, o.speed = 123456789;
    o.on_target_error = MIRROR_ON_ERROR_STOP;
    ok(mirror_filter_new(source->device, &filter));
    guest_write(filter, 0, 1, 512); /* before the job: not its affair */
    ok(mirror_job_new(filter, target->device, &o, &job));
    mirror_job_info i = info(job);
    check(strcmp(i.id, "told") == 0 && i.message[0] == 0);
    eq(i.kind, MIRROR_KIND_MIRROR);
    eq(i.status, MIRROR_STATUS_CREATED);
    eq(i.copy_mode, MIRROR_COPY_BACKGROUND);
    eq(i.io_status, MIRROR_IO_OK);
    check(!i.busy && !i.paused && !i.ready && !i.actively_synced);
    eq(i.result, 0);
    eq(i.speed, 123456789);
    eq(i.granularity, 8192);
    eq(i.guest_writes, 0);
    eq(i.done + i.total + i.dirty + i.in_flight_bytes + i.in_flight_ops + i.guests + i.passes + i.errors, 0);
    guest_write(filter, 100, 2, 200); /* from now on each is marked, and counted */
    eq(info(job).dirty, 8192);
    eq(info(job).guest_writes, 1);
    ok(mirror_job_set_speed(job, 0));

    ok(mirror_job_start(job));
    poll_at(job, 0);
    i = info(job);
    eq(i.status, MIRROR_STATUS_RUNNING);
    check(i.busy);
    eq(i.in_flight_ops, 4);
    eq(i.in_flight_bytes, 4 * 65536);
    eq(i.done, 0);
    eq(i.total, LENGTH);
    eq(i.reads.ops, 4);
    eq(i.reads.bytes, 4 * 65536);
    eq(i.writes.ops, 0); /* they are on their way */
    eq(i.passes, 1);
    check(disk_finish(target, 0));
    poll_at(job, 0);
    i = info(job);
    eq(i.done, 65536);
    eq(i.total, LENGTH);
    eq(i.writes.ops, 1);
    eq(i.writes.bytes, 65536);

    /* An error stops it: the counters and the status say so. */
    check(disk_finish(target, -ENOSPC));
    poll_at(job, 0);
    while (disk_finish(target, 0))
        poll_at(job, 0);
    i = info(job);
    eq(i.status, MIRROR_STATUS_PAUSED);
    check(i.paused && !i.busy);
    eq(i.io_status, MIRROR_IO_NOSPACE);
    eq(i.writes.errors, 1);
    eq(i.errors, 1);
    eq(i.in_flight_ops, 0);
    eq(i.done + i.dirty, LENGTH);
    ok(mirror_job_resume(job));
    eq(info(job).io_status, MIRROR_IO_OK);

    /* Rates, and when it will be ready: at 64 KiB a second. */
    uint64_t copied = info(job).done;
    for (int second = 0; second < 7; second++) {
        poll_at(job, 1000000000);
        check(disk_finish(target, 0));
        poll_at(job, 0);
        check(info(job).done >= copied); /* it never falls */
        copied = info(job).done;
    }
    i = info(job);
    check(i.copy_rate >= 60000 && i.copy_rate <= 85000);
    eq(i.dirty_rate, 0);
    check(i.eta_ns > 0 && i.eta_ns != MIRROR_NEVER);
    uint64_t expected = (i.total - i.done) * 1000 / i.copy_rate;
    check(i.eta_ns / 1000000 + 2 > expected && i.eta_ns / 1000000 < expected + 2);

    while (info(job).status != MIRROR_STATUS_READY)
        disk_finish(target, 0), poll_at(job, 100000000);
    i = info(job);
    check(i.ready && !i.busy);
    eq(i.dirty, 0);
    eq(i.done, i.total);
    eq(i.eta_ns, 0);
    check(i.flushes.ops >= 1);
    eq(i.guests, 0);

    /* A guest that is faster than the copy: never. */
    ok(mirror_job_pause(job));
    for (int second = 0; second < 6; second++) {
        guest_write(filter, (uint64_t)second * 65536, (uint8_t)second, 65536);
        poll_at(job, 1000000000);
    }
    i = info(job);
    eq(i.status, MIRROR_STATUS_STANDBY);
    check(i.ready); /* it has been */
    check(i.dirty_rate > 50000 && i.dirty_rate <= 80000);
    eq(i.eta_ns, MIRROR_NEVER);
    eq(i.dirty, 6 * 65536);
    eq(i.guest_writes, 7);
    eq(i.active.ops, 0);
    eq(i.bounce_copies, 0);

    /* Carried requests in flight. */
    ok(mirror_job_resume(job));
    ok(mirror_job_change(job, MIRROR_COPY_WRITE_BLOCKING));
    for (int n = 0; n < 1000 && !info(job).actively_synced; n++)
        disk_finish(target, 0), poll_at(job, 100000000);
    eq(info(job).copy_mode, MIRROR_COPY_WRITE_BLOCKING);
    uint8_t bytes[8192] = {9};
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome write = {0, 1};
    ok(mirror_filter_write(filter, 0, &iov, 1, 0, tell, &write));
    poll_at(job, 0);
    i = info(job);
    eq(told(&write), 0);
    eq(i.guests, 1);
    eq(i.in_flight_bytes, 8192);
    check(i.actively_synced); /* but for those under way */
    check(disk_finish(target, 0));
    poll_at(job, 0);
    eq(told(&write), 1);
    i = info(job);
    eq(i.guests, 0);
    eq(i.active.ops, 1);
    eq(i.active.bytes, 8192);
    eq(i.bounce_copies, 1);
    eq(i.guest_writes, 8);

    ok(mirror_job_cancel(job, true));
    poll_at(job, 0);
    i = info(job);
    eq(i.status, MIRROR_STATUS_NULL);
    eq(i.result, -ECANCELED);
    has(i.message, "Job 'told' was cancelled");
    guest_write(filter, 0, 1, 512); /* no longer its affair */
    eq(info(job).guest_writes, 8);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
    return done();
}
