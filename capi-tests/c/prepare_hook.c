/* SPEC F-2, F-4: the prepare hook runs once, before the switch, with the gate closed; it is told sync and backing mode, and
 * what it refuses isn't done. */
#include "disk.h"

enum { LENGTH = 1024 * 1024 };

typedef struct { mirror_filter *filter; mirror_job *job; int answer, calls, closed; mirror_prepare_info told; outcome read; } host;

static uint8_t byte;
static mirror_iovec one = {&byte, 1};

static int prepare(void *opaque, const mirror_prepare_info *info_told) {
    host *h = opaque;
    h->calls++;
    h->told = *info_told;
    eq(info(h->job).status, MIRROR_STATUS_PENDING);
    err(EBUSY, "being polled", mirror_job_poll(h->job, 1, NULL));
    err(EBUSY, "being polled", mirror_job_free(h->job));
    /* A guest request waits, a read too. */
    ok(mirror_filter_read(h->filter, 9000, &one, 1, 0, tell, &h->read));
    eq(told(&h->read), 0);
    return h->answer;
}

static void closed(void *opaque) { ((host *)opaque)->closed++; }

static void finish(int answer, int result, uint32_t sync, uint32_t backing_mode) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    host h = {.answer = answer};
    mirror_job_options o = options();
    o.id = "prepared";
    o.sync = sync, o.backing_mode = backing_mode;
    o.prepare = prepare, o.opaque = &h, o.closed = closed;
    ok(mirror_filter_new(source->device, &h.filter));
    ok(mirror_job_new(h.filter, target->device, &o, &h.job));
    ok(mirror_job_start(h.job));
    drive(h.job, MIRROR_STATUS_READY);
    target->bytes[9000] = 0x7e;
    ok(mirror_job_complete(h.job));
    drive(h.job, MIRROR_STATUS_NULL);
    eq(h.calls, 1);
    eq(h.told.struct_size, sizeof h.told);
    eq(h.told.sync, sync);
    eq(h.told.backing_mode, backing_mode);
    eq(told(&h.read), 1);
    eq(h.read.result, 0);
    eq(byte, result ? source->bytes[9000] : 0x7e); /* the waiting request went to where the guest sits now */
    eq(info(h.job).result, result);
    if (result)
        has(info(h.job).message, "Job 'prepared': the prepare hook refused: ");

    mirror_device *now;
    ok(mirror_filter_device(h.filter, &now));
    eq(mirror_device_same(now, result ? source->device : target->device), 1);
    mirror_device_free(now);
    ok(mirror_job_free(h.job));
    eq(h.closed, 1);
    mirror_filter_free(h.filter);
    disk_free(source), disk_free(target);
}

static void not_called(void) {
    disk *source = disk_new(LENGTH, INLINE, 3), *target = disk_new(LENGTH, INLINE, 0);
    host h = {.answer = 0};
    mirror_job_options o = options();
    o.prepare = prepare, o.opaque = &h;
    ok(mirror_filter_new(source->device, &h.filter));
    ok(mirror_job_new(h.filter, target->device, &o, &h.job));
    ok(mirror_job_start(h.job));
    drive(h.job, MIRROR_STATUS_READY);
    ok(mirror_job_cancel(h.job, false));
    drive(h.job, MIRROR_STATUS_NULL);
    eq(info(h.job).result, 0);
    eq(h.calls, 0);
    ok(mirror_job_free(h.job));
    mirror_filter_free(h.filter);
    disk_free(source), disk_free(target);
}

int main(void) {
    finish(0, 0, MIRROR_SYNC_FULL, MIRROR_BACKING_SOURCE_CHAIN);
    finish(0, 0, MIRROR_SYNC_NONE, MIRROR_BACKING_OPEN);
    finish(-EACCES, -EACCES, MIRROR_SYNC_FULL, MIRROR_BACKING_LEAVE);
    finish(-ENOSPC, -ENOSPC, MIRROR_SYNC_TOP, MIRROR_BACKING_OPEN);
    finish(17, -EIO, MIRROR_SYNC_FULL, MIRROR_BACKING_OPEN); /* which means nothing */
    not_called();
    return done();
}
