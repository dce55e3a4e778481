/* SPEC L-4, E-1: each change of state is told once and in order; an ERROR event says what failed, where, how, and what is
 * done about it. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

static mirror_filter *filter;
static mirror_job *job;

/* The next event must be this one; all its other fields are 0. */
static void expect(uint32_t type, uint32_t status, int result) {
    mirror_event e;
    memset(&e, 0xee, sizeof e);
    e.struct_size = sizeof e;
    if (ok(mirror_job_next_event(job, &e)) != 1)
        FAIL("no event, not %s", mirror_event_name(type));
    if (e.type != type || e.status != status)
        FAIL("%s %s, not %s %s", mirror_event_name(e.type), mirror_status_name(e.status), mirror_event_name(type),
             mirror_status_name(status));
    eq(e.struct_size, sizeof e);
    eq(e.result, result);
    check(e.operation == 0 && e.side == 0 && e.action == 0 && e.offset == 0 && e.length == 0);
}

static void expect_status(uint32_t status) { expect(MIRROR_EVENT_STATUS, status, 0); }

static void expect_error(uint32_t operation, uint32_t side, uint32_t action, uint64_t offset, uint64_t length, int result) {
    mirror_event e = {.struct_size = sizeof e};
    eq(mirror_job_next_event(job, &e), 1);
    eq(e.type, MIRROR_EVENT_ERROR);
    eq(e.status, 0);
    eq(e.operation, operation);
    eq(e.side, side);
    eq(e.action, action);
    eq(e.offset, offset);
    eq(e.length, length);
    eq(e.result, result);
}

static void expect_nothing(void) {
    mirror_event e = {.struct_size = sizeof e, .type = 77};
    eq(mirror_job_next_event(job, &e), 0);
    eq(e.type, 77);
}

static void begin(disk *source, disk *target, mirror_job_options o) {
    o.max_io = 65536, o.max_in_flight = 1;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    expect_status(MIRROR_STATUS_CREATED);
    expect_nothing();
    ok(mirror_job_start(job));
    expect_status(MIRROR_STATUS_RUNNING);
}

static void end(void) {
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
}

static void a_whole_life(disk *source, disk *target) {
    mirror_job_options o = options();
    o.flags &= ~(uint32_t)(MIRROR_JOB_AUTO_FINALIZE | MIRROR_JOB_AUTO_DISMISS);
    begin(source, target, o);
    ok(mirror_job_pause(job));
    step(job);
    expect_status(MIRROR_STATUS_PAUSED);
    ok(mirror_job_resume(job));
    drive(job, MIRROR_STATUS_READY);
    expect_status(MIRROR_STATUS_RUNNING);
    expect_status(MIRROR_STATUS_READY);
    expect(MIRROR_EVENT_READY, 0, 0);
    ok(mirror_job_pause(job));
    step(job);
    expect_status(MIRROR_STATUS_STANDBY);
    ok(mirror_job_resume(job));
    expect_status(MIRROR_STATUS_READY);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_PENDING);
    expect_status(MIRROR_STATUS_WAITING);
    expect_status(MIRROR_STATUS_PENDING);
    expect(MIRROR_EVENT_PENDING, 0, 0);
    expect_nothing();
    ok(mirror_job_finalize(job));
    drive(job, MIRROR_STATUS_CONCLUDED);
    expect(MIRROR_EVENT_COMPLETED, 0, 0);
    expect_status(MIRROR_STATUS_CONCLUDED);
    expect_nothing();
    ok(mirror_job_dismiss(job));
    expect_status(MIRROR_STATUS_NULL);
    expect_nothing();
    end();
}

