/* SPEC D-1, D-2, D-6, G-9: a guest asks what the disk holds, as an NBD server does for its client. */
#include "disk.h"

enum { LENGTH = 1024 * 1024, HOLE = 65536, DATA = MIRROR_EXTENT_DATA | MIRROR_EXTENT_ALLOCATED };

static int agains, asked;
static bool later;
static uint64_t last_token;

/* A hole, then data to the end of the disk, in two stretches that are alike. */
static int tell_extents(void *opaque, uint64_t token, uint64_t offset, uint64_t length) {
    disk *d = opaque;
    last_token = token;
    asked++;
    if (offset < HOLE)
        eq(ok(mirror_device_extent(d->device, token, HOLE - offset, MIRROR_EXTENT_ZERO)), 0);
    if (agains > 0)
        return agains--, MIRROR_AGAIN;
    if (mirror_device_extent(d->device, token, 4096, DATA) == 0)
        ok(mirror_device_extent(d->device, token, length, DATA));
    return later ? MIRROR_PENDING : MIRROR_DONE;
}

static disk *source_new(void) {
    mirror_device_ops ops = disk_ops();
    ops.extents = tell_extents;
    return disk_new_with(ops, (mirror_device_limits){.length = LENGTH}, INLINE, 1);
}

static mirror_extent found[4];
static size_t count;

/* Asks, and waits for nothing: the answer is there. */
static void ask(mirror_filter *filter, uint64_t offset, uint64_t length, size_t capacity) {
    outcome o = {0, 1};
    memset(found, 0xee, sizeof found);
    count = 99;
    ok(mirror_filter_extents(filter, offset, length, found, capacity, &count, tell, &o));
    eq(told(&o), 1);
    eq(o.result, 0);
}

#define is(index, bytes, kind) (eq(found[index].length, bytes), eq(found[index].flags, kind), eq(found[index].reserved, 0))

static void answers(mirror_filter *filter) {
    ask(filter, 0, LENGTH, 4);
    eq(count, 2);
    is(0, HOLE, MIRROR_EXTENT_ZERO);
    is(1, LENGTH - HOLE, DATA);
    /* Room for one: the rest is asked for again. */
    ask(filter, 4096, LENGTH - 4096, 1);
    eq(count, 1);
    is(0, HOLE - 4096, MIRROR_EXTENT_ZERO);
    check(found[1].length == 0xeeeeeeeeeeeeeeee);
    ask(filter, HOLE, 512, 1);
    eq(count, 1);
    is(0, 512, DATA);
    ask(filter, 512, 0, 1);
    eq(count, 0);
}

/* What was told before AGAIN is told again, and counts once. */
static void no_room(mirror_filter *filter, disk *source) {
    outcome o = {0, 1};
    agains = 2;
    asked = 0;
    ok(mirror_filter_extents(filter, 0, LENGTH, found, 4, &count, tell, &o));
    while (!told(&o))
        ok(mirror_device_kick(source->device));
    eq(asked, 3);
    eq(o.result, 0);
    eq(count, 2);
    is(0, HOLE, MIRROR_EXTENT_ZERO);
    is(1, LENGTH - HOLE, DATA);
}

/* Told from elsewhere and completed later; what is told afterwards is refused. */
static void told_later(mirror_filter *filter, disk *source) {
    outcome o = {0, 1};
    later = true;
    count = 99;
    ok(mirror_filter_extents(filter, 0, LENGTH, found, 4, &count, tell, &o));
    later = false;
    eq(told(&o), 0);
    eq(count, 99);
    ok(mirror_device_complete(source->device, last_token, -EIO));
    eq(told(&o), 1);
    eq(o.result, -EIO);
    eq(count, 99);
    err(ENOENT, "no request with this token", mirror_device_extent(source->device, last_token, 512, DATA));
}

static void refusals(mirror_filter *filter) {
    outcome o = {0, 1};
    err(EINVAL, "extents is NULL", mirror_filter_extents(filter, 0, 512, NULL, 1, &count, tell, &o));
    err(EINVAL, "count is NULL", mirror_filter_extents(filter, 0, 512, found, 1, NULL, tell, &o));
    err(EINVAL, "capacity 0", mirror_filter_extents(filter, 0, 512, found, 0, &count, tell, &o));
    err(EINVAL, "done is NULL", mirror_filter_extents(filter, 0, 512, found, 1, &count, NULL, &o));
    err(EINVAL, "", mirror_filter_extents(NULL, 0, 512, found, 1, &count, tell, &o));
    err(ERANGE, "", mirror_filter_extents(filter, LENGTH, 512, found, 1, &count, tell, &o));
    eq(told(&o), 0);
}

/* While the gate is closed a question waits, and is answered by the new device: which tells nothing, so all is data. */
static void across_the_switch(mirror_filter *filter) {
    disk *target = disk_new(LENGTH, INLINE, 0);
    mirror_job *job;
    mirror_job_options o = options();
    o.flags &= ~MIRROR_JOB_AUTO_FINALIZE;
    ok(mirror_job_new(filter, target->device, &o, &job));
    ok(mirror_job_start(job));
    drive(job, MIRROR_STATUS_READY);
    ok(mirror_job_complete(job));
    drive(job, MIRROR_STATUS_PENDING);
    outcome waits = {0, 1};
    ok(mirror_filter_extents(filter, 0, LENGTH, found, 4, &count, tell, &waits));
    eq(told(&waits), 0);
    ok(mirror_job_finalize(job));
    drive(job, MIRROR_STATUS_NULL);
    eq(told(&waits), 1);
    eq(waits.result, 0);
    eq(count, 1);
    is(0, LENGTH, DATA);
    ok(mirror_job_free(job));
    mirror_filter_free(filter);
    disk_free(target);
}

int main(void) {
    disk *source = source_new();
    mirror_filter *filter;
    ok(mirror_filter_new(source->device, &filter));
    answers(filter);
    no_room(filter, source);
    told_later(filter, source);
    refusals(filter);
    across_the_switch(filter);
    disk_free(source);
    return done();
}
