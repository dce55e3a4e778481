/* SPEC L-2, L-3: each verb in each state that a host can hold a job in. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

typedef struct { disk *source, *target; mirror_filter *filter; mirror_job *job; } world;

static void pump(world *w, uint32_t status) {
    for (int i = 0; info(w->job).status != status; i++) {
        check(i < 20000);
        step(w->job);
        disk_finish(w->source, 0), disk_finish(w->target, 0);
    }
}

static world in_state(uint32_t status) {
    world w = {disk_new(LENGTH, LATER, 5), disk_new(LENGTH, LATER, 0), NULL, NULL};
    mirror_job_options o = options();
    o.flags &= ~(uint32_t)MIRROR_JOB_AUTO_FINALIZE;
    o.id = "j0";
    if (status != MIRROR_STATUS_NULL)
        o.flags &= ~(uint32_t)MIRROR_JOB_AUTO_DISMISS;
    ok(mirror_filter_new(w.source->device, &w.filter));
    ok(mirror_job_new(w.filter, w.target->device, &o, &w.job));
    if (status == MIRROR_STATUS_CREATED)
        return w;
    ok(mirror_job_start(w.job));
    pump(&w, MIRROR_STATUS_RUNNING);
    while (w.target->queued == 0)
        step(w.job), disk_finish(w.source, 0);
    if (status == MIRROR_STATUS_RUNNING)
        return w;
    if (status == MIRROR_STATUS_ABORTING) {
        ok(mirror_job_cancel(w.job, true));
        step(w.job);
    } else if (status == MIRROR_STATUS_PAUSED) {
        ok(mirror_job_pause(w.job));
        pump(&w, status);
    } else {
        pump(&w, MIRROR_STATUS_READY);
        if (status == MIRROR_STATUS_STANDBY)
            ok(mirror_job_pause(w.job));
        else if (status != MIRROR_STATUS_READY)
            ok(mirror_job_complete(w.job));
        if (status > MIRROR_STATUS_PENDING) {
            pump(&w, MIRROR_STATUS_PENDING);
            ok(mirror_job_finalize(w.job));
        }
        pump(&w, status);
    }
    eq(info(w.job).status, status);
    return w;
}

static const char *const verbs[] = {"cancel", "pause", "resume", "set-speed", "change", "complete", "finalize", "dismiss"};

static int call(mirror_job *job, int verb) {
    switch (verb) {
    case 0: return mirror_job_cancel(job, true);
    case 1: return mirror_job_pause(job);
    case 2: return mirror_job_resume(job);
    case 3: return mirror_job_set_speed(job, 12345678);
    case 4: return mirror_job_change(job, MIRROR_COPY_WRITE_BLOCKING);
    case 5: return mirror_job_complete(job);
    case 6: return mirror_job_finalize(job);
    default: return mirror_job_dismiss(job);
    }
}

/* Per state, which verbs are accepted: y; refused by the table: n; refused as a pause that is, or isn't, there: p. */
static const struct { uint32_t status; const char *accepts; } rows[] = {
    {MIRROR_STATUS_CREATED, "yypyynnn"}, {MIRROR_STATUS_RUNNING, "yypyynnn"},   {MIRROR_STATUS_PAUSED, "ypyyynnn"},
    {MIRROR_STATUS_READY, "yypyyynn"},   {MIRROR_STATUS_STANDBY, "ypyyyynn"},   {MIRROR_STATUS_PENDING, "ynpnnnyn"},
    {MIRROR_STATUS_ABORTING, "nnpnnnnn"}, {MIRROR_STATUS_CONCLUDED, "nnpnnnny"}, {MIRROR_STATUS_NULL, "nnpnnnnn"},
};

int main(void) {
    for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
        for (int verb = 0; verb < 8; verb++) {
            world w = in_state(rows[row].status);
            char text[100] = "Job 'j0' is";
            char expected = rows[row].accepts[verb];
            if (expected == 'n')
                snprintf(text, sizeof text, "Job 'j0' in state '%s' cannot accept command verb '%s'",
                         mirror_status_name(rows[row].status), verbs[verb]);
            int result = call(w.job, verb);
            if (result != (expected == 'y' ? 0 : -EPERM) || (expected != 'y' && !strstr(mirror_last_error(), text)))
                FAIL("%s in %s: %d %s", verbs[verb], mirror_status_name(rows[row].status), result, mirror_last_error());
            if (rows[row].status != MIRROR_STATUS_CREATED)
                err(EPERM, "Job 'j0' in state", mirror_job_start(w.job));
            ok(mirror_job_free(w.job));
            mirror_filter_free(w.filter);
            while (disk_finish(w.source, 0) || disk_finish(w.target, 0)) {
            }
            disk_free(w.source), disk_free(w.target);
        }
    }
    return done();
}
