/* SPEC G-3, G-5: a write is done when both sides have it, whichever thread finishes them; its result is the source's alone. */
#include "disk.h"

enum { LENGTH = 4 * 1024 * 1024, WRITES = 400, WRITERS = 2 };

typedef struct { mirror_filter *filter; disk *source, *target; int number; } writer;

/* Writes its own blocks, and sees after each write that both sides have it. */
static void *write_on(void *opaque) {
    writer *w = opaque;
    uint8_t bytes[4096];
    for (int i = 0; i < WRITES; i++) {
        uint64_t offset = (uint64_t)(i % 100 * WRITERS + w->number) * sizeof bytes;
        memset(bytes, i % 251 + 1, sizeof bytes);
        mirror_iovec iov = {bytes, sizeof bytes};
        outcome o = {0, 1};
        ok(mirror_filter_write(w->filter, offset, &iov, 1, i % 2 ? MIRROR_WRITE_STABLE : 0, tell, &o));
        while (!told(&o))
            sched_yield();
        eq(o.result, 0);
        pthread_mutex_lock(&w->source->lock);
        check(memcmp(w->source->bytes + offset, bytes, sizeof bytes) == 0);
        pthread_mutex_unlock(&w->source->lock);
        pthread_mutex_lock(&w->target->lock);
        check(memcmp(w->target->bytes + offset, bytes, sizeof bytes) == 0);
        pthread_mutex_unlock(&w->target->lock);
    }
    return NULL;
}

static void both_sides_have_it(bool inline_job) {
    disk *source = disk_new(LENGTH, LATER, 2), *target = disk_new(LENGTH, LATER, 0);
    pthread_t workers[2], writers[WRITERS];
    pthread_create(&workers[0], NULL, disk_worker, source);
    pthread_create(&workers[1], NULL, disk_worker, target);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.copy_mode = MIRROR_COPY_WRITE_BLOCKING;
    o.flags |= inline_job ? MIRROR_JOB_INLINE : 0;
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    check(info(job).actively_synced);
    writer w[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        w[i] = (writer){filter, source, target, i};
        pthread_create(&writers[i], NULL, write_on, &w[i]);
    }
    while (info(job).guest_writes < WRITERS * WRITES)
        step(job);
    for (int i = 0; i < WRITERS; i++)
        pthread_join(writers[i], NULL);
    for (int i = 0; i < 1000 && info(job).guests > 0; i++)
        step(job);
    mirror_job_info i = info(job);
    eq(i.active.ops, WRITERS * WRITES);
    eq(i.active.bytes, WRITERS * WRITES * 4096);
    eq(i.active.errors, 0);
    eq(i.guest_writes, WRITERS * WRITES);
    check(i.bounce_copies >= WRITERS * WRITES / 2); /* of those that aren't stable */
    check(i.actively_synced);
    eq(i.dirty, 0);
    eq(i.guests, 0);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_stop(source, workers[0]), disk_stop(target, workers[1]);
    disk_free(source), disk_free(target);
}

static int write_and_wait(mirror_filter *filter, mirror_job *job, uint64_t offset) {
    uint8_t bytes[8192] = {0x5a};
    mirror_iovec iov = {bytes, sizeof bytes};
    outcome o = {0, 1};
    ok(mirror_filter_write(filter, offset, &iov, 1, 0, tell, &o));
    while (!told(&o))
        step(job);
    eq(told(&o), 1);
    return o.result;
}

static void the_result_is_the_source_s(void) {
    disk *source = disk_new(LENGTH, INLINE, 2), *target = disk_new(LENGTH, INLINE, 0);
    mirror_filter *filter;
    mirror_job *job;
    mirror_job_options o = options();
    o.copy_mode = MIRROR_COPY_WRITE_BLOCKING;
    o.on_target_error = MIRROR_ON_ERROR_STOP;
    o.flags &= ~(uint32_t)MIRROR_JOB_DETECT_ZEROES; /* so that the rest is written, not zeroed */
    ok(mirror_filter_new(source->device, &filter));
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);

    /* The source fails: the guest is told, and what the two hold may differ from now on. */
    source->fail_op = MIRROR_OP_WRITE, source->fail = -EIO, source->failures = 1;
    eq(write_and_wait(filter, job, 16384), -EIO);
    check(!info(job).actively_synced || info(job).dirty == 0);
    for (int i = 0; i < 1000 && info(job).dirty > 0; i++)
        step(job);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);

    /* The target fails: the guest isn't told, the job is stopped, and copies it again when it is resumed. */
    target->fail_op = MIRROR_OP_WRITE, target->fail = -ENOSPC, target->failures = 1;
    eq(write_and_wait(filter, job, 65536), 0);
    drive(job, MIRROR_STATUS_STANDBY);
    mirror_job_info i = info(job);
    eq(i.io_status, MIRROR_IO_NOSPACE);
    eq(i.dirty, 8192);
    eq(i.active.errors, 1);
    check(!i.actively_synced && i.paused);
    check(memcmp(source->bytes, target->bytes, LENGTH) != 0);
    ok(mirror_job_resume(job));
    for (int n = 0; n < 1000 && (info(job).status != MIRROR_STATUS_READY || !info(job).actively_synced); n++)
        step(job);
    check(info(job).actively_synced);
    eq(info(job).io_status, MIRROR_IO_OK);
    check(memcmp(source->bytes, target->bytes, LENGTH) == 0);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(source), disk_free(target);
}

int main(void) {
    both_sides_have_it(false);
    both_sides_have_it(true);
    the_result_is_the_source_s();
    return done();
}
