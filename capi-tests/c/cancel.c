/* SPEC F-5: softly after ready: a copy of one instant, and success. Before, or by force: at once, without success, and the
 * target is told to hurry. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

typedef struct { disk *source, *target; mirror_filter *filter; mirror_job *job; } world;

static world begin(enum answer answer, uint32_t flags, uint32_t clear) {
    world w = {disk_new(LENGTH, INLINE, 3), disk_new(LENGTH, answer, 0), NULL, NULL};
    mirror_job_options o = options();
    o.flags = (o.flags | flags) & ~clear;
    o.id = "cancelled";
    o.on_target_error = MIRROR_ON_ERROR_STOP;
    ok(mirror_filter_new(w.source->device, &w.filter));
    ok(mirror_job_new(w.filter, w.target->device, &o, &w.job));
    return w;
}

static void pump(world *w, uint32_t status) {
    for (int i = 0; info(w->job).status != status; i++) {
        check(i < 20000);
        step(w->job);
        disk_finish(w->target, 0);
    }
}

static void ends(world *w, int result, uint32_t event_type) {
    pump(w, MIRROR_STATUS_NULL);
    eq(step(w->job), MIRROR_POLL_CONCLUDED); /* the verb's work is done by the next poll */
    eq(info(w->job).result, result);
    mirror_event event = {.struct_size = sizeof event};
    int seen = 0;
    while (ok(mirror_job_next_event(w->job, &event)) == 1)
        if (event.type == MIRROR_EVENT_COMPLETED || event.type == MIRROR_EVENT_CANCELLED) {
            eq(event.type, event_type);
            eq(event.result, result);
            seen++;
        }
    eq(seen, 1);
    guest_write(w->filter, 512, 0xee, 512); /* the guest stays where it was, and nothing is marked or carried */
    eq(w->source->bytes[512], 0xee);
    check(w->target->bytes[512] != 0xee);
    mirror_device *now;
    ok(mirror_filter_device(w->filter, &now));
    eq(mirror_device_same(now, w->source->device), 1);
    mirror_device_free(now);
    ok(mirror_job_free(w->job));
    mirror_filter_free(w->filter);
    disk_free(w->source), disk_free(w->target);
}

int main(void) {
    /* Created: nothing was begun. */
    world w = begin(INLINE, 0, 0);
    ok(mirror_job_cancel(w.job, false));
    ends(&w, -ECANCELED, MIRROR_EVENT_CANCELLED);

    /* Running, with requests out: they are waited for. */
    w = begin(LATER, 0, 0);
    ok(mirror_job_start(w.job));
    while (w.target->queued == 0)
        step(w.job);
    ok(mirror_job_cancel(w.job, false));
    step(w.job);
    eq(info(w.job).status, MIRROR_STATUS_ABORTING);
    check(w.target->cancelled >= 1);
    check(info(w.job).in_flight_ops > 0);
    has(info(w.job).message, "Job 'cancelled' was cancelled");
    ends(&w, -ECANCELED, MIRROR_EVENT_CANCELLED);

    /* Ready, softly: what was written before is in the copy. */
    w = begin(LATER, 0, 0);
    ok(mirror_job_start(w.job));
    pump(&w, MIRROR_STATUS_READY);
    guest_write(w.filter, 100000, 0x77, 4096);
    ok(mirror_job_cancel(w.job, false));
    err(EPERM, "is being cancelled: it can't be completed any more", mirror_job_complete(w.job));
    pump(&w, MIRROR_STATUS_NULL);
    check(memcmp(w.source->bytes, w.target->bytes, LENGTH) == 0);
    eq(w.target->cancelled, 0);
    ends(&w, 0, MIRROR_EVENT_COMPLETED);

    /* Ready, by force. A soft one afterwards doesn't soften it. */
    w = begin(LATER, 0, 0);
    ok(mirror_job_start(w.job));
    pump(&w, MIRROR_STATUS_READY);
    ok(mirror_job_cancel(w.job, true));
    int again = mirror_job_cancel(w.job, false);
    check(again == 0 || again == -EPERM);
    ends(&w, -ECANCELED, MIRROR_EVENT_CANCELLED);

    /* Pending: softly it ends well, by force it doesn't. */
    for (int force = 0; force < 2; force++) {
        w = begin(LATER, 0, MIRROR_JOB_AUTO_FINALIZE);
        ok(mirror_job_start(w.job));
        pump(&w, MIRROR_STATUS_READY);
        ok(mirror_job_complete(w.job));
        pump(&w, MIRROR_STATUS_PENDING);
        ok(mirror_job_cancel(w.job, force));
        if (!force)
            ok(mirror_job_finalize(w.job));
        ends(&w, force ? -ECANCELED : 0, force ? MIRROR_EVENT_CANCELLED : MIRROR_EVENT_COMPLETED);
    }

    /* Paused by the user: not softly. */
    w = begin(LATER, 0, 0);
    ok(mirror_job_start(w.job));
    pump(&w, MIRROR_STATUS_READY);
    ok(mirror_job_pause(w.job));
    pump(&w, MIRROR_STATUS_STANDBY);
    err(EPERM, "Job 'cancelled' is paused: resume it, or cancel it by force", mirror_job_cancel(w.job, false));
    eq(info(w.job).status, MIRROR_STATUS_STANDBY);
    ok(mirror_job_cancel(w.job, true));
    ends(&w, -ECANCELED, MIRROR_EVENT_CANCELLED);

    /* Stopped by an error after ready: softly lifts that pause, and the copy is finished. */
    w = begin(INLINE, 0, MIRROR_JOB_DETECT_ZEROES);
    ok(mirror_job_start(w.job));
    pump(&w, MIRROR_STATUS_READY);
    w.target->fail_op = MIRROR_OP_WRITE, w.target->fail = -EIO, w.target->failures = 1;
    guest_write(w.filter, 200000, 0x11, 4096);
    pump(&w, MIRROR_STATUS_STANDBY);
    eq(info(w.job).io_status, MIRROR_IO_FAILED);
    ok(mirror_job_cancel(w.job, false));
    pump(&w, MIRROR_STATUS_NULL);
    check(memcmp(w.source->bytes, w.target->bytes, LENGTH) == 0);
    ends(&w, 0, MIRROR_EVENT_COMPLETED);
    return done();
}
