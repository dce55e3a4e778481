/* SPEC F-6: the copy mode changes both ways, at any time before the end; new writes go the new way at once. */
#include "disk.h"

enum { LENGTH = 2 * 1024 * 1024 };

typedef struct { disk *source, *target; mirror_filter *filter; mirror_job *job; } world;

static void write_one(world *w, uint64_t offset) {
    uint8_t bytes[4096];
    memset(bytes, (int)(offset / 4096 + 1), sizeof bytes);
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome o = {0, 1};
    ok(mirror_filter_write(w->filter, offset, &iov, 1, 0, tell, &o));
    while (!told(&o))
        step(w->job);
    eq(o.result, 0);
}

static bool same(world *w, uint64_t offset) { return memcmp(w->source->bytes + offset, w->target->bytes + offset, 4096) == 0; }

static void change(uint32_t at) {
    world w = {disk_new(LENGTH, INLINE, 3), disk_new(LENGTH, INLINE, 0), NULL, NULL};
    mirror_job_options o = options();
    o.speed = at == MIRROR_STATUS_RUNNING || at == MIRROR_STATUS_PAUSED ? 4096 : 0;
    o.max_io = 4096;
    ok(mirror_filter_new(w.source->device, &w.filter));
    ok(mirror_job_new(w.filter, w.target->device, &o, &w.job));
    if (at != MIRROR_STATUS_CREATED) {
        ok(mirror_job_start(w.job));
        drive(w.job, at == MIRROR_STATUS_STANDBY ? MIRROR_STATUS_READY
                     : at == MIRROR_STATUS_PAUSED ? MIRROR_STATUS_RUNNING : at);
        step(w.job);
    }
    if (at == MIRROR_STATUS_PAUSED || at == MIRROR_STATUS_STANDBY) {
        ok(mirror_job_pause(w.job));
        drive(w.job, at);
    }
    eq(info(w.job).status, at);
    eq(info(w.job).copy_mode, MIRROR_COPY_BACKGROUND);
    ok(mirror_job_change(w.job, MIRROR_COPY_WRITE_BLOCKING));
    ok(mirror_job_change(w.job, MIRROR_COPY_WRITE_BLOCKING)); /* as it is */
    eq(info(w.job).copy_mode, MIRROR_COPY_WRITE_BLOCKING);
    if (at != MIRROR_STATUS_CREATED) {
        for (int i = 0; i < 5; i++)
            step(w.job);
        write_one(&w, LENGTH - 8192);
        check(same(&w, LENGTH - 8192));
        eq(info(w.job).active.ops, 1); /* also while it is paused */
    }

    ok(mirror_job_change(w.job, MIRROR_COPY_BACKGROUND));
    eq(info(w.job).copy_mode, MIRROR_COPY_BACKGROUND);
    check(!info(w.job).actively_synced);
    uint64_t carried = info(w.job).active.ops;
    for (int i = 0; i < 5 && at != MIRROR_STATUS_CREATED; i++)
        step(w.job);
    write_one(&w, LENGTH - 4096);
    eq(info(w.job).active.ops, carried);
    eq(info(w.job).guest_writes, carried + 1);
    if (at == MIRROR_STATUS_STANDBY)
        check(!same(&w, LENGTH - 4096) && info(w.job).dirty == 4096);

    /* And once more, to the end. */
    ok(mirror_job_change(w.job, MIRROR_COPY_WRITE_BLOCKING));
    ok(mirror_job_set_speed(w.job, 0));
    if (at == MIRROR_STATUS_CREATED)
        ok(mirror_job_start(w.job));
    if (info(w.job).paused)
        ok(mirror_job_resume(w.job));
    drive(w.job, MIRROR_STATUS_READY);
    for (int i = 0; i < 20000 && !info(w.job).actively_synced; i++)
        step(w.job);
    check(info(w.job).actively_synced);
    check(memcmp(w.source->bytes, w.target->bytes, LENGTH) == 0);
    ok(mirror_job_complete(w.job));
    err(EPERM, "is finishing: its copy mode can't be changed", mirror_job_change(w.job, MIRROR_COPY_BACKGROUND));
    drive(w.job, MIRROR_STATUS_NULL);
    eq(info(w.job).result, 0);
    ok(mirror_job_free(w.job));
    mirror_filter_free(w.filter);
    disk_free(w.source), disk_free(w.target);
}

/* A host with an I/O path of its own can't hand over the data: it stays with the background mode, and the other way round. */
static void not_with_begin_and_end(void) {
    world w = {disk_new(LENGTH, INLINE, 3), disk_new(LENGTH, INLINE, 0), NULL, NULL};
    uint64_t ticket;
    ok(mirror_filter_new(w.source->device, &w.filter));
    ok(mirror_job_new(w.filter, w.target->device, NULL, &w.job));
    ok(mirror_filter_begin(w.filter, MIRROR_OP_WRITE, 4096, 4096, &ticket));
    err(EOPNOTSUPP, "write-blocking mode needs the data", mirror_job_change(w.job, MIRROR_COPY_WRITE_BLOCKING));
    eq(info(w.job).copy_mode, MIRROR_COPY_BACKGROUND);
    eq(info(w.job).dirty, 0); /* until it is done */
    ok(mirror_filter_end(w.filter, ticket, 0));
    eq(info(w.job).dirty, 4096);
    err(ENOENT, "no request with this ticket", mirror_filter_end(w.filter, ticket, 0));
    ok(mirror_job_free(w.job));
    mirror_filter_free(w.filter);

    mirror_job_options o = options();
    o.copy_mode = MIRROR_COPY_WRITE_BLOCKING;
    ok(mirror_filter_new(w.source->device, &w.filter));
    ok(mirror_job_new(w.filter, w.target->device, &o, &w.job));
    ok(mirror_job_start(w.job));
    drive(w.job, MIRROR_STATUS_READY);
    err(EOPNOTSUPP, "write-blocking mode needs the data", mirror_filter_begin(w.filter, MIRROR_OP_WRITE, 0, 512, &ticket));
    ok(mirror_job_free(w.job));
    mirror_filter_free(w.filter);
    disk_free(w.source), disk_free(w.target);
}

int main(void) {
    change(MIRROR_STATUS_CREATED);
    change(MIRROR_STATUS_RUNNING);
    change(MIRROR_STATUS_PAUSED);
    change(MIRROR_STATUS_READY);
    change(MIRROR_STATUS_STANDBY);
    not_with_begin_and_end();
    return done();
}