static void errors(disk *source, disk *target) {
    /* Reported: the job ends with it. */
    source->fail_op = MIRROR_OP_READ, source->fail = -EILSEQ, source->failures = 1;
    begin(source, target, options());
    drive(job, MIRROR_STATUS_NULL);
    expect_error(MIRROR_OP_READ, MIRROR_SIDE_SOURCE, MIRROR_ACTION_REPORT, 0, 65536, -EILSEQ);
    expect_status(MIRROR_STATUS_ABORTING);
    expect(MIRROR_EVENT_COMPLETED, 0, -EILSEQ);
    expect_status(MIRROR_STATUS_CONCLUDED);
    expect_status(MIRROR_STATUS_NULL);
    expect_nothing();
    eq(info(job).result, -EILSEQ);
    has(info(job).message, "read of the source at offset 0 length 65536 failed: ");
    end();

    /* Ignored, and tried again. */
    mirror_job_options o = options();
    o.on_target_error = MIRROR_ON_ERROR_IGNORE;
    target->fail_op = MIRROR_OP_WRITE, target->fail = -EIO, target->failures = 1;
    begin(source, target, o);
    drive(job, MIRROR_STATUS_READY);
    expect_error(MIRROR_OP_WRITE, MIRROR_SIDE_TARGET, MIRROR_ACTION_IGNORE, 0, 65536, -EIO);
    expect_status(MIRROR_STATUS_READY);
    expect(MIRROR_EVENT_READY, 0, 0);
    eq(info(job).errors, 1);
    /* A flush has no place. */
    target->fail_op = MIRROR_OP_FLUSH, target->fail = -EIO, target->failures = 1;
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_NULL);
    expect_error(MIRROR_OP_FLUSH, MIRROR_SIDE_TARGET, MIRROR_ACTION_IGNORE, 0, 0, -EIO);
    expect_status(MIRROR_STATUS_WAITING);
    expect_status(MIRROR_STATUS_PENDING);
    expect(MIRROR_EVENT_COMPLETED, 0, 0);
    end();

    /* Stopped, each policy that says so for a full disk. */
    const uint32_t policies[] = {MIRROR_ON_ERROR_STOP, MIRROR_ON_ERROR_ENOSPC, MIRROR_ON_ERROR_AUTO};
    for (int i = 0; i < 3; i++) {
        o.on_target_error = policies[i];
        target->fail_op = MIRROR_OP_WRITE, target->fail = -ENOSPC, target->failures = 1;
        begin(source, target, o);
        drive(job, MIRROR_STATUS_PAUSED);
        expect_error(MIRROR_OP_WRITE, MIRROR_SIDE_TARGET, MIRROR_ACTION_STOP, 0, 65536, -ENOSPC);
        expect_status(MIRROR_STATUS_PAUSED);
        eq(info(job).io_status, MIRROR_IO_NOSPACE);
        ok(mirror_job_resume(job));
        eq(info(job).io_status, MIRROR_IO_OK);
        ok(mirror_job_cancel(job, true));
        drive(job, MIRROR_STATUS_NULL);
        expect_status(MIRROR_STATUS_RUNNING);
        expect_status(MIRROR_STATUS_ABORTING);
        expect(MIRROR_EVENT_CANCELLED, 0, -ECANCELED);
        end();
    }
}

/* A host that doesn't listen loses the oldest news, is told how much, and never a milestone. */
static void nobody_listens(disk *source, disk *target) {
    mirror_job_options o = options();
    begin(source, target, o);
    for (int i = 0; i < 300; i++) {
        ok(mirror_job_pause(job)), step(job);
        ok(mirror_job_resume(job));
    }
    drive(job, MIRROR_STATUS_READY);
    ok(mirror_job_cancel(job, true));
    drive(job, MIRROR_STATUS_NULL);
    check(info(job).events_dropped > 300);
    int events = 0, milestones = 0;
    mirror_event e = {.struct_size = sizeof e};
    for (; ok(mirror_job_next_event(job, &e)) == 1; events++)
        milestones += e.type == MIRROR_EVENT_READY || e.type == MIRROR_EVENT_CANCELLED;
    eq(milestones, 2);
    check(events <= 260);
    end();
}

int main(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    a_whole_life(source, target);
    errors(source, target);
    nobody_listens(source, target);
    disk_free(source), disk_free(target);
    return done();
}
